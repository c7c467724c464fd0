//! Devices.

use std::net::IpAddr;

use egressgateway::{Error, ErrorKind, model::MacAddress};
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    link::{
        AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoData, InfoGeneve, InfoKind, InfoVxlan,
        LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
    },
};

use crate::{
    constants::{LINK_GROUP, OWNER_ALIAS},
    netlink::Netlink,
};

/// A device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Link {
    /// Its index.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// What kind of virtual device it is, such as "veth" or "bridge"; none for hardware, and for
    /// the loopback.
    pub kind: Option<String>,
    /// Free text that somebody gave it.
    pub alias: Option<String>,
    /// Group number that somebody gave it; 0 at first.
    pub group: u32,
    /// Hardware address, of six octets.
    pub mac: Option<MacAddress>,
    /// Largest packet, in bytes.
    pub mtu: u32,
    /// Index of the bridge or bond that it is a port of.
    pub controller: Option<u32>,
    /// Whether it is administratively up.
    pub up: bool,
    /// Whether it is the loopback.
    pub loopback: bool,
    /// Whether the kernel gives it IPv6 link-local addresses by itself.
    pub generates_addresses: bool,
    /// Attributes of a VXLAN device.
    pub vxlan: Option<VxlanLink>,
    /// Attributes of a Geneve device.
    pub geneve: Option<GeneveLink>,
}

impl Link {
    /// Whether it carries a mark of ours: [`OWNER_ALIAS`] or [`LINK_GROUP`].
    #[must_use]
    pub fn is_ours(&self) -> bool {
        self.alias.as_deref() == Some(OWNER_ALIAS) || self.group == LINK_GROUP
    }
}

/// Attributes of a VXLAN device that cannot change during its life.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VxlanLink {
    /// Virtual network identifier.
    pub vni: u32,
    /// UDP port of the outer packets.
    pub port: u16,
    /// Source of the outer packets.
    pub local: Option<IpAddr>,
    /// Index of the device that outer packets leave by.
    pub parent: Option<u32>,
    /// Whether it learns peers from packets.
    pub learning: bool,
    /// Whether routes carry the outer addresses.
    pub external: bool,
}

/// Attributes of a Geneve device that cannot change during its life.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GeneveLink {
    /// UDP port of the outer packets.
    pub port: u16,
    /// Whether routes carry the outer addresses.
    pub external: bool,
    /// Whether packets travel without an inner Ethernet header.
    pub without_ethernet: bool,
}

/// Changes of a device; none leaves as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct LinkChange {
    /// Hardware address.
    pub mac: Option<MacAddress>,
    /// Largest packet, in bytes.
    pub mtu: Option<u32>,
    /// Administrative state.
    pub up: Option<bool>,
    /// Free text.
    pub alias: Option<String>,
    /// Whether the kernel gives it IPv6 link-local addresses by itself.
    pub generates_addresses: Option<bool>,
}

/// Name of a device that is asked for and never made.
const PROBE: &str = "egress-probe";

impl Netlink {
    /// All devices, by index.
    ///
    /// # Errors
    /// When the kernel can't be read.
    pub async fn links(&self) -> Result<Vec<Link>, Error> {
        let replies = self
            .dump(
                RouteNetlinkMessage::GetLink(LinkMessage::default()),
                "list links",
            )
            .await?;
        let links = replies.into_iter().filter_map(|reply| match reply {
            RouteNetlinkMessage::NewLink(message) => Some(parse(&message)),
            _ => None,
        });
        Ok(links.collect())
    }

