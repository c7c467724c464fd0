use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use async_trait::async_trait;

use crate::{
    Drivers, DriversDesired, Encapsulation, Error, ErrorKind, NodeDesired, Outcome, PolicyDesired,
    Reconcile, runtime::metrics::AgentMetrics,
};

/// How often a conflict is answered at once by reading the kernel again; what conflicts longer
/// waits like any other failure.
const ATTEMPTS: u32 = 3;

/// What the packet filter holds of the policy that was desired last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum InForce {
    /// Nobody knows.
    Unknown,
    /// What it has held since this was asked last.
    Unchanged,
    /// That policy, and something was written since this was asked last.
    Written,
}

/// The policy driver, and what became of its calls: a policy is in force as soon as this driver
/// says so, whatever the others say.
struct Watched {
    driver: Box<dyn Reconcile<PolicyDesired>>,
    calls: Arc<Calls>,
}

#[derive(Debug, Default)]
struct Calls {
    reached: AtomicBool,
    written: AtomicBool,
}

#[async_trait]
impl Reconcile<PolicyDesired> for Watched {
    async fn reconcile(&mut self, desired: &PolicyDesired) -> Result<Outcome, Error> {
        // Who gives up waiting for it does not know either.
        self.calls.reached.store(false, Ordering::Relaxed);
        let was_written = self.calls.written.swap(true, Ordering::Relaxed);
        let result = self.driver.reconcile(desired).await;
        if matches!(result, Ok(Outcome::Unchanged)) {
            self.calls.written.store(was_written, Ordering::Relaxed);
        }
        self.calls.reached.store(result.is_ok(), Ordering::Relaxed);
        result
    }

    async fn dry_run(&mut self, desired: &PolicyDesired) -> Result<String, Error> {
        self.driver.dry_run(desired).await
    }

    fn invalidate(&mut self) {
        self.driver.invalidate();
    }
}

/// Brings the node to one desired state after another.
pub(crate) struct NodeReconciler {
    drivers: Drivers,
    policy: Arc<Calls>,
    encapsulation: Arc<dyn Encapsulation>,
    metrics: AgentMetrics,
    /// Everything that the kernel may hold of ours: what was reached last, and what was tried since
    /// then.
    before: Option<DriversDesired>,
    /// The last attempt succeeded: the kernel holds exactly that.
    reached: bool,
    number: u64,
}

impl NodeReconciler {
    pub(crate) fn new(
        drivers: Drivers,
        encapsulation: Arc<dyn Encapsulation>,
        metrics: AgentMetrics,
    ) -> Self {
        let policy = Arc::new(Calls::default());
        let watched = Watched {
            driver: drivers.policy,
            calls: Arc::clone(&policy),
        };
        Self {
            drivers: Drivers {
                policy: Box::new(watched),
                ..drivers
            },
            policy,
            encapsulation,
            metrics,
            before: None,
            reached: false,
            number: 0,
        }
    }

    /// The next read of the kernel is complete: devices, routes and rules, and the packet filter's
    /// tables.
    pub(crate) fn forget_all(&mut self) {
        self.drivers.invalidate();
    }

    /// Devices, addresses, routes and rules are read again; the packet filter, whose state is
    /// large, is not.
    pub(crate) fn forget_links_and_routes(&mut self) {
        self.drivers.tunnel.invalidate();
        self.drivers.steering.invalidate();
        self.drivers.addresses.invalidate();
        self.drivers.relay.invalidate();
    }

    /// The packet filter is read again, and what was in force is put back where it is not there.
    /// `Applied`: somebody else had changed it. Where the last attempt failed, nobody knows what is
    /// in force, and the next one finds out.
    pub(crate) async fn restore_policy(&mut self) -> Result<Outcome, Error> {
        self.drivers.policy.invalidate();
        self.drivers.relay.invalidate();
        match self.before.as_ref().filter(|_| self.reached) {
            Some(in_force) => self.drivers.policy.reconcile(&in_force.policy).await,
            None => Ok(Outcome::Unchanged),
        }
    }

