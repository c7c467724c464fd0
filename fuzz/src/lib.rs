//! Fuzz targets: what must hold of every reader of what comes from outside, whatever is read.
//!
//! A target is a function that takes any bytes. It panics where something does not hold. No reader
//! may panic or go on for ever, and what is read, printed and read again must be the same. Beside
//! that each target states what holds of its own reader. Readers that a crate does not export are in
//! that crate's module `fuzzing`.
//!
//! `make fuzz` feeds targets by coverage, with libFuzzer. The test `corpus` feeds them the seeds
//! alone, and needs nothing but a usual build.
#![allow(clippy::missing_panics_doc)]

mod manifests;
mod samples;
mod texts;

use egressgateway_backend_netfilter::fuzzing as netfilter;
use egressgateway_backend_nftables::fuzzing as nftables;
use egressgateway_netlink::fuzzing as netlink;

/// A target's name, which is also the name of its program and of its folder of seeds.
pub type Name = &'static str;

/// What reads the bytes.
pub type Target = fn(&[u8]);

/// All targets.
pub const TARGETS: [(Name, Target); 19] = [
    ("address", texts::address),
    ("admission", texts::admission),
    ("config", texts::config),
    ("conntrack", netlink::connections),
    ("echo_reply", netlink::echo_reply),
    ("ipset", |bytes| netfilter::sets(bytes, &samples::desired())),
    ("iptables_refusal", netfilter::refusal),
    ("iptables_save", |bytes| {
        netfilter::rules(bytes, &samples::desired(), &samples::surroundings());
    }),
    ("manifests", manifests::manifests),
    ("neighbour_frame", netlink::neighbour_frame),
    ("next_hop", netlink::next_hop),
    ("nft_notification", |bytes| {
        nftables::notification(bytes);
        netfilter::notification(bytes);
    }),
    ("nft_others", |bytes| {
        nftables::others(bytes, &samples::surroundings());
    }),
    ("nft_refusal", nftables::refusal),
    ("nft_table", |bytes| {
        nftables::table(bytes, &samples::desired());
    }),
    ("route_messages", netlink::route_messages),
    ("selector", texts::selector),
    ("state_file", texts::state_file),
    ("tcp_segment", netlink::segment),
];

/// Gives bytes to a target.
///
/// # Panics
/// Where something does not hold, and where there is no target of this name.
pub fn run(name: &str, bytes: &[u8]) {
    let target = TARGETS.iter().find(|(known, _)| *known == name);
    let Some((_, target)) = target else {
        panic!("there is no target {name}");
    };
    target(bytes);
}
