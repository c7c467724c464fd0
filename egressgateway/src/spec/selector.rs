use std::collections::BTreeSet;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

use super::Problem;
use crate::model::Labels;

/// A label selector: all requirements must hold. Without any it matches everything.
/// <https://kubernetes.io/docs/concepts/overview/working-with-objects/labels/#label-selectors>
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Selector {
    requirements: Vec<Requirement>,
}

/// One requirement of a [`Selector`].
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Requirement {
    /// The label has one of the values.
    In {
        /// Label key.
        key: String,
        /// Accepted values, at least one.
        values: BTreeSet<String>,
    },
    /// The label is absent or has none of the values.
    NotIn {
        /// Label key.
        key: String,
        /// Refused values, at least one.
        values: BTreeSet<String>,
    },
    /// The label is present.
    Exists {
        /// Label key.
        key: String,
    },
    /// The label is absent.
    DoesNotExist {
        /// Label key.
        key: String,
    },
}

impl Requirement {
    fn matches(&self, labels: &Labels) -> bool {
        match self {
            Self::In { key, values } => labels.get(key).is_some_and(|value| values.contains(value)),
            Self::NotIn { key, values } => {
                labels.get(key).is_none_or(|value| !values.contains(value))
            }
            Self::Exists { key } => labels.contains_key(key),
            Self::DoesNotExist { key } => !labels.contains_key(key),
        }
    }
}

impl Selector {
    /// Parses the Kubernetes form; `field` is the path that problems name.
    ///
    /// # Errors
    /// Every expression with an unknown operator, missing or superfluous values.
    pub fn parse(field: &str, selector: &LabelSelector) -> Result<Self, Vec<Problem>> {
        let mut requirements = Vec::new();
        let mut problems = Vec::new();
        for (key, value) in selector.match_labels.iter().flatten() {
            requirements.push(Requirement::In {
                key: key.clone(),
                values: BTreeSet::from([value.clone()]),
            });
        }
        for (index, expression) in selector.match_expressions.iter().flatten().enumerate() {
            let field = format!("{field}.matchExpressions[{index}]");
            let key = expression.key.clone();
            let values: BTreeSet<String> = expression.values.iter().flatten().cloned().collect();
            let needs_values = matches!(expression.operator.as_str(), "In" | "NotIn");
            match expression.operator.as_str() {
                "In" | "NotIn" if values.is_empty() => problems.push(Problem::new(
                    format!("{field}.values"),
                    "",
                    format!("must not be empty for operator {}", expression.operator),
                )),
                "In" => requirements.push(Requirement::In { key, values }),
                "NotIn" => requirements.push(Requirement::NotIn { key, values }),
                "Exists" | "DoesNotExist" if !needs_values && !values.is_empty() => {
                    problems.push(Problem::new(
                        format!("{field}.values"),
                        values.into_iter().collect::<Vec<_>>().join(","),
                        format!("must be empty for operator {}", expression.operator),
                    ));
                }
                "Exists" => requirements.push(Requirement::Exists { key }),
                "DoesNotExist" => requirements.push(Requirement::DoesNotExist { key }),
                other => problems.push(Problem::new(
                    format!("{field}.operator"),
                    other,
                    "must be In, NotIn, Exists or DoesNotExist",
                )),
            }
        }
        requirements.sort();
        requirements.dedup();
        if problems.is_empty() {
            Ok(Self { requirements })
        } else {
            Err(problems)
        }
    }

    /// Its requirements, sorted.
    #[must_use]
    pub fn requirements(&self) -> &[Requirement] {
        &self.requirements
    }

    /// Whether it has no requirement, so that it matches everything.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.requirements.is_empty()
    }

    /// Whether these labels satisfy it.
    #[must_use]
    pub fn matches(&self, labels: &Labels) -> bool {
        self.requirements
            .iter()
            .all(|requirement| requirement.matches(labels))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(yaml: &str) -> Result<Selector, Vec<Problem>> {
        Selector::parse("spec.x", &serde_saphyr::from_str(yaml).unwrap())
    }

    #[test]
    fn all_requirements_must_hold() {
        let selector = parse(
            "{matchLabels: {app: a}, matchExpressions: [{key: tier, operator: NotIn, values: [db]}, {key: beta, operator: DoesNotExist}]}",
        )
        .unwrap();
        let labels = |pairs: &[(&str, &str)]| {
            pairs
                .iter()
                .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
                .collect()
        };
        assert!(selector.matches(&labels(&[("app", "a")])));
        assert!(selector.matches(&labels(&[("app", "a"), ("tier", "web")])));
        assert!(!selector.matches(&labels(&[("app", "a"), ("tier", "db")])));
        assert!(!selector.matches(&labels(&[("app", "a"), ("beta", "")])));
        assert!(!selector.matches(&labels(&[])));
    }

    #[test]
    fn refusals_name_field_value_and_rule() {
        let problems =
            parse("{matchExpressions: [{key: a, operator: Is}, {key: a, operator: In}, {key: a, operator: Exists, values: [x]}]}")
                .unwrap_err();
        let text: Vec<String> = problems.iter().map(ToString::to_string).collect();
        assert_eq!(
            text[0],
            "spec.x.matchExpressions[0].operator: \"Is\": must be In, NotIn, Exists or DoesNotExist"
        );
        assert_eq!(text.len(), 3);
    }
}
