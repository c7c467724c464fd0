use std::{collections::BTreeSet, net::IpAddr};

use imbl::OrdSet;

use super::{Cause, Exit, Explanation, Offline, Step, Verdict};
use crate::{
    NextHop, NodeDesired, PolicyDesired,
    index::{Decision, Index},
    model::{self, ClassKey, Family, NodeName, PodName, PolicyName, SourceNat, TargetId},
    plan::{self, RangeClaim},
    world::Pod,
};

/// Why nothing can be said about a connection.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ExplainError {
    /// The manifests have no such pod.
    #[error("there is no Pod {0}")]
    NoSuchPod(PodName),
    /// The pod is not on a node yet.
    #[error("Pod {0} is on no node: spec.nodeName is absent")]
    NotScheduled(PodName),
    /// The manifests do not have the pod's node.
    #[error("Pod {0} is on Node {1}, which does not exist")]
    NoSuchNode(PodName, NodeName),
    /// The pod can't reach the destination at all.
    #[error("Pod {0} has no {1} address")]
    NoAddress(PodName, Family),
}

/// What a new connection of a pod to an address meets, and why.
///
/// # Errors
/// When the pod, its node or its address is unknown.
pub fn explain(
    offline: &Offline,
    source: &PodName,
    destination: IpAddr,
) -> Result<Explanation, ExplainError> {
    let pod = offline
        .pods
        .get(source)
        .ok_or_else(|| ExplainError::NoSuchPod(source.clone()))?;
    let mut answer = Answer::new(source, destination);
    let Some(pod) = pod else {
        answer.say(
            format!("Pod {source}"),
            "uses the host's network or has ended",
        );
        return Ok(answer.pass(
            Cause::NotGoverned,
            "pods of the host's network and pods that ended are not governed",
        ));
    };
    let (node, address) = place(source, pod, destination)?;
    let (desired, index) = offline
        .desired(node)
        .zip(offline.index(node))
        .ok_or_else(|| ExplainError::NoSuchNode(source.clone(), node.clone()))?;
    answer.explanation.address = Some(address);
    answer.explanation.on = Some(node.to_string());
    answer.say(format!("Pod {source}"), format!("runs on {node}"));
    offline
        .unknown(node)
        .into_iter()
        .for_each(|unknown| answer.say(format!("Node {node}"), unknown));
    let way = Way {
        offline,
        node,
        desired,
        index,
        source: address,
        destination,
    };
    Ok(way.explain(answer))
}

fn place<'a>(
    name: &PodName,
    pod: &'a Pod,
    destination: IpAddr,
) -> Result<(&'a NodeName, IpAddr), ExplainError> {
    let node = pod
        .node
        .as_ref()
        .ok_or_else(|| ExplainError::NotScheduled(name.clone()))?;
    let family = Family::of(destination);
    let address = pod
        .addresses
        .iter()
        .copied()
        .find(|address| Family::of(*address) == family);
    Ok((
        node,
        address.ok_or_else(|| ExplainError::NoAddress(name.clone(), family))?,
    ))
}

/// An explanation in the making.
struct Answer {
    explanation: Explanation,
}

impl Answer {
    fn new(from: &PodName, to: IpAddr) -> Self {
        Self {
            explanation: Explanation {
                from: from.to_string(),
                address: None,
                on: None,
                to,
                verdict: Verdict::Pass,
                cause: Cause::NotSelected,
                policy: None,
                gateway: None,
                node: None,
                source: None,
                reason: String::new(),
                exits: Vec::new(),
                steps: Vec::new(),
            },
        }
    }

    fn say(&mut self, object: impl Into<String>, says: impl Into<String>) {
        self.explanation.steps.push(Step {
            object: object.into(),
            says: says.into(),
        });
    }

    fn end(self, verdict: Verdict, cause: Cause, reason: impl Into<String>) -> Explanation {
        Explanation {
            verdict,
            cause,
            reason: reason.into(),
            ..self.explanation
        }
    }

    fn pass(self, cause: Cause, reason: impl Into<String>) -> Explanation {
        self.end(Verdict::Pass, cause, reason)
    }

    fn dropped(self, cause: Cause, reason: impl Into<String>) -> Explanation {
        self.end(Verdict::Drop, cause, reason)
    }
}

/// A connection, seen from the node that it begins on.
struct Way<'a> {
    offline: &'a Offline,
    node: &'a NodeName,
    desired: &'a NodeDesired,
    index: &'a Index,
    source: IpAddr,
    destination: IpAddr,
}

