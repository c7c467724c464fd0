use std::fmt;

/// Bad user input: which field, what stood there, and the rule that it breaks.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// Path of the field, such as `spec.destCIDR[2]`.
    pub field: String,
    /// What stood there.
    pub value: String,
    /// The rule, as a sentence that says what would be right.
    pub rule: String,
}

impl Problem {
    /// A problem with one field.
    pub fn new(
        field: impl Into<String>,
        value: impl fmt::Display,
        rule: impl Into<String>,
    ) -> Self {
        Self {
            field: field.into(),
            value: value.to_string(),
            rule: rule.into(),
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: \"{}\": {}", self.field, self.value, self.rule)
    }
}
