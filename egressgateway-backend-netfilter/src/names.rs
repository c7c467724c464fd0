//! Names and numbers that the kernel and its tools know us by.

use egressgateway::model::{ClassId, Family};

/// Every chain whose name begins like this is ours; but for one, the backend's.
pub(crate) const CHAIN_PREFIX: &str = "EGW-";
/// The chain of [`Transit`](crate::Transit), which is not the backend's.
pub(crate) const TRANSIT: &str = "EGW-TRANSIT";
/// Every ipset whose name begins like this is ours.
pub(crate) const SET_PREFIX: &str = "egw-";
/// Chains that look up the destination of a class.
pub(crate) const CLASS_PREFIX: &str = "EGW-C-";
/// Chains that give a connection its source.
pub(crate) const SNAT_PREFIX: &str = "EGW-SNAT-";
/// Before they got their present name.
pub(crate) const FORMER_SNAT_PREFIX: &str = "EGW-AS-";
/// Sets of the destinations of a class.
pub(crate) const VERDICTS_PREFIX: &str = "egw-verdicts-";
/// Before they got their present name.
pub(crate) const FORMER_VERDICTS_PREFIX: &str = "egw-where-";
/// Before [`Common::Subnets`] got its present name.
pub(crate) const FORMER_SUBNETS_PREFIX: &str = "egw-nets-";
/// The comment on jumps from the kernel's own chains into ours.
pub(crate) const COMMENT: &str = "egressgateway";

/// Whether rules can name a device like this. A plus at the end is iptables' wildcard.
pub(crate) fn is_device(name: &str) -> bool {
    (1..16).contains(&name.len())
        && name
            .chars()
            .all(|c| c.is_ascii_graphic() && !"\"\\'/!+*".contains(c))
}

/// Longest name of a set: `IPSET_MAXNAMELEN` without the closing zero.
#[cfg(test)]
pub(crate) const SET_NAME_LENGTH: usize = 31;
/// Longest name of a chain: `XT_EXTENSION_MAXNAMELEN` without the closing zero.
#[cfg(test)]
pub(crate) const CHAIN_NAME_LENGTH: usize = 28;

/// The tables that we have chains in, in the order in which they are written: what pins a
/// connection comes last, so that all that the pin leads to is there.
pub(crate) const TABLES: [&str; 4] = [RAW, NAT, FILTER, MANGLE];
pub(crate) const RAW: &str = "raw";
pub(crate) const MANGLE: &str = "mangle";
pub(crate) const NAT: &str = "nat";
pub(crate) const FILTER: &str = "filter";

/// Table, chain of the kernel, our chain.
pub(crate) const JUMPS: [(&str, &str, &str); 8] = [
    (RAW, "PREROUTING", PREROUTING),
    (RAW, "OUTPUT", OUTPUT),
    (MANGLE, "PREROUTING", PREROUTING),
    (MANGLE, "INPUT", INPUT),
    (MANGLE, "FORWARD", FORWARD),
    (MANGLE, "POSTROUTING", POSTROUTING),
    (FILTER, "FORWARD", FORWARD),
    (NAT, "POSTROUTING", POSTROUTING),
];