impl Way<'_> {
    fn explain(&self, mut answer: Answer) -> Explanation {
        if let Some(net) = self
            .desired
            .policy
            .exempt
            .iter()
            .find(|net| net.contains(&self.destination))
        {
            answer.say(
                format!("Node {}", self.node),
                format!("never steers to {net}"),
            );
            return answer.pass(
                Cause::Exempt,
                format!("{net} is inside the cluster or never leaves a link"),
            );
        }
        let Some(class) = self.index.policies_of(self.source) else {
            return answer.pass(Cause::NotSelected, "no EgressGatewayPolicy selects the pod");
        };
        match self.index.decision(&class, self.destination) {
            Some(decision) => self.governed(answer, &class, &decision),
            None => self.ungoverned(answer, &class),
        }
    }

    /// Every policy of the class leaves the destination alone; each says why.
    fn ungoverned(&self, mut answer: Answer, class: &ClassKey) -> Explanation {
        let mut causes = BTreeSet::new();
        for policy in class.policies() {
            let (cause, says) = self.declines(policy);
            answer.say(object(policy), says);
            causes.insert(cause);
        }
        if causes.contains(&Cause::Exception) {
            return answer.pass(
                Cause::Exception,
                "the destination is an exception of the policy",
            );
        }
        answer.pass(
            Cause::NoPolicyForDestination,
            "no policy of the pod names this destination",
        )
    }

    fn declines(&self, policy: &PolicyName) -> (Cause, String) {
        let spec = self
            .index
            .policy(policy)
            .and_then(|policy| policy.spec.as_ref().ok());
        let exception = spec.and_then(|spec| {
            spec.exceptions
                .iter()
                .find(|net| net.contains(&self.destination))
        });
        match exception {
            Some(net) => (
                Cause::Exception,
                format!("selects the pod and excepts {net}"),
            ),
            None => (
                Cause::NoPolicyForDestination,
                "selects the pod and does not name this destination".to_owned(),
            ),
        }
    }

    /// A policy's best claim on the destination.
    fn claim(&self, name: &PolicyName) -> Option<RangeClaim> {
        let policy = self.index.policy(name)?;
        let claims = plan::claims(name, policy.spec.as_ref().ok()?, policy.created);
        claims
            .into_iter()
            .filter(|claim| claim.range.contains(self.destination))
            .min_by(|a, b| a.rank.cmp(&b.rank))
    }

    fn governed(&self, mut answer: Answer, class: &ClassKey, decision: &Decision) -> Explanation {
        let winner = &decision.policy;
        answer.explanation.policy = Some(winner.to_string());
        let resolved = self.index.resolve_gateway(winner);
        let gateway = resolved
            .as_ref()
            .and_then(|resolved| resolved.as_ref().ok());
        answer.explanation.gateway = gateway.map(ToString::to_string);
        let claim = self.claim(winner);
        let names = claim.as_ref().map_or_else(String::new, |claim| {
            format!(" with a /{} prefix", claim.rank.prefix.0)
        });
        answer.say(
            object(winner),
            format!("selects the pod and governs the destination{names}"),
        );
        for rival in class.policies().iter().filter(|policy| *policy != winner) {
            let says = claim.as_ref().zip(self.claim(rival)).map_or_else(
                || self.declines(rival).1,
                |(won, lost)| format!("governs it too and loses: {}", beaten(won, &lost)),
            );
            answer.say(object(rival), says);
        }
        let gateway = gateway.map_or_else(
            || "its gateway".to_owned(),
            |gateway| format!("EgressGateway {gateway}"),
        );
        match (decision.verdict, &resolved) {
            (model::Verdict::Pass, _) => answer.pass(
                Cause::NoPolicyForDestination,
                "the policy leaves the destination alone",
            ),
            (model::Verdict::Hold, Some(Err(problem))) => answer.dropped(
                Cause::NoGateway,
                format!("{} holds it: {problem}", object(winner)),
            ),
            (model::Verdict::Hold, _) => {
                answer.say(&gateway, decision.reason.to_string());
                answer.dropped(
                    Cause::Held,
                    format!("{} holds it: {}", object(winner), decision.reason),
                )
            }
            (model::Verdict::Egress { target, source_nat }, _) => {
                self.steered(answer, &gateway, target, source_nat)
            }
        }
    }

    fn steered(
        &self,
        mut answer: Answer,
        gateway: &str,
        target: TargetId,
        source_nat: SourceNat,
    ) -> Explanation {
        self.say_members(&mut answer, gateway);
        self.say_ports(&mut answer, source_nat);
        if self.desired.policy.exits.contains(&target) {
            let source = self.translated(self.node, source_nat);
            answer.say(format!("Node {}", self.node), "is the exit itself");
            self.say_source(&mut answer, self.node, source_nat);
            answer.explanation.exits.push(Exit {
                node: self.node.to_string(),
                source,
            });
            return leaves(answer, gateway);
        }
        let nodes = self.desired.paths.get(&target).cloned().unwrap_or_default();
        if nodes.is_empty() {
            return answer.dropped(
                Cause::NoReadyNode,
                format!("no node of {gateway} that could carry it is Ready, and none is active"),
            );
        }
        let steering = self
            .desired
            .for_drivers(self.offline.settings.encapsulation.as_ref())
            .steering;
        let routes = steering.targets.get(&target).cloned().unwrap_or_default();
        let reachable: Vec<NodeName> = nodes
            .iter()
            .filter(|node| self.reaches(node, &routes))
            .cloned()
            .collect();
        if reachable.is_empty() {
            let family = Family::of(self.destination);
            return answer.dropped(
                Cause::NoTunnel,
                format!(
                    "the tunnel of {} leads to no exit of {gateway} in {family}",
                    self.node
                ),
            );
        }
        let mut refusal = String::new();
        for exit in reachable {
            match self.at_exit(&exit, target, source_nat) {
                Ok(source_nat) => {
                    let source = self.translated(&exit, source_nat);
                    self.say_source(&mut answer, &exit, source_nat);
                    answer.explanation.exits.push(Exit {
                        node: exit.to_string(),
                        source,
                    });
                }
                Err(why) => {
                    answer.say(format!("Node {exit}"), &why);
                    refusal = format!("the exit {exit} drops it: {why}");
                }
            }
        }
        if answer.explanation.exits.is_empty() {
            answer.dropped(Cause::RefusedByExit, refusal)
        } else {
            leaves(answer, gateway)
        }
    }

    fn say_members(&self, answer: &mut Answer, gateway: &str) {
        let name = answer
            .explanation
            .gateway
            .as_deref()
            .map(model::GatewayName::from);
        let Some(object) = name.and_then(|name| self.index.gateways().get(&name)) else {
            return;
        };
        let state = |member: &crate::world::Member| {
            format!(
                "{} is {:?}{}",
                member.node,
                member.status,
                if member.active { " and active" } else { "" }
            )
        };
        let members: Vec<String> = object.state.members.iter().map(state).collect();
        answer.say(
            gateway,
            if members.is_empty() {
                "has no node".to_owned()
            } else {
                members.join(", ")
            },
        );
    }

    /// Whether the routes of a target lead to a node with packets of this family.
    fn reaches(&self, node: &NodeName, routes: &OrdSet<NextHop>) -> bool {
        let peer = self.desired.tunnel.peers.get(node);
        let ends = self.desired.tunnel.local.as_ref().zip(peer);
        let hop = ends.and_then(|(local, peer)| {
            self.offline
                .settings
                .encapsulation
                .next_hop(local, peer, Family::of(self.destination))
        });
        hop.is_some_and(|hop| routes.contains(&hop))
    }

    /// How the exit translates what comes through the tunnel, or why it drops it.
    fn at_exit(
        &self,
        exit: &NodeName,
        target: TargetId,
        source_nat: SourceNat,
    ) -> Result<SourceNat, String> {
        let Some(desired) = self.offline.desired(exit) else {
            return Err("the node does not exist".to_owned());
        };
        let own = self
            .desired
            .tunnel
            .local
            .as_ref()
            .and_then(|local| local.underlay.get(&Family::of(self.destination)));
        if own.is_none_or(|own| !desired.policy.overlay.peers.contains(&own.address)) {
            return Err(format!("it does not know {} as a peer", self.node));
        }
        if let SourceNat::Ports(address) = source_nat {
            let passes = desired
                .relay
                .bindings
                .iter()
                .any(|((of, _), node)| *of == address && node == self.node);
            return if passes {
                Ok(source_nat)
            } else {
                Err(format!(
                    "it passes nothing of {address} on for {}",
                    self.node
                ))
            };
        }
        let known = lookup(&desired.policy, self.source, self.destination);
        match known {
            Some(model::Verdict::Egress {
                target: wanted,
                source_nat,
            }) if desired.policy.accepts.contains(&wanted) => Ok(source_nat),
            Some(model::Verdict::Egress { .. }) => Err(format!("it is no exit of target {target}")),
            Some(model::Verdict::Hold) => Err(self
                .held_at(exit)
                .unwrap_or_else(|| "it can't say yet as whom the connection leaves".to_owned())),
            Some(model::Verdict::Pass) | None if desired.policy.overlay.unknown_may_exit => {
                Ok(SourceNat::NodeAddress)
            }
            Some(model::Verdict::Pass) | None => {
                Err("it does not know whose connection this is".to_owned())
            }
        }
    }

    /// What the pod's own node translates to.
    fn say_ports(&self, answer: &mut Answer, source_nat: SourceNat) {
        let SourceNat::Ports(address) = source_nat else {
            return;
        };
        let blocks = self.desired.policy.blocks.get(&address);
        let ports: Vec<String> = blocks
            .into_iter()
            .flatten()
            .map(|block| format!("{} to {}", block.first(), block.last()))
            .collect();
        answer.say(
            format!("Node {}", self.node),
            format!("translates it to {address}, ports {}", ports.join(", ")),
        );
    }

    /// Why another node holds the connection.
    fn held_at(&self, node: &NodeName) -> Option<String> {
        let index = self.offline.index(node)?;
        let decision = index.decision(&index.policies_of(self.source)?, self.destination)?;
        (decision.verdict == model::Verdict::Hold).then(|| decision.reason.to_string())
    }

    /// The node's address depends on the device that its routes lead to, which manifests do not
    /// know.
    fn say_source(&self, answer: &mut Answer, exit: &NodeName, source_nat: SourceNat) {
        let Some(desired) = self.offline.desired(exit) else {
            return;
        };
        if let SourceNat::Address(address) = source_nat
            && let Some(network) = desired
                .policy
                .networks
                .values()
                .find(|network| network.addresses.contains(&address))
        {
            answer.say(
                format!("Node {exit}"),
                format!(
                    "lets it out by {}, through the router {}",
                    network.device, network.router
                ),
            );
        }
        if source_nat != SourceNat::NodeAddress {
            return;
        }
        let family = Family::of(self.destination);
        let underlay = desired
            .tunnel
            .local
            .as_ref()
            .and_then(|local| local.underlay.get(&family));
        let sources = desired
            .policy
            .node_addresses
            .iter()
            .filter(|((_, of), _)| *of == family);
        let (own, others): (Vec<_>, Vec<_>) = sources
            .partition(|((_, _), address)| underlay.is_some_and(|own| own.address == **address));
        let mut says: Vec<String> = own
            .into_iter()
            .take(1)
            .map(|(_, address)| {
                format!("gives it {address}, the address that its EgressNode names")
            })
            .collect();
        says.extend(
            others
                .into_iter()
                .map(|((device, _), address)| format!("{address} if its routes lead by {device}")),
        );
        if !says.is_empty() {
            answer.say(format!("Node {exit}"), says.join(", "));
        }
    }

    fn translated(&self, exit: &NodeName, source_nat: SourceNat) -> Option<IpAddr> {
        match source_nat {
            SourceNat::Keep => Some(self.source),
            SourceNat::Address(address) | SourceNat::Ports(address) => Some(address),
            SourceNat::NodeAddress => {
                let local = self.offline.desired(exit)?.tunnel.local.as_ref()?;
                local
                    .underlay
                    .get(&Family::of(self.destination))
                    .map(|underlay| underlay.address)
            }
        }
    }
}

