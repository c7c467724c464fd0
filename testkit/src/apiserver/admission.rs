//! What an API server does to an object of a defined kind before it stores it: defaults, pruning,
//! the schema and its CEL rules.

use std::sync::LazyLock;

use egressgateway::api;
use jsonschema::{Draft, Validator};
use kube::core::cel;
use serde_json::{Map, Value};

use super::{resource::Resource, status::Refusal};

/// The schema of one kind.
struct Schema {
    kind: String,
    text: Value,
    structure: Validator,
}

/// Schemas of the project's own kinds.
static SCHEMAS: LazyLock<Vec<Schema>> = LazyLock::new(|| {
    let schema = |definition: &k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition| {
        let versions = serde_json::to_value(&definition.spec.versions).expect("a definition is JSON");
        let text = versions[0]["schema"]["openAPIV3Schema"].clone();
        let structure = jsonschema::options().with_draft(Draft::Draft4).build(&text).expect("a schema of the project");
        Schema { kind: definition.spec.names.kind.clone(), text, structure }
    };
    api::crds().iter().map(schema).collect()
});

/// The object as it is stored, or why it is not.
///
/// # Errors
/// 422 with the path, the value and the rule of everything that is wrong.
pub(super) fn admit(resource: &Resource, mut object: Value) -> Result<Value, Refusal> {
    let kind = object["kind"].as_str().unwrap_or(&resource.kind);
    if kind != resource.kind {
        return Err(Refusal::new(
            400,
            "BadRequest",
            format!(
                "{kind} in the body does not match the expected kind {}",
                resource.kind
            ),
        ));
    }
    let Some(schema) = SCHEMAS
        .iter()
        .find(|schema| schema.kind == resource.kind && !resource.built_in())
    else {
        return Ok(object);
    };
    complete(&schema.text, &mut object, true);
    let structure = schema
        .structure
        .iter_errors(&object)
        .map(|error| format!("{}: Invalid value: {error}", error.instance_path()));
    let mut problems: Vec<String> = structure.collect();
    if problems.is_empty() {
        let rules = cel::Validator::new()
            .validate(&schema.text, &object, None)
            .err()
            .into_iter()
            .flatten();
        problems = rules.map(|error| error.to_string()).collect();
    }
    if problems.is_empty() {
        return Ok(object);
    }
    let name = object["metadata"]["name"].as_str().unwrap_or_default();
    Err(Refusal::new(
        422,
        "Invalid",
        format!(
            "{} \"{name}\" is invalid: {}",
            resource.kind,
            problems.join(", ")
        ),
    ))
}

/// Drops null and unknown fields and fills in defaults.
fn complete(schema: &Value, value: &mut Value, top: bool) {
    match value {
        Value::Object(fields) => {
            let Some(properties) = schema["properties"].as_object() else {
                let items = &schema["additionalProperties"];
                if items.is_object() {
                    fields
                        .values_mut()
                        .for_each(|field| complete(items, field, false));
                }
                return;
            };
            prune(fields, properties, top);
            for (name, property) in properties {
                if !fields.contains_key(name) && !property["default"].is_null() {
                    fields.insert(name.clone(), property["default"].clone());
                }
                if let Some(field) = fields
                    .get_mut(name)
                    .filter(|_| !(top && name == "metadata"))
                {
                    complete(property, field, false);
                }
            }
        }
        Value::Array(items) => items
            .iter_mut()
            .for_each(|item| complete(&schema["items"], item, false)),
        _ => {}
    }
}

fn prune(fields: &mut Map<String, Value>, properties: &Map<String, Value>, top: bool) {
    let system = |name: &str| top && ["apiVersion", "kind", "metadata"].contains(&name);
    fields.retain(|name, value| {
        let nullable = properties
            .get(name)
            .is_some_and(|property| property["nullable"] == true);
        system(name) || properties.contains_key(name) && (nullable || !value.is_null())
    });
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use kube::{CustomResourceExt, Resource as _};
    use serde_json::json;

    use super::*;

    fn gateways() -> Resource {
        super::super::resource::Resources::default()
            .find(
                &api::EgressGateway::group(&()),
                &api::EgressGateway::crd().spec.names.plural,
            )
            .unwrap()
    }

    #[test]
    fn what_the_schema_does_not_know_is_dropped_and_what_it_forbids_is_refused() {
        let spec = json!({"nodeSelector": {"matchLabels": {"a": "b"}}});
        let mut wrong =
            json!({"kind": "EgressGateway", "metadata": {"name": "x"}, "spec": spec, "unknown": 1});
        let stored = admit(&gateways(), wrong.clone()).unwrap();
        assert!(stored.get("unknown").is_none());
        wrong["spec"]["nodeSelector"]["matchLabels"]["a"] = json!(5);
        let refusal = admit(&gateways(), wrong).unwrap_err();
        assert_eq!(refusal.code, 422);
        assert!(
            refusal.message.contains("matchLabels"),
            "{}",
            refusal.message
        );
    }
}
