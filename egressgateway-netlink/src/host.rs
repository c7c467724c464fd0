//! What an agent must know of its host.

use std::{collections::BTreeSet, net::IpAddr};

use async_trait::async_trait;
use egressgateway::{
    Attachments, Error, ErrorKind, Host, HostRoute, Underlay,
    model::{Family, Interface},
};
use imbl::{OrdMap, OrdSet};
use ipnet::IpNet;
use netlink_packet_route::route::{
    RouteAttribute, RouteFlags, RouteMessage, RouteNextHop, RouteType,
};
use tokio::sync::Mutex;

use crate::{
    address::Address,
    constants::TABLE_MAIN,
    link::Link,
    monitor::Monitor,
    netlink::Netlink,
    route::{RouteKey, ip, key, metric, table},
};

/// Which device the outer packets of the tunnel leave by.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ParentChoice {
    /// For each family that of the best default route in the main table; without one, the first
    /// physical device with a global address of the family.
    #[default]
    Auto,
    /// This one, for both families.
    Named(String),
}

/// The host of the network namespace that a [`Netlink`] connection belongs to.
///
/// Physical interfaces are those that a default route of the main table leads through, whatever
/// their kind; hardware (devices without a kind); VLANs, bonds and teams; and bridges that one of
/// these is a port of. Never the loopback, never a device of ours.
///
/// The host's own address on a device is the `src` of the device's best default route. Without one,
/// it is an address in the network of that route's router; without any, one that has neighbours;
/// without any, a lone one. Of several alike it is the first IPv4 address in the kernel's order and
/// the oldest IPv6 address, whatever comes later. Addresses that the kernel would not send from are
/// left out.
pub struct KernelHost {
    netlink: Netlink,
    parent: ParentChoice,
    monitor: Mutex<Option<Monitor>>,
}

impl std::fmt::Debug for KernelHost {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KernelHost")
            .field("netlink", &self.netlink)
            .field("parent", &self.parent)
            .finish_non_exhaustive()
    }
}

impl KernelHost {
    /// The host that `netlink` sees; call in the namespace and the runtime that it was opened in.
    /// Changes are noticed from now on.
    ///
    /// # Panics
    /// Outside of a Tokio runtime.
    #[must_use]
    pub fn new(netlink: Netlink, parent: ParentChoice) -> Self {
        // A subscription that fails now is tried again, and reported, by the first call that waits.
        Self {
            netlink,
            parent,
            monitor: Mutex::new(Monitor::open().ok()),
        }
    }

    async fn snapshot(&self) -> Result<HostSnapshot, Error> {
        let mut snapshot = HostSnapshot {
            links: self.netlink.links().await?,
            addresses: self.netlink.addresses().await?,
            ..HostSnapshot::default()
        };
        for family in Family::ALL {
            let routes = self.netlink.route_messages(family).await?;
            let mut defaults: Vec<_> = routes.iter().filter(|route| is_default(route)).collect();
            defaults.sort_by_key(|route| metric(route));
            snapshot.defaults.extend(
                defaults
                    .into_iter()
                    .flat_map(parse_ways)
                    .map(|default| (family, default)),
            );
            snapshot
                .routes
                .extend(routes.iter().filter_map(|route| parse_route(route, family)));
        }
        Ok(snapshot)
    }
}

#[async_trait]
impl Host for KernelHost {
    async fn underlay(&self) -> Result<OrdMap<Family, Underlay>, Error> {
        let snapshot = self.snapshot().await?;
        if let ParentChoice::Named(name) = &self.parent
            && !snapshot.links.iter().any(|link| link.name == *name)
        {
            return Err(Error::new(
                ErrorKind::Invalid,
                format!("the configured tunnel parent {name} does not exist"),
            ));
        }
        let families = Family::ALL.into_iter();
        Ok(families
            .filter_map(|family| Some((family, snapshot.underlay(&self.parent, family)?)))
            .collect())
    }

    async fn interfaces(&self) -> Result<Vec<Interface>, Error> {
        Ok(self.snapshot().await?.interfaces())
    }

    async fn attachments(&self) -> Result<Attachments, Error> {
        Ok(self.snapshot().await?.attachments())
    }

    async fn routes(&self) -> Result<OrdSet<HostRoute>, Error> {
        let snapshot = self.snapshot().await?;
        Ok(snapshot.host_routes())
    }

    async fn changed(&self) -> Result<(), Error> {
        let mut monitor = self.monitor.lock().await;
        let Some(open) = monitor.as_mut() else {
            *monitor = Some(Monitor::open()?);
            return Err(Error::new(
                ErrorKind::Transient,
                "changes of the host are noticed only from now on",
            ));
        };
        open.changed().await
    }
}

/// Where a route of the main table leads.
#[derive(Clone, Debug)]
pub(crate) struct Way {
    device: u32,
    gateway: Option<IpAddr>,
    source: Option<IpAddr>,
}

