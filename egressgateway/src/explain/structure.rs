//! What an API server says about the form of an object before it looks at what it means: types,
//! required and unknown fields, and bounds, by the kind's own definition; names and labels by the
//! rules that hold for all objects.

use std::{collections::BTreeMap, sync::LazyLock};

use serde_json::{Map, Value};

use crate::{api, spec::Problem};

/// Schemas of the three custom resources by kind.
static SCHEMAS: LazyLock<BTreeMap<String, Value>> = LazyLock::new(|| {
    let schema = |crd: k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition| {
        let versions = serde_json::to_value(&crd.spec.versions).unwrap_or_default();
        (crd.spec.names.kind, versions[0]["schema"]["openAPIV3Schema"].clone())
    };
    api::crds().into_iter().map(schema).collect()
});

/// Fields that every object has, whatever its schema says.
const COMMON: [&str; 3] = ["apiVersion", "kind", "metadata"];
/// Longest part of a name or a label that has no dots as separators.
const MAX_LABEL: usize = 63;
/// Longest name of an object, and longest prefix of a label's key.
const MAX_NAME: usize = 253;

/// What is wrong with the form of an object of one of the custom resources.
pub(super) fn of_custom_resource(kind: &str, object: &Value) -> Vec<Problem> {
    let mut problems = Vec::new();
    if let Some(schema) = SCHEMAS.get(kind) {
        check("", schema, object, &mut problems);
    }
    problems
}

