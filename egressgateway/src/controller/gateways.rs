//! Which nodes a gateway has, and which of them carry its traffic.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use k8s_openapi::{apimachinery::pkg::apis::meta::v1::Time, jiff::Timestamp};

use super::{
    Cluster, ControllerSettings,
    assignment::EgressIpAssignment,
    conditions,
    egress_ips::{self, in_use},
    elected::{Elected, ElectedMember},
    health::{can_carry, is_cordoned, is_silent, relay_status_of, status_of},
    list,
};
use crate::{
    api::{
        self, EgressGatewayStatus, ForwardMethod, GatewayNode, GatewayNodeStatus, IpUsage,
        PoolUsage,
    },
    model::{Family, GatewayName, IpRange, NodeName, PolicyName},
    plan::{self, ClusterNetwork, Holder},
    spec::GatewaySpec,
    world::{Draining, Gateway, Node},
};

/// Reason of the condition Ready where traffic goes on through cordoned nodes, because there are no
/// others.
pub(super) const ONLY_CORDONED_NODES: &str = "OnlyCordonedNodes";
/// Reason where no node of a gateway gives a sign of life, and those that carried its traffic last
/// go on.
pub(super) const ALL_NODES_SILENT: &str = "AllNodesSilent";
/// The reason of the condition Ready when somebody has deleted the gateway.
pub(super) const DELETING: &str = "Deleting";
/// Condition: nobody else has addresses of the pool.
pub(super) const ADDRESSES_FREE: &str = "AddressesFree";
/// Its reason where somebody has, and that of the event.
pub(super) const ADDRESSES_IN_USE: &str = "AddressesInUse";

/// Members and active nodes of every gateway; without marks and egress addresses.
pub(super) fn elect(
    cluster: &Cluster,
    settings: &ControllerSettings,
) -> BTreeMap<GatewayName, Elected> {
    cluster
        .gateways
        .iter()
        .map(|(name, gateway)| (name.clone(), elect_one(cluster, gateway, settings)))
        .collect()
}

fn elect_one(cluster: &Cluster, gateway: &Gateway, settings: &ControllerSettings) -> Elected {
    let asked = gateway
        .spec
        .as_ref()
        .ok()
        .and_then(|spec| spec.forward_method);
    let invalid = gateway
        .spec
        .is_err()
        .then_some(gateway.state.forward_method)
        .flatten();
    let method = asked.or(invalid).unwrap_or(settings.forward_method);
    let was_active: BTreeSet<&NodeName> = gateway
        .state
        .members
        .iter()
        .filter(|member| member.active)
        .map(|member| &member.node)
        .collect();
    let status = if plan::is_distributed(gateway) {
        relay_status_of
    } else {
        status_of
    };
    let members = members(cluster, gateway)
        .into_iter()
        .map(|node| ElectedMember {
            status: status(cluster, node),
            cordoned: is_cordoned(cluster, node),
            node: node.clone(),
            active: false,
            egress_ips: BTreeSet::new(),
            target: None,
        })
        .collect();
    let mut elected = Elected {
        method,
        members,
        ..Elected::default()
    };
    let mut active: BTreeSet<NodeName> = match method {
        ForwardMethod::Ecmp => elected
            .preferred()
            .map(|member| member.node.clone())
            .collect(),
        ForwardMethod::ActivePassive => {
            let stays = elected
                .preferred()
                .find(|member| was_active.contains(&member.node));
            stays
                .or_else(|| elected.preferred().next())
                .map(|member| member.node.clone())
                .into_iter()
                .collect()
        }
    };
    if elected.members.iter().all(|member| !member.is_ready()) {
        // Nobody else could carry its traffic. Whether these can, clients find out by themselves.
        let last = elected
            .members
            .iter()
            .filter(|member| was_active.contains(&member.node) && is_silent(cluster, &member.node));
        let limit = if method == ForwardMethod::Ecmp {
            usize::MAX
        } else {
            1
        };
        active = last.take(limit).map(|member| member.node.clone()).collect();
    }
    elected
        .members
        .iter_mut()
        .for_each(|member| member.active = active.contains(&member.node));
    // Its connections go on through any node, so there is nothing to wait for.
    let is_distributed = plan::is_distributed(gateway);
    let draining = gateway
        .state
        .draining
        .clone()
        .filter(|draining| draining.until > cluster.now && can_carry(cluster, &draining.node))
        .filter(|_| !is_distributed);
    let withdrawn = |node: &NodeName| {
        is_cordoned(cluster, node) || cluster.nodes.get(node).is_some_and(Node::is_drained)
    };
    let drained = was_active
        .into_iter()
        .find(|node| withdrawn(node) && !active.contains(*node) && can_carry(cluster, node));
    let graceful = draining.is_none() && !active.is_empty() && !is_distributed;
    let drained = drained
        .filter(|_| graceful && gateway.spec.is_ok() && !settings.drain_grace.is_zero())
        .map(|node| Draining {
            node: node.clone(),
            until: cluster
                .now
                .saturating_add_unsigned(settings.drain_grace.as_secs()),
        });
    Elected {
        draining,
        drained,
        ..elected
    }
}

