//! The driver of egress addresses: the node that answers for one holds it, so that its kernel
//! answers when neighbours ask.

mod plan;
mod state;

use std::{net::IpAddr, sync::Arc, time::Duration};

use async_trait::async_trait;
use egressgateway::{AddressesDesired, Change, Driver, Error, ErrorKind, WriteHook};

pub use plan::{AddressStep, AddressesPlan};
pub use state::AddressesState;

use crate::netlink::Netlink;

/// How long the kernel may take until a new IPv6 address is its own: it has the address at once,
/// but the route by which packets reach it comes from a work queue. Usually that is a millisecond;
/// a busy host takes longer.
const SETTLING: Duration = Duration::from_secs(5);
/// How often it is asked.
const GLANCE: Duration = Duration::from_millis(1);

/// The driver of egress addresses.
///
/// Each is an address of full length (`/32`, `/128`) on a device of the host, marked by its metric
/// ([`ADDRESS_METRIC`](crate::constants::ADDRESS_METRIC)); the driver owns the addresses with this
/// metric and touches no other. They are not on a device of their own, because IPv6 answers only
/// for addresses of the device that is asked, and IPv4 too where `arp_ignore` says so, as with
/// kube-proxy's IPVS.
///
/// None becomes a source of what the host sends itself: IPv6 addresses are deprecated, and IPv4
/// addresses come behind the device's own. Where somebody takes those away and puts them back, they
/// would come behind ours; so the driver moves ours to the end again.
#[derive(Clone, Debug)]
pub struct EgressAddresses {
    netlink: Option<Netlink>,
    hook: Arc<dyn WriteHook>,
}

impl EgressAddresses {
    /// A driver of the kernel behind `netlink`; `hook` is asked before every write.
    #[must_use]
    pub fn new(netlink: Netlink, hook: Arc<dyn WriteHook>) -> Self {
        Self {
            netlink: Some(netlink),
            hook,
        }
    }

    /// A driver that can only plan.
    #[must_use]
    pub fn offline() -> Self {
        Self {
            netlink: None,
            hook: Arc::new(()),
        }
    }

    fn netlink(&self) -> Result<&Netlink, Error> {
        self.netlink.as_ref().ok_or_else(|| {
            Error::new(
                ErrorKind::Unsupported,
                "this driver of egress addresses only plans",
            )
        })
    }
}

#[async_trait]
impl Driver for EgressAddresses {
    type Desired = AddressesDesired;
    type State = AddressesState;
    type Plan = AddressesPlan;

    async fn observe(&self) -> Result<AddressesState, Error> {
        let netlink = self.netlink()?;
        let devices = netlink.devices().await?;
        Ok(AddressesState::read(&netlink.addresses().await?, &devices))
    }

    fn plan(
        &self,
        desired: &AddressesDesired,
        current: &AddressesState,
    ) -> Result<Change<AddressesPlan, AddressesState>, Error> {
        let after = AddressesState::of(desired);
        Ok(Change {
            plan: AddressesPlan::between(current, &after),
            after,
        })
    }

    /// Every step is tried: of many addresses, one that can't be had keeps no other away, and none
    /// here that has to go.
    async fn apply(&self, plan: &AddressesPlan) -> Result<(), Error> {
        let netlink = self.netlink()?;
        let devices = netlink.devices().await?;
        let (mut result, mut taken) = (Ok(()), Vec::new());
        for step in &plan.steps {
            let (device, network) = step.place();
            let done = async {
                self.hook.before(step.verb())?;
                let index = devices.index(device, step.verb())?;
                match step {
                    AddressStep::Release(..) => netlink.delete_address(index, network).await,
                    AddressStep::Take(..) => netlink.add_egress_address(index, network).await,
                }
            };
            match done.await {
                Ok(()) if matches!(step, AddressStep::Take(..)) => taken.push(network.addr()),
                Ok(()) => {}
                Err(error) => result = result.and(Err(error)),
            }
        }
        result.and(until_local(netlink, &taken).await)
    }
}

/// Waits until packets to these addresses are taken in. Before that they would be forwarded,
/// answers of neighbours among them, and a first connection would wait for a second question.
async fn until_local(netlink: &Netlink, addresses: &[IpAddr]) -> Result<(), Error> {
    let settled = async {
        for address in addresses {
            while !netlink.is_local(*address).await {
                tokio::time::sleep(GLANCE).await;
            }
        }
    };
    let late = |_| {
        Error::new(
            ErrorKind::Transient,
            "egress addresses were added, but the kernel does not take in packets to all of them yet",
        )
    };
    tokio::time::timeout(SETTLING, settled).await.map_err(late)
}
