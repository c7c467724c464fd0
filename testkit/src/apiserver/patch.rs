//! The four kinds of patch.

use serde_json::{Map, Value};

use super::{resource::Resource, status::Refusal, yaml};

/// Lists of built-in kinds that a strategic merge patch merges by a key.
const MERGED: [(&str, &str); 3] = [
    ("conditions", "type"),
    ("addresses", "type"),
    ("containers", "name"),
];

/// How a body says a change.
#[derive(Clone, Debug)]
pub(super) enum Patch {
    Merge(Value),
    Strategic(Value),
    Json(json_patch::Patch),
    Apply(Value),
}

impl Patch {
    /// Reads a body by its content type.
    pub(super) fn parse(
        content_type: &str,
        body: &[u8],
        resource: &Resource,
    ) -> Result<Self, Refusal> {
        let bad = |error: String| {
            Refusal::new(400, "BadRequest", format!("error decoding patch: {error}"))
        };
        let json = || serde_json::from_slice(body).map_err(|error| bad(error.to_string()));
        match content_type.split(';').next().unwrap_or_default().trim() {
            "application/merge-patch+json" => json().map(Self::Merge),
            "application/strategic-merge-patch+json" if resource.built_in() => {
                json().map(Self::Strategic)
            }
            "application/json-patch+json" => serde_json::from_slice(body)
                .map(Self::Json)
                .map_err(|error| bad(error.to_string())),
            "application/apply-patch+yaml" => yaml::one(body)
                .map(Self::Apply)
                .map_err(|error| bad(error.to_string())),
            other => Err(Refusal::new(
                415,
                "UnsupportedMediaType",
                format!("the body of the request was in an unknown format: {other:?}"),
            )),
        }
    }

    /// The object after the patch; server-side apply needs to know owners and is done elsewhere.
    pub(super) fn change(&self, object: &Value) -> Result<Value, Refusal> {
        let mut object = object.clone();
        match self {
            Self::Merge(patch) | Self::Apply(patch) => json_patch::merge(&mut object, patch),
            Self::Strategic(patch) => strategic(&mut object, patch),
            Self::Json(patch) => {
                json_patch::patch(&mut object, patch).map_err(|error| {
                    Refusal::new(422, "Invalid", format!("the patch does not fit: {error}"))
                })?;
            }
        }
        Ok(object)
    }
}

fn strategic(object: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *object = patch.clone();
        return;
    };
    if !object.is_object() {
        *object = Value::Object(Map::new());
    }
    for (field, value) in patch {
        let key = MERGED
            .iter()
            .find(|(list, _)| list == field)
            .map(|(_, key)| *key);
        match (key, value) {
            (_, Value::Null) => drop(
                object
                    .as_object_mut()
                    .and_then(|object| object.remove(field)),
            ),
            (Some(key), Value::Array(items)) => merge_items(&mut object[field], key, items),
            _ => strategic(&mut object[field], value),
        }
    }
}

fn merge_items(list: &mut Value, key: &str, items: &[Value]) {
    if !list.is_array() {
        *list = Value::Array(Vec::new());
    }
    for item in items {
        match list
            .as_array_mut()
            .and_then(|list| list.iter_mut().find(|own| own[key] == item[key]))
        {
            Some(own) => strategic(own, item),
            None => list
                .as_array_mut()
                .into_iter()
                .for_each(|list| list.push(item.clone())),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_strategic_patch_changes_one_condition() {
        let mut object = json!({"status": {"conditions": [{"type": "Ready", "status": "True"}, {"type": "Full", "status": "False"}]}});
        strategic(
            &mut object,
            &json!({"metadata": {"labels": {"a": "b"}}, "status": {"conditions": [{"type": "Ready", "status": "False"}]}}),
        );
        let conditions =
            json!([{"type": "Ready", "status": "False"}, {"type": "Full", "status": "False"}]);
        assert_eq!(
            object,
            json!({"metadata": {"labels": {"a": "b"}}, "status": {"conditions": conditions}})
        );
    }
}
