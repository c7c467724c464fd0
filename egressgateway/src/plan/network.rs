use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use imbl::{OrdMap, OrdSet};

use super::Reason;
use crate::{
    Attachments, ExitNetwork, Underlay,
    model::{Family, NetworkId, fnv1a64},
};

/// By what a node lets out what has one of its egress addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Way {
    /// As everything else: by its own routes.
    Underlay,
    /// By another network.
    Network {
        /// The device.
        device: String,
        /// The router.
        router: IpAddr,
    },
    /// It belongs to another network, and nobody is known who leads out of it.
    NoRouter,
}

/// The way of an egress address. It belongs to the longest connected network that holds it, and
/// leaves there: by the router of the device's own default route, or else by the one that its pool
/// names, if that is a neighbour on the device. What belongs to no network, or to one on the
/// underlay's device, leaves by the host's own routes.
#[must_use]
pub fn way(
    address: IpAddr,
    host: &Attachments,
    underlay: &OrdMap<Family, Underlay>,
    named: Option<IpAddr>,
) -> Way {
    let family = Family::of(address);
    let connected = host
        .networks
        .iter()
        .filter(|(network, _)| network.contains(&address))
        .max_by_key(|(network, _)| network.prefix_len());
    let Some((_, device)) = connected.filter(|(_, device)| {
        underlay
            .get(&family)
            .is_none_or(|underlay| underlay.device != **device)
    }) else {
        return Way::Underlay;
    };
    let is_neighbour = |router: &IpAddr| {
        host.networks
            .iter()
            .any(|(network, on)| on == device && network.contains(router))
    };
    let own = host.routers.get(&(device.clone(), family)).copied();
    match own.or_else(|| named.filter(is_neighbour)) {
        Some(router) => Way::Network {
            device: device.clone(),
            router,
        },
        None => Way::NoRouter,
    }
}

