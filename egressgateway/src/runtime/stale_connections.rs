//! Ends connections that began before the policy that now governs them.

use std::{sync::Arc, time::Duration};

use tokio::{sync::watch, time::Instant};

use super::{backoff::Backoff, metrics::AgentMetrics, node_status::wait_until};
use crate::{Connections, DestinationView, PolicyDesired, model::MarkMask};

/// How long after a look the next one comes without a new policy: the first packet of a connection may have been classified before the
/// policy was in force, and be written into the kernel's table after the look.
const SECOND_LOOK: Duration = Duration::from_secs(1);
/// How many times longer than a look the pause after it is, at least: a large table does not keep the processor busy.
const PAUSES: u32 = 10;

/// Looks through the kernel's connections whenever a policy has come into force.
pub(super) struct StaleConnections {
    pub(super) connections: Arc<dyn Connections>,
    pub(super) view: DestinationView,
    pub(super) mask: MarkMask,
    /// Whether connections are to be ended at all.
    pub(super) wanted: watch::Receiver<bool>,
    /// How often everything is looked through without a reason.
    pub(super) resync: Duration,
    pub(super) backoff: Backoff,
    pub(super) metrics: AgentMetrics,
}

impl StaleConnections {
    /// Works until the sender of policies in force is gone.
    pub(super) async fn run(mut self, mut in_force: watch::Receiver<Option<PolicyDesired>>) {
        let (mut next, mut free) = (None, Instant::now());
        loop {
            let news = tokio::select! {
                changed = in_force.changed() => match changed {
                    Ok(()) => true,
                    Err(_) => return,
                },
                Ok(()) = self.wanted.changed() => true,
                () = wait_until(next) => false,
            };
            tokio::time::sleep_until(free).await;
            let policy = in_force.borrow_and_update().clone();
            let began = Instant::now();
            let ended = self.look(policy.as_ref()).await;
            free = Instant::now() + began.elapsed() * PAUSES;
            next = Some(Instant::now() + if ended { if news { SECOND_LOOK } else { self.resync } } else { self.backoff.delay() });
        }
    }

