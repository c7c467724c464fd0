use serde_yaml::Value;

use super::Config;

/// A field whose value is another one now.
#[derive(Clone, Debug, PartialEq)]
pub struct Changed {
    /// The field: `failover.interval`.
    pub path: &'static str,
    /// Its value before.
    pub old: Value,
    /// Its value now.
    pub new: Value,
    /// Whether it takes effect in a running daemon; otherwise the value before stays in force until
    /// the daemon starts again.
    pub live: bool,
}

impl Config {
    /// The configuration that is in force once a running daemon took what it can of `next`, and
    /// every field in which `next` differs.
    ///
    /// Fields that say which objects of the kernel exist, and by which names and numbers they are
    /// found again, wait for a start.
    #[must_use]
    pub fn adopt(&self, next: &Self) -> (Self, Vec<Changed>) {
        let in_force = Self {
            forward_method: next.forward_method,
            default_egress_gateway: next.default_egress_gateway.clone(),
            cluster_cidrs: super::ClusterCidrs {
                extra: next.cluster_cidrs.extra.clone(),
                ..self.cluster_cidrs
            },
            failover: next.failover,
            start_gate: next.start_gate,
            hold_at_boot: next.hold_at_boot,
            reset_connections: next.reset_connections,
            ..self.clone()
        };
        let changed = Self::FIELDS.iter().filter_map(|field| {
            let (old, new) = (self.value(field.path)?, next.value(field.path)?);
            let live = in_force.value(field.path)? == new;
            (old != new).then_some(Changed {
                path: field.path,
                old,
                new,
                live,
            })
        });
        let changed = changed.collect();
        (in_force, changed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A value of each field that is not its default.
    const OTHERS: [(&str, &str); 25] = [
        ("tunnel.kind", "geneve"),
        ("tunnel.ipv4CIDR", "172.30.0.0/16"),
        ("tunnel.ipv6CIDR", "fd30::/112"),
        ("tunnel.vni", "7"),
        ("tunnel.port", "4789"),
        ("tunnel.mtu", "1400"),
        ("tunnel.parent", "eth1"),
        ("policyBackend", "netfilter"),
        ("iptables", "nft"),
        ("forwardMethod", "ecmp"),
        ("defaultEgressGateway", "other"),
        ("clusterCIDRs.auto", "false"),
        ("clusterCIDRs.extra", "10.96.0.0/12"),
        ("mark.mask", "0x00ff0000"),
        ("routing.tableBase", "300"),
        ("routing.rulePriority", "98"),
        ("routing.protocol", "78"),
        ("failover.interval", "1s"),
        ("failover.multiplier", "5"),
        ("failover.drainGracePeriod", "5m"),
        ("startGate", "false"),
        ("holdAtBoot", "false"),
        ("stateFile", "/run/state.json"),
        ("resetConnections", "false"),
        ("replyPath", "tunnel"),
    ];

    #[test]
    fn every_field_is_taken_now_or_named_as_waiting_as_it_is_documented() {
        let now = Config::default();
        for field in Config::FIELDS {
            let (_, other) = OTHERS
                .iter()
                .find(|(path, _)| *path == field.path)
                .unwrap_or_else(|| panic!("{}", field.path));
            let mut next = now.clone();
            next.set(field.path, other, field.path).unwrap();
            let (in_force, changed) = now.adopt(&next);
            assert_eq!(changed.len(), 1, "{changed:?}");
            assert_eq!((changed[0].path, changed[0].live), (field.path, field.live));
            assert_eq!(
                in_force,
                if field.live { next } else { now.clone() },
                "{}",
                field.path
            );
        }
    }

    #[test]
    fn nothing_changes_where_nothing_differs() {
        let now = Config::default();
        assert_eq!(now.adopt(&now), (now.clone(), Vec::new()));
    }
}
