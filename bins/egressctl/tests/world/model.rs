//! The values that a small cluster consists of.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::dice::Dice;

#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(crate) name: String,
    /// IPv4 and IPv6 address; at least one.
    pub(crate) addresses: [Option<IpAddr>; 2],
    pub(crate) pod_networks: Vec<Cidr>,
    /// Whether it has an EgressNode with everything.
    pub(crate) has_tunnel: bool,
    pub(crate) number: usize,
}

/// A prefix, as text and as what it says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cidr {
    pub(crate) base: IpAddr,
    pub(crate) length: u8,
}

#[derive(Clone, Debug)]
pub(crate) struct Pod {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) app: String,
    pub(crate) tier: Option<String>,
    pub(crate) node: String,
    pub(crate) addresses: Vec<IpAddr>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Nat {
    NodeAddress,
    EgressIp,
    Keep,
}

#[derive(Clone, Debug)]
pub(crate) struct Member {
    pub(crate) node: String,
    pub(crate) status: &'static str,
    pub(crate) active: bool,
    pub(crate) mark: Option<u8>,
}

#[derive(Clone, Debug)]
pub(crate) struct Gateway {
    pub(crate) name: String,
    pub(crate) is_valid: bool,
    pub(crate) mark: Option<u8>,
    pub(crate) ecmp: bool,
    pub(crate) nat: Nat,
    pub(crate) members: Vec<Member>,
}

#[derive(Clone, Debug)]
pub(crate) enum Subject {
    /// Label `app`, a demand on `tier`, and label `team` of the namespace.
    Labels {
        app: String,
        tier: Option<Tier>,
        team: Option<String>,
    },
    Subnets(Vec<Cidr>),
}

#[derive(Clone, Debug)]
pub(crate) enum Tier {
    In(Vec<String>),
    NotIn(Vec<String>),
    Exists,
    DoesNotExist,
}

#[derive(Clone, Debug)]
pub(crate) struct Policy {
    pub(crate) name: String,
    pub(crate) gateway: Option<String>,
    pub(crate) is_valid: bool,
    pub(crate) subject: Subject,
    pub(crate) destinations: Vec<Cidr>,
    pub(crate) exceptions: Vec<Cidr>,
    pub(crate) priority: Option<u32>,
    /// Seconds since 1970.
    pub(crate) created: i64,
    pub(crate) asked: Vec<IpAddr>,
    pub(crate) given: Vec<IpAddr>,
    pub(crate) owner: Option<String>,
}

#[derive(Clone, Debug)]
pub(crate) struct World {
    pub(crate) nodes: Vec<Node>,
    /// Name and label `team`.
    pub(crate) namespaces: Vec<(String, Option<String>)>,
    pub(crate) pods: Vec<Pod>,
    pub(crate) gateways: Vec<Gateway>,
    pub(crate) policies: Vec<Policy>,
    pub(crate) default_gateway: Option<String>,
}

impl std::fmt::Display for Cidr {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.base, self.length)
    }
}

impl Cidr {
    pub(crate) fn new(address: IpAddr, length: u8) -> Self {
        let base = match address {
            IpAddr::V4(a) => Ipv4Addr::from(
                u32::from(a) & u32::MAX.checked_shl(32 - u32::from(length)).unwrap_or(0),
            )
            .into(),
            IpAddr::V6(a) => Ipv6Addr::from(
                u128::from(a) & u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0),
            )
            .into(),
        };
        Self { base, length }
    }

    /// First and last address, those just outside, and one inside.
    pub(crate) fn interesting(self, dice: &mut Dice) -> [IpAddr; 5] {
        let inside = u128::from(dice.next());
        match self.base {
            IpAddr::V4(base) => {
                let (base, host) = (
                    u32::from(base),
                    u32::MAX.checked_shr(self.length.into()).unwrap_or(0),
                );
                let inside = u32::try_from(inside & u128::from(host)).unwrap();
                [
                    base,
                    base | host,
                    base.wrapping_sub(1),
                    (base | host).wrapping_add(1),
                    base | inside,
                ]
                .map(|a| Ipv4Addr::from(a).into())
            }
            IpAddr::V6(base) => {
                let (base, host) = (
                    u128::from(base),
                    u128::MAX.checked_shr(self.length.into()).unwrap_or(0),
                );
                [
                    base,
                    base | host,
                    base.wrapping_sub(1),
                    (base | host).wrapping_add(1),
                    base | (inside & host),
                ]
                .map(|a| Ipv6Addr::from(a).into())
            }
        }
    }
}

pub(crate) fn v4(a: usize, b: usize, c: usize, d: usize) -> IpAddr {
    IpAddr::V4(Ipv4Addr::from(
        [a, b, c, d].map(|octet| u8::try_from(octet).unwrap()),
    ))
}

pub(crate) fn v6(text: &str) -> IpAddr {
    IpAddr::V6(text.parse().unwrap())
}

impl Node {
    /// Its addresses in the overlay.
    pub(crate) fn overlay(&self) -> Vec<IpAddr> {
        let (number, has) = (self.number, |family: usize| {
            self.has_tunnel && self.addresses[family].is_some()
        });
        let v4 = has(0).then(|| v4(172, 31, 0, number));
        v4.into_iter()
            .chain(has(1).then(|| v6(&format!("fd31::{number}"))))
            .collect()
    }
}
