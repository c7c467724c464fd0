use std::net::IpAddr;

use imbl::OrdMap;

use crate::{Attachments, Underlay, model::Family};

/// The device for an egress address: that of the longest connected network which holds it, because
/// the neighbours there ask for it; else the underlay's, where the next router may have a route to
/// it. None where the host has the address without us, or has nothing of its family.
#[must_use]
pub fn place(
    address: IpAddr,
    host: &Attachments,
    underlay: &OrdMap<Family, Underlay>,
) -> Option<String> {
    if host.addresses.contains(&address) {
        return None;
    }
    let connected = host
        .networks
        .iter()
        .filter(|(network, _)| network.contains(&address))
        .max_by_key(|(network, _)| network.prefix_len());
    let device = connected.map(|(_, device)| device);
    device
        .or_else(|| {
            underlay
                .get(&Family::of(address))
                .map(|underlay| &underlay.device)
        })
        .cloned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_goes_where_its_neighbours_are() {
        let network =
            |text: &str, device: &str| (text.parse::<ipnet::IpNet>().unwrap(), device.to_owned());
        let host = Attachments {
            networks: [
                network("10.6.0.0/16", "eth0"),
                network("10.6.1.0/24", "eth1"),
                network("fd00:7::/64", "eth1"),
            ]
            .into_iter()
            .collect(),
            addresses: imbl::OrdSet::unit([10, 6, 0, 70].into()),
            ..Attachments::default()
        };
        let underlay = Underlay {
            device: "eth0".to_owned(),
            index: 2,
            address: [10, 6, 0, 1].into(),
            mtu: 1500,
        };
        let underlay = OrdMap::unit(Family::V4, underlay);
        let place = |address: &str| place(address.parse().unwrap(), &host, &underlay);
        assert_eq!(place("10.6.0.60").as_deref(), Some("eth0"));
        assert_eq!(
            place("10.6.1.60").as_deref(),
            Some("eth1"),
            "the longer network"
        );
        assert_eq!(
            place("192.0.2.1").as_deref(),
            Some("eth0"),
            "no network of this host: by the underlay"
        );
        assert_eq!(place("fd00:7::1").as_deref(), Some("eth1"));
        assert_eq!(place("fd00:9::1"), None, "the underlay has no IPv6");
        assert_eq!(place("10.6.0.70"), None, "the host has it already");
    }
}
