//! A kernel that only remembers: real reconcilers over drivers whose state is what was asked,
//! shared between one agent and the next.

use std::{
    collections::BTreeSet,
    fmt,
    sync::{Arc, Mutex},
};

use async_trait::async_trait;
use egressgateway::{
    AddressesDesired, Change, Connection, Connections, Counter, CounterSource, Driver, Drivers,
    Encapsulation, Ending, Error, ErrorKind, Host, LocalEnd, NextHop, OverlayLinks, Peer, Plan,
    PolicyDesired, PolicyMonitor, Reconciler, SteeringDesired, TunnelDesired, Underlay, Unmanaged,
    UntrackingRule, UntrackingRules, api::Interface, model::Family,
};
use imbl::{OrdMap, OrdSet};
use tokio::sync::{Notify, watch};

use crate::support::PATIENCE;

/// What the kernel holds of ours, and what was done to it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Held {
    pub(crate) tunnel: TunnelDesired,
    pub(crate) steering: SteeringDesired,
    pub(crate) addresses: AddressesDesired,
    pub(crate) policy: PolicyDesired,
    /// Plans that were applied.
    pub(crate) applied: usize,
    /// Complete reads.
    pub(crate) read: usize,
    /// Pods in the policy after each time that it was applied.
    pub(crate) pods: Vec<usize>,
}

#[derive(Clone, Debug)]
pub(crate) struct Kernel {
    held: Arc<watch::Sender<Held>>,
    failures: Arc<Mutex<Vec<ErrorKind>>>,
    refuses: Arc<Mutex<Option<&'static str>>>,
    pub(crate) host: Arc<FakeHost>,
    pub(crate) filter: Arc<FakeMonitor>,
    pub(crate) others: Arc<FakeOthers>,
}

impl Kernel {
    pub(crate) fn new() -> Self {
        Self {
            held: Arc::new(watch::Sender::new(Held::default())),
            failures: Arc::default(),
            refuses: Arc::default(),
            host: Arc::new(FakeHost::new()),
            filter: Arc::default(),
            others: Arc::default(),
        }
    }

    pub(crate) fn drivers(&self) -> Drivers {
        Drivers {
            tunnel: Box::new(Reconciler::new(Slice {
                kernel: self.clone(),
                name: "tunnel",
                of: |held: &mut Held| &mut held.tunnel,
            })),
            steering: Box::new(Reconciler::new(Slice {
                kernel: self.clone(),
                name: "steering",
                of: |held: &mut Held| &mut held.steering,
            })),
            addresses: Box::new(Reconciler::new(Slice {
                kernel: self.clone(),
                name: "addresses",
                of: |held: &mut Held| &mut held.addresses,
            })),
            relay: Box::new(Unmanaged),
            policy: Box::new(Reconciler::new(Slice {
                kernel: self.clone(),
                name: "policy",
                of: |held: &mut Held| &mut held.policy,
            })),
        }
    }

    pub(crate) fn held(&self) -> Held {
        self.held.borrow().clone()
    }

    /// Waits until the kernel is so.
    pub(crate) async fn until(&self, what: &str, so: impl FnMut(&Held) -> bool) -> Held {
        let mut held = self.held.subscribe();
        let waited = tokio::time::timeout(PATIENCE, held.wait_for(so)).await;
        let Ok(held) = waited else {
            panic!("the kernel never had {what}: {:#?}", self.held())
        };
        held.unwrap().clone()
    }

    /// Somebody else changes the kernel.
    pub(crate) fn tamper(&self, with: impl FnOnce(&mut Held)) {
        self.held.send_modify(with);
        self.host.changed.notify_one();
    }

    /// Somebody else changes the packet filter, of which the host itself does not hear.
    pub(crate) fn tamper_policy(&self, with: impl FnOnce(&mut PolicyDesired)) {
        self.held.send_modify(|held| with(&mut held.policy));
        self.filter.0.notify_one();
    }

    /// The next writes fail.
    pub(crate) fn fail(&self, kind: ErrorKind, times: usize) {
        self.failures
            .lock()
            .unwrap()
            .extend(std::iter::repeat_n(kind, times));
    }

    /// Writes of this driver fail.
    pub(crate) fn refuse(&self, driver: &'static str) {
        *self.refuses.lock().unwrap() = Some(driver);
    }

    /// Writes succeed again.
    pub(crate) fn heal(&self) {
        self.failures.lock().unwrap().clear();
        *self.refuses.lock().unwrap() = None;
    }

    pub(crate) fn failures_left(&self) -> usize {
        self.failures.lock().unwrap().len()
    }
}

struct Slice<D> {
    kernel: Kernel,
    name: &'static str,
    of: fn(&mut Held) -> &mut D,
}

#[derive(Debug)]
pub(crate) struct Set<D>(Option<D>);

impl<D: fmt::Debug> fmt::Display for Set<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:?}", self.0)
    }
}

impl<D: fmt::Debug + Send + Sync> Plan for Set<D> {
    fn is_empty(&self) -> bool {
        self.0.is_none()
    }
}

