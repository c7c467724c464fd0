//! The two ways in which a kernel holds iptables rules.

use egressgateway::model::Family;

/// Which iptables a host uses. Rules of both are in force at the same time; ours belong where the
/// cluster's are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IptablesFlavour {
    /// The one that holds the rules of kube-proxy and the CNI; where neither does, nft if its
    /// programs are there, else legacy.
    #[default]
    Auto,
    /// `iptables-legacy`: the kernel's own tables.
    Legacy,
    /// `iptables-nft`: the same rules, kept by nftables.
    Nft,
}

/// A flavour that was chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flavour {
    Legacy,
    Nft,
}

impl Flavour {
    pub(crate) fn program(self, family: Family, what: &str) -> String {
        let base = if family == Family::V4 {
            "iptables"
        } else {
            "ip6tables"
        };
        let flavour = if self == Self::Legacy {
            "legacy"
        } else {
            "nft"
        };
        format!("{base}-{flavour}{what}")
    }
}
