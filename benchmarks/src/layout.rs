//! The layouts that are compared.

use std::{fmt, sync::Arc};

use egressgateway::{Driver, PolicyDesired, Reconcile, Reconciler};
use egressgateway_backend_netfilter::{
    IptablesFlavour, Netfilter, NetfilterSettings, NetfilterState,
};
use egressgateway_backend_nftables::{NftState, Nftables, NftablesSettings};

use crate::{
    command::run,
    policies::{Role, desired},
    proposal,
};

/// How policies look in the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// The nftables backend.
    Nftables,
    /// The netfilter backend with `iptables-nft` ([`IptablesFlavour::Nft`]) or `iptables-legacy`.
    Netfilter(IptablesFlavour),
    /// Two sets and a rule for each policy.
    Proposal,
}

impl Layout {
    /// All of them.
    pub const ALL: [Self; 4] = [
        Self::Nftables,
        Self::Netfilter(IptablesFlavour::Nft),
        Self::Netfilter(IptablesFlavour::Legacy),
        Self::Proposal,
    ];

    /// A backend's driver with its memory; none for the proposal's layout, which has no driver.
    #[must_use]
    pub fn reconciler(self) -> Option<Box<dyn Reconcile<PolicyDesired>>> {
        match self {
            Self::Nftables => Some(Box::new(Reconciler::new(Nftables::new(
                NftablesSettings::default(),
                Arc::new(()),
            )))),
            Self::Netfilter(flavour) => {
                let settings = NetfilterSettings::default().with_flavour(flavour);
                Some(Box::new(Reconciler::new(Netfilter::new(
                    settings,
                    Arc::new(()),
                ))))
            }
            Self::Proposal => None,
        }
    }

    /// What a person would feed to the host's tools to get from nothing to `count` policies: input
    /// and program, in order.
    ///
    /// # Panics
    /// When no plan can be made.
    #[must_use]
    pub fn batch(self, count: u32, role: Role) -> Vec<(Vec<&'static str>, String)> {
        match self {
            Self::Nftables => {
                let backend = Nftables::offline(NftablesSettings::default());
                let plan = backend
                    .plan(&desired(count, role), &NftState::default())
                    .expect("a plan")
                    .plan;
                vec![(vec!["nft", "-f", "-"], plan.to_string())]
            }
            Self::Netfilter(flavour) => {
                let backend =
                    Netfilter::offline(NetfilterSettings::default().with_flavour(flavour));
                let plan = backend
                    .plan(&desired(count, role), &NetfilterState::default())
                    .expect("a plan")
                    .plan;
                sections(&plan.to_string(), flavour)
            }
            Self::Proposal => vec![
                (vec!["ipset", "restore"], proposal::sets(count)),
                (
                    vec!["iptables-legacy-restore", "--noflush"],
                    proposal::rules(count),
                ),
            ],
        }
    }
}

/// The parts of a netfilter plan, each with its program. Neighbouring parts for the same program
/// are one.
fn sections(plan: &str, flavour: IptablesFlavour) -> Vec<(Vec<&'static str>, String)> {
    let (v4, v6) = match flavour {
        IptablesFlavour::Legacy => ("iptables-legacy-restore", "ip6tables-legacy-restore"),
        _ => ("iptables-nft-restore", "ip6tables-nft-restore"),
    };
    let mut sections: Vec<(Vec<&'static str>, String)> = Vec::new();
    for line in plan.lines() {
        let program = match line {
            "# ipset restore" => Some(vec!["ipset", "restore"]),
            "# iptables-restore --noflush" => Some(vec![v4, "--noflush"]),
            "# ip6tables-restore --noflush" => Some(vec![v6, "--noflush"]),
            _ => None,
        };
        match (program, sections.last_mut()) {
            (Some(program), Some((last, _))) if *last == program => {}
            (Some(program), _) => sections.push((program, String::new())),
            (None, Some((_, script))) => {
                script.push_str(line);
                script.push('\n');
            }
            (None, None) => panic!("a plan's text says which program each part is for"),
        }
    }
    sections
}

/// Feeds a batch to its programs.
pub fn load(batch: &[(Vec<&'static str>, String)]) {
    for (program, script) in batch {
        run(program, script);
    }
}

impl fmt::Display for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Nftables => "nftables",
            Self::Netfilter(IptablesFlavour::Legacy) => "netfilter, iptables-legacy",
            Self::Netfilter(_) => "netfilter, iptables-nft",
            Self::Proposal => "set pair and rule per policy",
        })
    }
}
