//! What a running daemon takes of another configuration.

use serde_json::Value;

use super::Config;

/// A field whose value is another one now.
#[derive(Clone, Debug, PartialEq)]
pub struct Changed {
    /// The field: `failover.interval`.
    pub path: &'static str,
    /// Its value before.
    pub old: Value,
    /// Its value now.
    pub new: Value,
    /// Whether it takes effect in a running daemon; otherwise the value before stays in force until
    /// the daemon starts again.
    pub live: bool,
}

impl Config {
    /// The configuration that is in force once a running daemon took what it can of `next`, and
    /// every field in which `next` differs.
    #[must_use]
    pub fn adopt(&self, next: &Self) -> (Self, Vec<Changed>) {
        let (mut in_force, mut changed) = (self.clone(), Vec::new());
        for (field, access) in Self::FIELDS.iter().zip(Self::ACCESS) {
            let (old, new) = ((access.get)(self), (access.get)(next));
            if field.live {
                (access.copy)(&mut in_force, next);
            }
            if old != new {
                changed.push(Changed {
                    path: field.path,
                    old,
                    new,
                    live: field.live,
                });
            }
        }
        (in_force, changed)
    }
}