pub(crate) const PREROUTING: &str = "EGW-PREROUTING";
pub(crate) const OUTPUT: &str = "EGW-OUTPUT";
pub(crate) const INPUT: &str = "EGW-INPUT";
pub(crate) const FORWARD: &str = "EGW-FORWARD";
pub(crate) const GUARD: &str = "EGW-GUARD";
pub(crate) const GUARD_ANSWERS: &str = "EGW-GUARD-ANSWERS";
pub(crate) const ANSWERS: &str = "EGW-ANSWERS";
pub(crate) const INVALID_UNTRACKED: &str = "EGW-INVALID-UNTRACKED";
pub(crate) const LOST: &str = "EGW-LOST";
pub(crate) const TOWARDS_POD: &str = "EGW-TOWARDS-POD";
pub(crate) const KEEP: &str = "EGW-KEEP";
pub(crate) const POSTROUTING: &str = "EGW-POSTROUTING";
/// What is forwarded of connections that nobody has answered yet.
pub(crate) const FIRST: &str = "EGW-FIRST";
/// Of these, what somebody has translated.
pub(crate) const TRANSLATED: &str = "EGW-TRANSLATED";
/// Came through the overlay.
pub(crate) const ARRIVE: &str = "EGW-ARRIVE";
/// Came through the overlay, and nothing pinned it when it began.
pub(crate) const ARRIVE_UNPINNED: &str = "EGW-ARRIVE-UNPINNED";
/// Forwarded, and nothing pinned it.
pub(crate) const UNPINNED: &str = "EGW-UNPINNED";
/// Nothing of the connection leaves any more, and the agent ends it.
pub(crate) const ENDING: &str = "EGW-ENDING";
pub(crate) const LET_GO: &str = "EGW-LET-GO";
pub(crate) const CLASSIFY: &str = "EGW-CLASSIFY";
/// The source has a class of its own.
pub(crate) const POD: &str = "EGW-POD";
/// What the class of the source says of the destination.
pub(crate) const DECIDE: &str = "EGW-DECIDE";
pub(crate) const CLASS: &str = "EGW-CLASS";
pub(crate) const VERDICT: &str = "EGW-VERDICT";
pub(crate) const STEER: &str = "EGW-STEER";
/// Pins what exits here, by the network of its egress address.
pub(crate) const LEAVE: &str = "EGW-LEAVE";
pub(crate) const EXIT_CLASS: &str = "EGW-EXIT-CLASS";
pub(crate) const PASS: &str = "EGW-PASS";
pub(crate) const NO_CLASS: &str = "EGW-NO-CLASS";
pub(crate) const NO_VERDICT: &str = "EGW-NO-VERDICT";
pub(crate) const UNCLASSIFIED: &str = "EGW-UNCLASSIFIED";
pub(crate) const EXIT: &str = "EGW-EXIT";
pub(crate) const SOURCE: &str = "EGW-SOURCE";
pub(crate) const SNAT_NODE: &str = "EGW-SNAT-NODE";
pub(crate) const SNAT_KEEP: &str = "EGW-SNAT-KEEP";
/// Outer packets for this node.
pub(crate) const OUTER: &str = "EGW-OUTER";
pub(crate) const UNTRACK: &str = "EGW-UNTRACK";

/// Chains of one rule each, never rewritten, so that what they counted stays: name of the counter,
/// table, chain.
pub(crate) const COUNTERS: [(&str, &str, &str); 11] = [
    ("steered", MANGLE, STEERED),
    ("tunnelled", MANGLE, TUNNELLED),
    ("exited", NAT, EXITED),
    ("drop_no_gateway", MANGLE, NO_GATEWAY),
    ("drop_held", MANGLE, HELD),
    ("drop_unknown_source", MANGLE, UNKNOWN_SOURCE),
    ("drop_not_peer", RAW, NOT_PEER),
    ("drop_not_peer", MANGLE, NOT_PEER),
    ("drop_start_gate", MANGLE, START_GATE),
    ("drop_untracked", MANGLE, UNTRACKED),
    ("drop_no_port", MANGLE, NO_PORT),
];
pub(crate) const STEERED: &str = "EGW-STEERED";
pub(crate) const TUNNELLED: &str = "EGW-TUNNELLED";
/// Chain: the first segment of a connection that a helper of connection tracking expected.
pub(crate) const OPENING: &str = "EGW-OPENING";
pub(crate) const EXITED: &str = "EGW-EXITED";
pub(crate) const NO_GATEWAY: &str = "EGW-NO-GATEWAY";
pub(crate) const HELD: &str = "EGW-HELD";
pub(crate) const UNKNOWN_SOURCE: &str = "EGW-UNKNOWN-SOURCE";
pub(crate) const NOT_PEER: &str = "EGW-NOT-PEER";
pub(crate) const START_GATE: &str = "EGW-START-GATE";
pub(crate) const UNTRACKED: &str = "EGW-UNTRACKED";
pub(crate) const NO_PORT: &str = "EGW-NO-PORT";
/// Chain: lets go on what has ports that the nat table can choose from a range.
pub(crate) const HAS_PORTS: &str = "EGW-HAS-PORTS";
/// Chain: later packets of what this node translated itself and lets out itself.
pub(crate) const HERE: &str = "EGW-HERE";

