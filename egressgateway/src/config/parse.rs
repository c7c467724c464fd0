//! Reads and checks a configuration as a whole.

use super::{Config, table::MIN_MTU_V6, yaml};
use crate::spec::Problem;

impl Config {
    /// Reads a configuration file; what it does not mention has its default. Lists every problem,
    /// with its line.
    ///
    /// # Errors
    /// Syntax errors, unknown fields, refused values, and what [`Self::problems`] finds.
    pub fn parse(yaml: &str) -> Result<Self, Vec<Problem>> {
        let mut config = Self::default();
        let mut problems = yaml::apply(&mut config, yaml);
        if problems.is_empty() {
            problems = config.problems();
        }
        if problems.is_empty() {
            Ok(config)
        } else {
            Err(problems)
        }
    }

    /// What is wrong with the whole that no single field shows.
    #[must_use]
    pub fn problems(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        let overlay = self.overlay();
        if overlay.is_empty() {
            problems.push(Problem::new(
                "tunnel.ipv4CIDR",
                "",
                "must be given where tunnel.ipv6CIDR is absent: the tunnel needs addresses",
            ));
        }
        for (index, extra) in self.cluster_cidrs.extra.iter().enumerate() {
            if let Some(net) = overlay
                .iter()
                .find(|net| net.contains(extra) || extra.contains(*net))
            {
                let field = format!("clusterCIDRs.extra[{index}]");
                problems.push(Problem::new(
                    field,
                    extra,
                    format!("must not overlap the tunnel's network {net}"),
                ));
            }
            if self.cluster_cidrs.extra[..index].contains(extra) {
                problems.push(Problem::new(
                    format!("clusterCIDRs.extra[{index}]"),
                    extra,
                    "must be listed once",
                ));
            }
        }
        if self.tunnel.ipv6_cidr.is_some() && self.tunnel.mtu.is_some_and(|mtu| mtu < MIN_MTU_V6) {
            let rule = format!(
                "must be at least {MIN_MTU_V6} where tunnel.ipv6CIDR is given: IPv6 needs it"
            );
            problems.push(Problem::new(
                "tunnel.mtu",
                self.tunnel.mtu.unwrap_or_default(),
                rule,
            ));
        }
        problems
    }
}
