//! What every overlay device has, whatever encapsulates its packets: its link, addresses, permanent
//! neighbours and routes to peers.

use std::{fmt, net::IpAddr};

use egressgateway::{Error, ErrorKind, model::MacAddress};
use imbl::{OrdMap, OrdSet};
use ipnet::IpNet;

use crate::{
    address::Address,
    constants::{OWNER_ALIAS, PEER_PROTOCOL},
    link::{Link, LinkChange},
    neighbour::Neighbour,
    netlink::Netlink,
    peer_route::PeerRoute,
    sysctl,
};

/// Parameters under `net.ipv4.conf.<device>` with the values that an overlay device needs.
pub type Parameters<'a> = &'a [(&'a str, &'a str)];

/// A device of an overlay.
#[allow(clippy::struct_excessive_bools)] // The kernel has them as single bits as well.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OverlayDevice {
    /// Hardware address.
    pub mac: Option<MacAddress>,
    /// Largest packet, in bytes.
    pub mtu: u32,
    /// Whether its alias says that it is ours.
    pub marked: bool,
    /// Whether the kernel gives it IPv6 link-local addresses by itself.
    pub generates_addresses: bool,
    /// Whether it has the kernel parameters that it needs.
    pub tuned: bool,
    /// Whether it is up.
    pub up: bool,
    /// All its addresses.
    pub addresses: OrdSet<IpNet>,
    /// Permanent neighbours.
    pub neighbours: OrdMap<IpAddr, MacAddress>,
    /// Routes to single addresses of peers.
    pub routes: OrdMap<IpAddr, PeerRoute>,
}

/// One write to the kernel about such a device.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum OverlayStep {
    /// Changes the device.
    ChangeLink(LinkChange),
    /// Sets its kernel parameters.
    Tune,
    /// Adds an address.
    AddAddress(IpNet),
    /// Deletes an address.
    DeleteAddress(IpNet),
    /// Says who has an overlay address.
    SetNeighbour(IpAddr, MacAddress),
    /// Forgets who has an overlay address.
    DeleteNeighbour(IpAddr, MacAddress),
    /// Adds a route to a peer; it fails where somebody has one.
    AddRoute(IpAddr, PeerRoute),
    /// Puts a route in the place of ours.
    ReplaceRoute(IpAddr, PeerRoute),
    /// Deletes a route to a peer.
    DeleteRoute(IpAddr),
}

impl OverlayDevice {
    /// As a driver makes it: marked, tuned, up, and without addresses of the kernel's choice.
    #[must_use]
    pub fn new(mac: MacAddress, mtu: u32) -> Self {
        Self {
            mac: Some(mac),
            mtu,
            marked: true,
            generates_addresses: false,
            tuned: true,
            up: true,
            addresses: OrdSet::new(),
            neighbours: OrdMap::new(),
            routes: OrdMap::new(),
        }
    }

    /// The device right after its creation.
    #[must_use]
    pub fn created(&self, without_ipv6: bool) -> Self {
        Self {
            marked: false,
            generates_addresses: !without_ipv6,
            tuned: false,
            up: false,
            addresses: OrdSet::new(),
            neighbours: OrdMap::new(),
            routes: OrdMap::new(),
            ..self.clone()
        }
    }

    /// What leads to the link and the addresses of `new`; addresses that go and are in nobody's way
    /// go with [`Self::peer_steps`].
    #[must_use]
    pub fn link_steps(&self, new: &Self) -> Vec<OverlayStep> {
        let mut steps = Vec::new();
        let attributes = LinkChange {
            mac: new.mac.filter(|_| new.mac != self.mac),
            mtu: (new.mtu != self.mtu).then_some(new.mtu),
            alias: (new.marked && !self.marked).then(|| OWNER_ALIAS.to_owned()),
            generates_addresses: (new.generates_addresses != self.generates_addresses)
                .then_some(new.generates_addresses),
            up: None,
        };
        if attributes != LinkChange::default() {
            steps.push(OverlayStep::ChangeLink(attributes));
        }
        if !self.tuned {
            steps.push(OverlayStep::Tune);
        }
        if !self.up {
            // Apart from the rest: the kernel brings a device up before it looks at how IPv6
            // addresses are to be generated.
            steps.push(OverlayStep::ChangeLink(LinkChange {
                up: Some(true),
                ..LinkChange::default()
            }));
        }
        let (first, _) = self.old_addresses(new);
        steps.extend(
            first
                .into_iter()
                .map(|network| OverlayStep::DeleteAddress(*network)),
        );
        let added = new
            .addresses
            .iter()
            .filter(|network| !self.addresses.contains(*network));
        steps.extend(added.map(|network| OverlayStep::AddAddress(*network)));
        steps
    }