fn object(policy: &PolicyName) -> String {
    format!("EgressGatewayPolicy {policy}")
}

fn leaves(mut answer: Answer, gateway: &str) -> Explanation {
    let exits = &answer.explanation.exits;
    let sources: BTreeSet<Option<IpAddr>> = exits.iter().map(|exit| exit.source).collect();
    let node = (exits.len() == 1).then(|| exits[0].node.clone());
    let source = (sources.len() == 1).then(|| exits[0].source).flatten();
    let reason = format!(
        "EgressGatewayPolicy {} governs it and {gateway} carries it",
        answer.explanation.policy.as_deref().unwrap_or("?")
    );
    answer.explanation.node = node;
    answer.explanation.source = source;
    answer.end(Verdict::Egress, Cause::Steered, reason)
}

/// Why one claim has the lesser rank.
fn beaten(won: &RangeClaim, lost: &RangeClaim) -> String {
    let (won, lost) = (&won.rank, &lost.rank);
    if won.priority != lost.priority {
        format!("priority {} is behind {}", lost.priority, won.priority)
    } else if won.prefix != lost.prefix {
        format!(
            "a /{} prefix is less specific than /{}",
            lost.prefix.0, won.prefix.0
        )
    } else if won.created != lost.created {
        format!("{} is older", won.policy)
    } else {
        format!("the name {} comes first", won.policy)
    }
}

/// What a node's packet filter holds for a source and a destination.
fn lookup(policy: &PolicyDesired, source: IpAddr, destination: IpAddr) -> Option<model::Verdict> {
    let by_subnet = || {
        policy
            .subnets
            .iter()
            .find(|(range, _)| range.contains(source))
            .map(|(_, class)| *class)
    };
    let class = policy.pods.get(&source).copied().or_else(by_subnet)?;
    let of_class = policy
        .destinations
        .iter()
        .filter(|((other, _), _)| *other == class);
    of_class
        .into_iter()
        .find(|((_, range), _)| range.contains(destination))
        .map(|(_, verdict)| *verdict)
}
