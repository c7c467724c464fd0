//! Next hops that the kernel keeps under a number of their own, and resilient groups of them.
//!
//! A [resilient group] has a table of buckets, each with a member's name in it. A flow's hash
//! chooses the bucket. When a member goes, only its buckets are dealt out anew; when one comes, it
//! gets those that have not been used for a while.
//!
//! [resilient group]: https://docs.kernel.org/networking/nexthop-group-resilient.html

mod message;

use std::fmt;

use egressgateway::{Error, ErrorKind, NextHop};
use imbl::{OrdMap, OrdSet};
use netlink_packet_core::{DefaultNla, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, Nla as _};
use netlink_packet_route::route::RouteLwTunnelEncap;

use crate::{
    constants::{GROUP_BUCKETS, GROUP_IDLE},
    netlink::Netlink,
    route::{self, Devices, Hop, OutgoingEncap},
};

pub(crate) use message::NextHopMessage;
use message::{Kind, Parts, Resilience};

/// `NEXTHOP_GRP_TYPE_RES` of `linux/nexthop.h`.
const RESILIENT: u16 = 1;
/// What the kernel counts a group's times in (`USER_HZ`), for each second.
const TICKS: u32 = 100;

/// What the kernel keeps under a number.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum NextHopObject {
    /// One next hop.
    Hop(NextHop),
    /// A resilient group of the next hops with these numbers, of equal weight.
    Group(OrdSet<u32>),
    /// Something that this crate never asks for.
    Other,
}

impl fmt::Display for NextHopObject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hop(hop) => Hop(hop).fmt(f),
            Self::Group(members) => {
                f.write_str("group ")?;
                for (index, member) in members.iter().enumerate() {
                    write!(f, "{}{member}", if index == 0 { "" } else { "/" })?;
                }
                write!(
                    f,
                    " type resilient buckets {GROUP_BUCKETS} idle_timer {} unbalanced_timer 0",
                    GROUP_IDLE.as_secs()
                )
            }
            Self::Other => f.write_str("other"),
        }
    }
}

impl Netlink {
    /// Whether the kernel has resilient groups (Linux 5.13).
    ///
    /// # Errors
    /// When it can't be asked.
    pub async fn has_resilient_groups(&self) -> Result<bool, Error> {
        // That there is no such group, or that the number is something else, says that there can be
        // one.
        let question = NextHopMessage::new(
            Kind::GetBucket,
            Parts {
                id: Some(1),
                bucket: Some(0),
                ..Parts::default()
            },
        );
        match self
            .ask_next_hop(question, "ask for a bucket of a next hop group")
            .await
        {
            Ok(_) => Ok(true),
            Err(error) => match error.kind {
                ErrorKind::Unsupported => Ok(false),
                ErrorKind::Conflict | ErrorKind::Invalid => Ok(true),
                _ => Err(error),
            },
        }
    }

    /// The objects with this protocol number; none where the kernel knows no objects (before Linux
    /// 5.3).
    pub(crate) async fn next_hop_objects(
        &self,
        protocol: u8,
        devices: &Devices,
    ) -> Result<OrdMap<u32, NextHopObject>, Error> {
        let list = match self
            .dump_next_hops(
                NextHopMessage::new(Kind::Get, Parts::default()),
                "list next hops",
            )
            .await
        {
            Err(error) if error.kind == ErrorKind::Unsupported => return Ok(OrdMap::new()),
            list => list?,
        };
        let ours = list
            .into_iter()
            .filter(|message| message.kind == Kind::New && message.parts.protocol == protocol);
        Ok(ours
            .filter_map(|message| Some((message.parts.id?, parse(&message.parts, devices))))
            .collect())
    }

    /// Adds an object; with `replace`, in the place of the one with its number, in one step.
    pub(crate) async fn set_next_hop_object(
        &self,
        id: u32,
        object: &NextHopObject,
        protocol: u8,
        devices: &Devices,
        replace: bool,
    ) -> Result<(), Error> {
        let what = format!(
            "{} next hop {id} {object}",
            if replace { "replace" } else { "add" }
        );
        let parts = match object {
            NextHopObject::Hop(hop) => of_hop(hop, devices.index(&hop.device, &what)?),
            NextHopObject::Group(members) => Parts {
                group: members.iter().map(|member| (*member, 1)).collect(),
                group_type: Some(RESILIENT),
                resilience: Some(resilience()),
                ..Parts::default()
            },
            NextHopObject::Other => return Err(Error::new(ErrorKind::Invalid, what)),
        };
        let flags = NLM_F_CREATE | if replace { NLM_F_REPLACE } else { NLM_F_EXCL };
        let message = NextHopMessage::new(
            Kind::New,
            Parts {
                id: Some(id),
                protocol,
                ..parts
            },
        );
        self.write_next_hop(message, flags, &what).await
    }

    /// Deletes an object; the kernel takes it out of its groups, and with a group its routes go.
    pub(crate) async fn delete_next_hop_object(&self, id: u32) -> Result<(), Error> {
        let message = NextHopMessage::new(
            Kind::Delete,
            Parts {
                id: Some(id),
                ..Parts::default()
            },
        );
        self.write_next_hop(message, 0, &format!("delete next hop {id}"))
            .await
    }
}

