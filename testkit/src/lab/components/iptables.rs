//! Scripts for one of the iptables.

use std::fmt::Write;

use super::super::options::{Families, RuleTool};

/// Writes scripts for one of the iptables, for the lab's families.
#[derive(Debug, Clone, Copy)]
pub(in super::super) struct Iptables {
    pub(in super::super) legacy: bool,
    pub(in super::super) families: Families,
}

impl Iptables {
    /// None where the lab's rules are written by nft.
    pub(in super::super) const fn of(tool: RuleTool, families: Families) -> Option<Self> {
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
    pub(in super::super) fn program(self, ipv4: bool, what: &str) -> String {
        format!(
            "{}-{}{what}",
            if ipv4 { "iptables" } else { "ip6tables" },
            if self.legacy { "legacy" } else { "nft" }
        )
    }

    /// A shell script that restores `rules` of each family beside what there is.
    pub(in super::super) fn restore(self, rules: impl Fn(bool) -> String) -> String {
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
