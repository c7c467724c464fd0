//! Probes the gateway nodes that this node may send to, and says which of them are down.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use futures::FutureExt as _;
use tokio::{sync::watch, time::Instant};

use crate::{
    ProbeAddress, Prober,
    model::NodeName,
    node::liveness::{End, Liveness, LivenessSettings},
    runtime::{metrics::AgentMetrics, time::wait_until},
};

/// What is probed, and where.
pub(crate) type Ends = BTreeMap<End, ProbeAddress>;

pub(crate) struct GatewayProbes {
    prober: Arc<dyn Prober>,
    liveness: Liveness,
    settings: watch::Receiver<LivenessSettings>,
    ends: Ends,
    metrics: AgentMetrics,
    /// Whether the last probe could not be sent: told once.
    mute: bool,
}

impl GatewayProbes {
    pub(crate) fn new(
        prober: Arc<dyn Prober>,
        settings: watch::Receiver<LivenessSettings>,
        metrics: AgentMetrics,
    ) -> Self {
        let liveness = Liveness::new(*settings.borrow());
        Self {
            prober,
            liveness,
            settings,
            ends: Ends::new(),
            metrics,
            mute: false,
        }
    }

    /// Works until the sender of `ends` is gone.
    pub(crate) async fn run(
        mut self,
        mut ends: watch::Receiver<Ends>,
        down: watch::Sender<BTreeSet<NodeName>>,
    ) {
        loop {
            let next = self.liveness.next().map(Instant::from_std);
            // Answers first: one that waited while this process did not run must not count as
            // missing.
            tokio::select! {
                biased;
                answer = self.prober.answered() => self.on_reply(answer),
                changed = ends.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    self.ends = ends.borrow_and_update().clone();
                    self.liveness.watch(&self.ends.keys().cloned().collect(), now());
                }
                Ok(()) = self.settings.changed() => self.liveness.configure(*self.settings.borrow_and_update()),
                () = wait_until(next) => {}
            }
            let prober = self.prober.clone();
            while let Some(answer) = prober.answered().now_or_never() {
                self.on_reply(answer);
            }
            self.liveness.settle(now());
            self.send();
            self.publish(&down);
        }
    }

    fn on_reply(&mut self, (from, number): (IpAddr, u16)) {
        if let Some((end, _)) = self.ends.iter().find(|(_, to)| to.address == from) {
            self.metrics.probe_answered();
            self.liveness.answered(end, number);
        }
    }

    fn send(&mut self) {
        for (end, number) in self.liveness.due(now()) {
            let Some(to) = self.ends.get(&end) else {
                continue;
            };
            match self.prober.probe(to, number) {
                Ok(()) => {
                    self.mute = false;
                    self.metrics.probe_sent();
                    self.liveness.sent(&end, number, now());
                }
                Err(error) => {
                    self.metrics.probe_failed(error.kind);
                    if !std::mem::replace(&mut self.mute, true) {
                        tracing::warn!(node = %end.0, kind = error.kind.as_str(), error = error.chain(), "cannot send gateway probes");
                    }
                }
            }
        }
    }

    fn publish(&self, down: &watch::Sender<BTreeSet<NodeName>>) {
        let now = self.liveness.down();
        down.send_if_modified(|before| {
            for node in now.difference(before) {
                tracing::warn!(%node, "gateway node does not answer probes; sending nothing to it");
                self.metrics.gateway_lost();
            }
            for node in before.difference(&now) {
                tracing::info!(%node, "gateway node answers probes again");
            }
            let changed = *before != now;
            before.clone_from(&now);
            changed
        });
        self.metrics.gateways_down(now.len());
    }
}

fn now() -> std::time::Instant {
    Instant::now().into_std()
}

#[cfg(test)]
mod tests {
    use std::{collections::VecDeque, sync::Mutex, time::Duration};

    use async_trait::async_trait;
    use tokio::sync::Notify;

    use super::*;
    use crate::{Error, ErrorKind, model::Family};

