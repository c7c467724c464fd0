//! Asks the neighbours who has egress addresses: before the node takes one, and once the controller
//! may have given its own to others, when it lets go of what another node has.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use futures::FutureExt as _;
use tokio::{sync::watch, time::Instant};

use super::{
    address_acquisition::{AddressAcquisition, Findings},
    lease::Renewal,
    lease_fence::LeaseFence,
};
use crate::{
    AddressesDesired, ErrorKind, Inquirer, Questions,
    model::MacAddress,
    runtime::{
        kube::watch::Scope,
        metrics::AgentMetrics,
        time::{jitter, wait_until},
    },
};

/// How often it asks. Of two who answer, neighbours believe the wrong one for so long.
const INTERVAL: Duration = Duration::from_secs(1);

/// What the rest of the agent tells, and is told.
pub(crate) struct Channels {
    /// The addresses that the node holds.
    pub(crate) held: watch::Receiver<AddressesDesired>,
    /// The Lease was renewed.
    pub(crate) renewals: watch::Receiver<Option<Renewal>>,
    /// Which policies are watched; a new round of the same is a new list.
    pub(crate) policies: watch::Sender<Scope>,
    /// The last round that was listed, and taken over.
    pub(crate) listed: watch::Receiver<u64>,
    /// What others have.
    pub(crate) conflicting_addresses: watch::Sender<BTreeSet<IpAddr>>,
    /// What the node must ask for before it takes it; none as long as it does not know.
    pub(crate) questions: watch::Receiver<Option<Questions>>,
    /// What that came to.
    pub(crate) findings: watch::Sender<Findings>,
}

pub(crate) struct AddressConflictDetector {
    inquirer: Arc<dyn Inquirer>,
    fence: LeaseFence,
    acquisition: AddressAcquisition,
    duration: Duration,
    channels: Channels,
    metrics: AgentMetrics,
    /// What is listened to.
    listened: AddressesDesired,
    /// What the node holds and asked for, and when it did so last.
    asked: Option<(AddressesDesired, Instant)>,
    /// The addresses that could not be asked for: told once.
    mute: BTreeSet<IpAddr>,
    /// The last list that was asked for, and when.
    list: (u64, Option<Instant>),
}

impl AddressConflictDetector {
    /// With a Lease that counts as held for `duration`.
    pub(crate) fn new(
        inquirer: Arc<dyn Inquirer>,
        duration: Duration,
        channels: Channels,
        metrics: AgentMetrics,
    ) -> Self {
        let fence = LeaseFence::new(duration, Instant::now());
        Self {
            inquirer,
            fence,
            acquisition: AddressAcquisition::default(),
            duration,
            channels,
            metrics,
            listened: AddressesDesired::default(),
            asked: None,
            mute: BTreeSet::new(),
            list: (0, None),
        }
    }

    /// Until nobody says any more which addresses the node holds.
    pub(crate) async fn run(mut self) {
        loop {
            let again = self.asked.as_ref().map(|(_, at)| *at + INTERVAL);
            let expiry = Some(self.fence.expiry())
                .filter(|_| !self.fence.asks() || self.fence.wants_list().is_some());
            tokio::select! {
                (address, other) = self.inquirer.answered() => self.on_reply(address, other),
                changed = self.channels.held.changed() => if changed.is_err() {
                    return;
                },
                Ok(()) = self.channels.renewals.changed() => {}
                Ok(()) = self.channels.listed.changed() => {}
                Ok(()) = self.channels.questions.changed() => self.follow(),
                () = wait_until(again.into_iter().chain(expiry).chain(self.acquisition.next()).min()) => {}
            }
            // Nobody is silent who was only not listened to.
            while let Some((address, other)) = self.inquirer.answered().now_or_never() {
                self.on_reply(address, other);
            }
            self.advance();
            self.ask();
            self.publish();
            self.want_list();
        }
    }

    fn advance(&mut self) {
        if let Some(renewal) = *self.channels.renewals.borrow_and_update() {
            self.fence.renewed(renewal);
        }
        let (doubted, conflicting) = (self.fence.asks(), self.fence.conflicting());
        self.fence.advance(Instant::now());
        if let (listed, (wanted, Some(sent))) =
            (*self.channels.listed.borrow_and_update(), self.list)
            && listed == wanted
        {
            self.fence.listed(sent);
        }
        self.fence.follow(&self.channels.held.borrow_and_update());
        if doubted && !self.fence.asks() && !conflicting.is_empty() {
            tracing::info!(addresses = ?conflicting, "policies listed after the Lease renewal; address conflicts cleared");
        }
        let now = self.fence.conflicting();
        self.channels
            .conflicting_addresses
            .send_if_modified(|before| std::mem::replace(before, now.clone()) != now);
    }