    /// Converges once; conflicts are tried again at once.
    pub(crate) async fn converge(&mut self, desired: &NodeDesired) -> Result<Outcome, Error> {
        let next = desired.for_drivers(&*self.encapsulation);
        let began = Instant::now();
        self.number += 1;
        let first = self.number == 1;
        let mut result = self.drivers.converge(self.before.as_ref(), &next).await;
        for _ in 1..ATTEMPTS {
            match &result {
                Err(error) if error.kind == ErrorKind::Conflict => {
                    tracing::debug!(
                        number = self.number,
                        error = error.chain(),
                        "kernel state changed since the last read; reading it again"
                    );
                    self.drivers.invalidate();
                    self.before = self.before.take().map(|before| union(&before, &next));
                    result = self.drivers.converge(self.before.as_ref(), &next).await;
                }
                _ => break,
            }
        }
        self.log_outcome(first, &next.policy, began.elapsed(), &result);
        self.reached = result.is_ok();
        self.before = match &result {
            Ok(_) => Some(next),
            Err(_) => self.before.take().map(|before| union(&before, &next)),
        };
        result
    }

    /// Before anything may be written because of the cluster: programs `hold` where the kernel has
    /// no policy of ours, if that is wanted, and takes it away again if it is not any more. What an
    /// earlier process left, with the cluster in view, stays as it is. Says whether the node holds
    /// now.
    pub(crate) async fn hold(&mut self, hold: &PolicyDesired, wanted: bool) -> Result<bool, Error> {
        let (policy, nothing) = (&mut self.drivers.policy, PolicyDesired::default());
        let bare = policy.dry_run(&nothing).await?.is_empty();
        let there = !bare && policy.dry_run(hold).await?.is_empty();
        if bare && wanted {
            policy.reconcile(hold).await?;
        } else if there && !wanted {
            policy.reconcile(&nothing).await?;
        }
        Ok(wanted && (bare || there))
    }

    /// What the last converge left of its policy. It may have failed after that.
    pub(crate) fn in_force(&self) -> InForce {
        if !self.policy.reached.load(Ordering::Relaxed) {
            InForce::Unknown
        } else if self.policy.written.swap(false, Ordering::Relaxed) {
            InForce::Written
        } else {
            InForce::Unchanged
        }
    }

    /// What a converge would do, as text.
    pub(crate) async fn dry_run(&mut self, desired: &NodeDesired) -> Result<String, Error> {
        self.drivers
            .dry_run(&desired.for_drivers(&*self.encapsulation))
            .await
    }

    fn log_outcome(
        &self,
        first: bool,
        policy: &PolicyDesired,
        took: Duration,
        result: &Result<Outcome, Error>,
    ) {
        let outcome = match result {
            Ok(Outcome::Unchanged) => "unchanged",
            Ok(Outcome::Applied) => "applied",
            Err(_) => "failed",
        };
        self.metrics.converged(first, outcome);
        self.metrics.entries(entries(policy));
        let (number, took) = (self.number, took.as_secs_f64());
        let (pods, destinations, targets) = (
            policy.pods.len(),
            policy.destinations.len(),
            policy.targets.len(),
        );
        match result {
            Ok(Outcome::Unchanged) if !first => tracing::debug!(
                number,
                first,
                outcome,
                took,
                pods,
                destinations,
                targets,
                "converged"
            ),
            Ok(_) => tracing::info!(
                number,
                first,
                outcome,
                took,
                pods,
                destinations,
                targets,
                "converged"
            ),
            Err(error) => {
                tracing::error!(
                    number,
                    first,
                    outcome,
                    took,
                    kind = error.kind.as_str(),
                    error = error.chain(),
                    "converge failed"
                );
            }
        }
    }
}

/// Size of a classification, in entries.
fn entries(policy: &PolicyDesired) -> usize {
    policy.pods.len() + policy.subnets.len() + policy.destinations.len()
}

