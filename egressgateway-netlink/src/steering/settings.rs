//! The numbers of policy routing.

use egressgateway::model::{MarkMask, NetworkId, TargetId};

use super::flow_hash::FlowHash;
use crate::constants::{PROTOCOL, RESERVED_TABLES, RULE_PRIORITY, TABLE_BASE};

/// Tables that are kept for targets, one more than there are. The number does not change between
/// versions, so that an agent finds the tables of the one before it.
const TABLES_OF_TARGETS: usize = 238;

/// Numbers that the driver uses, and knows its own objects by.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SteeringSettings {
    /// Table of the first target.
    pub table_base: u32,
    /// Priority of the steering rules; the loop guard has the number before it.
    pub rule_priority: u32,
    /// Route protocol number of rules and routes. Every route with it, in any table, is taken for
    /// ours.
    pub protocol: u8,
    /// The bits of the packet mark that are ours.
    pub mask: MarkMask,
    /// Whether the kernel can keep connections with their next hop
    /// ([`Steering::keeps_connections_on`](crate::Steering::keeps_connections_on)). Where it can't,
    /// a balanced target has a plain route over its next hops, which deals connections out anew
    /// whenever one comes or goes.
    pub keeps_connections: bool,
}

impl Default for SteeringSettings {
    fn default() -> Self {
        Self {
            table_base: TABLE_BASE,
            rule_priority: RULE_PRIORITY,
            protocol: PROTOCOL,
            mask: MarkMask::default(),
            keeps_connections: true,
        }
    }
}

impl SteeringSettings {
    /// Another table for the first target.
    #[must_use]
    pub const fn with_table_base(mut self, table_base: u32) -> Self {
        self.table_base = table_base;
        self
    }

    /// Another priority of the steering rules.
    #[must_use]
    pub const fn with_rule_priority(mut self, rule_priority: u32) -> Self {
        self.rule_priority = rule_priority;
        self
    }

    /// Another route protocol number.
    #[must_use]
    pub const fn with_protocol(mut self, protocol: u8) -> Self {
        self.protocol = protocol;
        self
    }

    /// Other bits of the packet mark.
    #[must_use]
    pub const fn with_mask(mut self, mask: MarkMask) -> Self {
        self.mask = mask;
        self
    }

    /// Whether the kernel can keep connections with their next hop.
    #[must_use]
    pub const fn with_keeps_connections(mut self, keeps_connections: bool) -> Self {
        self.keeps_connections = keeps_connections;
        self
    }

    /// The table of a target: depends on nothing else, so that it never changes during a gateway's
    /// life. The first target has [`Self::table_base`], the others follow in the order of
    /// [`TargetId::all`]; tables that the kernel names itself are left out. None when the numbers
    /// end.
    #[must_use]
    pub fn table(&self, target: TargetId) -> Option<u32> {
        let place = TargetId::all().position(|other| other == target)?;
        (self.table_base.max(1)..=u32::MAX)
            .filter(|table| !RESERVED_TABLES.contains(table))
            .nth(place)
    }

    /// The table of one of this node's other networks: after those of all targets.
    #[must_use]
    pub fn network_table(&self, network: NetworkId) -> Option<u32> {
        let place = TABLES_OF_TARGETS + usize::from(network.byte()) - 1;
        (self.table_base.max(1)..=u32::MAX)
            .filter(|table| !RESERVED_TABLES.contains(table))
            .nth(place)
    }

    pub(super) fn flow_hash(&self) -> FlowHash {
        if self.keeps_connections {
            FlowHash::Packet
        } else {
            FlowHash::Sender
        }
    }

    /// Priority of the loop guard.
    #[must_use]
    pub fn guard_priority(&self) -> u32 {
        self.rule_priority.saturating_sub(1)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn tables_of_targets_and_of_networks_never_meet_and_never_change() {
        let settings = SteeringSettings::default();
        let tables: Vec<u32> = TargetId::all()
            .map(|target| settings.table(target).unwrap())
            .chain(NetworkId::all().map(|network| settings.network_table(network).unwrap()))
            .collect();
        assert!(tables.is_sorted_by(|one, next| one < next), "{tables:?}");
        assert_eq!(tables[0], 100);
        assert_eq!(
            settings.network_table(NetworkId::new(1).unwrap()),
            Some(341)
        );
    }
}