fn is_default(route: &RouteMessage) -> bool {
    route.header.destination_prefix_length == 0
        && route.header.kind == RouteType::Unicast
        && table(route) == TABLE_MAIN
}

/// One for each device that it leads through.
pub(crate) fn parse_ways(route: &RouteMessage) -> Vec<Way> {
    let (mut device, mut gateway, mut source, mut hops) = (None, None, None, Vec::new());
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Oif(index) => device = Some(*index),
            RouteAttribute::Gateway(address) => gateway = ip(address),
            RouteAttribute::PrefSource(address) => source = ip(address),
            RouteAttribute::MultiPath(several) => hops.extend(
                several
                    .iter()
                    .map(|hop| (hop.interface_index, hop_gateway(hop))),
            ),
            _ => {}
        }
    }
    let single = device.map(|device| (device, gateway));
    single
        .into_iter()
        .chain(hops)
        .map(|(device, gateway)| Way {
            device,
            gateway,
            source,
        })
        .collect()
}

fn hop_gateway(hop: &RouteNextHop) -> Option<IpAddr> {
    hop.attributes.iter().find_map(|attribute| {
        if let RouteAttribute::Gateway(address) = attribute {
            ip(address)
        } else {
            None
        }
    })
}

pub(crate) fn parse_route(route: &RouteMessage, family: Family) -> Option<(IpNet, Option<Way>)> {
    let RouteKey { destination, .. } = key(route, family)?;
    let refused = matches!(
        route.header.kind,
        RouteType::BlackHole | RouteType::Unreachable | RouteType::Prohibit
    );
    let counts = refused || route.header.kind == RouteType::Unicast;
    let on_a_link = match destination {
        IpNet::V4(network) => network.addr().is_link_local() || network.addr().is_multicast(),
        IpNet::V6(network) => {
            network.addr().is_unicast_link_local() || network.addr().is_multicast()
        }
    };
    let elsewhere =
        table(route) != TABLE_MAIN || route.header.flags.contains(RouteFlags::Cloned) || on_a_link;
    (counts && !elsewhere && destination.prefix_len() > 0).then(|| {
        (
            destination,
            parse_ways(route).into_iter().next().filter(|_| !refused),
        )
    })
}

/// Hardware, or what stands for it.
fn is_card(link: &Link) -> bool {
    !link.loopback && matches!(link.kind.as_deref(), None | Some("vlan" | "bond" | "team"))
}

/// One reading of the kernel; everything below is pure.
#[derive(Default)]
struct HostSnapshot {
    links: Vec<Link>,
    addresses: Vec<Address>,
    /// The best first.
    defaults: Vec<(Family, Way)>,
    /// The other routes of the main table; where there is no device, the host refuses what goes
    /// there.
    routes: Vec<(IpNet, Option<Way>)>,
}

impl HostSnapshot {
    fn underlay(&self, parent: &ParentChoice, family: Family) -> Option<Underlay> {
        match (parent, self.defaults.iter().find(|(of, _)| *of == family)) {
            (ParentChoice::Named(name), _) => {
                let link = self.links.iter().find(|link| link.name == *name)?;
                self.underlay_on(link, family)
            }
            (ParentChoice::Auto, Some((_, default))) => {
                let link = self
                    .links
                    .iter()
                    .find(|link| link.index == default.device && !link.is_ours())?;
                self.underlay_on(link, family)
            }
            (ParentChoice::Auto, None) => self
                .physical()
                .find_map(|link| self.underlay_on(link, family)),
        }
    }

    fn underlay_on(&self, link: &Link, family: Family) -> Option<Underlay> {
        Some(Underlay {
            device: link.name.clone(),
            index: link.index,
            address: self.source(link, family)?,
            mtu: link.mtu,
        })
    }

    fn default_on(&self, link: &Link, family: Family) -> Option<&Way> {
        self.defaults
            .iter()
            .find(|(of, default)| *of == family && default.device == link.index)
            .map(|(_, default)| default)
    }

    /// The host's own address on a device, as [`KernelHost`] says. Virtual and floating addresses
    /// come and go without changing it.
    fn source(&self, link: &Link, family: Family) -> Option<IpAddr> {
        let default = self.default_on(link, family);
        if let Some(source) = default.and_then(|default| default.source) {
            return Some(source);
        }
        let router = default.and_then(|default| default.gateway);
        let rank = |network: &IpNet| {
            (
                !router.is_some_and(|router| network.contains(&router)),
                network.prefix_len() == family.bits(),
            )
        };
        let mut addresses: Vec<_> = self
            .addresses_of(link, family)
            .filter(|address| address.preferred)
            .collect();
        if family == Family::V6 {
            // The kernel lists the newest one first.
            addresses.reverse();
        }
        addresses
            .into_iter()
            .map(|address| address.network)
            .min_by_key(rank)
            .map(|network| network.addr())
    }

    fn router(&self, link: &Link, family: Family) -> Option<IpAddr> {
        self.default_on(link, family)
            .and_then(|default| default.gateway)
    }