    /// Adds a VXLAN device, down, in [`LINK_GROUP`]. Outer packets carry UDP checksums, with IPv6
    /// because RFC 8200 wants them, with IPv4 because network cards coalesce packets with a
    /// checksum only.
    ///
    /// # Errors
    /// [`Conflict`](egressgateway::ErrorKind::Conflict) when the name or the port with this
    /// identifier is taken.
    pub async fn add_vxlan(
        &self,
        name: &str,
        mac: MacAddress,
        mtu: u32,
        vxlan: &VxlanLink,
    ) -> Result<(), Error> {
        let mut data = vec![
            InfoVxlan::Id(vxlan.vni),
            InfoVxlan::Port(vxlan.port),
            InfoVxlan::Learning(vxlan.learning),
            InfoVxlan::CollectMetadata(vxlan.external),
            InfoVxlan::UDPCsum(true),
        ];
        match vxlan.local {
            Some(IpAddr::V4(local)) => data.push(InfoVxlan::Local(local)),
            Some(IpAddr::V6(local)) => data.push(InfoVxlan::Local6(local)),
            None => {}
        }
        data.extend(vxlan.parent.map(InfoVxlan::Link));
        let mut message = LinkMessage::default();
        message.attributes = vec![
            LinkAttribute::IfName(name.to_owned()),
            LinkAttribute::Address(mac.0.to_vec()),
            LinkAttribute::Mtu(mtu),
            LinkAttribute::Group(LINK_GROUP),
            LinkAttribute::LinkInfo(vec![
                LinkInfo::Kind(InfoKind::Vxlan),
                LinkInfo::Data(InfoData::Vxlan(data)),
            ]),
        ];
        self.write(
            RouteNetlinkMessage::NewLink(message),
            NLM_F_CREATE | NLM_F_EXCL,
            &format!("add VXLAN link {name}"),
        )
        .await
    }

    /// Adds a Geneve device, down, in [`LINK_GROUP`], that takes outer addresses and the identifier
    /// from routes.
    ///
    /// # Errors
    /// [`Conflict`](egressgateway::ErrorKind::Conflict) when the name or the port is taken: of such
    /// a device there is one for each port. [`Unsupported`](egressgateway::ErrorKind::Unsupported)
    /// when the kernel has no Geneve.
    pub async fn add_geneve(
        &self,
        name: &str,
        mac: MacAddress,
        mtu: u32,
        port: u16,
    ) -> Result<(), Error> {
        let mut message = LinkMessage::default();
        // No identifier: the kernel refuses one beside outer addresses from routes.
        let data = vec![InfoGeneve::Port(port), InfoGeneve::CollectMetadata];
        message.attributes = vec![
            LinkAttribute::IfName(name.to_owned()),
            LinkAttribute::Address(mac.0.to_vec()),
            LinkAttribute::Mtu(mtu),
            LinkAttribute::Group(LINK_GROUP),
            LinkAttribute::LinkInfo(vec![
                LinkInfo::Kind(InfoKind::Geneve),
                LinkInfo::Data(InfoData::Geneve(data)),
            ]),
        ];
        self.write(
            RouteNetlinkMessage::NewLink(message),
            NLM_F_CREATE | NLM_F_EXCL,
            &format!("add Geneve link {name}"),
        )
        .await
    }

    /// Whether the kernel can make devices of a kind, such as "vxlan"; it loads the module if it
    /// has to. Makes none.
    ///
    /// # Errors
    /// When the kernel can't be asked.
    pub async fn has_link_kind(&self, kind: &str) -> Result<bool, Error> {
        let mut message = LinkMessage::default();
        message.attributes = vec![
            LinkAttribute::IfName(PROBE.to_owned()),
            LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Other(kind.to_owned()))]),
        ];
        // Without what a tunnel must be told, a kernel that knows the kind refuses the device, and
        // another one the kind.
        match self
            .write(
                RouteNetlinkMessage::NewLink(message),
                NLM_F_CREATE | NLM_F_EXCL,
                &format!("probe for {kind} links"),
            )
            .await
        {
            Err(error) if error.kind == ErrorKind::Unsupported => Ok(false),
            Err(error) if error.kind == ErrorKind::Invalid => Ok(true),
            Err(error) => Err(error),
            Ok(()) => self.delete_link(PROBE).await.map(|()| true),
        }
    }

    /// Changes a device.
    ///
    /// # Errors
    /// [`Conflict`](egressgateway::ErrorKind::Conflict) when there is none of this name.
    pub async fn change_link(&self, name: &str, change: &LinkChange) -> Result<(), Error> {
        let mut message = LinkMessage::default();
        message
            .attributes
            .push(LinkAttribute::IfName(name.to_owned()));
        message
            .attributes
            .extend(change.mac.map(|mac| LinkAttribute::Address(mac.0.to_vec())));
        message
            .attributes
            .extend(change.mtu.map(LinkAttribute::Mtu));
        message
            .attributes
            .extend(change.alias.clone().map(LinkAttribute::IfAlias));
        if let Some(generates) = change.generates_addresses {
            let mode = if generates {
                In6AddrGenMode::Eui64
            } else {
                In6AddrGenMode::None
            };
            message
                .attributes
                .push(LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(
                    vec![AfSpecInet6::AddrGenMode(mode)],
                )]));
        }
        if let Some(up) = change.up {
            message.header.change_mask = LinkFlags::Up;
            message.header.flags = if up {
                LinkFlags::Up
            } else {
                LinkFlags::empty()
            };
        }
        self.write(
            RouteNetlinkMessage::SetLink(message),
            0,
            &format!("change link {name}"),
        )
        .await
    }

    /// Deletes a device, with its addresses, routes and neighbours.
    ///
    /// # Errors
    /// [`Conflict`](egressgateway::ErrorKind::Conflict) when there is none of this name.
    pub async fn delete_link(&self, name: &str) -> Result<(), Error> {
        let mut message = LinkMessage::default();
        message.header.interface_family = AddressFamily::Unspec;
        message
            .attributes
            .push(LinkAttribute::IfName(name.to_owned()));
        self.write(
            RouteNetlinkMessage::DelLink(message),
            0,
            &format!("delete link {name}"),
        )
        .await
    }
}

