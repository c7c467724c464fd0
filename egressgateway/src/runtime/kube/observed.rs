use kube::Resource;

/// What counts of an object as the API server handed it out, mostly its status, and the version it
/// is from.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Observed<S> {
    /// The status; default where the object has none yet.
    pub(crate) status: S,
    /// The object's UID.
    pub(crate) uid: String,
    /// Its `resourceVersion`: a write that names it is refused once somebody else changed the
    /// object.
    pub(crate) version: Option<String>,
}

impl<S> Observed<S> {
    pub(crate) fn new(object: &impl Resource, status: S) -> Self {
        let meta = object.meta();
        Self {
            status,
            uid: meta.uid.clone().unwrap_or_default(),
            version: meta.resource_version.clone(),
        }
    }

    /// Whether `self` is older than what is held of the same object: an echo from before the last
    /// write.
    pub(crate) fn is_outdated_by(&self, held: &Self) -> bool {
        self.uid == held.uid
            && self
                .number()
                .zip(held.number())
                .is_some_and(|(new, held)| new < held)
    }

    /// The version as a number, as the API server's own storage counts; none where it is not one.
    fn number(&self) -> Option<u64> {
        self.version.as_ref()?.parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_echo_from_before_the_last_write_is_outdated_but_a_new_object_never_is() {
        let at = |uid: &str, version: &str| Observed {
            status: (),
            uid: uid.to_owned(),
            version: Some(version.to_owned()),
        };
        assert!(at("a", "9").is_outdated_by(&at("a", "10")));
        assert!(!at("a", "10").is_outdated_by(&at("a", "10")));
        assert!(!at("b", "9").is_outdated_by(&at("a", "10")));
        assert!(!at("a", "x").is_outdated_by(&at("a", "10")));
    }
}