/// Sets that are there whatever the policies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Common {
    Pods,
    Subnets,
    Exempt,
    Local,
    /// Addresses that are this node's pods' where packets come by the devices of pods.
    Wide,
    /// Known to have no class: whoever is in no set is not known yet.
    Ungoverned,
    Governed,
    /// Outer addresses of the other nodes.
    Peers,
    /// This node's own outer addresses.
    Own,
    /// Whatever addresses other nodes have.
    Hosts,
    /// Egress addresses that pods' own nodes translate to.
    Relayed,
}

impl Common {
    pub(crate) const ALL: [Self; 11] = [
        Self::Pods,
        Self::Subnets,
        Self::Exempt,
        Self::Local,
        Self::Wide,
        Self::Ungoverned,
        Self::Governed,
        Self::Peers,
        Self::Own,
        Self::Hosts,
        Self::Relayed,
    ];

    pub(crate) fn name(self, family: Family) -> String {
        let what = match self {
            Self::Pods => "pods",
            Self::Subnets => "subnets",
            Self::Exempt => "exempt",
            Self::Local => "local",
            Self::Wide => "wide",
            Self::Ungoverned => "ungoverned",
            Self::Governed => "governed",
            Self::Peers => "peers",
            Self::Own => "own",
            Self::Hosts => "hosts",
            Self::Relayed => "relayed",
        };
        format!("{SET_PREFIX}{what}-{}", suffix(family))
    }
}

/// The name that a set of the subnets' classes had before.
pub(crate) fn former_subnets(family: Family) -> String {
    format!("{FORMER_SUBNETS_PREFIX}{}", suffix(family))
}

/// Where the pods of a class go.
pub(crate) fn verdicts_set(class: ClassId, family: Family) -> String {
    format!("{VERDICTS_PREFIX}{:08x}-{}", class.get(), suffix(family))
}

/// The pods of a class that leave here as themselves.
pub(crate) fn keep_pods_set(class: ClassId, family: Family) -> String {
    format!(
        "{SET_PREFIX}keep-pods-{:08x}-{}",
        class.get(),
        suffix(family)
    )
}

/// The destinations that they have when they do.
pub(crate) fn keep_source_set(class: ClassId, family: Family) -> String {
    format!(
        "{SET_PREFIX}keep-source-{:08x}-{}",
        class.get(),
        suffix(family)
    )
}

/// The chain that looks up the destination of a class.
pub(crate) fn class_chain(class: ClassId) -> String {
    format!("{CLASS_PREFIX}{:08x}", class.get())
}

/// The set that is filled to take the place of another.
pub(crate) fn temporary(set: &str) -> String {
    format!("{set}-new")
}

fn suffix(family: Family) -> &'static str {
    match family {
        Family::V4 => "v4",
        Family::V6 => "v6",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_fits_the_kernel() {
        let class = ClassId::new(u32::MAX).into_iter();
        for class in class {
            for name in [
                verdicts_set(class, Family::V4),
                keep_pods_set(class, Family::V6),
                keep_source_set(class, Family::V6),
            ] {
                assert!(temporary(&name).len() <= SET_NAME_LENGTH, "{name}");
            }
            assert!(class_chain(class).len() <= CHAIN_NAME_LENGTH);
        }
        for name in COUNTERS.map(|(_, _, chain)| chain).into_iter().chain([
            UNCLASSIFIED,
            NO_VERDICT,
            VERDICT,
            INVALID_UNTRACKED,
            ARRIVE_UNPINNED,
        ]) {
            assert!(
                name.starts_with(CHAIN_PREFIX) && name.len() + 4 <= CHAIN_NAME_LENGTH,
                "{name}"
            );
        }
    }
}
