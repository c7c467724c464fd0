//! How routes into the tunnel look, without a kernel.
#![allow(clippy::unwrap_used)]

use std::net::IpAddr;

use egressgateway::{
    Encapsulation, LocalEnd, Peer, Underlay,
    model::{Family, MacAddress},
};
use egressgateway_tunnel_geneve::{GeneveSettings, GeneveShape};
use imbl::{OrdMap, OrdSet};

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn underlay(address: &str) -> (Family, Underlay) {
    (
        Family::of(ip(address)),
        Underlay {
            device: "eth0".into(),
            index: 2,
            address: ip(address),
            mtu: 1500,
        },
    )
}

fn local(underlays: &[&str]) -> LocalEnd {
    LocalEnd {
        overlay: ["172.31.0.1/16", "fd31::1/112"]
            .map(|text| text.parse::<ipnet::IpNet>().unwrap())
            .into_iter()
            .collect(),
        mac: MacAddress::from_seed("local"),
        underlay: underlays.iter().map(|address| underlay(address)).collect(),
    }
}

fn peer(underlays: &[&str]) -> Peer {
    Peer {
        overlay: [ip("172.31.0.2"), ip("fd31::2")].into_iter().collect(),
        underlay: underlays.iter().map(|address| ip(address)).collect(),
        mac: MacAddress::from_seed("peer"),
        mtu: OrdMap::new(),
    }
}

/// "via VIA over SOURCE → REMOTE", of IPv4 and of IPv6 packets.
fn ways(local: &LocalEnd, peer: &Peer) -> [Option<String>; 2] {
    Family::ALL.map(|family| {
        let hop = GeneveShape::default().next_hop(local, peer, family)?;
        let encap = hop.encap.unwrap();
        Some(format!(
            "{} via {} over {} → {}",
            hop.device, hop.via, encap.source, encap.remote
        ))
    })
}

#[test]
fn both_families_take_one_device_over_ipv4_where_both_ends_have_it() {
    let both = ["10.6.0.11", "fd00:6::11"];
    let expected = |over: &str| {
        ["172.31.0.2", "fd31::2"].map(|via| Some(format!("egress-geneve via {via} over {over}")))
    };
    let v4 = expected("10.6.0.11 → 10.6.0.12");
    let v6 = expected("fd00:6::11 → fd00:6::12");
    assert_eq!(ways(&local(&both), &peer(&["10.6.0.12", "fd00:6::12"])), v4);
    assert_eq!(ways(&local(&both), &peer(&["10.6.0.12"])), v4);
    assert_eq!(ways(&local(&both), &peer(&["fd00:6::12"])), v6);
    assert_eq!(
        ways(&local(&["fd00:6::11"]), &peer(&["10.6.0.12", "fd00:6::12"])),
        v6
    );
}

#[test]
fn without_a_common_family_there_is_no_way() {
    assert_eq!(
        ways(&local(&["10.6.0.11"]), &peer(&["fd00:6::12"])),
        [None, None]
    );
    assert_eq!(ways(&local(&[]), &peer(&["10.6.0.12"])), [None, None]);
    let mut v4_only = local(&["10.6.0.11"]);
    v4_only.overlay = OrdSet::unit("172.31.0.1/16".parse().unwrap());
    assert!(matches!(
        ways(&v4_only, &peer(&["10.6.0.12"])),
        [Some(_), None]
    ));
}

#[test]
fn the_largest_packet_fits_whatever_underlay_a_peer_is_reached_by() {
    let mtu = |underlays: &[&str], settings: GeneveSettings| {
        GeneveShape(settings).links(&local(underlays)).mtu
    };
    let of = |size: u32| OrdMap::from_iter(Family::ALL.map(|family| (family, size)));
    // Outer Ethernet is not part of the underlay's size: IP 20 or 40, UDP 8, Geneve 8, inner
    // Ethernet 14.
    assert_eq!(mtu(&["10.6.0.11"], GeneveSettings::default()), of(1450));
    assert_eq!(mtu(&["fd00:6::11"], GeneveSettings::default()), of(1430));
    assert_eq!(
        mtu(&["10.6.0.11", "fd00:6::11"], GeneveSettings::default()),
        of(1430)
    );
    assert_eq!(
        mtu(
            &["10.6.0.11"],
            GeneveSettings::default().with_mtu(Some(1300))
        ),
        of(1300)
    );
}
