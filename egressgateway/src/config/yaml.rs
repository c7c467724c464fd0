//! A configuration file, field by field, so that every problem is told and each with its line.

use std::fmt;

use serde::de::{self, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_yaml::Value;

use super::Config;
use crate::spec::Problem;

/// What problems call a field at the top whose name is empty.
const NO_NAME: &str = "\"\"";

/// Sets what the file mentions; tells everything that is wrong with it.
pub(super) fn apply(config: &mut Config, yaml: &str) -> Vec<Problem> {
    let value = match serde_yaml::from_str::<Value>(yaml) {
        Ok(value) => value,
        Err(error) => return vec![Problem::new("(file)", "", format!("must be YAML: {error}"))],
    };
    let mut problems = apply_value(config, &value);
    for problem in &mut problems {
        if let Some(line) = line_of(yaml, &problem.field) {
            problem.rule = format!("{} (line {line})", problem.rule);
        }
    }
    problems
}

/// The same for a file that was read already, without lines.
pub(super) fn apply_value(config: &mut Config, value: &Value) -> Vec<Problem> {
    let mut problems = Vec::new();
    match value {
        // An empty file, or one of comments only.
        Value::Null => {}
        Value::Mapping(_) => visit(config, "", value, &mut problems),
        other => problems.push(Problem::new(
            "(file)",
            text(other),
            "must be a mapping of fields",
        )),
    }
    problems
}

fn visit(config: &mut Config, path: &str, value: &Value, problems: &mut Vec<Problem>) {
    if Config::FIELDS.iter().any(|field| field.path == path) {
        return leaf(config, path, value, problems);
    }
    let section = format!("{path}.");
    let known = path.is_empty()
        || Config::FIELDS
            .iter()
            .any(|field| field.path.starts_with(&section));
    match value {
        _ if !known => problems.push(Problem::new(
            path,
            text(value),
            format!("is not a field of the configuration; {}", siblings(path)),
        )),
        Value::Null => {}
        Value::Mapping(mapping) => {
            for (key, value) in mapping {
                let key = text(key);
                let path = match (path, key.as_str()) {
                    // No path at all is the whole file.
                    ("", "") => NO_NAME.to_owned(),
                    ("", _) => key,
                    _ => format!("{path}.{key}"),
                };
                visit(config, &path, value, problems);
            }
        }
        other => problems.push(Problem::new(
            path,
            text(other),
            "must be a mapping of fields",
        )),
    }
}

fn leaf(config: &mut Config, path: &str, value: &Value, problems: &mut Vec<Problem>) {
    let is_list = Config::access(path).is_some_and(|access| (access.is_list)());
    let result = match value {
        Value::Sequence(entries) if is_list => {
            let before = problems.len();
            for (index, entry) in entries.iter().enumerate() {
                let mut one = config.clone();
                let field = format!("{path}[{index}]");
                match entry {
                    Value::String(entry) if !entry.contains(',') && !entry.trim().is_empty() => {
                        problems.extend(
                            one.set(path, entry, path)
                                .map_err(|problem| Problem { field, ..problem })
                                .err(),
                        );
                    }
                    other => problems.push(Problem::new(
                        field,
                        text(other),
                        "must be a CIDR, such as 10.6.1.0/24 or fd00:6::/64",
                    )),
                }
            }
            if problems.len() > before {
                return;
            }
            config.set(
                path,
                &entries.iter().map(text).collect::<Vec<_>>().join(","),
                path,
            )
        }
        Value::Mapping(_) | Value::Sequence(_) | Value::Tagged(_) => {
            Err(Problem::new(path, text(value), "must be a single value"))
        }
        _ if is_list => Err(Problem::new(path, text(value), "must be a list of CIDRs")),
        // Written without a value: the default.
        Value::Null => Ok(()),
        scalar => config.set(path, &text(scalar), path),
    };
    problems.extend(result.err());
}

fn siblings(path: &str) -> String {
    let section = path
        .rsplit_once('.')
        .map(|(section, _)| format!("{section}."))
        .unwrap_or_default();
    let mut names: Vec<&str> = Config::FIELDS
        .iter()
        .filter_map(|field| field.path.strip_prefix(&section)?.split('.').next())
        .collect();
    names.dedup();
    if names.is_empty() {
        "it has no fields below".to_owned()
    } else {
        format!("fields here are {}", names.join(", "))
    }
}

fn text(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => serde_yaml::to_string(other)
            .unwrap_or_default()
            .trim_end()
            .to_owned(),
    }
}

/// The line of a field: the file is read again up to it, and the error that stops there tells the
/// line.
fn line_of(yaml: &str, field: &str) -> Option<usize> {
    let steps: Vec<&str> = if field == NO_NAME { "" } else { field }
        .split(['.', '['])
        .map(|step| step.trim_end_matches(']'))
        .collect();
    let error = Locate(&steps)
        .deserialize(serde_yaml::Deserializer::from_str(yaml))
        .err()?;
    error.location().map(|location| location.line())
}

struct Locate<'a>(&'a [&'a str]);

impl<'de> DeserializeSeed<'de> for Locate<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Locate<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the field")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let Some((step, rest)) = self.0.split_first() else {
            return Err(de::Error::custom("here"));
        };
        while let Some(found) = map.next_key_seed(Key {
            step,
            last: rest.is_empty(),
        })? {
            if found {
                return map.next_value_seed(Locate(rest));
            }
            map.next_value::<IgnoredAny>()?;
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        let index = self
            .0
            .first()
            .and_then(|step| step.parse().ok())
            .ok_or_else(|| de::Error::custom("here"))?;
        for _ in 0_usize..index {
            seq.next_element::<IgnoredAny>()?;
        }
        seq.next_element_seed(Locate(&self.0[1..])).map(|_| ())
    }
}

/// A key: true when it is the one; the last of them is an error, for its line.
struct Key<'a> {
    step: &'a str,
    last: bool,
}

impl<'de> DeserializeSeed<'de> for Key<'_> {
    type Value = bool;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<bool, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for Key<'_> {
    type Value = bool;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E: de::Error>(self, key: &str) -> Result<bool, E> {
        if key != self.step {
            return Ok(false);
        }
        if self.last {
            Err(E::custom("here"))
        } else {
            Ok(true)
        }
    }
}