#[async_trait]
impl<D> Driver for Slice<D>
where
    D: Clone + Default + PartialEq + fmt::Debug + Send + Sync + 'static,
{
    type Desired = D;
    type State = D;
    type Plan = Set<D>;

    async fn observe(&self) -> Result<D, Error> {
        let mut state = None;
        self.kernel.held.send_modify(|held| {
            held.read += 1;
            state = Some((self.of)(held).clone());
        });
        Ok(state.unwrap_or_default())
    }

    fn plan(&self, desired: &D, current: &D) -> Result<Change<Set<D>, D>, Error> {
        let plan = Set((desired != current).then(|| desired.clone()));
        Ok(Change {
            plan,
            after: desired.clone(),
        })
    }

    async fn apply(&self, plan: &Set<D>) -> Result<(), Error> {
        if let Some(kind) = self.kernel.failures.lock().unwrap().pop() {
            return Err(Error::new(kind, "write to the fake kernel"));
        }
        if *self.kernel.refuses.lock().unwrap() == Some(self.name) {
            return Err(Error::new(ErrorKind::Permission, self.name));
        }
        if let Some(next) = &plan.0 {
            self.kernel.held.send_modify(|held| {
                *(self.of)(held) = next.clone();
                held.applied += 1;
                held.pods.push(held.policy.pods.len());
            });
            // As on a real host: our own writes are heard of, too.
            self.kernel.host.changed.notify_one();
        }
        Ok(())
    }
}

/// Tells of tampering with the packet filter.
#[derive(Debug, Default)]
pub(crate) struct FakeMonitor(Notify);

#[async_trait]
impl PolicyMonitor for FakeMonitor {
    async fn changed(&self) -> Result<(), Error> {
        self.0.notified().await;
        Ok(())
    }
}

/// A host with one device.
#[derive(Debug)]
pub(crate) struct FakeHost {
    pub(crate) changed: Notify,
}

impl FakeHost {
    fn new() -> Self {
        Self {
            changed: Notify::new(),
        }
    }
}

#[async_trait]
impl Host for FakeHost {
    async fn underlay(&self) -> Result<OrdMap<Family, Underlay>, Error> {
        let underlay = Underlay {
            device: "eth0".to_owned(),
            index: 2,
            address: [10, 6, 0, 1].into(),
            mtu: 1500,
        };
        Ok(OrdMap::unit(Family::V4, underlay))
    }

    async fn interfaces(&self) -> Result<Vec<Interface>, Error> {
        Ok(vec![Interface {
            name: "eth0".to_owned(),
            ipv4: vec!["10.6.0.1/16".to_owned()],
            ..Interface::default()
        }])
    }

    async fn changed(&self) -> Result<(), Error> {
        self.changed.notified().await;
        Ok(())
    }
}

/// One connection that nothing has pinned, and how often it was found stale.
#[derive(Debug)]
pub(crate) struct OneConnection {
    pub(crate) connection: Connection,
    pub(crate) found_stale: watch::Sender<u64>,
}

#[async_trait]
impl Connections for OneConnection {
    async fn forget(
        &self,
        stale: &(dyn for<'a> Fn(&'a Connection) -> Option<Ending> + Send + Sync),
    ) -> Result<u64, Error> {
        let number = u64::from(stale(&self.connection).is_some());
        self.found_stale.send_modify(|found| *found += number);
        Ok(number)
    }
}

/// A tunnel with one device.
#[derive(Debug)]
pub(crate) struct FakeTunnel;

impl Encapsulation for FakeTunnel {
    fn kind(&self) -> &'static str {
        "fake"
    }

    fn next_hop(&self, _: &LocalEnd, peer: &Peer, family: Family) -> Option<NextHop> {
        Some(NextHop {
            device: "tunnel".to_owned(),
            via: peer.overlay(family)?,
            encap: None,
        })
    }

    fn links(&self, _local: &LocalEnd) -> OverlayLinks {
        OverlayLinks {
            devices: OrdSet::unit("tunnel".to_owned()),
            port: 7789,
            mtu: OrdMap::unit(Family::V4, 1450),
        }
    }
}

/// A packet filter that counted seven packets.
pub(crate) struct Seven;

#[async_trait]
impl CounterSource for Seven {
    async fn counters(&self) -> Result<std::collections::BTreeMap<String, Counter>, Error> {
        Ok([(
            "steered".to_owned(),
            Counter {
                packets: 7,
                bytes: 700,
            },
        )]
        .into())
    }
}

/// What others take out of connection tracking.
#[derive(Debug)]
pub(crate) struct FakeOthers {
    rules: watch::Sender<Option<BTreeSet<UntrackingRule>>>,
    changed: Notify,
}

impl Default for FakeOthers {
    fn default() -> Self {
        Self {
            rules: watch::Sender::new(Some(BTreeSet::new())),
            changed: Notify::default(),
        }
    }
}

impl FakeOthers {
    /// From now on these are there; none: they can't be read.
    pub(crate) fn have(&self, rules: Option<BTreeSet<UntrackingRule>>) {
        self.rules.send_replace(rules);
        self.changed.notify_one();
    }
}

#[async_trait]
impl UntrackingRules for FakeOthers {
    async fn untracking(&self) -> Result<BTreeSet<UntrackingRule>, Error> {
        self.rules
            .borrow()
            .clone()
            .ok_or_else(|| Error::new(ErrorKind::Transient, "busy"))
    }

    async fn changed(&self) -> Result<(), Error> {
        self.changed.notified().await;
        Ok(())
    }
}
