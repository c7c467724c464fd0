//! Which iptables holds the cluster's rules.

use egressgateway::{Error, ErrorKind, model::Family};

use crate::{
    exec::flavour::{Flavour, IptablesFlavour},
    exec::iptables,
    ruleset::save,
};

impl Flavour {
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
            rules += save::cluster_rules(&iptables::save(self, family, false).await?);
        }
        Ok(rules)
    }
}
