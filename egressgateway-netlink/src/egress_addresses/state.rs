//! Egress addresses, as they are or as they must be.

use std::net::IpAddr;

use egressgateway::{AddressesDesired, model::Family};
use imbl::OrdMap;
use ipnet::IpNet;

use crate::{address::Address, route::Devices};

/// What the driver owns.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct AddressesState {
    /// By device and address: whether it is as the driver puts it there, without a route of its
    /// own, and no source of what the host sends.
    pub held: OrdMap<(String, IpNet), bool>,
}

impl AddressesState {
    /// What a kernel must hold.
    pub(super) fn of(desired: &AddressesDesired) -> Self {
        Self {
            held: desired
                .held
                .iter()
                .map(|(address, device)| ((device.clone(), IpNet::from(*address)), true))
                .collect(),
        }
    }

    /// What a kernel with these addresses, in its order, holds of ours.
    pub(super) fn read(addresses: &[Address], devices: &Devices) -> Self {
        let ours = addresses
            .iter()
            .enumerate()
            .filter(|(_, address)| address.is_ours());
        let held = ours.filter_map(|(place, address)| {
            let sound = address.global
                && address.without_route
                && !is_source(address, &addresses[place + 1..]);
            Some((
                (devices.name(address.device)?.to_owned(), address.network),
                sound,
            ))
        });
        Self {
            held: held.collect(),
        }
    }

    /// The addresses that are held.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.held.keys().map(|(_, network)| network.addr())
    }
}

/// Whether the host may send from this address unasked, where `behind` comes after it.
fn is_source(address: &Address, behind: &[Address]) -> bool {
    let family = Family::of(address.network.addr());
    if family == Family::V6 {
        return address.preferred;
    }
    behind.iter().any(|other| {
        let rival = other.device == address.device && Family::of(other.network.addr()) == family;
        rival && other.global && other.preferred && !other.is_ours()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::constants::ADDRESS_METRIC;

    fn address(network: &str, metric: u32) -> Address {
        Address {
            device: 2,
            network: network.parse().unwrap(),
            global: true,
            preferred: true,
            metric,
            without_route: metric != 0,
        }
    }

    #[test]
    fn an_ipv4_address_before_the_devices_own_is_out_of_place() {
        let sound = |addresses: &[Address]| {
            let state = AddressesState::read(addresses, &Devices::of([(2, "eth0"), (3, "eth1")]));
            state.held.values().copied().collect::<Vec<_>>()
        };
        let (own, ours) = (
            address("10.6.0.11/16", 0),
            address("10.6.0.60/32", ADDRESS_METRIC),
        );
        assert_eq!(sound(&[own.clone(), ours.clone()]), [true]);
        assert_eq!(sound(&[ours.clone(), own.clone()]), [false]);
        assert_eq!(
            sound(&[
                ours.clone(),
                Address {
                    device: 3,
                    ..own.clone()
                }
            ]),
            [true],
            "of another device"
        );
        assert_eq!(
            sound(&[
                ours.clone(),
                Address {
                    preferred: false,
                    ..own.clone()
                }
            ]),
            [true],
            "a subordinate address is no source either"
        );
        assert_eq!(
            sound(&[
                own,
                Address {
                    without_route: false,
                    ..ours
                }
            ]),
            [false]
        );
    }

    #[test]
    fn an_ipv6_address_must_be_deprecated_wherever_it_is() {
        let ours = address("fd00:6::60/128", ADDRESS_METRIC);
        let devices = Devices::of([(2, "eth0")]);
        let sound = |preferred| {
            AddressesState::read(
                &[
                    Address {
                        preferred,
                        ..ours.clone()
                    },
                    address("fd00:6::11/64", 0),
                ],
                &devices,
            )
        };
        assert!(sound(false).held.values().all(|sound| *sound));
        assert!(sound(true).held.values().all(|sound| !*sound));
    }

    #[test]
    fn what_has_not_our_metric_is_not_ours() {
        let state = AddressesState::read(
            &[address("10.6.0.60/32", 0), address("10.6.0.61/32", 77)],
            &Devices::of([(2, "eth0")]),
        );
        assert_eq!(state, AddressesState::default());
    }
}