fn resilience() -> Resilience {
    let idle = u32::try_from(GROUP_IDLE.as_secs()).unwrap_or(u32::MAX);
    Resilience {
        buckets: GROUP_BUCKETS,
        idle: idle.saturating_mul(TICKS),
        unbalanced: 0,
    }
}

fn of_hop(hop: &NextHop, device: u32) -> Parts {
    let encap = hop.encap.as_ref().map(|encap| {
        let [kind, parts] = OutgoingEncap(encap).attributes().map(|attribute| {
            let mut bytes = vec![0; attribute.value_len()];
            attribute.emit_value(&mut bytes);
            bytes
        });
        (kind, parts)
    });
    Parts {
        family: Some(hop.family()),
        onlink: true,
        device: Some(device),
        gateway: Some(hop.via),
        encap,
        ..Parts::default()
    }
}

fn parse(parts: &Parts, devices: &Devices) -> NextHopObject {
    let object = if parts.group.is_empty() {
        parse_hop(parts, devices)
    } else {
        parse_group(parts)
    };
    object.unwrap_or(NextHopObject::Other)
}

fn parse_group(parts: &Parts) -> Option<NextHopObject> {
    let as_we_write = parts.group_type == Some(RESILIENT) && parts.resilience == Some(resilience());
    let equal = parts.group.iter().all(|(_, weight)| *weight == 1);
    (as_we_write && equal)
        .then(|| NextHopObject::Group(parts.group.iter().map(|(member, _)| *member).collect()))
}

fn parse_hop(parts: &Parts, devices: &Devices) -> Option<NextHopObject> {
    let encap = match &parts.encap {
        None => None,
        Some((_, bytes)) => {
            let parts: Vec<_> = message::attributes(bytes)
                .map(|(kind, value)| other(kind, value))
                .collect();
            Some(route::parse_encapsulation(&parts)?)
        }
    };
    let device = devices.name(parts.device?)?.to_owned();
    Some(NextHopObject::Hop(NextHop {
        device,
        via: parts.gateway?,
        encap,
    }))
}

fn other(kind: u16, value: &[u8]) -> RouteLwTunnelEncap {
    RouteLwTunnelEncap::Other(DefaultNla::new(kind, value.to_vec()))
}

/// For fuzz targets: a message, and the object that it tells of, which are read, written and read
/// again, are the same.
pub(crate) fn fuzz(bytes: &[u8], devices: &Devices) {
    let Some((header, body)) = bytes.split_at_checked(2) else {
        return;
    };
    let Some(read) = message::fuzz(u16::from_be_bytes([header[0], header[1]]), body) else {
        return;
    };
    let object = parse(&read.parts, devices);
    if let NextHopObject::Hop(hop) = &object {
        let Ok(index) = devices.index(&hop.device, "write a next hop") else {
            panic!("a device that nobody told of");
        };
        let again = parse(&of_hop(hop, index), devices);
        assert_eq!(again, object, "read, written and read again");
    }
}

#[cfg(test)]
mod tests {
    use egressgateway::Encap;

    use super::*;

    fn devices() -> Devices {
        Devices::of([(7, "egress-vxlan-v4"), (9, "egress-geneve")])
    }

    #[test]
    fn a_next_hop_is_read_as_it_was_written() {
        let encap = |source: &str, remote: &str| Encap {
            id: 100,
            source: source.parse().unwrap(),
            remote: remote.parse().unwrap(),
        };
        let hop = |device: &str, via: &str, encap| NextHop {
            device: device.into(),
            via: via.parse().unwrap(),
            encap,
        };
        for (index, hop) in [
            (7, hop("egress-vxlan-v4", "172.31.0.11", None)),
            (7, hop("egress-vxlan-v4", "fd31::11", None)),
            (
                9,
                hop(
                    "egress-geneve",
                    "172.31.0.11",
                    Some(encap("10.6.0.1", "10.6.0.2")),
                ),
            ),
            (
                9,
                hop(
                    "egress-geneve",
                    "fd31::11",
                    Some(encap("fd00::1", "fd00::2")),
                ),
            ),
        ] {
            assert_eq!(
                parse(&of_hop(&hop, index), &devices()),
                NextHopObject::Hop(hop)
            );
        }
    }

    #[test]
    fn what_we_do_not_write_is_something_else() {
        let good = Parts {
            group: vec![(1, 1), (2, 1)],
            group_type: Some(RESILIENT),
            resilience: Some(resilience()),
            ..Parts::default()
        };
        assert_eq!(
            parse(&good, &devices()),
            NextHopObject::Group([1_u32, 2].into_iter().collect())
        );
        let unequal = Parts {
            group: vec![(1, 1), (2, 3)],
            ..good.clone()
        };
        let plain = Parts {
            group_type: Some(0),
            ..good.clone()
        };
        let smaller = Parts {
            resilience: Some(Resilience {
                buckets: 64,
                ..resilience()
            }),
            ..good.clone()
        };
        let forced = Parts {
            resilience: Some(Resilience {
                unbalanced: 1,
                ..resilience()
            }),
            ..good
        };
        for other in [unequal, plain, smaller, forced, Parts::default()] {
            assert_eq!(parse(&other, &devices()), NextHopObject::Other, "{other:?}");
        }
    }
}