pub(crate) fn parse(message: &LinkMessage) -> Link {
    let flags = message.header.flags;
    let mut link = Link {
        index: message.header.index,
        up: flags.contains(LinkFlags::Up),
        loopback: flags.contains(LinkFlags::Loopback),
        ..Link::default()
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::IfAlias(alias) => link.alias = Some(alias.clone()),
            LinkAttribute::Group(group) => link.group = *group,
            LinkAttribute::Address(address) => {
                link.mac = <[u8; 6]>::try_from(address.as_slice()).ok().map(MacAddress);
            }
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::Controller(index) => link.controller = Some(*index),
            LinkAttribute::LinkInfo(info) => parse_info(&mut link, info),
            LinkAttribute::AfSpecUnspec(families) => {
                link.generates_addresses = generates_addresses(families);
            }
            _ => {}
        }
    }
    link
}

fn parse_info(link: &mut Link, info: &[LinkInfo]) {
    for item in info {
        match item {
            LinkInfo::Kind(kind) => link.kind = Some(kind.to_string()),
            LinkInfo::Data(InfoData::Vxlan(attributes)) => {
                link.vxlan = Some(parse_vxlan(attributes));
            }
            LinkInfo::Data(InfoData::Geneve(attributes)) => {
                link.geneve = Some(parse_geneve(attributes));
            }
            _ => {}
        }
    }
}

fn parse_vxlan(attributes: &[InfoVxlan]) -> VxlanLink {
    let mut vxlan = VxlanLink {
        vni: 0,
        port: 0,
        local: None,
        parent: None,
        learning: false,
        external: false,
    };
    for attribute in attributes {
        match attribute {
            InfoVxlan::Id(vni) => vxlan.vni = *vni,
            InfoVxlan::Port(port) => vxlan.port = *port,
            InfoVxlan::Local(local) => vxlan.local = Some(IpAddr::V4(*local)),
            InfoVxlan::Local6(local) => vxlan.local = Some(IpAddr::V6(*local)),
            InfoVxlan::Link(parent) if *parent != 0 => vxlan.parent = Some(*parent),
            InfoVxlan::Learning(learning) => vxlan.learning = *learning,
            InfoVxlan::CollectMetadata(external) => vxlan.external = *external,
            _ => {}
        }
    }
    vxlan
}

fn parse_geneve(attributes: &[InfoGeneve]) -> GeneveLink {
    let mut geneve = GeneveLink::default();
    for attribute in attributes {
        match attribute {
            InfoGeneve::Port(port) => geneve.port = *port,
            InfoGeneve::CollectMetadata => geneve.external = true,
            InfoGeneve::InnerProtoInherit => geneve.without_ethernet = true,
            _ => {}
        }
    }
    geneve
}

fn generates_addresses(families: &[AfSpecUnspec]) -> bool {
    let attributes = families.iter().filter_map(|family| match family {
        AfSpecUnspec::Inet6(attributes) => Some(attributes),
        _ => None,
    });
    attributes.flatten().any(|attribute| matches!(attribute, AfSpecInet6::AddrGenMode(mode) if *mode != In6AddrGenMode::None))
}
