//! Server-side apply: who owns which field.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};

use super::status::Refusal;

/// Lists whose items are found by a key of theirs; every other list is one value.
const LIST_KEYS: [(&str, &str); 5] = [
    ("conditions", "type"),
    ("nodeList", "name"),
    ("ownerReferences", "uid"),
    ("containers", "name"),
    ("addresses", "type"),
];

/// Metadata that belongs to the server.
const SYSTEM: [&str; 8] = [
    "name",
    "namespace",
    "uid",
    "creationTimestamp",
    "generation",
    "deletionTimestamp",
    "resourceVersion",
    "managedFields",
];

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    Field(String),
    Item { key: String, value: String },
}

type Path = Vec<Step>;

/// The fields of one object by their owners: a manager's name and whether it wrote the status.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Managers(BTreeMap<(String, bool), BTreeSet<Path>>);

impl Managers {
    /// Takes note of an update: what changed belongs to the updater, and what is gone to nobody.
    pub(super) fn updated(&mut self, manager: &str, status: bool, before: &Value, after: &Value) {
        let (old, new) = (leaves(before), leaves(after));
        for fields in self.0.values_mut() {
            fields.retain(|path| {
                new.get(path)
                    .is_some_and(|value| old.get(path) == Some(value))
            });
        }
        let changed = new
            .iter()
            .filter(|(path, value)| old.get(*path) != Some(value))
            .map(|(path, _)| path.clone());
        self.0
            .entry((manager.to_owned(), status))
            .or_default()
            .extend(changed);
        self.0.retain(|_, fields| !fields.is_empty());
    }

    /// The object after a manager said all that it wants: fields that it once wanted and no other
    /// owner has are removed.
    pub(super) fn apply(
        &mut self,
        manager: &str,
        status: bool,
        current: &Value,
        applied: &Value,
        force: bool,
    ) -> Result<Value, Refusal> {
        let own = (manager.to_owned(), status);
        let (present, wanted) = (leaves(current), leaves(&half(applied, status)));
        let disputed: Vec<(&(String, bool), &Path)> = self
            .0
            .iter()
            .filter(|(owner, _)| **owner != own)
            .flat_map(|(owner, fields)| fields.iter().map(move |path| (owner, path)))
            .filter(|(_, path)| {
                wanted
                    .get(*path)
                    .is_some_and(|value| present.get(*path) != Some(value))
            })
            .collect();
        if let (false, Some((owner, path))) = (force, disputed.first()) {
            let message = format!(
                "Apply failed with 1 conflict: conflict with \"{}\": {}",
                owner.0,
                shown(path)
            );
            return Err(Refusal::new(409, "Conflict", message));
        }
        let lost: BTreeSet<Path> = disputed.into_iter().map(|(_, path)| path.clone()).collect();
        for fields in self.0.values_mut() {
            fields.retain(|path| !lost.contains(path));
        }
        let former = self
            .0
            .insert(own.clone(), wanted.keys().cloned().collect())
            .unwrap_or_default();
        let others: BTreeSet<&Path> = self
            .0
            .iter()
            .filter(|(owner, _)| **owner != own)
            .flat_map(|(_, fields)| fields)
            .collect();
        let mut next = current.clone();
        let mut unwanted: Vec<&Path> = former
            .iter()
            .filter(|path| !wanted.contains_key(*path) && !others.contains(path))
            .collect();
        // An item is found by its key, which therefore goes last.
        unwanted.sort_by_key(|path| is_key(path));
        for path in unwanted {
            erase(&mut next, path);
        }
        for (path, value) in &wanted {
            write(&mut next, path, value);
        }
        Ok(next)
    }
}

/// The part of an applied object that counts: the status, or all but the status and what the server
/// owns.
fn half(applied: &Value, status: bool) -> Value {
    if status {
        return json!({"status": applied["status"]});
    }
    let mut object = applied.as_object().cloned().unwrap_or_default();
    for field in ["status", "apiVersion", "kind"] {
        object.remove(field);
    }
    Value::Object(object)
}

fn list_key(field: Option<&Step>) -> Option<&'static str> {
    let Some(Step::Field(field)) = field else {
        return None;
    };
    LIST_KEYS
        .iter()
        .find(|(list, _)| list == field)
        .map(|(_, key)| *key)
}

/// Every value of an object that can be owned.
fn leaves(object: &Value) -> BTreeMap<Path, Value> {
    let mut found = BTreeMap::new();
    collect(object, &mut Vec::new(), &mut found);
    found
}

fn collect(value: &Value, path: &mut Path, found: &mut BTreeMap<Path, Value>) {
    match value {
        Value::Null => {}
        Value::Object(fields) if !fields.is_empty() => {
            for (name, value) in fields {
                if matches!(path.as_slice(), [Step::Field(meta)] if meta == "metadata")
                    && SYSTEM.contains(&name.as_str())
                {
                    continue;
                }
                path.push(Step::Field(name.clone()));
                collect(value, path, found);
                path.pop();
            }
        }
        Value::Array(items) => match list_key(path.last()) {
            Some(key) if items.iter().all(|item| item[key].is_string()) => {
                for item in items {
                    path.push(Step::Item {
                        key: key.to_owned(),
                        value: item[key].as_str().unwrap_or_default().to_owned(),
                    });
                    collect(item, path, found);
                    path.pop();
                }
            }
            _ => drop(found.insert(path.clone(), value.clone())),
        },
        _ => drop(found.insert(path.clone(), value.clone())),
    }
}

