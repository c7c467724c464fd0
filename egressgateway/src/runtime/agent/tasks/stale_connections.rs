//! Ends connections that can't go on as they began: their policy came after them, or their way is
//! gone.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};

use tokio::{sync::watch, time::Instant};

use crate::{
    Connection, Connections, DestinationView, NodeDesired, PolicyDesired, Staleness,
    model::MarkMask,
    runtime::{kube::backoff::Backoff, metrics::AgentMetrics, time::wait_until},
};

/// Second scan after this delay, and each further one after twice the delay of the one before: a
/// connection classified before the policy may be inserted into conntrack after the first scan, and
/// one that came through the overlay while the rules were missing is known by its next packet.
const SECOND_SCAN: Duration = Duration::from_secs(1);
/// How many times longer than a scan the pause after it is, at least: a large table does not keep
/// the processor busy.
const PAUSES: u32 = 10;
/// What a scan takes for each connection, at most: what takes longer waits for others, and is no
/// reason to wait even longer.
const COST: Duration = Duration::from_micros(5);

/// Scans the kernel's connections whenever a policy or a way has come into force.
pub(crate) struct StaleConnections {
    pub(crate) connections: Arc<dyn Connections>,
    pub(crate) view: DestinationView,
    pub(crate) mask: MarkMask,
    /// Whether connections are to be ended that began before their policy. Those whose way is gone
    /// always are.
    pub(crate) wanted: watch::Receiver<bool>,
    /// Whether the table may hold connections that were governed: the last scan found some, or some
    /// may have come since.
    pub(crate) may_hold_governed: bool,
    /// How often everything is scanned without a reason; no two scans are further apart.
    pub(crate) resync: Duration,
    pub(crate) backoff: Backoff,
    pub(crate) metrics: AgentMetrics,
}

impl StaleConnections {
    /// Works until the sender of policies in force is gone.
    pub(crate) async fn run(mut self, mut in_force: watch::Receiver<Option<NodeDesired>>) {
        let (mut next, mut free, mut distance) = (None, Instant::now(), SECOND_SCAN);
        let (mut former, mut last): (Option<NodeDesired>, Option<NodeDesired>) = (None, None);
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
            let desired = in_force.borrow_and_update().clone();
            let began = Instant::now();
            if news {
                former = std::mem::replace(&mut last, desired.clone());
                distance = SECOND_SCAN;
            }
            let (ended, seen) = self.scan(desired.as_ref(), former.as_ref()).await;
            if !news {
                former = None;
            }
            free = Instant::now() + began.elapsed().min(COST * seen) * PAUSES;
            let pause = if ended {
                distance
            } else {
                self.backoff.delay()
            };
            if ended {
                distance = (distance * 2).min(self.resync);
            }
            next = Some(Instant::now() + pause);
        }
    }

    /// Whether it went well, and how many connections it saw. What was in force before is `former`.
    async fn scan(
        &mut self,
        desired: Option<&NodeDesired>,
        former: Option<&NodeDesired>,
    ) -> (bool, u32) {
        let wanted = *self.wanted.borrow_and_update();
        let needed = |desired: &&NodeDesired| self.may_hold_governed || governs(&desired.policy);
        let Some(desired) = desired.filter(needed) else {
            return (true, 0);
        };
        let seen = AtomicU32::new(0);
        let (staleness, governed) = (
            desired.staleness(self.view, self.mask),
            AtomicBool::new(false),
        );
        let staleness = former.into_iter().fold(staleness, Staleness::since);
        let judge = |connection: &Connection| {
            seen.fetch_add(1, Ordering::Relaxed);
            if self.mask.byte(connection.mark) == 0 {
                return staleness.judge(connection).filter(|_| wanted);
            }
            governed.store(true, Ordering::Relaxed);
            staleness.judge(connection)
        };
        let ended = match self.connections.forget(&judge).await {
            Ok(number) => {
                self.may_hold_governed = governed.into_inner() || governs(&desired.policy);
                self.backoff.succeeded();
                self.metrics.forgotten(number);
                if number > 0 {
                    tracing::info!(number, "ended stale connections");
                }
                true
            }
            Err(error) => {
                self.metrics.not_forgotten(error.kind);
                tracing::warn!(
                    kind = error.kind.as_str(),
                    error = error.chain(),
                    "cannot end stale connections; trying again"
                );
                false
            }
        };
        (ended, seen.into_inner())
    }
}