    fn follow(&mut self) {
        if let Some(questions) = &*self.channels.questions.borrow_and_update() {
            self.acquisition.follow(questions, Instant::now());
        }
    }

    /// What may be taken, and what somebody else has.
    fn publish(&self) {
        let findings = self.acquisition.findings();
        self.channels.findings.send_if_modified(|before| {
            for address in before
                .conflicts
                .keys()
                .filter(|address| !findings.conflicts.contains_key(*address))
            {
                tracing::info!(%address, "egress address conflict resolved");
            }
            std::mem::replace(before, findings.clone()) != findings
        });
    }

    fn on_reply(&mut self, address: IpAddr, other: MacAddress) {
        if self
            .acquisition
            .heard(address, other, Instant::now(), jitter)
        {
            self.metrics.refused();
            tracing::warn!(%address, other = %other, "egress address conflict; not taking the address");
        }
        let held = self.channels.held.borrow().clone();
        if self.fence.heard(address, other, &held) {
            self.metrics.let_go();
            tracing::warn!(
                %address,
                other = %other,
                "egress address conflict while the Lease is overdue; releasing the address until the API server answers"
            );
        }
    }

    /// Asks once a second who else has what the node holds, and at once when that is something
    /// else; and for what it is to take, when that is due. It listens to nothing while there is
    /// nothing to ask for.
    fn ask(&mut self) {
        let held = self.channels.held.borrow().clone();
        let conflicting = self.fence.conflicting();
        let doubted = held
            .held
            .into_iter()
            .filter(|(address, _)| self.fence.asks() && !conflicting.contains(address));
        let doubted = AddressesDesired {
            held: doubted.collect(),
        };
        let now = Instant::now();
        let again = match &self.asked {
            None => !doubted.held.is_empty(),
            Some((asked, at)) => *asked != doubted || now >= *at + INTERVAL,
        };
        let due = self.acquisition.due(now, jitter);
        let listened = self.acquisition.listened().held.union(doubted.held.clone());
        if !again && due.is_empty() && listened == self.listened.held {
            return;
        }
        self.listened = AddressesDesired { held: listened };
        let asked = doubted
            .held
            .keys()
            .filter(|_| again)
            .chain(&due)
            .copied()
            .collect();
        let failures: BTreeMap<IpAddr, _> = self
            .inquirer
            .inquire(&self.listened, &asked)
            .into_iter()
            .collect();
        for (address, error) in &failures {
            self.metrics.not_inquired(error.kind);
            self.acquisition.failed(
                *address,
                matches!(error.kind, ErrorKind::Transient | ErrorKind::Conflict),
            );
            if self.mute.insert(*address) {
                let (kind, error) = (error.kind.as_str(), error.chain());
                tracing::warn!(%address, kind, error, "address conflict probe failed");
            }
        }
        for address in asked
            .iter()
            .filter(|address| !failures.contains_key(*address))
        {
            self.mute.remove(address);
            if doubted.held.contains_key(address) {
                self.metrics.inquired();
            }
        }
        if again {
            self.asked = Some((doubted, now)).filter(|(doubted, _)| !doubted.held.is_empty());
        }
    }

    /// A list that does not come is asked for again, by another request: the way of this one may be
    /// as dead as those before it.
    fn want_list(&mut self) {
        let Some(since) = self.fence.wants_list() else {
            return;
        };
        let (round, sent) = self.list;
        let now = Instant::now();
        if sent.is_some_and(|sent| sent >= since && now < sent + self.duration) {
            return;
        }
        self.list = (round + 1, Some(now));
        self.channels
            .policies
            .send_modify(|scope| scope.round = round + 1);
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::VecDeque, sync::Mutex};

    use async_trait::async_trait;
    use tokio::sync::Notify;

    use super::*;
    use crate::{Error, ErrorKind};

    const OTHER: MacAddress = MacAddress([2, 0, 0, 0, 0, 0x0c]);
    const LEASE: Duration = Duration::from_secs(40);

    /// What was asked at which second, and what others have that can be heard of there.
    #[derive(Default)]
    struct Network {
        asked: Mutex<Vec<(u64, Vec<String>)>>,
        others: Mutex<BTreeSet<IpAddr>>,
        answers: Mutex<VecDeque<IpAddr>>,
        came: Notify,
        mute: Mutex<bool>,
        began: Mutex<Option<Instant>>,
    }

    impl Network {
        fn asked(&self) -> Vec<(u64, Vec<String>)> {
            std::mem::take(&mut self.asked.lock().unwrap())
        }

