//! Egress addresses: which of them a node holds and where, how its neighbours hear of it, and what
//! they say to it.

use std::{collections::BTreeSet, net::IpAddr};

use async_trait::async_trait;
use imbl::{OrdMap, OrdSet};
use ipnet::IpNet;

use crate::{
    Error,
    model::{Family, Interface, MacAddress},
};

/// The egress addresses that a node answers for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AddressesDesired {
    /// The device on which neighbours ask for each.
    pub held: OrdMap<IpAddr, String>,
}

/// The egress addresses that a node asks the network about before it takes them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Questions {
    /// Those that it shall hold.
    pub own: AddressesDesired,
    /// Those that it takes over from another node once nobody answers for them.
    pub candidate: AddressesDesired,
    /// Those that somebody else answered for when they were asked for last, of pools that it could
    /// have addresses of.
    pub known: AddressesDesired,
    /// Hardware addresses of the other nodes, which let go of an address that goes elsewhere.
    pub peers: BTreeSet<MacAddress>,
    /// Those that its kernel held when its agent started: it has them already.
    pub held: BTreeSet<IpAddr>,
}

/// A network of a node, other than the underlay's, that egress addresses belong to. What has one of
/// them leaves by it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExitNetwork {
    /// The device that leads there.
    pub device: String,
    /// Who leads out of the network; it tells the family.
    pub router: IpAddr,
    /// The networks on that device, of the family: they are reached without the router.
    pub link: OrdSet<IpNet>,
    /// The egress addresses that belong to it.
    pub addresses: OrdSet<IpAddr>,
}

/// What a host is attached to, and what it has without us.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attachments {
    /// Networks that it is connected to by physical interfaces, and the device of each.
    pub networks: OrdMap<IpNet, String>,
    /// All its addresses on all its devices, apart from egress addresses that a driver of ours put
    /// there.
    pub addresses: OrdSet<IpAddr>,
    /// The egress addresses that a driver of ours put there.
    pub egress: OrdSet<IpAddr>,
    /// The address that it would send from itself by each device that leads outside, for each
    /// family.
    pub sources: OrdMap<(String, Family), IpAddr>,
    /// The router of the best default route of each device, for each family.
    pub routers: OrdMap<(String, Family), IpAddr>,
}

impl Attachments {
    /// What an EgressNode says of its host. Only networks that have neighbours count, as for the
    /// host itself.
    #[must_use]
    pub fn reported(interfaces: &[Interface]) -> Self {
        let mut reported = Self::default();
        for interface in interfaces {
            let nets = interface
                .ipv4
                .iter()
                .chain(&interface.ipv6)
                .filter_map(|text| text.parse::<IpNet>().ok());
            for net in nets {
                reported.addresses.insert(net.addr());
                if net.prefix_len() < net.max_prefix_len() {
                    reported
                        .networks
                        .entry(net.trunc())
                        .or_insert_with(|| interface.name.clone());
                }
            }
            for router in interface
                .routers
                .iter()
                .filter_map(|text| text.parse::<IpAddr>().ok())
            {
                reported
                    .routers
                    .entry((interface.name.clone(), Family::of(router)))
                    .or_insert(router);
            }
            for source in interface
                .source_ipv4
                .iter()
                .chain(&interface.source_ipv6)
                .filter_map(|text| text.parse::<IpAddr>().ok())
            {
                reported
                    .sources
                    .insert((interface.name.clone(), Family::of(source)), source);
            }
        }
        reported
    }
}

/// Tells neighbours where addresses are, so that they need not find out by losing packets.
///
/// The netlink crate has one that sends gratuitous ARP and unsolicited neighbour advertisements; a
/// test can have its own.
pub trait Announcer: Send + Sync {
    /// Tells it once of each address, to all neighbours on its device. What the kernel does not
    /// hold there is not announced.
    ///
    /// Returns the addresses that could not be announced, and why.
    fn announce(&self, addresses: &AddressesDesired) -> Vec<(IpAddr, Error)>;
}

/// Asks the neighbours of a node who else has addresses that it holds.
///
/// The netlink crate has one that sends ARP probes (RFC 5227) and the neighbour solicitations of
/// duplicate address detection (RFC 4862); a test can have its own.
#[async_trait]
pub trait Inquirer: Send + Sync {
    /// Listens from now on to what is said of these addresses on their devices, of no others and
    /// nowhere else, and asks once for those of them that are in `ask`. None: it listens no more.
    ///
    /// Returns the addresses that it could not listen to or ask for, and why.
    fn inquire(&self, addresses: &AddressesDesired, ask: &BTreeSet<IpAddr>)
    -> Vec<(IpAddr, Error)>;

    /// Waits until somebody else says that it has one of them, asked or unasked: the address, and
    /// the other's hardware address. Nothing that devices of this host say counts. Cancelling the
    /// wait loses nothing.
    async fn answered(&self) -> (IpAddr, MacAddress);
}