    /// Everybody answers at once but those who are dead; probes through a device of the name "gone"
    /// fail.
    #[derive(Default)]
    struct Network {
        dead: Mutex<BTreeSet<IpAddr>>,
        answers: Mutex<VecDeque<(IpAddr, u16)>>,
        came: Notify,
    }

    #[async_trait]
    impl Prober for Network {
        fn probe(&self, to: &ProbeAddress, number: u16) -> Result<(), Error> {
            if to.device == "gone" {
                return Err(Error::new(ErrorKind::Conflict, "no device"));
            }
            if !self.dead.lock().unwrap().contains(&to.address) {
                self.answers.lock().unwrap().push_back((to.address, number));
                self.came.notify_one();
            }
            Ok(())
        }

        async fn answered(&self) -> (IpAddr, u16) {
            loop {
                if let Some(answer) = self.answers.lock().unwrap().pop_front() {
                    return answer;
                }
                self.came.notified().await;
            }
        }
    }

    fn ends(device: &str) -> Ends {
        let end = |name: &str, last: u8| {
            (
                (NodeName::from(name), Family::V4),
                ProbeAddress {
                    device: device.to_owned(),
                    address: [172, 31, 0, last].into(),
                },
            )
        };
        Ends::from([end("a", 1), end("b", 2)])
    }

    #[tokio::test(start_paused = true)]
    async fn a_dead_node_is_told_within_half_a_second_and_its_return_too() {
        let network = Arc::new(Network::default());
        let (wanted, received) = watch::channel(Ends::new());
        let (sender, mut down) = watch::channel(BTreeSet::new());
        tokio::spawn(
            GatewayProbes::new(
                network.clone(),
                watch::channel(LivenessSettings::default()).1,
                AgentMetrics::default(),
            )
            .run(received, sender),
        );
        wanted.send_replace(ends("egress-vxlan-v4"));
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert!(!down.has_changed().unwrap(), "all answer");

        network.dead.lock().unwrap().insert([172, 31, 0, 1].into());
        let died = Instant::now();
        down.changed().await.unwrap();
        assert_eq!(
            *down.borrow_and_update(),
            BTreeSet::from([NodeName::from("a")])
        );
        assert!(
            died.elapsed() <= Duration::from_millis(452),
            "{:?}",
            died.elapsed()
        );

        network.dead.lock().unwrap().clear();
        down.changed().await.unwrap();
        assert!(down.borrow_and_update().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn another_interval_counts_at_once() {
        let network = Arc::new(Network::default());
        let (settings, changes) = watch::channel(LivenessSettings {
            interval: Duration::from_secs(60),
            multiplier: 3,
        });
        let (wanted, received) = watch::channel(ends("egress-vxlan-v4"));
        let (sender, mut down) = watch::channel(BTreeSet::new());
        tokio::spawn(
            GatewayProbes::new(network.clone(), changes, AgentMetrics::default())
                .run(received, sender),
        );
        wanted.send_replace(ends("egress-vxlan-v4"));
        tokio::time::sleep(Duration::from_secs(5)).await;
        network.dead.lock().unwrap().insert([172, 31, 0, 1].into());
        settings.send_replace(LivenessSettings::default());
        let died = Instant::now();
        down.changed().await.unwrap();
        assert!(
            died.elapsed() < Duration::from_secs(1),
            "{:?}",
            died.elapsed()
        );
    }

    #[tokio::test(start_paused = true)]
    async fn without_the_tunnel_nobody_is_told_dead() {
        let network = Arc::new(Network::default());
        let (wanted, received) = watch::channel(ends("egress-vxlan-v4"));
        let (sender, down) = watch::channel(BTreeSet::new());
        tokio::spawn(
            GatewayProbes::new(
                network.clone(),
                watch::channel(LivenessSettings::default()).1,
                AgentMetrics::default(),
            )
            .run(received, sender),
        );
        wanted.send_replace(ends("egress-vxlan-v4"));
        tokio::time::sleep(Duration::from_secs(5)).await;
        wanted.send_replace(ends("gone"));
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert!(!down.has_changed().unwrap());
        drop(wanted);
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(down.has_changed().is_err(), "it ends with those who ask");
    }
}
