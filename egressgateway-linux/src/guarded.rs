//! A policy whose exits are looked at again once they were translated.

use async_trait::async_trait;
use egressgateway::{Error, Outcome, PolicyDesired, Reconcile};

type Policy = Box<dyn Reconcile<PolicyDesired>>;

/// The guard stands before anything exits here, and as long as anything does: in the moment
/// between, somebody else's masquerade would choose the source of what exits.
pub(crate) struct Guarded {
    pub(crate) guard: Policy,
    pub(crate) policy: Policy,
}

#[async_trait]
impl Reconcile<PolicyDesired> for Guarded {
    /// A guard that fails keeps no policy out of force, and is a failure still.
    async fn reconcile(&mut self, desired: &PolicyDesired) -> Result<Outcome, Error> {
        let exits = !desired.exits.is_empty() || !desired.accepts.is_empty();
        let (guard, policy) = if exits {
            let guard = self.guard.reconcile(desired).await;
            (guard, self.policy.reconcile(desired).await?)
        } else {
            let policy = self.policy.reconcile(desired).await?;
            (self.guard.reconcile(desired).await, policy)
        };
        Ok(if guard? == Outcome::Applied {
            Outcome::Applied
        } else {
            policy
        })
    }

    async fn dry_run(&mut self, desired: &PolicyDesired) -> Result<String, Error> {
        let policy = self.policy.dry_run(desired).await?;
        Ok(policy + &self.guard.dry_run(desired).await?)
    }

    fn invalidate(&mut self) {
        self.policy.invalidate();
        self.guard.invalidate();
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::{Arc, Mutex};

    use egressgateway::{ErrorKind, model::TargetId};

    use super::*;

    type Journal = Arc<Mutex<Vec<&'static str>>>;

    struct Fake(&'static str, Journal, Option<ErrorKind>);

    #[async_trait]
    impl Reconcile<PolicyDesired> for Fake {
        async fn reconcile(&mut self, _: &PolicyDesired) -> Result<Outcome, Error> {
            self.1.lock().unwrap().push(self.0);
            self.2
                .map_or(Ok(Outcome::Applied), |kind| Err(Error::new(kind, self.0)))
        }

        async fn dry_run(&mut self, _: &PolicyDesired) -> Result<String, Error> {
            Ok(String::new())
        }

        fn invalidate(&mut self) {}
    }

    fn guarded(guard: Option<ErrorKind>, policy: Option<ErrorKind>) -> (Guarded, Journal) {
        let journal = Journal::default();
        let fake = |name, failure| Box::new(Fake(name, journal.clone(), failure));
        (
            Guarded {
                guard: fake("guard", guard),
                policy: fake("policy", policy),
            },
            journal,
        )
    }

    fn exiting() -> PolicyDesired {
        PolicyDesired {
            accepts: [TargetId::FIRST].into_iter().collect(),
            ..PolicyDesired::default()
        }
    }

    #[tokio::test]
    async fn the_guard_comes_before_what_exits_and_goes_after_it() {
        let (mut both, journal) = guarded(None, None);
        both.reconcile(&exiting()).await.unwrap();
        both.reconcile(&PolicyDesired::default()).await.unwrap();
        assert_eq!(
            *journal.lock().unwrap(),
            ["guard", "policy", "policy", "guard"]
        );
    }

    #[tokio::test]
    async fn a_guard_that_fails_keeps_no_policy_out_of_force_and_one_stays_where_the_policy_fails()
    {
        let (mut both, journal) = guarded(Some(ErrorKind::Permission), None);
        assert_eq!(
            both.reconcile(&exiting()).await.unwrap_err().kind,
            ErrorKind::Permission
        );
        assert_eq!(*journal.lock().unwrap(), ["guard", "policy"]);
        let (mut both, journal) = guarded(None, Some(ErrorKind::Transient));
        both.reconcile(&PolicyDesired::default()).await.unwrap_err();
        assert_eq!(
            *journal.lock().unwrap(),
            ["policy"],
            "something may exit still"
        );
    }
}
