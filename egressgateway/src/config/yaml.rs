//! A configuration file, field by field, so that every problem is told and each with its line.

use std::fmt;

use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{MapAccess, SeqAccess, Visitor},
};
use serde_json::Value;
use serde_saphyr::Spanned;

use super::{Config, field::Field};
use crate::{spec::Problem, yaml};

/// What problems call a field at the top whose name is empty.
const NO_NAME: &str = "\"\"";

/// Sets what the file mentions; tells everything that is wrong with it.
pub(super) fn apply(config: &mut Config, text: &str) -> Vec<Problem> {
    // Nothing but comments is no document, and no mistake.
    match serde_saphyr::from_str_with_options::<Option<Content>>(text, yaml::options()) {
        Ok(content) => apply_content(config, &content.unwrap_or(Content::Scalar(Value::Null))),
        Err(error) => vec![Problem::new(
            "(file)",
            "",
            format!("must be YAML: {}", yaml::explain(&error)),
        )],
    }
}

/// The same for a file that was read already, without lines.
pub(super) fn apply_value(config: &mut Config, value: Value) -> Vec<Problem> {
    apply_content(config, &Content::from(value))
}

fn apply_content(config: &mut Config, content: &Content) -> Vec<Problem> {
    let mut problems = Vec::new();
    for (name, node) in fields_of("(file)", content, None, &mut problems) {
        let leaf = Config::FIELDS
            .iter()
            .find(|field| field.place() == (None, name));
        let has_fields = Config::FIELDS
            .iter()
            .any(|field| field.place().0 == Some(name));
        if let Some(field) = leaf {
            problems.extend(set(config, field, node));
        } else if has_fields {
            section(config, name, node, &mut problems);
        } else {
            let path = if name.is_empty() { NO_NAME } else { name };
            problems.push(unknown(path, node, None));
        }
    }
    problems
}

fn section(config: &mut Config, section: &str, node: &Node, problems: &mut Vec<Problem>) {
    for (name, node) in fields_of(section, &node.content, node.line, problems) {
        match Config::FIELDS
            .iter()
            .find(|field| field.place() == (Some(section), name))
        {
            Some(field) => problems.extend(set(config, field, node)),
            None => problems.push(unknown(&format!("{section}.{name}"), node, Some(section))),
        }
    }
}

/// The fields of a mapping; none where nothing stands there.
fn fields_of<'a>(
    path: &str,
    content: &'a Content,
    line: Option<u64>,
    problems: &mut Vec<Problem>,
) -> impl Iterator<Item = (&'a str, &'a Node)> + use<'a> {
    let fields = match content {
        Content::Map(fields) => fields.as_slice(),
        Content::Scalar(Value::Null) => &[],
        other => {
            let rule = "must be a mapping of fields";
            problems.push(with_line(Problem::new(path, other, rule), line));
            &[]
        }
    };
    fields.iter().map(|(name, node)| (name.as_str(), node))
}

fn unknown(path: &str, node: &Node, section: Option<&str>) -> Problem {
    let known = "is not a field of the configuration";
    let elsewhere = Config::FIELDS
        .iter()
        .filter(|_| section.is_none())
        .find(|field| field.path == path);
    let rule = match elsewhere.map(Field::place) {
        // The path of a field names it to people. It is no name in the file.
        Some((Some(section), name)) => format!("{known}; write {name} below {section}"),
        _ => format!("{known}; fields here are {}", names(section)),
    };
    with_line(Problem::new(path, &node.content, rule), node.line)
}

/// The fields of a section, or what stands at the top of the file.
fn names(section: Option<&str>) -> String {
    let mut names: Vec<&str> = Config::FIELDS
        .iter()
        .filter_map(|field| match (section, field.place()) {
            (None, (of, name)) => Some(of.unwrap_or(name)),
            (section, (of, name)) => (section == of).then_some(name),
        })
        .collect();
    names.dedup();
    names.join(", ")
}