/// The networks that these addresses leave by, and the addresses that have no way.
///
/// A network's byte is a hash of its device and its router, or the first free byte after it where
/// two hash alike: one that comes or goes moves no other that it does not collide with.
#[must_use]
pub fn exit_networks(
    ways: impl IntoIterator<Item = (IpAddr, Way)>,
    host: &Attachments,
) -> (OrdMap<NetworkId, ExitNetwork>, BTreeMap<IpAddr, Reason>) {
    let (mut members, mut refused) = (
        BTreeMap::<(String, IpAddr), OrdSet<IpAddr>>::new(),
        BTreeMap::new(),
    );
    for (address, way) in ways {
        match way {
            Way::Underlay => {}
            Way::Network { device, router } => {
                members.entry((device, router)).or_default().insert(address);
            }
            Way::NoRouter => drop(refused.insert(address, Reason::NoRouter)),
        }
    }
    let count = u64::from(NetworkId::COUNT);
    let preferred = |(device, router): &(String, IpAddr)| {
        fnv1a64(format!("{device} {router}").as_bytes()) % count
    };
    let sorted: BTreeSet<_> = members
        .keys()
        .map(|key| (preferred(key), key.clone()))
        .collect();
    let mut networks = OrdMap::new();
    for (preferred, key) in sorted {
        let Some(addresses) = members.remove(&key) else {
            continue;
        };
        let bytes = (0..count)
            .filter_map(|step| NetworkId::new(u8::try_from((preferred + step) % count + 1).ok()?));
        let Some(id) = bytes.into_iter().find(|id| !networks.contains_key(id)) else {
            refused.extend(
                addresses
                    .into_iter()
                    .map(|address| (address, Reason::TooManyNetworks)),
            );
            continue;
        };
        let (device, router) = key;
        let of_family = |network: &&ipnet::IpNet| Family::of(network.addr()) == Family::of(router);
        let link = host
            .networks
            .iter()
            .filter(|(_, on)| **on == device)
            .map(|(network, _)| network)
            .filter(of_family)
            .copied()
            .collect();
        networks.insert(
            id,
            ExitNetwork {
                device,
                router,
                link,
                addresses,
            },
        );
    }
    (networks, refused)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn host() -> Attachments {
        let networks = [
            ("10.6.0.0/16", "eth0"),
            ("10.7.0.0/16", "eth1"),
            ("fd00:7::/64", "eth1"),
            ("10.8.0.0/16", "eth2"),
            ("10.9.0.0/16", "eth2"),
        ];
        Attachments {
            networks: networks
                .map(|(network, device)| {
                    (network.parse::<ipnet::IpNet>().unwrap(), device.to_owned())
                })
                .into_iter()
                .collect(),
            routers: [
                (("eth1".to_owned(), Family::V4), ip("10.7.0.1")),
                (("eth0".to_owned(), Family::V4), ip("10.6.0.1")),
            ]
            .into_iter()
            .collect(),
            ..Attachments::default()
        }
    }

    fn of(address: &str, named: Option<&str>) -> Way {
        let underlay = Underlay {
            device: "eth0".to_owned(),
            index: 2,
            address: ip("10.6.0.11"),
            mtu: 1500,
        };
        way(
            ip(address),
            &host(),
            &OrdMap::unit(Family::V4, underlay),
            named.map(ip),
        )
    }

    #[test]
    fn an_address_leaves_by_the_network_that_it_belongs_to() {
        let by = |device: &str, router: &str| Way::Network {
            device: device.to_owned(),
            router: ip(router),
        };
        for (address, named, expected) in [
            ("10.6.0.60", Some("10.6.0.9"), Way::Underlay),
            ("192.0.2.1", None, Way::Underlay),
            ("10.7.0.60", None, by("eth1", "10.7.0.1")),
            ("10.7.0.60", Some("10.7.0.9"), by("eth1", "10.7.0.1")),
            ("10.8.0.60", None, Way::NoRouter),
            ("10.8.0.60", Some("10.8.0.9"), by("eth2", "10.8.0.9")),
            ("10.8.0.60", Some("10.9.0.9"), by("eth2", "10.9.0.9")),
            ("10.8.0.60", Some("10.7.0.9"), Way::NoRouter),
            ("fd00:7::60", None, Way::NoRouter),
            ("fd00:7::60", Some("fd00:7::1"), by("eth1", "fd00:7::1")),
        ] {
            assert_eq!(of(address, named), expected, "{address} {named:?}");
        }
    }

    #[test]
    fn networks_have_bytes_of_their_own_and_what_has_no_way_is_refused() {
        let ways = [
            ("10.7.0.60", None),
            ("10.7.0.61", None),
            ("10.8.0.60", None),
            ("fd00:7::60", Some("fd00:7::1")),
            ("10.6.0.60", None),
        ];
        let (networks, refused) = exit_networks(
            ways.map(|(address, named)| (ip(address), of(address, named))),
            &host(),
        );
        assert_eq!(
            refused,
            BTreeMap::from([(ip("10.8.0.60"), Reason::NoRouter)])
        );
        let all: BTreeSet<_> = networks
            .values()
            .map(|network| (network.router, network.addresses.len(), network.link.len()))
            .collect();
        assert_eq!(
            all,
            [(ip("10.7.0.1"), 2, 1), (ip("fd00:7::1"), 1, 1)].into()
        );
    }

    #[test]
    fn no_more_networks_leave_than_there_are_bytes() {
        let ways = (1..=20).map(|n| {
            (
                [10, 7, n, 60].into(),
                Way::Network {
                    device: format!("eth{n}"),
                    router: [10, 7, n, 1].into(),
                },
            )
        });
        let (networks, refused) = exit_networks(ways, &Attachments::default());
        assert_eq!((networks.len(), refused.len()), (15, 5));
        assert!(
            refused
                .values()
                .all(|reason| *reason == Reason::TooManyNetworks)
        );
    }

    proptest! {
        #[test]
        fn bytes_depend_on_the_networks_alone_and_few_move_when_one_goes(devices in proptest::collection::btree_set(0_u8..60, 1..8), shift in 0_usize..8) {
            let ways = |devices: &[u8]| {
                let way = |n: &u8| (IpAddr::from([10, *n, 0, 60]), Way::Network { device: format!("eth{n}"), router: [10, *n, 0, 1].into() });
                exit_networks(devices.iter().map(way).collect::<Vec<_>>(), &Attachments::default()).0
            };
            let mut devices: Vec<u8> = devices.into_iter().collect();
            let all = ways(&devices);
            prop_assert_eq!(all.len(), devices.len());
            let middle = shift % devices.len();
            devices.rotate_left(middle);
            prop_assert_eq!(&ways(&devices), &all);
            let gone = devices.pop().unwrap();
            let fewer = ways(&devices);
            let alone = |n: u8| ways(&[n]).keys().next().copied();
            let in_place = |(id, network): &(&NetworkId, &ExitNetwork)| alone(network.device[3..].parse().unwrap()) == Some(**id);
            for (id, network) in all.iter().filter(in_place).filter(|(_, network)| network.device != format!("eth{gone}")) {
                prop_assert_eq!(fewer.get(id).map(|other| &other.device), Some(&network.device));
            }
        }
    }
}
