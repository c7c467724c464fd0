//! What an agent must know of its host.

use std::{collections::BTreeSet, net::IpAddr};

use async_trait::async_trait;
use egressgateway::{Attachments, Error, ErrorKind, Host, HostRoute, Underlay, api::Interface, model::Family};
use imbl::{OrdMap, OrdSet};
use ipnet::IpNet;
use netlink_packet_route::route::{RouteAttribute, RouteFlags, RouteMessage, RouteType};
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
    /// For each family that of the best default route in the main table; without one, the first physical device with a global
    /// address of the family.
    #[default]
    Auto,
    /// This one, for both families.
    Named(String),
}

/// The host of the network namespace that a [`Netlink`] connection belongs to.
///
/// Physical interfaces are those that a default route of the main table leads through, whatever their kind; hardware (devices without
/// a kind); and VLANs, bonds and teams. Never the loopback, never a device of ours.
pub struct KernelHost {
    netlink: Netlink,
    parent: ParentChoice,
    monitor: Mutex<Option<Monitor>>,
}

impl std::fmt::Debug for KernelHost {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KernelHost").field("netlink", &self.netlink).field("parent", &self.parent).finish_non_exhaustive()
    }
}

impl KernelHost {
    /// The host that `netlink` sees; call in the namespace and the runtime that it was opened in. Changes are noticed from now on.
    ///
    /// # Panics
    /// Outside of a Tokio runtime.
    #[must_use]
    pub fn new(netlink: Netlink, parent: ParentChoice) -> Self {
        // A subscription that fails now is tried again, and reported, by the first call that waits.
        Self { netlink, parent, monitor: Mutex::new(Monitor::open().ok()) }
    }

    async fn facts(&self) -> Result<Facts, Error> {
        let mut facts = Facts { links: self.netlink.links().await?, addresses: self.netlink.addresses().await?, ..Facts::default() };
        for family in Family::ALL {
            let routes = self.netlink.route_messages(family).await?;
            let best = routes.iter().filter(|route| is_default(route)).min_by_key(|route| metric(route));
            if let Some(default) = best.and_then(parse_way) {
                facts.defaults.insert(family, default);
            }
            facts.routes.extend(routes.iter().filter_map(|route| parse_route(route, family)));
        }
        Ok(facts)
    }
}

#[async_trait]
impl Host for KernelHost {
    async fn underlay(&self) -> Result<OrdMap<Family, Underlay>, Error> {
        let facts = self.facts().await?;
        if let ParentChoice::Named(name) = &self.parent
            && !facts.links.iter().any(|link| link.name == *name)
        {
            return Err(Error::new(ErrorKind::Invalid, format!("the configured tunnel parent {name} does not exist")));
        }
        let families = Family::ALL.into_iter();
        Ok(families.filter_map(|family| Some((family, facts.underlay(&self.parent, family)?))).collect())
    }

    async fn interfaces(&self) -> Result<Vec<Interface>, Error> {
        Ok(self.facts().await?.interfaces())
    }

    async fn attachments(&self) -> Result<Attachments, Error> {
        Ok(self.facts().await?.attachments())
    }

    async fn routes(&self) -> Result<OrdSet<HostRoute>, Error> {
        let facts = self.facts().await?;
        Ok(facts.host_routes())
    }

    async fn changed(&self) -> Result<(), Error> {
        let mut monitor = self.monitor.lock().await;
        let Some(open) = monitor.as_mut() else {
            *monitor = Some(Monitor::open()?);
            return Err(Error::new(ErrorKind::Transient, "changes of the host are noticed only from now on"));
        };
        open.changed().await
    }
}

/// Where a route of the main table leads.
#[derive(Clone, Debug)]
struct Way {
    device: u32,
    gateway: Option<IpAddr>,
    source: Option<IpAddr>,
}

fn is_default(route: &RouteMessage) -> bool {
    route.header.destination_prefix_length == 0 && route.header.kind == RouteType::Unicast && table(route) == TABLE_MAIN
}

fn parse_way(route: &RouteMessage) -> Option<Way> {
    let (mut device, mut gateway, mut source) = (None, None, None);
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Oif(index) => device = Some(*index),
            RouteAttribute::Gateway(address) => gateway = ip(address),
            RouteAttribute::PrefSource(address) => source = ip(address),
            RouteAttribute::MultiPath(hops) => device = device.or(hops.first().map(|hop| hop.interface_index)),
            _ => {}
        }
    }
    Some(Way { device: device?, gateway, source })
}

fn parse_route(route: &RouteMessage, family: Family) -> Option<(IpNet, Option<Way>)> {
    let RouteKey { destination, .. } = key(route, family)?;
    let refused = matches!(route.header.kind, RouteType::BlackHole | RouteType::Unreachable | RouteType::Prohibit);
    let counts = refused || route.header.kind == RouteType::Unicast;
    let on_a_link = match destination {
        IpNet::V4(network) => network.addr().is_link_local() || network.addr().is_multicast(),
        IpNet::V6(network) => network.addr().is_unicast_link_local() || network.addr().is_multicast(),
    };
    let elsewhere = table(route) != TABLE_MAIN || route.header.flags.contains(RouteFlags::Cloned) || on_a_link;
    (counts && !elsewhere && destination.prefix_len() > 0).then(|| (destination, parse_way(route).filter(|_| !refused)))
}

