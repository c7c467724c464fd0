use kube::Resource;

/// A status as the API server handed it out, and the version it is from.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Observed<S> {
    /// The status; default where the object has none yet.
    pub(super) status: S,
    /// The object's UID.
    pub(super) uid: String,
    /// Its `resourceVersion` as a number, as the API server's own storage counts; none where it is not one.
    pub(super) version: Option<u64>,
}

impl<S> Observed<S> {
    pub(super) fn new(object: &impl Resource, status: S) -> Self {
        let meta = object.meta();
        Self {
            status,
            uid: meta.uid.clone().unwrap_or_default(),
            version: meta.resource_version.as_deref().and_then(|version| version.parse().ok()),
        }
    }

    /// Whether `self` is older than what is held of the same object: an echo from before the last write.
    pub(super) fn is_outdated_by(&self, held: &Self) -> bool {
        self.uid == held.uid && self.version.zip(held.version).is_some_and(|(new, held)| new < held)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_echo_from_before_the_last_write_is_outdated_but_a_new_object_never_is() {
        let at = |uid: &str, version| Observed { status: (), uid: uid.to_owned(), version };
        assert!(at("a", Some(4)).is_outdated_by(&at("a", Some(5))));
        assert!(!at("a", Some(5)).is_outdated_by(&at("a", Some(5))));
        assert!(!at("b", Some(4)).is_outdated_by(&at("a", Some(5))));
        assert!(!at("a", None).is_outdated_by(&at("a", Some(5))));
    }
}