fn governs(policy: &PolicyDesired) -> bool {
    !policy.destinations.is_empty()
        || policy
            .start_gate
            .as_ref()
            .is_some_and(|gate| !gate.governed.is_empty())
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use async_trait::async_trait;
    use imbl::OrdMap;

    use super::*;
    use crate::{
        Ending, Error, ErrorKind,
        model::{ClassId, IpRange, TargetId, Verdict},
    };

    /// Tells of one connection, fails as often as asked, and knows when it was looked through.
    struct Table {
        connection: Connection,
        /// How often it is in the table.
        connections: u32,
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
                seen_as: [10, 244, 0, 5].into(),
                is_own: false,
                mark: 0,
                is_opening_seen: true,
            };
            Arc::new(Self {
                connection,
                connections: 1,
                failures: failures.into(),
                takes,
                looks: Mutex::default(),
                began: Instant::now(),
            })
        }

        fn looks(&self) -> Vec<(u128, bool)> {
            self.looks
                .lock()
                .unwrap()
                .iter()
                .map(|(at, stale)| (at.as_millis(), *stale))
                .collect()
        }
    }

    #[async_trait]
    impl Connections for Table {
        async fn forget(
            &self,
            stale: &(dyn for<'a> Fn(&'a Connection) -> Option<Ending> + Send + Sync),
        ) -> Result<u64, Error> {
            let stale = (0..self.connections)
                .filter(|_| stale(&self.connection).is_some())
                .count()
                > 0;
            self.looks
                .lock()
                .unwrap()
                .push((self.began.elapsed(), stale));
            tokio::time::sleep(self.takes).await;
            let mut failures = self.failures.lock().unwrap();
            if *failures > 0 {
                *failures -= 1;
                return Err(Error::new(ErrorKind::Transient, "no memory"));
            }
            Ok(u64::from(stale))
        }
    }

    fn policy(source: [u8; 4]) -> NodeDesired {
        let class = ClassId::new(1).unwrap();
        let policy = PolicyDesired {
            pods: OrdMap::unit(source.into(), class),
            destinations: OrdMap::unit(
                (class, IpRange::single([10, 6, 1, 10].into())),
                Verdict::Hold,
            ),
            ..PolicyDesired::default()
        };
        NodeDesired {
            policy,
            ..NodeDesired::default()
        }
    }

    fn start(table: &Arc<Table>) -> watch::Sender<Option<NodeDesired>> {
        start_where(table, watch::channel(true).1)
    }

    fn start_where(
        table: &Arc<Table>,
        wanted: watch::Receiver<bool>,
    ) -> watch::Sender<Option<NodeDesired>> {
        let (sender, receiver) = watch::channel(None);
        let task = StaleConnections {
            connections: table.clone(),
            view: DestinationView::Translated,
            wanted,
            may_hold_governed: true,
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
    async fn a_policy_is_looked_after_at_once_a_moment_later_and_then_ever_more_rarely() {
        let table = Table::new(Duration::ZERO, 0);
        let policies = start(&table);
        pass(Duration::from_secs(10)).await;
        assert_eq!(table.looks(), [], "nothing is governed");
        policies.send_replace(Some(policy([10, 244, 0, 5])));
        pass(Duration::from_secs(150)).await;
        assert_eq!(
            table.looks(),
            [10, 11, 13, 17, 25, 41, 73, 137].map(|second| (second * 1000, true))
        );
        policies.send_replace(Some(policy([10, 244, 0, 6])));
        pass(Duration::from_millis(1)).await;
        assert_eq!(
            table.looks().last(),
            Some(&(160_000, false)),
            "another pod's policy"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn what_began_before_its_policy_is_ended_only_if_that_is_wanted_and_at_once_when_it_becomes_so()
     {
        let table = Table::new(Duration::ZERO, 0);
        let (wanted, received) = watch::channel(false);
        let policies = start_where(&table, received);
        policies.send_replace(Some(policy([10, 244, 0, 5])));
        pass(Duration::from_secs(50)).await;
        assert_eq!(
            table.looks(),
            [0, 1, 3, 7, 15, 31].map(|second| (second * 1000, false))
        );
        wanted.send_replace(true);
        pass(Duration::from_millis(1)).await;
        assert_eq!(table.looks().last(), Some(&(50_000, true)));
        wanted.send_replace(false);
        pass(Duration::from_millis(1)).await;
        assert_eq!(table.looks().last(), Some(&(50_001, false)));
    }

    #[tokio::test(start_paused = true)]
    async fn connections_of_a_policy_that_is_gone_are_looked_after_as_long_as_there_are_any() {
        let mut pinned = Table::new(Duration::ZERO, 0);
        Arc::get_mut(&mut pinned).unwrap().connection.mark =
            MarkMask::default().mark(TargetId::FIRST);
        let without_way = start_where(&pinned, watch::channel(false).1);
        without_way.send_replace(Some(NodeDesired::default()));
        pass(Duration::from_secs(2)).await;
        assert_eq!(
            pinned.looks(),
            [(0, true), (1_000, true)],
            "its target leads nowhere, wanted or not"
        );
        let none = Table::new(Duration::ZERO, 0);
        let without_policy = start(&none);
        without_policy.send_replace(Some(NodeDesired::default()));
        pass(Duration::from_secs(200)).await;
        assert_eq!(
            none.looks(),
            [(0, false)],
            "an agent that has just started can't know; then there is nothing to look after"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn looks_that_take_long_keep_apart() {
        let mut table = Table::new(Duration::from_millis(100), 0);
        Arc::get_mut(&mut table).unwrap().connections = 20_000;
        let policies = start(&table);
        for last in 0..100 {
            policies.send_replace(Some(policy([10, 244, 0, last])));
            pass(Duration::from_millis(30)).await;
        }
        let times: Vec<_> = table.looks().iter().map(|(at, _)| *at).collect();
        assert_eq!(times, [0, 1100, 2200]);
        let busy = Table::new(Duration::from_millis(100), 0);
        let policies = start(&busy);
        for last in 0..10 {
            policies.send_replace(Some(policy([10, 244, 0, last])));
            pass(Duration::from_millis(101)).await;
        }
        assert_eq!(busy.looks().len(), 10, "a small table on a busy host");
    }

    #[tokio::test(start_paused = true)]
    async fn a_failed_look_is_repeated_soon() {
        let table = Table::new(Duration::ZERO, 3);
        let policies = start(&table);
        policies.send_replace(Some(policy([10, 244, 0, 5])));
        pass(Duration::from_millis(450)).await;
        assert_eq!(
            table.looks().len(),
            4,
            "three failures, each with a delay of at most a tenth of a second"
        );
    }
}