/// Known nodes in their old order, then new ones by name; cordoned ones come last, because a client
/// that loses the active node follows this order by itself. A gateway that can't be understood
/// keeps the nodes that it has: connections that exist go on.
fn members<'a>(cluster: &'a Cluster, gateway: &Gateway) -> Vec<&'a NodeName> {
    let selected = |name: &NodeName, node: &Node| match &gateway.spec {
        Ok(spec) => spec.nodes.matches(&node.labels),
        Err(_) => gateway
            .state
            .members
            .iter()
            .any(|member| member.node == *name),
    };
    let rank: BTreeMap<&NodeName, usize> = gateway
        .state
        .members
        .iter()
        .enumerate()
        .rev()
        .map(|(index, member)| (&member.node, index))
        .collect();
    let mut members: Vec<&NodeName> = cluster
        .nodes
        .iter()
        .filter(|(name, node)| selected(name, node))
        .map(|(name, _)| name)
        .collect();
    members.sort_by_key(|name| {
        (
            is_cordoned(cluster, name),
            rank.get(name).copied().unwrap_or(usize::MAX),
            *name,
        )
    });
    members
}

/// Egress addresses go to the nodes that answer for them.
pub(super) fn place(
    gateways: &mut BTreeMap<GatewayName, Elected>,
    given: &BTreeMap<PolicyName, EgressIpAssignment>,
) {
    for given in given.values() {
        let members = gateways
            .get_mut(&given.gateway)
            .map(|gateway| &mut gateway.members);
        if let Some(member) = members.and_then(|members| {
            members
                .iter_mut()
                .find(|member| Some(&member.node) == given.node.as_ref())
        }) {
            member.egress_ips.extend(&given.addresses);
        }
    }
}

/// What is written about every gateway.
pub(super) fn statuses(
    cluster: &Cluster,
    gateways: &BTreeMap<GatewayName, Elected>,
    given: &BTreeMap<PolicyName, EgressIpAssignment>,
    networks: &[ClusterNetwork],
    settings: &ControllerSettings,
) -> BTreeMap<GatewayName, EgressGatewayStatus> {
    let reserved = egress_ips::reserved(cluster, gateways);
    let mut used: BTreeMap<&GatewayName, Use> = BTreeMap::new();
    for given in given.values() {
        let sum = used.entry(&given.gateway).or_default();
        sum.exhausted |= given.exhausted();
        for address in &given.addresses {
            *sum.of(Family::of(*address)) += 1;
        }
    }
    let status = |(name, gateway): (&GatewayName, &Gateway)| {
        let elected = gateways.get(name)?;
        let used = used.remove(name).unwrap_or_default();
        Some((
            name.clone(),
            status(
                cluster,
                gateway,
                elected,
                used,
                (networks, &reserved),
                settings,
            ),
        ))
    };
    cluster.gateways.iter().filter_map(status).collect()
}

/// How many addresses of a gateway's pool are in use, and whether somebody got none.
#[derive(Clone, Copy, Default)]
struct Use {
    v4: i64,
    v6: i64,
    exhausted: bool,
}

impl Use {
    fn of(&mut self, family: Family) -> &mut i64 {
        match family {
            Family::V4 => &mut self.v4,
            Family::V6 => &mut self.v6,
        }
    }
}

