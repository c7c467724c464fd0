//! Label and field selectors.

use serde_json::Value;

use super::status::Refusal;

/// Label and field selectors of a list or watch.
#[derive(Clone, Debug, Default)]
pub(super) struct Selection {
    labels: Vec<Requirement>,
    fields: Vec<(String, String, bool)>,
}

#[derive(Clone, Debug)]
enum Requirement {
    In(String, Vec<String>),
    NotIn(String, Vec<String>),
    Exists(String),
    Missing(String),
}

impl Selection {
    pub(super) fn parse(labels: &str, fields: &str) -> Result<Self, Refusal> {
        let bad = |text: &str| {
            Refusal::new(
                400,
                "BadRequest",
                format!("unable to parse selector: {text}"),
            )
        };
        let labels = split(labels)
            .into_iter()
            .map(|text| parse_label(text).ok_or_else(|| bad(text)))
            .collect::<Result<_, _>>()?;
        let parse_field = |text: &str| {
            let (key, value, equal) = match (text.split_once("!="), text.split_once('=')) {
                (Some((key, value)), _) => (key, value, false),
                (None, Some((key, value))) => (key, value.trim_start_matches('='), true),
                (None, None) => return Err(bad(text)),
            };
            Ok((key.trim().to_owned(), value.trim().to_owned(), equal))
        };
        let fields = fields
            .split(',')
            .filter(|text| !text.is_empty())
            .map(parse_field)
            .collect::<Result<_, _>>()?;
        Ok(Self { labels, fields })
    }

    pub(super) fn matches(&self, object: &Value) -> bool {
        let label = |key: &str| object["metadata"]["labels"][key].as_str();
        let labels = self.labels.iter().all(|requirement| match requirement {
            Requirement::In(key, values) => {
                label(key).is_some_and(|value| values.iter().any(|own| own == value))
            }
            Requirement::NotIn(key, values) => {
                label(key).is_none_or(|value| values.iter().all(|own| own != value))
            }
            Requirement::Exists(key) => label(key).is_some(),
            Requirement::Missing(key) => label(key).is_none(),
        });
        let field = |path: &str| {
            path.split('.')
                .fold(object, |value, part| &value[part])
                .as_str()
                .unwrap_or_default()
                .to_owned()
        };
        labels
            && self
                .fields
                .iter()
                .all(|(path, value, equal)| (field(path) == *value) == *equal)
    }
}

/// Splits at commas that are not inside parentheses.
fn split(text: &str) -> Vec<&str> {
    let mut depth = 0;
    let parts = text.split(|letter| {
        depth += i32::from(letter == '(') - i32::from(letter == ')');
        letter == ',' && depth == 0
    });
    parts
        .map(str::trim)
        .filter(|part| !part.is_empty())
        .collect()
}

fn parse_label(text: &str) -> Option<Requirement> {
    let own = |text: &str| text.trim().to_owned();
    if let Some((head, values)) = text.strip_suffix(')').and_then(|text| text.split_once('(')) {
        let values = values.split(',').map(own).collect();
        return match head.trim().rsplit_once(' ')? {
            (key, "in") => Some(Requirement::In(own(key), values)),
            (key, "notin") => Some(Requirement::NotIn(own(key), values)),
            _ => None,
        };
    }
    if let Some((key, value)) = text.split_once("!=") {
        return Some(Requirement::NotIn(own(key), vec![own(value)]));
    }
    if let Some((key, value)) = text.split_once('=') {
        return Some(Requirement::In(
            own(key),
            vec![own(value.trim_start_matches('='))],
        ));
    }
    match text.strip_prefix('!') {
        Some(key) => Some(Requirement::Missing(own(key))),
        None => Some(Requirement::Exists(own(text))),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn selectors_mean_what_kubernetes_says() {
        let object = json!({"metadata": {"name": "a", "labels": {"app": "shop", "tier": "web"}}, "spec": {"nodeName": "n1"}});
        let matches =
            |labels: &str, fields: &str| Selection::parse(labels, fields).unwrap().matches(&object);
        for (labels, fields) in [
            ("", ""),
            ("app=shop,tier==web", "spec.nodeName=n1"),
            ("app in (blog, shop),tier notin (db)", "metadata.name!=b"),
            ("app,!gone,tier!=db", "spec.nodeName=n1,metadata.name=a"),
        ] {
            assert!(matches(labels, fields), "{labels} {fields}");
        }
        for (labels, fields) in [
            ("app=blog", ""),
            ("app notin (shop)", ""),
            ("gone", ""),
            ("!app", ""),
            ("", "spec.nodeName=n2"),
            ("", "spec.nodeName!=n1"),
        ] {
            assert!(!matches(labels, fields), "{labels} {fields}");
        }
    }
}
