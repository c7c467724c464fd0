//! What is known of a field of the configuration.

use serde_json::Value;

/// A field of the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    /// Where it stands in the file: `tunnel.vni`.
    pub path: &'static str,
    /// The flag that sets it, without the dashes: `tunnel-vni`.
    pub flag: &'static str,
    /// The environment variable that sets it.
    pub env: &'static str,
    /// What it means, with its values.
    pub help: &'static str,
    /// Whether a change takes effect while a daemon runs; otherwise at its next start.
    pub live: bool,
}

impl Field {
    /// The section that it stands in, and its name there.
    pub(super) fn place(&self) -> (Option<&'static str>, &'static str) {
        match self.path.split_once('.') {
            Some((section, name)) => (Some(section), name),
            None => (None, self.path),
        }
    }
}

/// What can be done with the value of a field of `C`.
pub(super) struct Access<C> {
    /// The value as it stands in a file.
    pub(super) get: fn(&C) -> Value,
    /// Takes the value from text, or tells the rule that the text breaks.
    pub(super) set: fn(&mut C, &str) -> Result<(), String>,
    /// Takes the value from another configuration.
    pub(super) copy: fn(&mut C, &C),
    /// Whether a file has a list here.
    pub(super) is_list: fn() -> bool,
}