fn status(
    cluster: &Cluster,
    gateway: &Gateway,
    elected: &Elected,
    used: Use,
    (networks, reserved): (&[ClusterNetwork], &BTreeMap<IpAddr, Holder>),
    settings: &ControllerSettings,
) -> EgressGatewayStatus {
    let node = |member: &ElectedMember| GatewayNode {
        name: member.node.to_string(),
        status: member.status,
        active: member.active,
        interfaces: cluster
            .egress_nodes
            .get(&member.node)
            .map(|node| node.interfaces.clone())
            .unwrap_or_default(),
        egress_ips: member.egress_ips.iter().map(ToString::to_string).collect(),
        mark: member.target.map(|target| settings.mask.mark(target)),
    };
    let (ready, reason, message) = readiness(gateway, elected, used.exhausted, networks);
    let pool = gateway
        .spec
        .as_ref()
        .ok()
        .map(|spec| &spec.pool)
        .filter(|pool| !pool.is_empty());
    let free = pool.map(|pool| {
        let in_use = in_use(reserved, pool);
        let reason = if in_use.is_empty() {
            "Free"
        } else {
            ADDRESSES_IN_USE
        };
        conditions::condition(
            ADDRESSES_FREE,
            in_use.is_empty(),
            reason,
            &list(&in_use),
            Some(gateway.generation),
        )
    });
    EgressGatewayStatus {
        forward_method: Some(elected.method),
        node_list: elected.members.iter().map(node).collect(),
        mark: elected.target.map(|target| settings.mask.mark(target)),
        former_mark: elected.former.map(|target| settings.mask.mark(target)),
        draining: elected.draining.as_ref().and_then(written),
        ip_usage: gateway
            .spec
            .as_ref()
            .ok()
            .filter(|spec| !spec.pool.is_empty())
            .map(|spec| usage(spec, &used)),
        observed_generation: Some(gateway.generation),
        conditions: [conditions::condition(
            "Ready",
            ready,
            reason,
            &message,
            Some(gateway.generation),
        )]
        .into_iter()
        .chain(free)
        .collect(),
    }
}

/// As the status says it.
fn written(draining: &Draining) -> Option<api::Draining> {
    let until = Time(Timestamp::from_second(draining.until).ok()?);
    Some(api::Draining {
        node: draining.node.to_string(),
        until,
    })
}

fn usage(spec: &GatewaySpec, used: &Use) -> IpUsage {
    let total = |family| {
        let sizes = spec
            .pool
            .iter()
            .filter(|range| range.family() == family)
            .map(size);
        i64::try_from(sizes.fold(0, u128::saturating_add)).unwrap_or(i64::MAX)
    };
    IpUsage {
        ipv4: PoolUsage {
            total: total(Family::V4),
            used: used.v4,
        },
        ipv6: PoolUsage {
            total: total(Family::V6),
            used: used.v6,
        },
    }
}

fn size(range: &IpRange) -> u128 {
    let bits = |address: IpAddr| match address {
        IpAddr::V4(address) => u128::from(address.to_bits()),
        IpAddr::V6(address) => address.to_bits(),
    };
    (bits(range.last()) - bits(range.first())).saturating_add(1)
}

fn readiness(
    gateway: &Gateway,
    elected: &Elected,
    exhausted: bool,
    networks: &[ClusterNetwork],
) -> (bool, &'static str, String) {
    let misplaced = gateway
        .spec
        .iter()
        .flat_map(|spec| plan::misplaced_pool(spec, networks))
        .next();
    let count = |status| {
        elected
            .members
            .iter()
            .filter(|member| member.status == status)
            .count()
    };
    let ready = count(GatewayNodeStatus::Ready);
    let tally = || {
        format!(
            "{ready} Ready, {} NotReady, {} Unknown",
            count(GatewayNodeStatus::NotReady),
            count(GatewayNodeStatus::Unknown)
        )
    };
    match &gateway.spec {
        Err(problems) => (false, "Invalid", conditions::join(problems)),
        Ok(_) if gateway.deleting => (false, DELETING, "deletion was asked for".to_owned()),
        Ok(_) if misplaced.is_some() => (
            false,
            "PoolInClusterNetwork",
            misplaced
                .map(|problem| problem.to_string())
                .unwrap_or_default(),
        ),
        Ok(_) if elected.members.is_empty() => (
            false,
            "NoNodes",
            "spec.nodeSelector matches no node".to_owned(),
        ),
        Ok(_) if elected.marks_exhausted => (
            false,
            "MarksExhausted",
            "no mark is left: its traffic is held".to_owned(),
        ),
        Ok(_) if ready == 0 && elected.members.iter().any(|member| member.active) => (
            false,
            ALL_NODES_SILENT,
            format!(
                "no node gives a sign of life, and those that carried its traffic last go on: {}",
                tally()
            ),
        ),
        Ok(_) if ready == 0 => (
            false,
            "NoReadyNode",
            format!("no node can carry traffic: {}", tally()),
        ),
        Ok(_) if exhausted => (
            false,
            "PoolExhausted",
            "spec.egressIPs has no address left for some policies".to_owned(),
        ),
        Ok(_) if elected.has_only_cordoned() => (
            true,
            ONLY_CORDONED_NODES,
            format!("every node that can carry traffic is cordoned: {}", tally()),
        ),
        Ok(_) => (true, "Ready", tally()),
    }
}