/// One reading of the kernel; everything below is pure.
#[derive(Default)]
struct Facts {
    links: Vec<Link>,
    addresses: Vec<Address>,
    defaults: OrdMap<Family, Way>,
    /// The other routes of the main table; where there is no device, the host refuses what goes there.
    routes: Vec<(IpNet, Option<Way>)>,
}

impl Facts {
    fn underlay(&self, parent: &ParentChoice, family: Family) -> Option<Underlay> {
        match (parent, self.defaults.get(&family)) {
            (ParentChoice::Named(name), default) => {
                let link = self.links.iter().find(|link| link.name == *name)?;
                self.underlay_on(link, family, default.filter(|default| default.device == link.index))
            }
            (ParentChoice::Auto, Some(default)) => {
                let link = self.links.iter().find(|link| link.index == default.device && !link.is_ours())?;
                self.underlay_on(link, family, Some(default))
            }
            (ParentChoice::Auto, None) => self.physical().find_map(|link| self.underlay_on(link, family, None)),
        }
    }

    fn underlay_on(&self, link: &Link, family: Family, default: Option<&Way>) -> Option<Underlay> {
        let address = default.and_then(|default| default.source).or_else(|| self.source(link, family, default))?;
        Some(Underlay { device: link.name.clone(), index: link.index, address, mtu: link.mtu })
    }

    /// The address that the kernel would send from: in the network of the next router, and not a lone address such as an egress IP that somebody else put there.
    fn source(&self, link: &Link, family: Family, default: Option<&Way>) -> Option<IpAddr> {
        let gateway = default.and_then(|default| default.gateway);
        let rank = |network: &IpNet| (!gateway.is_some_and(|gateway| network.contains(&gateway)), network.prefix_len() == family.bits());
        let addresses = self.addresses_of(link, family).filter(|address| address.preferred);
        addresses.map(|address| address.network).min_by_key(rank).map(|network| network.addr())
    }

    fn addresses_of(&self, link: &Link, family: Family) -> impl Iterator<Item = &Address> {
        let index = link.index;
        self.addresses
            .iter()
            .filter(move |address| address.device == index && address.global && !address.is_ours())
            .filter(move |address| Family::of(address.network.addr()) == family)
    }

    fn physical(&self) -> impl Iterator<Item = &Link> {
        let parents: BTreeSet<u32> = self.defaults.values().map(|default| default.device).collect();
        self.links.iter().filter(move |link| {
            let kind = link.kind.as_deref();
            !link.loopback && !link.is_ours() && (parents.contains(&link.index) || matches!(kind, None | Some("vlan" | "bond" | "team")))
        })
    }

    /// What leads to devices of ours is not the host's.
    fn host_routes(&self) -> OrdSet<HostRoute> {
        let theirs = |index| self.links.iter().find(|link| link.index == index && !link.is_ours()).map(|link| link.name.clone());
        let routes = self.routes.iter().filter_map(|(network, route)| {
            let (device, gateway) = match route {
                Some(route) => (theirs(route.device)?, route.gateway),
                None => (String::new(), None),
            };
            Some(HostRoute { network: *network, device, gateway })
        });
        let has = self.addresses.iter().filter(|address| address.global && !address.is_ours());
        let has = has.filter_map(|address| {
            Some(HostRoute { network: address.network.addr().into(), device: theirs(address.device)?, gateway: None })
        });
        routes.chain(has).collect()
    }

    fn attachments(&self) -> Attachments {
        let mut attachments = Attachments::default();
        for link in self.physical() {
            let addresses = Family::ALL.into_iter().flat_map(|family| self.addresses_of(link, family));
            for network in
                addresses.map(|address| address.network.trunc()).filter(|network| network.prefix_len() < network.max_prefix_len())
            {
                // Of two devices in one network, the first.
                attachments.networks.entry(network).or_insert_with(|| link.name.clone());
            }
        }
        attachments.addresses = self.addresses.iter().filter(|address| !address.is_ours()).map(|address| address.network.addr()).collect();
        attachments.egress = self.addresses.iter().filter(|address| address.is_ours()).map(|address| address.network.addr()).collect();
        attachments
    }

    /// Of the default routes that lead through it.
    fn routers(&self, link: &Link) -> BTreeSet<IpAddr> {
        self.defaults.values().filter(|default| default.device == link.index).filter_map(|default| default.gateway).collect()
    }

    fn interfaces(&self) -> Vec<Interface> {
        let texts = |link, family| self.addresses_of(link, family).map(|address| address.network.to_string()).collect();
        let interfaces = self.physical().map(|link| Interface {
            name: link.name.clone(),
            ipv4: texts(link, Family::V4),
            ipv6: texts(link, Family::V6),
            hardware_address: link.mac.map(|mac| mac.to_string()),
            routers: self.routers(link).iter().map(ToString::to_string).collect(),
        });
        let mut interfaces: Vec<_> = interfaces.filter(|interface| !(interface.ipv4.is_empty() && interface.ipv6.is_empty())).collect();
        interfaces.sort_by(|a, b| a.name.cmp(&b.name));
        interfaces
    }
}
