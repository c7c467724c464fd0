//! Packets through the kernel, with both flavours.
#![allow(clippy::unwrap_used)]

mod former;

use std::sync::Arc;

use egressgateway_backend_netfilter::{IptablesFlavour, Netfilter, NetfilterSettings};
use egressgateway_testkit::{packet_tests, packets::Host};

const LEGACY: Host<Netfilter> = Host {
    backend: || netfilter(IptablesFlavour::Legacy),
    masquerade: "iptables-legacy -t nat -A POSTROUTING ! -o pod0 -j MASQUERADE
ip6tables-legacy -t nat -A POSTROUTING ! -o pod0 -j MASQUERADE
",
    former: |world| former::load("legacy", world),
    steers_translated: false,
};

const NFT: Host<Netfilter> = Host {
    backend: || netfilter(IptablesFlavour::Nft),
    masquerade: "iptables-nft -t nat -A POSTROUTING ! -o pod0 -j MASQUERADE
ip6tables-nft -t nat -A POSTROUTING ! -o pod0 -j MASQUERADE
",
    former: |world| former::load("nft", world),
    steers_translated: false,
};

fn netfilter(flavour: IptablesFlavour) -> Netfilter {
    Netfilter::new(
        NetfilterSettings::default().with_flavour(flavour),
        Arc::new(()),
    )
}

packet_tests!(legacy, super::LEGACY);
packet_tests!(nft, super::NFT);