    /// What leads to the peers of `new` after [`Self::link_steps`]: what comes or changes, and what
    /// goes. A peer is known by its hardware address before packets can be sent to it, and as long
    /// as they can. The last to go are addresses: with the last one of a device the kernel drops
    /// its routes and neighbours, and an address of a whole network takes that network's route
    /// along.
    #[must_use]
    pub fn peer_steps(&self, new: &Self) -> (Vec<OverlayStep>, Vec<OverlayStep>) {
        let forgotten = OrdMap::new();
        // The kernel forgets all neighbours of a device whose hardware address changes.
        let known = if self.mac == new.mac {
            &self.neighbours
        } else {
            &forgotten
        };
        let missing = new
            .neighbours
            .iter()
            .filter(|(address, mac)| known.get(*address) != Some(*mac));
        let mut come: Vec<_> = missing
            .map(|(address, mac)| OverlayStep::SetNeighbour(*address, *mac))
            .collect();
        come.extend(
            new.routes
                .iter()
                .filter_map(|(peer, route)| match self.routes.get(peer) {
                    None => Some(OverlayStep::AddRoute(*peer, route.clone())),
                    Some(old) => {
                        (old != route).then(|| OverlayStep::ReplaceRoute(*peer, route.clone()))
                    }
                }),
        );
        let unknown = self
            .routes
            .keys()
            .filter(|peer| !new.routes.contains_key(*peer));
        let mut gone: Vec<_> = unknown
            .map(|peer| OverlayStep::DeleteRoute(*peer))
            .collect();
        let unknown = known
            .iter()
            .filter(|(address, _)| !new.neighbours.contains_key(*address));
        gone.extend(unknown.map(|(address, mac)| OverlayStep::DeleteNeighbour(*address, *mac)));
        let (_, last) = self.old_addresses(new);
        gone.extend(
            last.into_iter()
                .map(|network| OverlayStep::DeleteAddress(*network)),
        );
        (come, gone)
    }

    /// The addresses that go: those that must go first, and the others. The kernel does not take an
    /// IPv6 address twice, whatever the prefix.
    fn old_addresses<'a>(&'a self, new: &Self) -> (Vec<&'a IpNet>, Vec<&'a IpNet>) {
        let in_the_way = |network: &&IpNet| {
            matches!(network, IpNet::V6(_))
                && new.addresses.iter().any(|new| new.addr() == network.addr())
        };
        self.addresses
            .iter()
            .filter(|network| !new.addresses.contains(*network))
            .partition(in_the_way)
    }
}

impl OverlayStep {
    /// What it is, for a [`WriteHook`](egressgateway::WriteHook).
    #[must_use]
    pub fn verb(&self) -> &'static str {
        match self {
            Self::ChangeLink(_) => "change link",
            Self::Tune => "set sysctl",
            Self::AddAddress(_) => "add address",
            Self::DeleteAddress(_) => "delete address",
            Self::SetNeighbour(..) => "replace neighbour",
            Self::DeleteNeighbour(..) => "delete neighbour",
            Self::AddRoute(..) => "add route",
            Self::ReplaceRoute(..) => "replace route",
            Self::DeleteRoute(_) => "delete route",
        }
    }

    /// Lines that do the same: of `ip -batch`, but for [`Self::Tune`], whose lines are a shell's.
    #[must_use]
    pub fn on<'a>(&'a self, device: &'a str, parameters: Parameters<'a>) -> impl fmt::Display + 'a {
        Lines {
            step: self,
            device,
            parameters,
        }
    }
}

struct Lines<'a> {
    step: &'a OverlayStep,
    device: &'a str,
    parameters: Parameters<'a>,
}

impl fmt::Display for Lines<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            step,
            device,
            parameters,
        } = self;
        match step {
            OverlayStep::ChangeLink(change) => write_change(f, device, change),
            OverlayStep::Tune => parameters.iter().try_for_each(|(parameter, value)| {
                writeln!(f, "sysctl -qw net.ipv4.conf.{device}.{parameter}={value}")
            }),
            OverlayStep::AddAddress(network) => {
                writeln!(
                    f,
                    "address add {network} dev {device}{}",
                    if network.addr().is_ipv6() {
                        " nodad"
                    } else {
                        ""
                    }
                )
            }
            OverlayStep::DeleteAddress(network) => {
                writeln!(f, "address del {network} dev {device}")
            }
            OverlayStep::SetNeighbour(address, mac) => writeln!(
                f,
                "neigh replace {address} lladdr {mac} dev {device} nud permanent"
            ),
            OverlayStep::DeleteNeighbour(address, _) => {
                writeln!(f, "neigh del {address} dev {device}")
            }
            OverlayStep::AddRoute(peer, route) => writeln!(
                f,
                "route add {peer}{route} dev {device} proto {PEER_PROTOCOL}"
            ),
            OverlayStep::ReplaceRoute(peer, route) => writeln!(
                f,
                "route replace {peer}{route} dev {device} proto {PEER_PROTOCOL}"
            ),
            OverlayStep::DeleteRoute(peer) => {
                writeln!(f, "route del {peer} dev {device} proto {PEER_PROTOCOL}")
            }
        }
    }
}

