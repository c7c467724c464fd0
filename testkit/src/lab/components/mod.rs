//! Rules as cluster components write them, in the order and with the marks that they are known for.
//!
//! What a component adds for the sake of one pod or service it adds when the lab makes that;
//! nothing is taken away again.

pub(super) mod calico;
pub(super) mod kube_proxy;

use std::fmt::Write;

use super::builder::{Families, RuleTool};

/// Whose rules nodes have, apart from the product's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Components {
    /// Few rules, just enough for pods and services, by any tool.
    #[default]
    StandIns,
    /// Services as kube-proxy does them, by one of the iptables; pods' traffic is masqueraded and
    /// forwarded by the stand-in.
    KubeProxy,
    /// Services as kube-proxy does them, pods as Calico does.
    Calico(ChainInsertMode),
}

/// Where Calico puts the jumps into its chains.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChainInsertMode {
    /// Before all rules of others, and there again whenever somebody gets before them: see
    /// [`Node::reinsert_jumps`](super::Node::reinsert_jumps).
    Insert,
    /// Behind all rules of others.
    Append,
}

impl Components {
    /// Whether services are kube-proxy's.
    pub(super) fn has_kube_proxy(self) -> bool {
        self != Self::StandIns
    }

    /// Calico's way to insert, if it is there.
    pub(super) const fn calico(self) -> Option<ChainInsertMode> {
        if let Self::Calico(mode) = self {
            Some(mode)
        } else {
            None
        }
    }
}

/// Writes scripts for one of the iptables, for the lab's families.
#[derive(Debug, Clone, Copy)]
pub(super) struct Iptables {
    pub(super) legacy: bool,
    pub(super) families: Families,
}

impl Iptables {
    /// None where the lab's rules are written by nft.
    pub(super) const fn of(tool: RuleTool, families: Families) -> Option<Self> {
        match tool {
            RuleTool::Nft => None,
            RuleTool::IptablesNft => Some(Self {
                legacy: false,
                families,
            }),
            RuleTool::IptablesLegacy => Some(Self {
                legacy: true,
                families,
            }),
        }
    }

    /// A family's program, such as `ip6tables-nft-restore`.
    pub(super) fn program(self, ipv4: bool, what: &str) -> String {
        format!(
            "{}-{}{what}",
            if ipv4 { "iptables" } else { "ip6tables" },
            if self.legacy { "legacy" } else { "nft" }
        )
    }

    /// A shell script that restores `rules` of each family beside what there is.
    pub(super) fn restore(self, rules: impl Fn(bool) -> String) -> String {
        let mut script = String::new();
        for ipv4 in [true, false].into_iter().filter(|ipv4| {
            if *ipv4 {
                self.families.v4()
            } else {
                self.families.v6()
            }
        }) {
            let rules = rules(ipv4);
            if !rules.is_empty() {
                let _ = writeln!(
                    script,
                    "{} --noflush -w <<'END'\n{rules}END",
                    self.program(ipv4, "-restore")
                );
            }
        }
        script
    }
}
