//! Documentation that says what the code says.

#![allow(clippy::unwrap_used)]

use std::{collections::BTreeSet, fmt::Write, fs, path::PathBuf};

use egressgateway::config::Config;
use egressgateway_testkit::golden;
use serde_json::Value;

/// Holds the part of a document between `<!-- begin NAME -->` and `<!-- end NAME -->`.
fn hold(document: &str, name: &str, part: &str) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../docs")
        .join(document);
    let written = fs::read_to_string(&path).unwrap();
    let (begin, end) = (
        format!("<!-- begin {name} -->\n"),
        format!("<!-- end {name} -->\n"),
    );
    let (before, rest) = written.split_once(&begin).unwrap();
    let (_, after) = rest.split_once(&end).unwrap();
    golden::check(path, &format!("{before}{begin}{part}{end}{after}"));
}

#[test]
fn the_configuration_is_documented_field_by_field() {
    let defaults = serde_saphyr::to_string(&Config::default()).unwrap();
    assert_eq!(Config::parse(&defaults).unwrap(), Config::default());
    hold(
        "configuration.md",
        "defaults",
        &format!("\n```yaml\n{defaults}```\n\n"),
    );
    let mut fields =
        "\n| field | flag | variable | meaning | changes |\n|---|---|---|---|---|\n".to_owned();
    for field in Config::FIELDS {
        assert_ne!(
            Config::default().value(field.path),
            None::<Value>,
            "{} has no value",
            field.path
        );
        let changes = if field.live { "at once" } else { "at start" };
        writeln!(
            fields,
            "| `{}` | `--{}` | `{}` | {} | {changes} |",
            field.path, field.flag, field.env, field.help
        )
        .unwrap();
    }
    hold("configuration.md", "fields", &format!("{fields}\n"));
}

#[test]
fn the_chart_restarts_pods_for_fields_that_change_at_start_only() {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../charts/egressgateway/templates/_helpers.tpl");
    let text = fs::read_to_string(path).unwrap();
    let template = text
        .lines()
        .find(|line| line.contains("$fixed := omit"))
        .unwrap();
    let omitted: BTreeSet<&str> = template.split('"').skip(1).step_by(2).collect();
    // Of clusterCIDRs one field is of each kind: the template adds the other one again.
    let live = Config::FIELDS
        .iter()
        .filter(|field| field.live)
        .map(|field| field.path.split('.').next().unwrap());
    assert_eq!(omitted, live.collect());
    for field in Config::FIELDS.iter().filter(|field| !field.live) {
        let section = field.path.split('.').next().unwrap();
        assert!(
            !omitted.contains(section) || field.path == "clusterCIDRs.auto",
            "{} is left out",
            field.path
        );
    }
}
