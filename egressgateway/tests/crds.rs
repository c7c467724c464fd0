//! The chart's CustomResourceDefinitions are those of the types.

#![allow(clippy::unwrap_used)]

use std::path::Path;

use egressgateway::api::crds;
use egressgateway_testkit::golden;
use serde_json::Value;

const HEADER: &str = "# Generated from the types in egressgateway/src/api: change those, then run UPDATE=1 cargo test -p egressgateway --test crds\n";

#[test]
fn the_chart_holds_what_the_types_say() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../charts/egressgateway/crds");
    for crd in crds() {
        let file = folder.join(format!("{}.yaml", crd.spec.names.plural));
        let text = format!("{HEADER}{}", serde_saphyr::to_string(&crd).unwrap());
        golden::check(file, &text);
    }
}

#[test]
fn names_scope_status_and_columns_are_those_of_the_documentation() {
    let crds = crds();
    let short: Vec<_> = crds
        .iter()
        .map(|crd| crd.spec.names.short_names.clone().unwrap().join(","))
        .collect();
    assert_eq!(short, ["egw", "egn", "egp"]);
    for crd in &crds {
        let version = &crd.spec.versions[0];
        assert_eq!(
            (
                crd.spec.group.as_str(),
                crd.spec.scope.as_str(),
                version.name.as_str()
            ),
            ("egressgateway.spidernet.io", "Cluster", "v1")
        );
        assert!(version.subresources.as_ref().unwrap().status.is_some());
        assert!(version.additional_printer_columns.as_ref().unwrap().len() >= 4);
    }
}

#[test]
fn marks_above_two_to_the_31_fit() {
    let gateway = serde_json::to_value(&crds()[0]).unwrap();
    let status = "/spec/versions/0/schema/openAPIV3Schema/properties/status/properties";
    for path in ["mark", "nodeList/items/properties/mark"] {
        let mark = gateway.pointer(&format!("{status}/{path}")).unwrap();
        assert_eq!(
            (
                mark["type"].as_str(),
                mark["format"].as_str(),
                mark["maximum"].as_f64()
            ),
            (Some("integer"), Some("int64"), Some(f64::from(u32::MAX)))
        );
    }
}

#[test]
fn whatever_a_rule_looks_at_has_an_upper_bound() {
    for crd in crds() {
        let schema = serde_json::to_value(&crd.spec.versions[0].schema).unwrap();
        bounded(&schema["openAPIV3Schema"]["properties"]["spec"], "spec");
    }
}

fn bounded(schema: &Value, path: &str) {
    let bound = match schema["type"].as_str() {
        Some("string") if schema.get("enum").is_none() => "maxLength",
        Some("array") => "maxItems",
        Some("object") if schema.get("additionalProperties").is_some() => "maxProperties",
        _ => "type",
    };
    assert!(
        schema.get(bound).is_some(),
        "{path} has no {bound}: {schema}"
    );
    for (name, property) in schema["properties"].as_object().into_iter().flatten() {
        bounded(property, &format!("{path}.{name}"));
    }
    for below in ["items", "additionalProperties"] {
        schema
            .get(below)
            .into_iter()
            .for_each(|schema| bounded(schema, &format!("{path}.{below}")));
    }
}
