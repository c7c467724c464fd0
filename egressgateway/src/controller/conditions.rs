use std::fmt::Display;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;

use crate::api;

/// What the API server takes at most.
const MAX_MESSAGE: usize = 1024;

/// A condition about `generation` of its object, where the object has one that matters; the time is
/// the writer's to fill.
pub(super) fn condition(
    kind: &str,
    status: bool,
    reason: &str,
    message: &dyn Display,
    generation: Option<i64>,
) -> Condition {
    let status = if status { "True" } else { "False" };
    let message = shorten(message.to_string());
    api::condition(kind, status, reason, message, generation)
}

fn shorten(mut message: String) -> String {
    if message.len() > MAX_MESSAGE {
        let end = (0..=MAX_MESSAGE - '…'.len_utf8())
            .rev()
            .find(|end| message.is_char_boundary(*end))
            .unwrap_or(0);
        message.truncate(end);
        message.push('…');
    }
    message
}

/// Things in one line.
pub(crate) fn join<T: Display>(parts: impl IntoIterator<Item = T>) -> String {
    parts
        .into_iter()
        .map(|part| part.to_string())
        .collect::<Vec<_>>()
        .join("; ")
}
