//! One object's place, and one write to it.

use super::{resource::Resource, status::Refusal};

/// Where an object is: group and plural of its resource, its namespace (empty: none) and its name.
pub(super) type Key = (String, String, String, String);

/// Who changes which part of an object how.
#[derive(Clone, Debug)]
pub(super) struct Write<'a> {
    pub(super) resource: &'a Resource,
    pub(super) namespace: &'a str,
    pub(super) name: &'a str,
    /// The status alone; else everything but the status.
    pub(super) status: bool,
    pub(super) manager: &'a str,
}

impl Write<'_> {
    pub(super) fn key(&self) -> Key {
        (
            self.resource.group.clone(),
            self.resource.plural.clone(),
            self.namespace.to_owned(),
            self.name.to_owned(),
        )
    }

    pub(super) fn not_found(&self) -> Refusal {
        Refusal::new(
            404,
            "NotFound",
            format!("{} \"{}\" not found", self.resource.plural, self.name),
        )
    }

    pub(super) fn conflict(&self) -> Refusal {
        let message = format!(
            "Operation cannot be fulfilled on {} \"{}\": the object has been modified; please apply your changes to the latest version and try again",
            self.resource.plural, self.name
        );
        Refusal::new(409, "Conflict", message)
    }
}