fn check(path: &str, schema: &Value, value: &Value, problems: &mut Vec<Problem>) {
    let mut refuse = |rule: String| {
        let found = match value {
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        problems.push(Problem::new(
            if path.is_empty() { "(object)" } else { path },
            found,
            rule,
        ));
    };
    let bound = |name: &str| {
        schema[name]
            .as_u64()
            .and_then(|bound| usize::try_from(bound).ok())
    };
    let most = |name: &str| bound(name).unwrap_or(usize::MAX);
    match (schema["type"].as_str().unwrap_or_default(), value) {
        ("object", Value::Object(fields)) => {
            if fields.len() > most("maxProperties") {
                refuse(format!(
                    "must have at most {} entries",
                    most("maxProperties")
                ));
            }
            check_fields(path, schema, fields, problems);
        }
        ("array", Value::Array(items)) => {
            if items.len() > most("maxItems") {
                refuse(format!("must have at most {} entries", most("maxItems")));
            }
            for (index, item) in items.iter().enumerate() {
                check(
                    &format!("{path}[{index}]"),
                    &schema["items"],
                    item,
                    problems,
                );
            }
        }
        ("string", Value::String(text)) => {
            let length = text.chars().count();
            let choices: Vec<&str> = schema["enum"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(Value::as_str)
                .collect();
            if !choices.is_empty() && !choices.contains(&text.as_str()) {
                let (other, rest) = choices.split_last().unwrap_or((&"", &[]));
                refuse(if rest.is_empty() {
                    format!("must be {other}")
                } else {
                    format!("must be {} or {other}", rest.join(", "))
                });
            } else if length > most("maxLength") {
                refuse(format!(
                    "must have at most {} characters",
                    most("maxLength")
                ));
            } else if text.is_empty() && bound("minLength").is_some_and(|least| least > 0) {
                refuse("must not be empty".to_owned());
            }
        }
        ("integer", Value::Number(number)) => match number.as_f64() {
            Some(found) if found.fract() == 0.0 => {
                let outside = |name: &str, beyond: fn(&f64, &f64) -> bool| {
                    schema[name].as_f64().filter(|bound| beyond(&found, bound))
                };
                if let Some(bound) = outside("minimum", f64::lt) {
                    refuse(format!("must be at least {bound}"));
                } else if let Some(bound) = outside("maximum", f64::gt) {
                    refuse(format!("must be at most {bound}"));
                }
            }
            _ => refuse("must be a whole number".to_owned()),
        },
        ("boolean", Value::Bool(_)) => {}
        (kind @ ("object" | "array" | "string" | "integer" | "boolean"), other) => {
            refuse(mismatch(kind, other));
        }
        _ => {}
    }
}

/// The fields of an object; null is as good as absent.
fn check_fields(
    path: &str,
    schema: &Value,
    fields: &Map<String, Value>,
    problems: &mut Vec<Problem>,
) {
    let below = |name: &str| {
        if path.is_empty() {
            name.to_owned()
        } else {
            format!("{path}.{name}")
        }
    };
    for name in schema["required"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
    {
        if fields.get(name).is_none_or(Value::is_null) {
            problems.push(Problem::new(below(name), "", "must be given"));
        }
    }
    for (name, value) in fields
        .iter()
        .filter(|(name, _)| !(path.is_empty() && COMMON.contains(&name.as_str())))
    {
        let of_status = path == "status" || path.starts_with("status.");
        match (
            schema["properties"].get(name),
            &schema["additionalProperties"],
        ) {
            (Some(_), _) if value.is_null() => {}
            (Some(property), _) => check(&below(name), property, value, problems),
            (None, every @ Value::Object(_)) => check(&below(name), every, value, problems),
            // What the cluster writes may be of a later version.
            _ if of_status => {}
            _ => problems.push(Problem::new(
                below(name),
                value_text(value),
                "must be a field that the kind has",
            )),
        }
    }
}

fn value_text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Number(_) | Value::Bool(_) => value.to_string(),
        _ => String::new(),
    }
}

const fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

fn mismatch(wanted: &str, found: &Value) -> String {
    let quotes = if wanted == "string" && (found.is_boolean() || found.is_number()) {
        ": write it in quotes"
    } else {
        ""
    };
    format!(
        "must be {}, and is {}{quotes}",
        named(wanted),
        named(kind_of(found))
    )
}

fn named(kind: &str) -> &str {
    match kind {
        "null" => "nothing",
        "boolean" => "true or false",
        "integer" => "a whole number",
        "number" => "a number",
        "string" => "text",
        "array" => "a list",
        _ => "an object with fields",
    }
}

/// What is wrong with an object's name and labels.
pub(super) fn of_metadata(kind: &str, object: &Value) -> Vec<Problem> {
    let metadata = &object["metadata"];
    let mut problems = Vec::new();
    let name = metadata["name"].as_str().unwrap_or_default();
    let fits = if kind == "Namespace" {
        is_dns_label(name)
    } else {
        is_dns_subdomain(name)
    };
    if !name.is_empty() && !fits {
        let rule = "must be small letters, digits, '-' and '.', and begin and end with a letter or a digit";
        problems.push(Problem::new("metadata.name", name, rule));
    }
    for field in ["labels", "annotations"] {
        for (key, value) in metadata[field].as_object().into_iter().flatten() {
            let path = format!("metadata.{field}.{key}");
            if !is_label_key(key) {
                problems.push(Problem::new(
                    path,
                    key,
                    "must be a name of at most 63 characters, with a DNS name and '/' before it or none",
                ));
                continue;
            }
            match value {
                Value::Null => {}
                Value::String(text) if field == "annotations" || text.is_empty() || is_qualified_name(text) => {}
                Value::String(text) => problems.push(Problem::new(
                    path,
                    text,
                    "must have at most 63 letters, digits, '-', '_' and '.', and begin and end with a letter or a digit",
                )),
                other => problems.push(Problem::new(path, value_text(other), mismatch("string", other))),
            }
        }
    }
    problems
}

fn is_label_key(key: &str) -> bool {
    match key.split_once('/') {
        Some((prefix, name)) => is_dns_subdomain(prefix) && is_qualified_name(name),
        None => is_qualified_name(key),
    }
}

/// Whether text consists of these characters, and begins and ends with a letter or a digit.
fn consists(
    text: &str,
    most: usize,
    inside: impl Fn(u8) -> bool,
    alphanumeric: impl Fn(u8) -> bool,
) -> bool {
    let bytes = text.as_bytes();
    bytes.len() <= most
        && bytes.first().is_some_and(|first| alphanumeric(*first))
        && bytes.last().is_some_and(|last| alphanumeric(*last))
        && bytes
            .iter()
            .all(|byte| alphanumeric(*byte) || inside(*byte))
}

fn is_qualified_name(text: &str) -> bool {
    consists(
        text,
        MAX_LABEL,
        |byte| b"-_.".contains(&byte),
        |byte| byte.is_ascii_alphanumeric(),
    )
}

fn is_dns_label(text: &str) -> bool {
    consists(
        text,
        MAX_LABEL,
        |byte| byte == b'-',
        |byte| byte.is_ascii_lowercase() || byte.is_ascii_digit(),
    )
}

fn is_dns_subdomain(text: &str) -> bool {
    let small = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    text.len() <= MAX_NAME
        && text
            .split('.')
            .all(|part| consists(part, MAX_NAME, |byte| byte == b'-', small))
}