fn write_change(f: &mut fmt::Formatter<'_>, device: &str, change: &LinkChange) -> fmt::Result {
    write!(f, "link set {device}")?;
    if let Some(mac) = change.mac {
        write!(f, " address {mac}")?;
    }
    if let Some(mtu) = change.mtu {
        write!(f, " mtu {mtu}")?;
    }
    if let Some(alias) = &change.alias {
        write!(f, " alias {alias}")?;
    }
    if let Some(generates) = change.generates_addresses {
        write!(
            f,
            " addrgenmode {}",
            if generates { "eui64" } else { "none" }
        )?;
    }
    match change.up {
        Some(true) => writeln!(f, " up"),
        Some(false) => writeln!(f, " down"),
        None => writeln!(f),
    }
}

impl Netlink {
    /// Reads what `link` has, with all `addresses` of the host.
    ///
    /// # Errors
    /// When the kernel can't be read.
    pub async fn overlay_device(
        &self,
        link: &Link,
        addresses: &[Address],
        parameters: Parameters<'_>,
    ) -> Result<OverlayDevice, Error> {
        let mut tuned = true;
        for (key, value) in parameters {
            tuned &= sysctl::read(&parameter(&link.name, key))?.as_deref() == Some(*value);
        }
        let neighbours = self.neighbours(link.index).await?;
        Ok(OverlayDevice {
            mac: link.mac,
            mtu: link.mtu,
            marked: link.alias.as_deref() == Some(OWNER_ALIAS),
            generates_addresses: link.generates_addresses,
            tuned,
            up: link.up,
            addresses: addresses
                .iter()
                .filter(|address| address.device == link.index)
                .map(|address| address.network)
                .collect(),
            neighbours: neighbours
                .into_iter()
                .map(|neighbour| (neighbour.address, neighbour.mac))
                .collect(),
            routes: self.peer_routes(link.index).await?.into_iter().collect(),
        })
    }

    /// Takes a step on the device with this name and, if it is there, this index.
    ///
    /// # Errors
    /// [`Conflict`](ErrorKind::Conflict) when the device is gone.
    pub async fn take(
        &self,
        step: &OverlayStep,
        name: &str,
        index: Option<u32>,
        parameters: Parameters<'_>,
    ) -> Result<(), Error> {
        match step {
            OverlayStep::ChangeLink(change) => return self.change_link(name, change).await,
            OverlayStep::Tune => {
                return parameters
                    .iter()
                    .try_for_each(|(key, value)| sysctl::write(&parameter(name, key), value));
            }
            _ => {}
        }
        let device = index.ok_or_else(|| {
            Error::new(
                ErrorKind::Conflict,
                format!("{}: device {name} is gone", step.verb()),
            )
        })?;
        match step {
            OverlayStep::AddAddress(network) => self.add_address(device, *network).await,
            OverlayStep::DeleteAddress(network) => self.delete_address(device, *network).await,
            OverlayStep::SetNeighbour(address, mac) => {
                self.replace_neighbour(&Neighbour {
                    device,
                    address: *address,
                    mac: *mac,
                })
                .await
            }
            OverlayStep::DeleteNeighbour(address, mac) => {
                self.delete_neighbour(&Neighbour {
                    device,
                    address: *address,
                    mac: *mac,
                })
                .await
            }
            OverlayStep::AddRoute(peer, route) => {
                self.set_peer_route(device, *peer, route, false).await
            }
            OverlayStep::ReplaceRoute(peer, route) => {
                self.set_peer_route(device, *peer, route, true).await
            }
            OverlayStep::DeleteRoute(peer) => self.delete_peer_route(device, *peer).await,
            OverlayStep::ChangeLink(_) | OverlayStep::Tune => Ok(()),
        }
    }

    /// Index of the device with a name, if there is one.
    ///
    /// # Errors
    /// When the kernel can't be read.
    pub async fn index(&self, name: &str) -> Result<Option<u32>, Error> {
        Ok(self
            .links()
            .await?
            .into_iter()
            .find(|link| link.name == name)
            .map(|link| link.index))
    }
}

fn parameter<'a>(device: &'a str, key: &'a str) -> [&'a str; 4] {
    ["ipv4", "conf", device, key]
}
