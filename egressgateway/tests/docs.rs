//! Documentation that says what the code says.

#![allow(clippy::unwrap_used)]

use std::{collections::BTreeSet, fmt::Write, fs, path::PathBuf};

use egressgateway::config::Config;
use egressgateway_testkit::golden;
use serde_json::Value;

const CONFIGURATION: &str = "# Configuration

One YAML file for both daemons (`--config`), and each of its fields also a flag and an environment variable. A flag goes
before its variable, that before the file, that before the default. Unknown fields and bad values are refused at start,
all at once, each with its field, value and rule.

This is the whole file, with every default:

```yaml
{defaults}```

| field | flag | variable | meaning | changes |
|---|---|---|---|---|
{fields}
Both daemons read the file every 5 seconds, and take another content once two reads a second apart agree. Fields that
change *at once* are taken over without a restart, and each is logged with its old and its new value; the others keep
the value that they had at the start, and are logged and counted (`config_fields_waiting`) until the daemon starts
again: they say which objects the kernel holds and how they are found again. A file that is refused changes nothing, is
logged, and is counted. A flag or a variable goes before the file here too. The chart restarts the pods for fields that
change at start only. Flags and variables are read at start.

`tunnel.ipv4CIDR` and `tunnel.ipv6CIDR` may lie anywhere where nodes don't have addresses themselves; [nothing is taken
from the host](datapath.md#the-tunnels-addresses), whatever they are.

What `failover.*` means is said in [failover.md](failover.md). The agent has the tunnels `vxlan` and `geneve`, the
policy backends `nftables` and `netfilter`, and the reply path `cni`; it refuses to start with others. With
`policyBackend: auto` it takes nftables where the kernel and `nft` have what is needed, else netfilter; which one and
why is in its log and in the condition `PolicyProgrammed` of the EgressNode. What another backend had programmed goes
once the present one is in force. Numbers and masks must be the same on all nodes. `egressctl plan --config` shows what
another value would change.
";

fn hold(name: &str, text: &str) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../docs")
        .join(name);
    golden::check(path, text);
}

#[test]
fn the_configuration_is_documented_field_by_field() {
    let defaults = serde_yaml::to_string(&Config::default()).unwrap();
    assert_eq!(Config::parse(&defaults).unwrap(), Config::default());
    let mut fields = String::new();
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
    hold(
        "configuration.md",
        &CONFIGURATION
            .replace("{defaults}", &defaults)
            .replace("{fields}", &fields),
    );
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
