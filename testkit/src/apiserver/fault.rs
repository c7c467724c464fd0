//! Faults on demand.

/// What happens instead of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// This HTTP status, with a Kubernetes `Status` as its body.
    Status(u16),
    /// No answer until [`super::ApiServer::heal`].
    Hang,
    /// The connection is closed.
    Reset,
}

/// Requests that meet a fault.
#[derive(Clone, Debug)]
pub struct Fault {
    /// get, list, watch, create, update, patch, delete; none: all.
    pub verb: Option<&'static str>,
    /// Plural name, with `/status` for the status; none: all.
    pub resource: Option<&'static str>,
    /// Only requests whose query is so; none: all.
    pub query: Option<fn(&str) -> bool>,
    /// How many requests meet it.
    pub times: usize,
    /// What happens to them.
    pub effect: Effect,
}

impl Fault {
    /// These requests, `times` of them.
    #[must_use]
    pub fn new(verb: &'static str, resource: &'static str, times: usize, effect: Effect) -> Self {
        Self {
            verb: Some(verb),
            resource: Some(resource),
            query: None,
            times,
            effect,
        }
    }

    pub(super) fn meets(&self, verb: &str, resource: &str, query: &str) -> bool {
        self.times > 0
            && self.verb.is_none_or(|own| own == verb)
            && self.resource.is_none_or(|own| own == resource)
            && self.query.is_none_or(|matches| matches(query))
    }
}
