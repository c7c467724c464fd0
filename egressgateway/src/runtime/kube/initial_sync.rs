use std::collections::BTreeSet;

use super::watch::Scope;

/// Whether every watch has listed once. Nothing is written or removed before: what was not seen yet
/// must not look deleted.
#[derive(Clone, Debug)]
pub(crate) struct InitialSync {
    missing: BTreeSet<&'static str>,
    pods: Option<Scope>,
    open: bool,
}

impl InitialSync {
    /// Open once each of these was listed.
    pub(crate) fn new(kinds: impl IntoIterator<Item = &'static str>) -> Self {
        Self {
            missing: kinds.into_iter().collect(),
            pods: None,
            open: false,
        }
    }

    /// One kind was listed.
    pub(crate) fn synced(&mut self, kind: &'static str, scope: Scope) {
        self.missing.remove(kind);
        if kind == super::watches::kind::PODS {
            self.pods = Some(scope);
        }
    }

    /// Whether writing is allowed, given the scope of pods that is needed by what was seen so far.
    /// Once open it stays open.
    pub(crate) fn is_open(&mut self, pods: &Scope) -> bool {
        self.open |=
            self.missing.is_empty() && self.pods.as_ref().is_none_or(|scope| scope == pods);
        self.open
    }

    /// What is waited for.
    pub(crate) fn missing(&self) -> Vec<&'static str> {
        self.missing.iter().copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn opens_once_everything_was_listed_in_the_scope_that_is_needed_and_stays_open() {
        let own = Scope {
            fields: Some("spec.nodeName=a".to_owned()),
            ..Scope::default()
        };
        let all = Scope::default();
        let mut sync = InitialSync::new(["pods", "nodes"]);
        sync.synced("pods", own.clone());
        assert!(!sync.is_open(&own));
        assert_eq!(sync.missing(), ["nodes"]);
        sync.synced("nodes", Scope::default());
        assert!(
            !sync.is_open(&all),
            "all pods are needed, and only the own ones were listed"
        );
        sync.synced("pods", all.clone());
        assert!(sync.is_open(&all));
        assert!(sync.is_open(&own), "a later change of scope closes nothing");
    }
}