/// The value below one step, made where it is missing.
fn descend<'a>(value: &'a mut Value, step: &Step) -> &'a mut Value {
    match step {
        Step::Field(name) => {
            if !value.is_object() {
                *value = Value::Object(Map::new());
            }
            &mut value[name]
        }
        Step::Item { key, value: wanted } => {
            if !value.is_array() {
                *value = Value::Array(Vec::new());
            }
            let Value::Array(items) = value else {
                unreachable!("it was made a list above")
            };
            let position = items
                .iter()
                .position(|item| item[key] == wanted.as_str())
                .unwrap_or(items.len());
            if position == items.len() {
                items.push(json!({key: wanted}));
            }
            &mut items[position]
        }
    }
}

fn write(object: &mut Value, path: &[Step], value: &Value) {
    let place = path.iter().fold(object, |place, step| descend(place, step));
    // An empty map claims its place, not what others put there.
    if !(place.is_object() && value.as_object().is_some_and(Map::is_empty)) {
        *place = value.clone();
    }
}

/// Removes a value, and what is empty without it.
fn erase(object: &mut Value, path: &[Step]) {
    let [step, rest @ ..] = path else { return };
    match (step, object) {
        (Step::Field(name), Value::Object(fields)) => {
            let Some(value) = fields.get_mut(name) else {
                return;
            };
            erase(value, rest);
            if rest.is_empty()
                || value.as_object().is_some_and(Map::is_empty)
                || value.as_array().is_some_and(Vec::is_empty)
            {
                fields.remove(name);
            }
        }
        (Step::Item { key, value: wanted }, Value::Array(items)) => {
            let Some(position) = items.iter().position(|item| item[key] == wanted.as_str()) else {
                return;
            };
            erase(&mut items[position], rest);
            if items[position].as_object().is_none_or(Map::is_empty) {
                items.remove(position);
            }
        }
        _ => {}
    }
}

fn is_key(path: &[Step]) -> bool {
    matches!(path, [.., Step::Item { key, .. }, Step::Field(field)] if field == key)
}

fn shown(path: &[Step]) -> String {
    path.iter()
        .map(|step| match step {
            Step::Field(name) => format!(".{name}"),
            Step::Item { key, value } => format!("[{key}={value:?}]"),
        })
        .collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_a_manager_no_longer_wants_goes_and_what_others_want_stays() {
        let mut managers = Managers::default();
        let condition = |kind: &str, status: &str| json!({"type": kind, "status": status});
        let first = json!({"status": {"phase": "Succeeded", "conditions": [condition("A", "True"), condition("B", "True")]}});
        let object = managers
            .apply("agent", true, &json!({}), &first, false)
            .unwrap();
        let object = managers
            .apply(
                "controller",
                true,
                &object,
                &json!({"status": {"conditions": [condition("C", "True")]}}),
                false,
            )
            .unwrap();
        let object = managers
            .apply(
                "agent",
                true,
                &object,
                &json!({"status": {"conditions": [condition("B", "False")]}}),
                false,
            )
            .unwrap();
        assert_eq!(
            object,
            json!({"status": {"conditions": [condition("B", "False"), condition("C", "True")]}})
        );
    }

    #[test]
    fn an_item_that_is_no_longer_wanted_goes_as_a_whole() {
        let mut managers = Managers::default();
        let list = |items: Value| json!({"status": {"nodeList": items}});
        let both = list(
            json!([{"active": true, "name": "a", "status": "Ready"}, {"name": "b", "status": "Ready"}]),
        );
        let object = managers
            .apply("controller", true, &json!({}), &both, false)
            .unwrap();
        let one = list(json!([{"name": "b", "status": "Ready"}]));
        assert_eq!(
            managers
                .apply("controller", true, &object, &one, false)
                .unwrap(),
            one
        );
    }

    #[test]
    fn a_field_of_another_manager_is_taken_by_force_only() {
        let mut managers = Managers::default();
        let object = managers
            .apply(
                "one",
                false,
                &json!({}),
                &json!({"spec": {"a": 1, "b": 1}}),
                false,
            )
            .unwrap();
        let wanted = json!({"spec": {"a": 2}});
        assert_eq!(
            managers
                .apply("two", false, &object, &wanted, false)
                .unwrap_err()
                .code,
            409
        );
        let object = managers
            .apply("two", false, &object, &wanted, true)
            .unwrap();
        let object = managers
            .apply("one", false, &object, &json!({"spec": {}}), false)
            .unwrap();
        assert_eq!(object, json!({"spec": {"a": 2}}), "b was one's alone");
    }

    #[test]
    fn an_update_takes_what_it_changes() {
        let mut managers = Managers::default();
        let before = managers
            .apply(
                "one",
                false,
                &json!({}),
                &json!({"spec": {"a": 1, "b": 1}}),
                false,
            )
            .unwrap();
        let after = json!({"spec": {"a": 2, "b": 1}});
        managers.updated("editor", false, &before, &after);
        let object = managers
            .apply("one", false, &after, &json!({"spec": {}}), false)
            .unwrap();
        assert_eq!(object, json!({"spec": {"a": 2}}), "a is the editor's now");
    }
}