fn set(config: &mut Config, field: &Field, node: &Node) -> Vec<Problem> {
    let path = field.path;
    let is_list = Config::access(path).is_some_and(|access| (access.is_list)());
    let result = match &node.content {
        Content::List(entries) if is_list => {
            let problems = wrong_entries(config, path, entries);
            if !problems.is_empty() {
                return problems;
            }
            let entries: Vec<String> = entries
                .iter()
                .map(|entry| entry.content.to_string())
                .collect();
            config.set(path, &entries.join(","), path)
        }
        Content::Map(_) | Content::List(_) => {
            Err(Problem::new(path, &node.content, "must be a single value"))
        }
        Content::Scalar(_) if is_list => {
            Err(Problem::new(path, &node.content, "must be a list of CIDRs"))
        }
        // Written without a value: the default.
        Content::Scalar(Value::Null) => Ok(()),
        scalar @ Content::Scalar(_) => config.set(path, &scalar.to_string(), path),
    };
    let problem = result.err();
    problem
        .map(|problem| with_line(problem, node.line))
        .into_iter()
        .collect()
}

fn wrong_entries(config: &Config, path: &str, entries: &[Node]) -> Vec<Problem> {
    let mut problems = Vec::new();
    for (index, entry) in entries.iter().enumerate() {
        let field = format!("{path}[{index}]");
        let problem = match &entry.content {
            Content::Scalar(Value::String(text))
                if !text.contains(',') && !text.trim().is_empty() =>
            {
                let refused = config.clone().set(path, text, path).err();
                refused.map(|problem| Problem { field, ..problem })
            }
            other => Some(Problem::new(
                field,
                other,
                "must be a CIDR, such as 10.6.1.0/24 or fd00:6::/64",
            )),
        };
        problems.extend(problem.map(|problem| with_line(problem, entry.line)));
    }
    problems
}

fn with_line(problem: Problem, line: Option<u64>) -> Problem {
    match line {
        Some(line) => Problem {
            rule: format!("{} (line {line})", problem.rule),
            ..problem
        },
        None => problem,
    }
}

/// What stands below a name or in a list, and the line on which the name or the entry begins.
struct Node {
    line: Option<u64>,
    content: Content,
}

/// What a file says, in its order.
enum Content {
    Scalar(Value),
    List(Vec<Node>),
    Map(Vec<(String, Node)>),
}

impl From<Value> for Content {
    fn from(value: Value) -> Self {
        let node = |value: Value| Node {
            line: None,
            content: Self::from(value),
        };
        match value {
            Value::Array(entries) => Self::List(entries.into_iter().map(node).collect()),
            Value::Object(fields) => Self::Map(
                fields
                    .into_iter()
                    .map(|(name, value)| (name, node(value)))
                    .collect(),
            ),
            scalar => Self::Scalar(scalar),
        }
    }
}

/// As problems show it: text without quotes, everything else as in a file.
impl fmt::Display for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Scalar(Value::Null) => Ok(()),
            Self::Scalar(Value::String(text)) => f.write_str(text),
            other => {
                let text = serde_saphyr::to_string(other).map_err(|_| fmt::Error)?;
                f.write_str(text.trim_end())
            }
        }
    }
}

impl Serialize for Content {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Scalar(value) => value.serialize(serializer),
            Self::List(entries) => {
                serializer.collect_seq(entries.iter().map(|entry| &entry.content))
            }
            Self::Map(fields) => {
                serializer.collect_map(fields.iter().map(|(name, node)| (name, &node.content)))
            }
        }
    }
}

impl<'de> Deserialize<'de> for Content {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ContentVisitor)
    }
}

struct ContentVisitor;

impl<'de> Visitor<'de> for ContentVisitor {
    type Value = Content;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value, a list or a mapping")
    }

    fn visit_unit<E>(self) -> Result<Content, E> {
        Ok(Content::Scalar(Value::Null))
    }

    fn visit_bool<E>(self, value: bool) -> Result<Content, E> {
        Ok(Content::Scalar(value.into()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Content, E> {
        Ok(Content::Scalar(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Content, E> {
        Ok(Content::Scalar(value.into()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Content, E> {
        Ok(Content::Scalar(value.into()))
    }

    fn visit_str<E>(self, value: &str) -> Result<Content, E> {
        Ok(Content::Scalar(value.into()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Content, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = list.next_element::<Spanned<Content>>()? {
            entries.push(Node {
                line: Some(entry.referenced.line()),
                content: entry.value,
            });
        }
        Ok(Content::List(entries))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Content, A::Error> {
        let mut fields = Vec::new();
        while let Some(name) = map.next_key::<Spanned<String>>()? {
            let node = Node {
                line: Some(name.referenced.line()),
                content: map.next_value()?,
            };
            fields.push((name.value, node));
        }
        Ok(Content::Map(fields))
    }
}