        fn say(&self, address: IpAddr) {
            self.answers.lock().unwrap().push_back(address);
            self.came.notify_one();
        }
    }

    #[async_trait]
    impl Inquirer for Network {
        fn inquire(
            &self,
            addresses: &AddressesDesired,
            ask: &BTreeSet<IpAddr>,
        ) -> Vec<(IpAddr, Error)> {
            let second = self.began.lock().unwrap().unwrap().elapsed().as_secs();
            self.asked
                .lock()
                .unwrap()
                .push((second, ask.iter().map(ToString::to_string).collect()));
            if *self.mute.lock().unwrap() {
                let refused =
                    |address: &IpAddr| (*address, Error::new(ErrorKind::Permission, "no"));
                return addresses.held.keys().map(refused).collect();
            }
            for address in ask
                .iter()
                .filter(|address| self.others.lock().unwrap().contains(*address))
            {
                self.say(*address);
            }
            Vec::new()
        }

        async fn answered(&self) -> (IpAddr, MacAddress) {
            loop {
                if let Some(address) = self.answers.lock().unwrap().pop_front() {
                    return (address, OTHER);
                }
                self.came.notified().await;
            }
        }
    }

    /// An agent's claims, and the rest of the agent.
    struct Agent {
        network: Arc<Network>,
        held: watch::Sender<AddressesDesired>,
        renewals: watch::Sender<Option<Renewal>>,
        policies: watch::Receiver<Scope>,
        listed: watch::Sender<u64>,
        conflicting_addresses: watch::Receiver<BTreeSet<IpAddr>>,
        questions: watch::Sender<Option<Questions>>,
        findings: watch::Receiver<Findings>,
        metrics: AgentMetrics,
    }

    impl Agent {
        fn start() -> Self {
            let network = Arc::new(Network {
                began: Mutex::new(Some(Instant::now())),
                ..Network::default()
            });
            let (held, renewals, listed) = (
                watch::Sender::new(addresses(&["10.6.0.60"])),
                watch::Sender::new(None),
                watch::Sender::new(0),
            );
            let ((policies, scope), (conflicting_addresses, said)) = (
                watch::channel(Scope::default()),
                watch::channel(BTreeSet::new()),
            );
            let (questions, (told, findings)) = (
                watch::Sender::new(None),
                watch::channel(Findings::default()),
            );
            let channels = Channels {
                held: held.subscribe(),
                renewals: renewals.subscribe(),
                policies,
                listed: listed.subscribe(),
                conflicting_addresses,
                questions: questions.subscribe(),
                findings: told,
            };
            let metrics = AgentMetrics::default();
            tokio::spawn(
                AddressConflictDetector::new(network.clone(), LEASE, channels, metrics.clone())
                    .run(),
            );
            Self {
                network,
                held,
                renewals,
                policies: scope,
                listed,
                conflicting_addresses: said,
                questions,
                findings,
                metrics,
            }
        }

        fn renew(&self) {
            self.renewals.send_replace(Some(Renewal {
                sent: Instant::now(),
                answered: Instant::now(),
            }));
        }

        fn conflicting(&self) -> Vec<String> {
            self.conflicting_addresses
                .borrow()
                .iter()
                .map(ToString::to_string)
                .collect()
        }

        /// As the agent does it when it hears of a conflict.
        fn let_go(&self) {
            let conflicting = self.conflicting_addresses.borrow().clone();
            self.held.send_modify(|held| {
                held.held = held
                    .held
                    .clone()
                    .into_iter()
                    .filter(|(held, _)| !conflicting.contains(held))
                    .collect();
            });
        }
    }

    fn addresses(texts: &[&str]) -> AddressesDesired {
        AddressesDesired {
            held: texts
                .iter()
                .map(|text| (text.parse::<IpAddr>().unwrap(), "eth0".to_owned()))
                .collect(),
        }
    }

    async fn seconds(seconds: u64) {
        // A little more, so that whoever wakes at the same moment was there before.
        tokio::time::sleep(Duration::from_secs(seconds) + Duration::from_millis(1)).await;
    }

    #[tokio::test(start_paused = true)]
    async fn asks_once_a_second_as_soon_as_the_lease_may_be_old_and_keeps_what_nobody_else_has() {
        let agent = Agent::start();
        seconds(39).await;
        assert_eq!(agent.network.asked(), []);
        seconds(4).await;
        let ask = |second| (second, vec!["10.6.0.60".to_owned()]);
        assert_eq!(agent.network.asked(), [ask(40), ask(41), ask(42), ask(43)]);
        agent
            .held
            .send_replace(addresses(&["10.6.0.60", "fd00:6::60"]));
        seconds(0).await;
        assert_eq!(
            agent.network.asked(),
            [(43, vec!["10.6.0.60".to_owned(), "fd00:6::60".to_owned()])],
            "a new one at once"
        );
        seconds(3600).await;
        assert_eq!(agent.conflicting(), [""; 0]);
    }