/// What may be in the kernel after a failure on the way from one state to another.
fn union(before: &DriversDesired, next: &DriversDesired) -> DriversDesired {
    DriversDesired {
        tunnel: before.tunnel.union(&next.tunnel),
        steering: before.steering.union(&next.steering),
        addresses: next.addresses.clone(),
        relay: before.relay.union(&next.relay),
        policy: next.policy.clone(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::{
        AddressesDesired, LocalEnd, NextHop, OverlayLinks, Peer, SteeringDesired, TunnelDesired,
        Unmanaged,
        model::{Family, NodeName},
    };

    struct Shapeless;

    impl Encapsulation for Shapeless {
        fn kind(&self) -> &'static str {
            "none"
        }

        fn next_hop(&self, _local: &LocalEnd, _peer: &Peer, _family: Family) -> Option<NextHop> {
            None
        }

        fn links(&self, _local: &LocalEnd) -> OverlayLinks {
            OverlayLinks {
                devices: imbl::OrdSet::new(),
                port: 0,
                mtu: imbl::OrdMap::new(),
            }
        }
    }

    /// What drivers were asked, in order, and the failures that they answer with first.
    #[derive(Clone, Default)]
    struct Journal {
        calls: Arc<Mutex<Vec<String>>>,
        unchanged: Arc<AtomicBool>,
        failures: Arc<Mutex<Vec<(&'static str, ErrorKind)>>>,
    }

    impl Journal {
        fn take(&self) -> Vec<String> {
            std::mem::take(&mut self.calls.lock().unwrap())
        }

        fn fail(&self, driver: &'static str, kind: ErrorKind, times: usize) {
            self.failures
                .lock()
                .unwrap()
                .extend(std::iter::repeat_n((driver, kind), times));
        }

        fn call(&self, driver: &'static str, call: String) -> Result<Outcome, Error> {
            self.calls.lock().unwrap().push(call);
            let mut failures = self.failures.lock().unwrap();
            match failures.iter().position(|(name, _)| *name == driver) {
                Some(index) => Err(Error::new(failures.remove(index).1, driver)),
                None if self.unchanged.load(Ordering::Relaxed) => Ok(Outcome::Unchanged),
                None => Ok(Outcome::Applied),
            }
        }
    }

    struct Fake<D>(&'static str, Journal, fn(&D) -> String);

    #[async_trait]
    impl<D: Sync> Reconcile<D> for Fake<D> {
        async fn reconcile(&mut self, desired: &D) -> Result<Outcome, Error> {
            self.1
                .call(self.0, format!("{} {}", self.0, (self.2)(desired)))
        }

        async fn dry_run(&mut self, _desired: &D) -> Result<String, Error> {
            Ok(String::new())
        }

        fn invalidate(&mut self) {
            let _ = self.1.call("", format!("{} reads", self.0));
        }
    }

    fn reconciler(journal: &Journal) -> NodeReconciler {
        let drivers = Drivers {
            tunnel: Box::new(Fake(
                "tunnel",
                journal.clone(),
                |desired: &TunnelDesired| {
                    desired
                        .peers
                        .keys()
                        .map(NodeName::as_str)
                        .collect::<Vec<_>>()
                        .join("+")
                },
            )),
            steering: Box::new(Fake("steering", journal.clone(), |_: &SteeringDesired| {
                String::new()
            })),
            addresses: Box::new(Fake(
                "addresses",
                journal.clone(),
                |desired: &AddressesDesired| {
                    desired
                        .held
                        .keys()
                        .map(ToString::to_string)
                        .collect::<Vec<_>>()
                        .join("+")
                },
            )),
            relay: Box::new(Unmanaged),
            policy: Box::new(Fake("policy", journal.clone(), |_: &PolicyDesired| {
                String::new()
            })),
        };
        NodeReconciler::new(drivers, Arc::new(Shapeless), AgentMetrics::default())
    }

    fn with_peer(name: &str) -> NodeDesired {
        let peer = Peer {
            overlay: imbl::OrdSet::new(),
            underlay: imbl::OrdSet::new(),
            mac: "66:00:00:00:00:01".parse().unwrap(),
            mtu: imbl::OrdMap::new(),
        };
        let tunnel = TunnelDesired {
            local: None,
            peers: imbl::OrdMap::unit(NodeName::from(name), peer),
        };
        NodeDesired {
            tunnel,
            ..NodeDesired::default()
        }
    }

    #[tokio::test]
    async fn a_conflict_is_answered_by_reading_again_at_once_but_not_for_ever() {
        let journal = Journal::default();
        let mut reconciler = reconciler(&journal);
        journal.fail("policy", ErrorKind::Conflict, 1);
        assert_eq!(
            reconciler.converge(&with_peer("a")).await.unwrap(),
            Outcome::Applied
        );
        let reads = [
            "tunnel reads",
            "steering reads",
            "addresses reads",
            "policy reads",
        ];
        let once = ["policy ", "addresses ", "tunnel a", "steering "];
        assert_eq!(journal.take(), [&once[..2], &reads, &once].concat());
        journal.fail("policy", ErrorKind::Conflict, 99);
        assert_eq!(
            reconciler.converge(&with_peer("a")).await.unwrap_err().kind,
            ErrorKind::Conflict
        );
        assert_eq!(
            journal
                .take()
                .iter()
                .filter(|call| *call == "policy ")
                .count(),
            3
        );
    }

    #[tokio::test]
    async fn a_policy_is_in_force_whatever_comes_after_it_and_written_when_its_driver_wrote() {
        let journal = Journal::default();
        let mut reconciler = reconciler(&journal);
        assert_eq!(reconciler.in_force(), InForce::Unknown);
        journal.fail("policy", ErrorKind::Transient, 1);
        reconciler.converge(&with_peer("a")).await.unwrap_err();
        assert_eq!(reconciler.in_force(), InForce::Unknown);
        for after in ["addresses", "tunnel", "steering"] {
            reconciler.before = None;
            journal.fail(after, ErrorKind::Permission, 1);
            reconciler.converge(&with_peer("a")).await.unwrap_err();
            assert_eq!(reconciler.in_force(), InForce::Written, "{after}");
            assert_eq!(reconciler.in_force(), InForce::Unchanged, "{after}");
        }
        reconciler.converge(&with_peer("a")).await.unwrap();
        assert_eq!(reconciler.in_force(), InForce::Written);
        reconciler.restore_policy().await.unwrap();
        assert_eq!(
            reconciler.in_force(),
            InForce::Written,
            "somebody else changed it, and connections began meanwhile"
        );
        journal.unchanged.store(true, Ordering::Relaxed);
        reconciler.converge(&with_peer("a")).await.unwrap();
        assert_eq!(reconciler.in_force(), InForce::Unchanged);
        journal.fail("policy", ErrorKind::Transient, 1);
        reconciler.converge(&with_peer("a")).await.unwrap_err();
        assert_eq!(reconciler.in_force(), InForce::Unknown);
        reconciler.converge(&with_peer("a")).await.unwrap();
        assert_eq!(
            reconciler.in_force(),
            InForce::Written,
            "the attempt that failed may have written everything"
        );
    }

    #[tokio::test]
    async fn other_failures_are_not_tried_again_at_once() {
        let journal = Journal::default();
        let mut reconciler = reconciler(&journal);
        journal.fail("policy", ErrorKind::Transient, 1);
        assert_eq!(
            reconciler.converge(&with_peer("a")).await.unwrap_err().kind,
            ErrorKind::Transient
        );
        assert_eq!(journal.take(), ["policy ", "addresses "]);
    }

    #[tokio::test]
    async fn what_is_in_force_is_put_back_and_nothing_else_is() {
        let journal = Journal::default();
        let mut reconciler = reconciler(&journal);
        assert_eq!(
            reconciler.restore_policy().await.unwrap(),
            Outcome::Unchanged
        );
        assert_eq!(journal.take(), ["policy reads"], "nothing is in force yet");
        reconciler.converge(&with_peer("a")).await.unwrap();
        journal.take();
        assert_eq!(
            reconciler.restore_policy().await.unwrap(),
            Outcome::Applied,
            "somebody else changed it"
        );
        assert_eq!(journal.take(), ["policy reads", "policy "]);
        journal.fail("policy", ErrorKind::Transient, 1);
        reconciler.converge(&with_peer("b")).await.unwrap_err();
        journal.take();
        assert_eq!(
            reconciler.restore_policy().await.unwrap(),
            Outcome::Unchanged,
            "nobody knows what is in force"
        );
        assert_eq!(journal.take(), ["policy reads"]);
    }

    fn with_address(address: &str) -> NodeDesired {
        let held = imbl::OrdMap::unit(address.parse().unwrap(), "eth0".to_owned());
        NodeDesired {
            addresses: AddressesDesired { held },
            ..NodeDesired::default()
        }
    }

    #[tokio::test]
    async fn an_address_is_here_before_the_policy_exits_with_it_and_one_that_another_node_has_goes_first()
     {
        let journal = Journal::default();
        let mut reconciler = reconciler(&journal);
        reconciler.converge(&NodeDesired::default()).await.unwrap();
        for (next, expected) in [
            (with_address("10.6.0.60"), "addresses 10.6.0.60"),
            (NodeDesired::default(), "addresses "),
        ] {
            journal.take();
            reconciler.converge(&next).await.unwrap();
            let calls = journal.take();
            let place = |call: &str| calls.iter().position(|made| made == call).unwrap();
            assert!(place(expected) < place("policy "), "{calls:?}");
        }
    }

    #[tokio::test]
    async fn an_address_that_can_not_be_had_keeps_nothing_else_waiting_and_is_still_a_failure() {
        let journal = Journal::default();
        let mut reconciler = reconciler(&journal);
        for first in [true, false] {
            journal.fail("addresses", ErrorKind::Permission, 1);
            assert_eq!(
                reconciler
                    .converge(&with_address("10.6.0.60"))
                    .await
                    .unwrap_err()
                    .kind,
                ErrorKind::Permission
            );
            let calls = journal.take();
            assert!(
                ["policy ", "tunnel ", "steering "]
                    .iter()
                    .all(|call| calls.iter().any(|made| made == call)),
                "{first}: {calls:?}"
            );
            reconciler
                .converge(&with_address("10.6.0.60"))
                .await
                .unwrap();
            journal.take();
        }
    }

    #[tokio::test]
    async fn an_address_of_another_node_does_not_stay_because_the_packet_filter_fails() {
        let journal = Journal::default();
        let mut reconciler = reconciler(&journal);
        for _ in 0..2 {
            reconciler
                .converge(&with_address("10.6.0.60"))
                .await
                .unwrap();
            journal.fail("policy", ErrorKind::Unsupported, 1);
            journal.take();
            reconciler
                .converge(&NodeDesired::default())
                .await
                .unwrap_err();
            assert!(journal.take().contains(&"addresses ".to_owned()));
            reconciler.before = None;
        }
    }

    #[tokio::test]
    async fn ways_that_a_failed_attempt_may_have_made_stay_until_the_policy_has_moved_on() {
        let journal = Journal::default();
        let mut reconciler = reconciler(&journal);
        reconciler.converge(&with_peer("a")).await.unwrap();
        journal.fail("policy", ErrorKind::Transient, 1);
        reconciler.converge(&with_peer("b")).await.unwrap_err();
        journal.take();
        reconciler.converge(&with_peer("c")).await.unwrap();
        let tunnel: Vec<_> = journal
            .take()
            .into_iter()
            .filter(|call| call.starts_with("tunnel"))
            .collect();
        assert_eq!(tunnel, ["tunnel a+b+c", "tunnel c"]);
    }
}