    /// Whether it went well.
    async fn look(&mut self, policy: Option<&PolicyDesired>) -> bool {
        let wanted = *self.wanted.borrow_and_update();
        let governs = |policy: &&PolicyDesired| {
            !policy.destinations.is_empty() || policy.start_gate.as_ref().is_some_and(|gate| !gate.governed.is_empty())
        };
        let Some(policy) = policy.filter(|policy| wanted && governs(policy)) else { return true };
        let (view, mask) = (self.view, self.mask);
        match self.connections.forget(&|connection| policy.is_stale(connection, view, mask)).await {
            Ok(number) => {
                self.backoff.succeeded();
                self.metrics.forgotten(number);
                if number > 0 {
                    tracing::info!(number, "ended connections that began before the policy that governs them");
                }
                true
            }
            Err(error) => {
                self.metrics.not_forgotten(error.kind);
                tracing::warn!(
                    kind = error.kind.as_str(),
                    error = error.chain(),
                    "connections that began before a policy may go on past it"
                );
                false
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use async_trait::async_trait;
    use imbl::OrdMap;

    use super::*;
    use crate::{
        Connection, Error, ErrorKind,
        model::{ClassId, IpRange, Verdict},
    };

    /// Tells of one connection, fails as often as asked, and knows when it was looked through.
    struct Table {
        connection: Connection,
        failures: Mutex<u32>,
        takes: Duration,
        looks: Mutex<Vec<(Duration, bool)>>,
        began: Instant,
    }

    impl Table {
        fn new(takes: Duration, failures: u32) -> Arc<Self> {
            let connection = Connection {
                source: [10, 244, 0, 5].into(),
                destination: [10, 6, 1, 10].into(),
                translated: [10, 6, 1, 10].into(),
                mark: 0,
            };
            Arc::new(Self { connection, failures: failures.into(), takes, looks: Mutex::default(), began: Instant::now() })
        }

        fn looks(&self) -> Vec<(u128, bool)> {
            self.looks.lock().unwrap().iter().map(|(at, stale)| (at.as_millis(), *stale)).collect()
        }
    }

    #[async_trait]
    impl Connections for Table {
        async fn forget(&self, stale: &(dyn for<'a> Fn(&'a Connection) -> bool + Send + Sync)) -> Result<u64, Error> {
            let stale = stale(&self.connection);
            self.looks.lock().unwrap().push((self.began.elapsed(), stale));
            tokio::time::sleep(self.takes).await;
            let mut failures = self.failures.lock().unwrap();
            if *failures > 0 {
                *failures -= 1;
                return Err(Error::new(ErrorKind::Transient, "no memory"));
            }
            Ok(u64::from(stale))
        }
    }

    fn policy(source: [u8; 4]) -> PolicyDesired {
        let class = ClassId::new(1).unwrap();
        PolicyDesired {
            pods: OrdMap::unit(source.into(), class),
            destinations: OrdMap::unit((class, IpRange::single([10, 6, 1, 10].into())), Verdict::Hold),
            ..PolicyDesired::default()
        }
    }

    fn start(table: &Arc<Table>) -> watch::Sender<Option<PolicyDesired>> {
        start_where(table, watch::channel(true).1)
    }

    fn start_where(table: &Arc<Table>, wanted: watch::Receiver<bool>) -> watch::Sender<Option<PolicyDesired>> {
        let (sender, receiver) = watch::channel(None);
        let task = StaleConnections {
            connections: table.clone(),
            view: DestinationView::Translated,
            wanted,
            mask: MarkMask::default(),
            resync: Duration::from_secs(100),
            backoff: Backoff::new(Duration::from_millis(100), Duration::from_millis(100)),
            metrics: AgentMetrics::default(),
        };
        tokio::spawn(task.run(receiver));
        sender
    }

    async fn pass(time: Duration) {
        tokio::time::sleep(time).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_policy_is_looked_after_at_once_a_moment_later_and_then_now_and_again() {
        let table = Table::new(Duration::ZERO, 0);
        let policies = start(&table);
        pass(Duration::from_secs(10)).await;
        assert_eq!(table.looks(), [], "nothing is governed");
        policies.send_replace(Some(policy([10, 244, 0, 5])));
        pass(Duration::from_secs(150)).await;
        assert_eq!(table.looks(), [(10_000, true), (11_000, true), (111_000, true)]);
        policies.send_replace(Some(policy([10, 244, 0, 6])));
        pass(Duration::from_millis(1)).await;
        assert_eq!(table.looks().last(), Some(&(160_000, false)), "another pod's policy");
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_ended_unless_it_is_wanted_and_at_once_when_it_becomes_so() {
        let table = Table::new(Duration::ZERO, 0);
        let (wanted, received) = watch::channel(false);
        let policies = start_where(&table, received);
        policies.send_replace(Some(policy([10, 244, 0, 5])));
        pass(Duration::from_secs(150)).await;
        assert_eq!(table.looks(), []);
        wanted.send_replace(true);
        pass(Duration::from_millis(1)).await;
        assert_eq!(table.looks(), [(150_000, true)]);
        wanted.send_replace(false);
        pass(Duration::from_secs(150)).await;
        assert_eq!(table.looks().len(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn looks_that_take_long_keep_apart() {
        let table = Table::new(Duration::from_millis(100), 0);
        let policies = start(&table);
        for last in 0..100 {
            policies.send_replace(Some(policy([10, 244, 0, last])));
            pass(Duration::from_millis(30)).await;
        }
        let times: Vec<_> = table.looks().iter().map(|(at, _)| *at).collect();
        assert_eq!(times, [0, 1100, 2200]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_failed_look_is_repeated_soon() {
        let table = Table::new(Duration::ZERO, 3);
        let policies = start(&table);
        policies.send_replace(Some(policy([10, 244, 0, 5])));
        pass(Duration::from_millis(450)).await;
        assert_eq!(table.looks().len(), 4, "three failures, each with a delay of at most a tenth of a second");
    }
}