    /// The host's own address on each device that may lead outside. The ends of pods' cables and
    /// dummies do not.
    fn sources(&self) -> OrdMap<(String, Family), IpAddr> {
        let inward = |link: &Link| matches!(link.kind.as_deref(), Some("veth" | "dummy"));
        let leading = |link: &Link| {
            self.defaults
                .iter()
                .any(|(_, default)| default.device == link.index)
        };
        let links = self
            .links
            .iter()
            .filter(|link| !link.loopback && !link.is_ours() && (!inward(link) || leading(link)));
        let sources = links.flat_map(|link| {
            Family::ALL
                .map(|family| Some(((link.name.clone(), family), self.source(link, family)?)))
        });
        sources.flatten().collect()
    }

    fn addresses_of(&self, link: &Link, family: Family) -> impl Iterator<Item = &Address> {
        let index = link.index;
        self.addresses
            .iter()
            .filter(move |address| address.device == index && address.global && !address.is_ours())
            .filter(move |address| Family::of(address.network.addr()) == family)
    }

    fn physical(&self) -> impl Iterator<Item = &Link> {
        let parents: BTreeSet<u32> = self
            .defaults
            .iter()
            .map(|(_, default)| default.device)
            .collect();
        self.links.iter().filter(move |link| {
            let kind = link.kind.as_deref();
            let leads = parents.contains(&link.index)
                || is_card(link)
                || (kind == Some("bridge") && self.has_card(link));
            !link.loopback && !link.is_ours() && leads
        })
    }

    /// What leads to devices of ours is not the host's.
    fn host_routes(&self) -> OrdSet<HostRoute> {
        let theirs = |index| {
            self.links
                .iter()
                .find(|link| link.index == index && !link.is_ours())
                .map(|link| link.name.clone())
        };
        let routes = self.routes.iter().filter_map(|(network, route)| {
            let (device, gateway) = match route {
                Some(route) => (theirs(route.device)?, route.gateway),
                None => (String::new(), None),
            };
            Some(HostRoute {
                network: *network,
                device,
                gateway,
            })
        });
        let has = self
            .addresses
            .iter()
            .filter(|address| address.global && !address.is_ours());
        let has = has.filter_map(|address| {
            Some(HostRoute {
                network: address.network.addr().into(),
                device: theirs(address.device)?,
                gateway: None,
            })
        });
        routes.chain(has).collect()
    }

    /// Whether a card is a port of this bridge. The cables of pods do not count.
    fn has_card(&self, bridge: &Link) -> bool {
        self.links
            .iter()
            .any(|port| port.controller == Some(bridge.index) && is_card(port) && !port.is_ours())
    }

    fn attachments(&self) -> Attachments {
        let mut attachments = Attachments::default();
        for link in self.physical() {
            let addresses = Family::ALL
                .into_iter()
                .flat_map(|family| self.addresses_of(link, family));
            for network in addresses
                .map(|address| address.network.trunc())
                .filter(|network| network.prefix_len() < network.max_prefix_len())
            {
                // Of two devices in one network, the first.
                attachments
                    .networks
                    .entry(network)
                    .or_insert_with(|| link.name.clone());
            }
        }
        attachments.addresses = self
            .addresses
            .iter()
            .filter(|address| !address.is_ours())
            .map(|address| address.network.addr())
            .collect();
        attachments.egress = self
            .addresses
            .iter()
            .filter(|address| address.is_ours())
            .map(|address| address.network.addr())
            .collect();
        attachments.sources = self.sources();
        let routers = self.physical().flat_map(|link| {
            Family::ALL
                .map(|family| Some(((link.name.clone(), family), self.router(link, family)?)))
        });
        attachments.routers = routers.flatten().collect();
        attachments
    }

    /// Of the default routes that lead through it.
    fn routers(&self, link: &Link) -> BTreeSet<IpAddr> {
        self.defaults
            .iter()
            .filter(|(_, default)| default.device == link.index)
            .filter_map(|(_, default)| default.gateway)
            .collect()
    }

    fn interfaces(&self) -> Vec<Interface> {
        let texts = |link, family| {
            self.addresses_of(link, family)
                .map(|address| address.network.to_string())
                .collect()
        };
        let source = |link, family| self.source(link, family).map(|address| address.to_string());
        let interfaces = self.physical().map(|link| Interface {
            name: link.name.clone(),
            ipv4: texts(link, Family::V4),
            ipv6: texts(link, Family::V6),
            hardware_address: link.mac.map(|mac| mac.to_string()),
            routers: self.routers(link).iter().map(ToString::to_string).collect(),
            source_ipv4: source(link, Family::V4),
            source_ipv6: source(link, Family::V6),
        });
        let mut interfaces: Vec<_> = interfaces
            .filter(|interface| !(interface.ipv4.is_empty() && interface.ipv6.is_empty()))
            .collect();
        interfaces.sort_by(|a, b| a.name.cmp(&b.name));
        interfaces
    }
}
