//! What every object has: a name, versions, and what keeps it from being removed.

use serde_json::{Map, Value};

use super::{status::Refusal, write::Write};

/// An object after a write to one of its two halves: the other half stays, and so does what nobody
/// may change.
pub(super) fn merged(write: &Write, current: &Value, wanted: Value) -> Value {
    let fixed = [
        "name",
        "namespace",
        "uid",
        "creationTimestamp",
        "generation",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "resourceVersion",
    ];
    if write.status {
        let mut next = current.clone();
        set(&mut next, "status", &wanted["status"]);
        return next;
    }
    let mut next = wanted;
    for field in fixed {
        set(&mut next["metadata"], field, &current["metadata"][field]);
    }
    for field in ["apiVersion", "kind"] {
        set(&mut next, field, &current[field]);
    }
    if write.resource.has_status {
        set(&mut next, "status", &current["status"]);
    }
    next
}

pub(super) fn set(object: &mut Value, field: &str, value: &Value) {
    if value.is_null() {
        remove(object, field);
    } else {
        object[field] = value.clone();
    }
}

pub(super) fn remove(object: &mut Value, field: &str) {
    object
        .as_object_mut()
        .and_then(|object| object.remove(field));
}

/// What the generation counts.
pub(super) fn content(object: &Value) -> Map<String, Value> {
    let mut object = object.as_object().cloned().unwrap_or_default();
    object.remove("metadata");
    object.remove("status");
    object
}

pub(super) fn waits_for_nobody(object: &Value) -> bool {
    let meta = &object["metadata"];
    !meta["deletionTimestamp"].is_null() && meta["finalizers"].as_array().is_none_or(Vec::is_empty)
}

pub(super) fn check_name(name: &str) -> Result<(), Refusal> {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let valid = name.len() <= 253
        && name
            .bytes()
            .all(|byte| inner(byte) || byte == b'-' || byte == b'.')
        && name.bytes().next().is_some_and(inner)
        && name.bytes().next_back().is_some_and(inner);
    if valid {
        return Ok(());
    }
    let message = format!(
        "metadata.name: Invalid value: {name:?}: a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.'"
    );
    Err(Refusal::new(422, "Invalid", message))
}

/// The time as objects hold it.
pub(super) fn now() -> String {
    k8s_openapi::jiff::Timestamp::now()
        .strftime("%Y-%m-%dT%H:%M:%SZ")
        .to_string()
}