    #[tokio::test(start_paused = true)]
    async fn while_the_lease_is_renewed_nothing_is_asked_and_what_is_said_counts_for_nothing() {
        let agent = Agent::start();
        agent
            .network
            .others
            .lock()
            .unwrap()
            .insert("10.6.0.60".parse().unwrap());
        for _ in 0..100 {
            agent.renew();
            agent.network.say("10.6.0.60".parse().unwrap());
            seconds(10).await;
        }
        assert_eq!(
            (agent.network.asked(), agent.conflicting()),
            (vec![], vec![])
        );
    }

    #[tokio::test(start_paused = true)]
    async fn what_another_has_is_contested_until_all_policies_were_listed_after_a_renewal() {
        let agent = Agent::start();
        agent
            .network
            .others
            .lock()
            .unwrap()
            .insert("10.6.0.60".parse().unwrap());
        seconds(40).await;
        assert_eq!(agent.conflicting(), ["10.6.0.60"]);
        agent.let_go();
        seconds(5).await;
        assert_eq!(
            agent.network.asked().last(),
            Some(&(40, vec![])),
            "nothing is left to be asked"
        );
        assert_eq!(agent.policies.borrow().round, 0);
        agent.renew();
        seconds(0).await;
        assert_eq!(
            (agent.conflicting(), agent.policies.borrow().round),
            (vec!["10.6.0.60".to_owned()], 1)
        );
        agent.listed.send_replace(1);
        seconds(0).await;
        assert_eq!(
            (agent.conflicting(), agent.policies.borrow().round),
            (vec![], 1)
        );
        assert_eq!(agent.metrics.claims(), (1, 1, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_list_that_does_not_come_is_asked_for_again_and_one_from_before_counts_for_nothing() {
        let agent = Agent::start();
        seconds(41).await;
        for _ in 0..9 {
            agent.renew();
            seconds(5).await;
        }
        assert_eq!(agent.policies.borrow().round, 2);
        agent.listed.send_replace(1);
        agent.network.asked();
        seconds(5).await;
        assert!(!agent.network.asked().is_empty(), "still in doubt");
        agent.listed.send_replace(2);
        seconds(0).await;
        agent.network.asked();
        seconds(5).await;
        assert_eq!(agent.network.asked(), []);
    }

    #[tokio::test(start_paused = true)]
    async fn an_address_that_is_to_be_taken_is_asked_for_at_once_and_granted_within_half_a_second_if_nobody_has_it()
     {
        let agent = Agent::start();
        let own = addresses(&["10.6.0.61", "fd00:6::61"]);
        agent
            .network
            .others
            .lock()
            .unwrap()
            .insert("fd00:6::61".parse().unwrap());
        agent.questions.send_replace(Some(Questions {
            own,
            ..Questions::default()
        }));
        tokio::time::sleep(Duration::from_millis(300)).await;
        let findings = agent.findings.borrow().clone();
        assert_eq!(findings.granted, ["10.6.0.61".parse().unwrap()].into());
        assert_eq!(
            findings.conflicts,
            [("fd00:6::61".parse().unwrap(), OTHER)].into()
        );
        assert_eq!(
            agent.metrics.claims(),
            (0, 0, 0),
            "that is no doubt of its own addresses"
        );
        agent.questions.send_replace(Some(Questions::default()));
        seconds(0).await;
        assert!(agent.findings.borrow().granted.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn an_agent_that_may_not_ask_takes_its_addresses() {
        let agent = Agent::start();
        *agent.network.mute.lock().unwrap() = true;
        agent.questions.send_replace(Some(Questions {
            own: addresses(&["10.6.0.61"]),
            ..Questions::default()
        }));
        seconds(1).await;
        assert!(!agent.findings.borrow().granted.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn an_agent_that_can_not_ask_keeps_its_addresses() {
        let agent = Agent::start();
        *agent.network.mute.lock().unwrap() = true;
        agent
            .network
            .others
            .lock()
            .unwrap()
            .insert("10.6.0.60".parse().unwrap());
        seconds(44).await;
        assert_eq!(agent.conflicting(), [""; 0]);
        assert_eq!(agent.metrics.claims(), (0, 0, 5));
    }
}
