//! Notices when somebody else changes what is ours: the kernel tells of chains that are kept in
//! nftables; for sets and for iptables-legacy somebody has to look.

use std::time::Duration;

use async_trait::async_trait;
use egressgateway::{Driver, Error, PolicyMonitor};
use netlink_sys::{
    AsyncSocket as _, AsyncSocketExt as _, SocketAddr, TokioSocket, protocols::NETLINK_NETFILTER,
};
use tokio::{sync::Mutex, time::Instant};

use crate::{exec::writes::Writes, names::CHAIN_PREFIX};

/// `NFNLGRP_NFTABLES` of `linux/netfilter/nfnetlink.h`.
const NFTABLES_GROUP: u32 = 7;
/// How often the host is read.
const PERIOD: Duration = Duration::from_secs(5);
/// Reading takes at most this part of the time: a host with ten thousand policies is read less
/// often.
const SHARE: u32 = 20;

/// What the kernel tells of changes of nftables, whoever makes them.
#[derive(Default)]
struct Notifications(Option<TokioSocket>);

impl std::fmt::Debug for Notifications {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Notifications")
    }
}

impl Notifications {
    /// Waits until somebody else changed one of our chains. A kernel that can't tell never does.
    async fn foreign(&mut self, writes: &Writes) {
        if self.0.is_none() {
            self.0 = subscribe().ok();
        }
        let Some(socket) = &self.0 else {
            return std::future::pending().await;
        };
        loop {
            match socket.recv_from_full().await {
                Ok((datagram, _)) if is_foreign(&datagram, writes) => return,
                Ok(_) => {}
                // Too much at a time, such as what we wrote ourselves: who looks will see.
                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
    }
}

fn subscribe() -> std::io::Result<TokioSocket> {
    let mut socket = TokioSocket::new(NETLINK_NETFILTER)?;
    socket.socket_mut().bind(&SocketAddr::new(0, 0))?;
    socket.socket_mut().add_membership(NFTABLES_GROUP)?;
    Ok(socket)
}

/// Whether a datagram has a message that names one of our chains and was caused by nobody of ours.
pub(crate) fn is_foreign(datagram: &[u8], writes: &Writes) -> bool {
    let mut rest = datagram;
    let mut next = || {
        let number = |at: usize| Some(u32::from_ne_bytes(rest.get(at..at + 4)?.try_into().ok()?));
        let (length, process) = (usize::try_from(number(0)?).ok()?, number(12)?);
        let body = rest.get(16..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((process, body))
    };
    std::iter::from_fn(&mut next).any(|(process, body)| !writes.are_of(process) && names_ours(body))
}

fn names_ours(body: &[u8]) -> bool {
    body.windows(CHAIN_PREFIX.len())
        .any(|window| window == CHAIN_PREFIX.as_bytes())
}

/// Is told when somebody other than the driver that it came from changes what is the driver's, and
/// once after the driver itself wrote. Made by [`Netfilter::monitor`](crate::Netfilter::monitor) and
/// [`Transit::monitor`](crate::Transit::monitor).
#[derive(Debug)]
pub struct NetfilterMonitor<D: Driver> {
    driver: D,
    writes: Writes,
    /// What was read last, and the number of writes before it.
    seen: Mutex<Option<(u64, D::State)>>,
    differ: fn(&D::State, &D::State) -> bool,
    notifications: Mutex<Notifications>,
    period: Duration,
}

impl<D: Driver> NetfilterMonitor<D> {
    pub(crate) fn new(driver: D, writes: Writes, differ: fn(&D::State, &D::State) -> bool) -> Self {
        Self {
            driver,
            writes,
            seen: Mutex::new(None),
            differ,
            notifications: Mutex::default(),
            period: PERIOD,
        }
    }
}

#[async_trait]
impl<D: Driver> PolicyMonitor for NetfilterMonitor<D> {
    async fn changed(&self) -> Result<(), Error> {
        let mut notifications = self.notifications.lock().await;
        let mut pause = self.period;
        loop {
            tokio::select! {
                () = notifications.foreign(&self.writes) => return Ok(()),
                () = tokio::time::sleep(pause) => {}
            }
            let mut seen = self.seen.lock().await;
            let (number, began) = (self.writes.number(), Instant::now());
            let now = self.driver.observe().await?;
            pause = self.period.max(began.elapsed() * SHARE);
            // The backend wrote meanwhile: nothing can be said about what was read.
            if number % 2 == 1 || number != self.writes.number() {
                continue;
            }
            // Whether the first state after a write is what was written, only the reader who
            // planned it can say.
            let changed = seen
                .as_ref()
                .is_none_or(|(before, state)| *before != number || (self.differ)(state, &now));
            *seen = Some((number, now));
            if changed {
                return Ok(());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::sync::Arc;

    use egressgateway::{Plan as _, PolicyDesired};
    use egressgateway_testkit::{netns::in_namespace, pace::patient, shell::run};

    use super::*;
    use crate::{IptablesFlavour, Netfilter, NetfilterSettings};

    #[test]
    fn the_kernel_tells_of_chains_that_others_change_and_not_of_our_own_writes() {
        in_namespace(|| async {
            let settings = NetfilterSettings {
                flavour: IptablesFlavour::Nft,
                ..NetfilterSettings::default()
            };
            let netfilter = Netfilter::new(settings, Arc::new(()));
            let monitor = NetfilterMonitor {
                period: Duration::from_secs(3600),
                ..netfilter.monitor()
            };
            let told = tokio::spawn(async move {
                monitor.changed().await.unwrap();
                monitor
            });
            tokio::task::yield_now().await;
            let mut desired = PolicyDesired::default();
            for device in ["egress0", "egress1"] {
                desired.overlay.devices.insert(device.to_owned());
                let current = netfilter.observe().await.unwrap();
                let change = netfilter.plan(&desired, &current).unwrap();
                assert!(!change.plan.is_empty());
                netfilter.apply(&change.plan).await.unwrap();
            }
            run("iptables-nft -N SOMEBODY; iptables-nft -A SOMEBODY -j ACCEPT");
            tokio::time::sleep(Duration::from_millis(200)).await;
            assert!(!told.is_finished(), "neither our own chains nor somebody's");
            run("iptables-nft -t mangle -F EGW-PREROUTING");
            let monitor = tokio::time::timeout(patient(Duration::from_secs(60)), told)
                .await
                .unwrap()
                .unwrap();
            // The rule that leads to our chains is in somebody's.
            let again = tokio::spawn(async move { monitor.changed().await });
            tokio::task::yield_now().await;
            run("ip6tables-nft -t mangle -F PREROUTING");
            tokio::time::timeout(patient(Duration::from_secs(60)), again)
                .await
                .unwrap()
                .unwrap()
                .unwrap();
        });
    }
}
