//! The two ways in which a kernel holds iptables rules.

use egressgateway::{Error, ErrorKind, model::Family};

use crate::{command, save};

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

    pub(crate) async fn choose(asked: IptablesFlavour) -> Result<Self, Error> {
        match asked {
            IptablesFlavour::Legacy => return Ok(Self::Legacy),
            IptablesFlavour::Nft => return Ok(Self::Nft),
            IptablesFlavour::Auto => {}
        }
        let nft = Self::Nft.cluster_rules().await;
        let legacy = Self::Legacy.cluster_rules().await;
        match (nft, legacy) {
            (Ok(nft), Ok(legacy)) => Ok(if legacy > nft {
                Self::Legacy
            } else {
                Self::Nft
            }),
            (Ok(_), Err(error)) if error.kind == ErrorKind::Unsupported => Ok(Self::Nft),
            (Err(error), Ok(_)) if error.kind == ErrorKind::Unsupported => Ok(Self::Legacy),
            (Err(error), _) | (_, Err(error)) => Err(error),
        }
    }

    async fn cluster_rules(self) -> Result<usize, Error> {
        let mut rules = 0;
        for family in Family::ALL {
            rules += save::cluster_rules(&command::save(self, family, false).await?);
        }
        Ok(rules)
    }
}
