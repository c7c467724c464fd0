//! Changes in, [`NodeDesired`] out: incremental, persistent, and equal to a rebuild from scratch.
//!
//! ```
//! use egressgateway::{index::{Index, IndexSettings}, model::{NodeName, PodName}, world::{Change, Pod}};
//!
//! let mut index = Index::new(IndexSettings::of_node(NodeName::from("node-1")));
//! index.apply(Change::Pod(PodName::new("default", "a"), Some(Pod::default())));
//! assert!(index.desired().policy.pods.is_empty(), "no policy, so nobody is governed");
//! ```

mod classes;
mod objects;
mod pod_index;
mod policies;
mod selectors;
mod strays;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use imbl::OrdMap;
use ipnet::IpNet;

use crate::{
    AddressesDesired, Attachments, HostRoute, LocalEnd, NodeDesired, Peer, PolicyDesired,
    Questions, RelayDesired, StartGate, Surroundings, Underlay,
    api::{ForwardMethod, GatewayNodeStatus, NatMode, SourceNatMode},
    model::{
        ClassId, ClassKey, Family, GatewayName, IpRange, NodeName, PodName, PolicyName, TargetId,
        Verdict,
    },
    plan::{self, GatewayProblem, Overlap, OwnPods, PodNetworks, Reason},
    spec::Problem,
    world::{Change, EgressNode, Gateway, Node, Pod, Policy, set_object},
};

use classes::Classes;
use pod_index::PodIndex;
use policies::{Policies, Standby};
use strays::Strays;

/// What an index must know besides the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct IndexSettings {
    /// The node whose [`NodeDesired`] is computed.
    pub node: NodeName,
    /// Where neither a gateway's status nor its specification says.
    pub forward_method: ForwardMethod,
    /// The gateway of policies that name none.
    pub default_gateway: Option<GatewayName>,
    /// Networks that are never steered besides those that Nodes and services tell, and besides the
    /// overlay's addresses.
    pub cluster_networks: Vec<IpNet>,
    /// Whether pod networks and addresses of Nodes are never steered.
    pub auto_cluster_networks: bool,
    /// Whether traffic of unknown pods to governed destinations waits.
    pub start_gate: bool,
}

impl IndexSettings {
    /// Defaults for a node: active-passive, no default gateway, cluster networks from Nodes, start
    /// gate on.
    #[must_use]
    pub fn of_node(node: NodeName) -> Self {
        Self {
            node,
            forward_method: ForwardMethod::default(),
            default_gateway: None,
            cluster_networks: Vec::new(),
            auto_cluster_networks: true,
            start_gate: true,
        }
    }

    /// How gateways forward that don't say it themselves.
    #[must_use]
    pub const fn with_forward_method(mut self, forward_method: ForwardMethod) -> Self {
        self.forward_method = forward_method;
        self
    }

    /// The gateway of policies that name none.
    #[must_use]
    pub fn with_default_gateway(mut self, default_gateway: Option<GatewayName>) -> Self {
        self.default_gateway = default_gateway;
        self
    }

    /// More networks that are never steered.
    #[must_use]
    pub fn with_cluster_networks(mut self, cluster_networks: Vec<IpNet>) -> Self {
        self.cluster_networks = cluster_networks;
        self
    }

    /// Whether pod networks and addresses of Nodes are never steered.
    #[must_use]
    pub const fn with_auto_cluster_networks(mut self, auto_cluster_networks: bool) -> Self {
        self.auto_cluster_networks = auto_cluster_networks;
        self
    }

    /// Whether traffic of unknown pods to governed destinations waits.
    #[must_use]
    pub const fn with_start_gate(mut self, start_gate: bool) -> Self {
        self.start_gate = start_gate;
        self
    }
}

/// What decides about a connection of a class to a destination.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Decision {
    /// The policy that won.
    pub policy: PolicyName,
    /// What happens.
    pub verdict: Verdict,
    /// Why.
    pub reason: Reason,
}

/// What is wrong with an object, as its status says it too.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ObjectError {
    /// A policy's specification.
    Policy(PolicyName, Problem),
    /// A policy without a gateway.
    Unresolved(PolicyName, GatewayProblem),
    /// A gateway's specification.
    Gateway(GatewayName, Problem),
}

/// The cluster as one node needs it.
#[derive(Debug)]
pub struct Index {
    settings: IndexSettings,
    nodes: BTreeMap<NodeName, Node>,
    egress_nodes: BTreeMap<NodeName, EgressNode>,
    gateways: BTreeMap<GatewayName, Gateway>,
    networks: Vec<IpNet>,
    pod_networks: Vec<IpNet>,
    strays: Strays,
    underlay: OrdMap<Family, Underlay>,
    attachments: Attachments,
    host_routes: imbl::OrdSet<HostRoute>,
    overlaps: Vec<Overlap>,
    down: BTreeSet<NodeName>,
    contested: BTreeSet<IpAddr>,
    granted: Option<BTreeSet<IpAddr>>,
    silent: BTreeSet<IpAddr>,
    can_relay: bool,
    policies: Policies,
    pods: PodIndex,
    classes: Classes,
    desired: NodeDesired,
    /// Something besides pods changed since `desired` was settled.
    stale: bool,
    /// Targets of these destinations, so that they are not looked through again where nothing
    /// changed.
    used: (OrdMap<(ClassId, IpRange), Verdict>, BTreeSet<TargetId>),
}

impl Index {
    /// An index of an empty cluster.
    #[must_use]
    pub fn new(settings: IndexSettings) -> Self {
        Self {
            settings,
            nodes: BTreeMap::new(),
            egress_nodes: BTreeMap::new(),
            gateways: BTreeMap::new(),
            networks: Vec::new(),
            pod_networks: Vec::new(),
            strays: Strays::default(),
            underlay: OrdMap::new(),
            attachments: Attachments::default(),
            host_routes: imbl::OrdSet::new(),
            overlaps: Vec::new(),
            down: BTreeSet::new(),
            contested: BTreeSet::new(),
            granted: None,
            silent: BTreeSet::new(),
            can_relay: true,
            policies: Policies::default(),
            pods: PodIndex::default(),
            classes: Classes::default(),
            desired: NodeDesired::default(),
            stale: true,
            used: (OrdMap::new(), BTreeSet::new()),
        }
    }

    /// Takes note of a change; what follows from it is computed by the next [`Self::desired`].
    /// False: all of it was known.
    pub fn apply(&mut self, change: Change) -> bool {
        let news = match change {
            Change::Pod(name, pod) => {
                let touched = [self.pods.pod(&name), pod.as_ref()]
                    .into_iter()
                    .flatten()
                    .flat_map(|pod| pod.addresses.iter().copied());
                let touched: BTreeSet<IpAddr> = touched.collect();
                let news = self.pods.set_pod(name, pod);
                if news {
                    self.stale |= self.strays.follow(touched, &self.pods, &self.settings.node);
                }
                return news;
            }
            Change::Namespace(name, namespace) => {
                return self.pods.set_namespace(name, namespace);
            }
            Change::Node(name, node) => set_object(&mut self.nodes, name, node),
            Change::EgressNode(name, node) => set_object(&mut self.egress_nodes, name, node),
            Change::Gateway(name, gateway) => set_object(&mut self.gateways, name, gateway),
            Change::Policy(name, policy) => self.policies.set(name, policy),
            Change::ClusterNetworks(networks) => {
                let news = self.networks != networks;
                self.networks = networks;
                news
            }
            Change::PodNetworks(networks) => {
                let news = self.pod_networks != networks;
                self.pod_networks = networks;
                news
            }
        };
        self.stale |= news;
        news
    }

    /// From now on these settings count.
    pub fn configure(&mut self, settings: IndexSettings) {
        self.stale |= self.settings != settings;
        self.settings = settings;
    }

    /// What outer packets leave by, as read from this node's kernel.
    pub fn set_underlay(&mut self, underlay: OrdMap<Family, Underlay>) {
        self.stale |= self.underlay != underlay;
        self.underlay = underlay;
    }

    /// Where egress addresses can go, as read from this node's kernel.
    pub fn set_attachments(&mut self, attachments: Attachments) {
        self.stale |= self.attachments != attachments;
        self.attachments = attachments;
    }

    /// What this node's host reaches and has by other means than ours: no overlay address is taken
    /// from it.
    pub fn set_host_routes(&mut self, routes: imbl::OrdSet<HostRoute>) {
        self.stale |= self.host_routes != routes;
        self.host_routes = routes;
    }

    /// The overlay addresses that this node can't use, its own first. Call [`Self::desired`] first.
    #[must_use]
    pub fn overlaps(&self) -> &[Overlap] {
        &self.overlaps
    }

    /// The gateway nodes that do not answer from here.
    pub fn set_down(&mut self, nodes: BTreeSet<NodeName>) {
        self.stale |= self.down != nodes;
        self.down = nodes;
    }

    /// The egress addresses that another node was heard to answer for: this one does not, even
    /// where it is told to.
    pub fn set_contested(&mut self, addresses: BTreeSet<IpAddr>) {
        self.stale |= self.contested != addresses;
        self.contested = addresses;
    }

    /// The egress addresses that this node may take, because nobody else answers for them; none: it
    /// takes all without asking.
    pub fn set_granted(&mut self, addresses: Option<BTreeSet<IpAddr>>) {
        self.stale |= self.granted != addresses;
        self.granted = addresses;
    }

    /// Whether this node can pass on what pods' own nodes translate. Without it, it holds no egress
    /// address that they translate to, whatever it is told.
    pub fn set_can_relay(&mut self, can_relay: bool) {
        self.stale |= self.can_relay != can_relay;
        self.can_relay = can_relay;
    }

    /// The egress addresses of other nodes that nobody answers for. This node takes those at once
    /// that it may without asking anybody: of gateways whose sources are translated on the pods'
    /// own nodes, while their node does not answer and no other node comes before this one.
    pub fn set_silent(&mut self, addresses: BTreeSet<IpAddr>) {
        self.stale |= self.silent != addresses;
        self.silent = addresses;
    }

    /// The egress addresses that this node must ask for; without those that its kernel holds
    /// already. Call [`Self::desired`] first.
    #[must_use]
    pub fn questions(&self) -> Questions {
        let own = self
            .policies
            .wanted()
            .iter()
            .filter(|address| !self.contested.contains(*address));
        let pooled = |address: &&IpAddr| {
            let member = |gateway: &Gateway| {
                gateway
                    .state
                    .members
                    .iter()
                    .any(|member| member.node == self.settings.node)
            };
            let pools = self
                .gateways
                .values()
                .filter(|gateway| member(gateway))
                .filter_map(|gateway| gateway.spec.as_ref().ok());
            pools
                .flat_map(|spec| &spec.pool)
                .any(|range| range.contains(**address))
        };
        let said = self
            .egress_nodes
            .get(&self.settings.node)
            .into_iter()
            .flat_map(|node| node.conflicts.keys());
        let others = self
            .egress_nodes
            .iter()
            .filter(|(name, _)| **name != self.settings.node);
        Questions {
            own: self.placed(own),
            candidate: self.placed(self.policies.candidates()),
            known: self.placed(said.filter(pooled)),
            peers: others
                .flat_map(|(_, node)| node.hardware_addresses())
                .collect(),
            held: BTreeSet::new(),
        }
    }

    /// The egress addresses that pods of this node leave with where their own node translates, and
    /// how many units of 256 ports of each it asks for. It is the same as long as some pod needs an
    /// address, whichever that is. Call [`Self::desired`] first.
    #[must_use]
    pub fn ports_wanted(&self) -> BTreeMap<IpAddr, u16> {
        let mut wanted = BTreeMap::new();
        if self.policies.distributed().is_empty() {
            return wanted;
        }
        let mut want = |class: &ClassKey, family: Family| {
            let distributed = self.policies.distributed();
            let used = class
                .policies()
                .iter()
                .filter_map(|policy| distributed.get(policy))
                .flatten();
            for (_, address) in used.filter(|(_, address)| Family::of(*address) == family) {
                wanted.insert(*address, self.policies.units(*address));
            }
        };
        for (class, local) in self.classes.local() {
            // IPv4 addresses come before IPv6 ones.
            for address in [local.first(), local.last()].into_iter().flatten() {
                want(class, Family::of(*address));
            }
        }
        let local = self.pods.local();
        for (range, class) in self.policies.subnets() {
            if local.range(range.first()..=range.last()).next().is_some() {
                want(class, range.family());
            }
        }
        wanted
    }

    fn placed<'a>(&self, addresses: impl IntoIterator<Item = &'a IpAddr>) -> AddressesDesired {
        let place = |address: &IpAddr| {
            Some((
                *address,
                plan::place(*address, &self.attachments, &self.underlay)?,
            ))
        };
        AddressesDesired {
            held: addresses.into_iter().filter_map(place).collect(),
        }
    }

    /// The other nodes that this node's pods may be sent to, now or after a failure: the Ready and
    /// the active members of gateways that some pod here has a policy for, and drained ones in
    /// their grace time; and those that it may take egress addresses over from. Call
    /// [`Self::desired`] first.
    pub fn gateway_nodes(&mut self) -> BTreeSet<NodeName> {
        let destinations = &self.desired.policy.destinations;
        if !self.used.0.ptr_eq(destinations) {
            let target = |verdict: &Verdict| {
                if let Verdict::Egress { target, .. } = verdict {
                    Some(*target)
                } else {
                    None
                }
            };
            self.used = (
                destinations.clone(),
                destinations.values().filter_map(target).collect(),
            );
        }
        let used =
            |target: Option<TargetId>| target.is_some_and(|target| self.used.1.contains(&target));
        let own = &self.settings.node;
        // Who may take over from another one must know whether that one answers.
        let is_standby = |gateway: &Gateway| {
            let mut members = gateway.state.members.iter();
            plan::is_distributed(gateway) && members.any(|member| member.node == *own)
        };
        let ready = self.gateways.values().flat_map(|gateway| {
            let is_standby = is_standby(gateway);
            let members = gateway
                .state
                .members
                .iter()
                .filter(|member| member.status == GatewayNodeStatus::Ready || member.active);
            let members = members
                .filter(move |member| {
                    is_standby || used(gateway.state.target) || used(member.target)
                })
                .map(|member| &member.node);
            let draining = gateway
                .state
                .draining
                .iter()
                .filter(move |_| used(gateway.state.target))
                .map(|draining| &draining.node);
            members.chain(draining)
        });
        ready
            .filter(|node| **node != self.settings.node)
            .cloned()
            .collect()
    }

    /// What this node must hold now.
    pub fn desired(&mut self) -> NodeDesired {
        if self.stale {
            self.settle_frame();
            self.stale = false;
        }
        self.pods.settle(&mut self.policies, &self.settings.node);
        self.classes
            .settle(&mut self.pods, &mut self.policies, &mut self.desired.policy);
        if let Some(gate) = &mut self.desired.policy.start_gate {
            gate.known.clone_from(self.pods.local());
        }
        self.desired.clone()
    }

    /// Whether this node must recognise pods of other nodes: it is an exit where sources decide
    /// about the address, or nothing tells where pods are.
    #[must_use]
    pub fn needs_all_pods(&mut self) -> bool {
        if self.stale {
            // Pods may have been told of before the networks that they are in.
            self.settle_networks();
        }
        self.recognises_all_pods()
    }

    fn recognises_all_pods(&self) -> bool {
        let decides =
            |(gateway, has_target): (&Gateway, bool)| has_target || needs_sources(gateway);
        self.memberships().any(decides) || self.has_stated_addresses() || self.must_see_pods()
    }

    /// Whether a policy states an egress address of a gateway that this node is a member of, even
    /// if it can't be given, such as while the gateway has no pool: other nodes may still send what
    /// it governs, and it does not leave with this node's address.
    fn has_stated_addresses(&self) -> bool {
        let specs = self
            .policies
            .all()
            .filter_map(|(_, policy)| policy.spec.as_ref().ok())
            .filter(|spec| !spec.egress_ip.is_empty());
        let default = self.settings.default_gateway.as_ref();
        let mut gateways = specs
            .filter_map(|spec| plan::resolve(spec.gateway.as_ref(), default, &self.gateways).ok());
        gateways.any(|(_, gateway)| {
            !plan::is_distributed(gateway)
                && gateway
                    .state
                    .members
                    .iter()
                    .any(|member| member.node == self.settings.node)
        })
    }

    /// Whether nothing tells the networks of all pods, so that pods of other nodes must be seen one
    /// by one, not to be taken for somebody outside.
    fn must_see_pods(&self) -> bool {
        let said = !self.pod_networks.is_empty() || !self.settings.cluster_networks.is_empty();
        let missing = || self.nodes.values().any(|node| node.pod_networks.is_empty());
        self.settings.auto_cluster_networks
            && self.own_node().is_some()
            && (self.strays.are_here() || (!said && missing()))
    }

    /// Whether this node does not know which addresses its pods have. Call [`Self::desired`] first.
    #[must_use]
    pub fn pod_networks_are_unknown(&self) -> bool {
        let said = self
            .pod_networks
            .iter()
            .chain(&self.settings.cluster_networks)
            .next()
            .is_some();
        self.own_node()
            .is_some_and(|own| self.strays.are_here() || (!said && own.pod_networks.is_empty()))
    }

    /// What is known of addresses that rules of others are about. Call [`Self::desired`] first.
    /// What the configuration says besides is of services where it says nothing of pods.
    #[must_use]
    pub fn surroundings(&self) -> Surroundings {
        let pods: Vec<&IpNet> = self
            .nodes
            .values()
            .flat_map(|node| &node.pod_networks)
            .chain(&self.pod_networks)
            .collect();
        let elsewhere = |net: &&IpNet| {
            !pods.is_empty()
                && !pods
                    .iter()
                    .any(|pods| pods.contains(*net) || net.contains(*pods))
        };
        let services = self
            .networks
            .iter()
            .chain(self.settings.cluster_networks.iter().filter(elsewhere));
        Surroundings {
            services: services.copied().collect(),
            hosts: self.desired.policy.overlay.hosts.iter().copied().collect(),
        }
    }

    /// This node, as soon as it is known: before that nothing can be said of its pods.
    fn own_node(&self) -> Option<&Node> {
        self.nodes.get(&self.settings.node)
    }

    /// The gateways that this node belongs to, and whether it is a target of its own in them.
    fn memberships(&self) -> impl Iterator<Item = (&Gateway, bool)> {
        self.gateways.values().filter_map(|gateway| {
            let member = gateway
                .state
                .members
                .iter()
                .find(|member| member.node == self.settings.node)?;
            Some((gateway, member.target.is_some()))
        })
    }

    /// Whether this node is one of a gateway whose sources are translated on the pods' own nodes.
    #[must_use]
    pub fn relays(&self) -> bool {
        self.memberships()
            .any(|(gateway, _)| plan::is_distributed(gateway))
    }

    /// What is wrong with objects.
    #[must_use]
    pub fn problems(&self) -> Vec<ObjectError> {
        let gateways = self.gateways.iter().flat_map(|(name, gateway)| {
            gateway
                .spec
                .as_ref()
                .err()
                .into_iter()
                .flatten()
                .map(|problem| ObjectError::Gateway(name.clone(), problem.clone()))
        });
        let policies = self
            .policies
            .all()
            .flat_map(|(name, policy)| match &policy.spec {
                Err(problems) => problems
                    .iter()
                    .map(|problem| ObjectError::Policy(name.clone(), problem.clone()))
                    .collect(),
                Ok(spec) => {
                    let unresolved = plan::resolve(
                        spec.gateway.as_ref(),
                        self.settings.default_gateway.as_ref(),
                        &self.gateways,
                    )
                    .err();
                    unresolved
                        .into_iter()
                        .map(|problem| ObjectError::Unresolved(name.clone(), problem))
                        .collect::<Vec<_>>()
                }
            });
        gateways.chain(policies).collect()
    }

    /// The policies that govern a source address; none where no policy does. Call [`Self::desired`]
    /// first.
    #[must_use]
    pub fn policies_of(&self, source: IpAddr) -> Option<ClassKey> {
        self.pods.class_of(source)
    }

    /// Which of a class's policies decides about a destination; none: no policy wants it. Exempt
    /// networks are not considered.
    #[must_use]
    pub fn decision(&self, class: &ClassKey, destination: IpAddr) -> Option<Decision> {
        let stretches = self.policies.resolve_overlaps(class);
        let stretch = stretches
            .iter()
            .find(|stretch| stretch.range.contains(destination))?;
        let (verdict, reason) = self
            .policies
            .verdict(&stretch.policy, Family::of(destination))?;
        Some(Decision {
            policy: stretch.policy.clone(),
            verdict,
            reason,
        })
    }

    /// The gateway of a policy; none when there is no such policy or its specification is invalid.
    #[must_use]
    pub fn resolve_gateway(
        &self,
        policy: &PolicyName,
    ) -> Option<Result<GatewayName, GatewayProblem>> {
        let spec = self.policies.get(policy)?.spec.as_ref().ok()?;
        let resolved = plan::resolve(
            spec.gateway.as_ref(),
            self.settings.default_gateway.as_ref(),
            &self.gateways,
        );
        Some(resolved.map(|(name, _)| name.clone()))
    }

    /// A policy as it was told.
    #[must_use]
    pub fn policy(&self, name: &PolicyName) -> Option<&Policy> {
        self.policies.get(name)
    }

    /// The gateways.
    #[must_use]
    pub fn gateways(&self) -> &BTreeMap<GatewayName, Gateway> {
        &self.gateways
    }

    /// The EgressNodes.
    #[must_use]
    pub fn egress_nodes(&self) -> &BTreeMap<NodeName, EgressNode> {
        &self.egress_nodes
    }

    /// A pod as it was told.
    #[must_use]
    pub fn pod(&self, name: &PodName) -> Option<&Pod> {
        self.pods.pod(name)
    }

    /// Everything that does not depend on single pods, from scratch: it grows with nodes and
    /// gateways, which are few.
    fn settle_frame(&mut self) {
        let default_gateway = self.settings.default_gateway.as_ref();
        let (contested, granted, attachments, underlay) = (
            &self.contested,
            &self.granted,
            &self.attachments,
            &self.underlay,
        );
        // What the host has without us, nobody has to take.
        let ungranted = |address: &IpAddr| {
            let unasked = granted
                .as_ref()
                .is_some_and(|granted| !granted.contains(address));
            unasked && plan::place(*address, attachments, underlay).is_some()
        };
        let (networks, refused) = plan::exit_networks(self.ways(), &self.attachments);
        let withheld = |address: IpAddr| match () {
            () if contested.contains(&address) => Some(Reason::Contested),
            () if ungranted(&address) => Some(Reason::NotTaken),
            () => refused.get(&address).copied(),
        };
        self.desired.policy.networks = networks;
        let blocks = self
            .egress_nodes
            .get(&self.settings.node)
            .map(|node| &node.blocks);
        self.policies.settle(
            default_gateway,
            &self.gateways,
            &self.settings.node,
            withheld,
            |address| blocks.is_some_and(|blocks| blocks.contains_key(&address)),
            &Standby {
                down: &self.down,
                silent: &self.silent,
                can_relay: self.can_relay,
            },
        );
        self.settle_networks();
        self.settle_targets();
        self.settle_ports();
        self.settle_tunnel();
        self.settle_ways_out();
        self.settle_addresses();
        self.settle_relay();
        self.desired.policy.start_gate = self.settings.start_gate.then(|| {
            let OwnPods {
                local,
                wide,
                outside,
            } = self.own_pods();
            StartGate {
                local,
                wide,
                outside,
                known: imbl::OrdSet::new(),
                governed: self.policies.governed(),
            }
        });
    }

    fn own_pods(&self) -> OwnPods {
        let Some(Node {
            pod_networks: own, ..
        }) = self.own_node()
        else {
            return OwnPods::default();
        };
        let cluster: Vec<IpNet> = self
            .pod_networks
            .iter()
            .chain(&self.settings.cluster_networks)
            .copied()
            .collect();
        let uplinks = self
            .underlay
            .values()
            .map(|underlay| &underlay.device)
            .chain(self.attachments.networks.values());
        let (uplinks, strays) = (uplinks.cloned().collect(), self.strays.families());
        PodNetworks {
            own,
            cluster: &cluster,
            strays: &strays,
            uplinks: &uplinks,
        }
        .own_pods()
    }

    /// By what the egress addresses of this node leave.
    fn ways(&self) -> Vec<(IpAddr, plan::Way)> {
        let here = |policy: &&Policy| policy.state.node.as_ref() == Some(&self.settings.node);
        let addresses = self
            .policies
            .all()
            .map(|(_, policy)| policy)
            .filter(here)
            .flat_map(|policy| {
                let named = policy
                    .spec
                    .as_ref()
                    .ok()
                    .and_then(|spec| spec.gateway.as_ref());
                let gateway = plan::resolve(
                    named,
                    self.settings.default_gateway.as_ref(),
                    &self.gateways,
                )
                .ok();
                let routers = gateway
                    .and_then(|(_, gateway)| gateway.spec.as_ref().ok())
                    .map(|spec| spec.routers.as_slice())
                    .unwrap_or_default();
                policy
                    .state
                    .egress_ip
                    .iter()
                    .map(move |address| (*address, routers))
            });
        let way = |(address, routers): (IpAddr, &[IpAddr])| {
            let named = routers
                .iter()
                .copied()
                .find(|router| Family::of(*router) == Family::of(address));
            (
                address,
                plan::way(address, &self.attachments, &self.underlay, named),
            )
        };
        addresses.map(way).collect()
    }

    fn settle_networks(&mut self) {
        let told = self
            .networks
            .iter()
            .chain(&self.pod_networks)
            .chain(&self.settings.cluster_networks)
            .copied();
        let nodes = || {
            self.nodes
                .values()
                .filter(|_| self.settings.auto_cluster_networks)
        };
        let networks: Vec<IpNet> = told
            .chain(nodes().flat_map(|node| node.pod_networks.iter().copied()))
            .collect();
        self.strays
            .settle(&networks, &self.pods, &self.settings.node);
        let overlay = self
            .egress_nodes
            .values()
            .flat_map(|node| node.overlay.iter().map(IpNet::addr));
        let hosts = nodes()
            .flat_map(|node| node.addresses.iter().copied())
            .chain(overlay);
        let hosts = hosts.chain(
            self.strays
                .addresses()
                .filter(|_| self.settings.auto_cluster_networks && self.own_node().is_some()),
        );
        self.desired.policy.exempt = plan::exempt(networks.iter().copied(), hosts)
            .into_iter()
            .collect();
        self.desired.direct = plan::direct(networks).into_iter().collect();
    }

    fn settle_targets(&mut self) {
        let own = &self.settings.node;
        let mut exits: imbl::OrdSet<TargetId> = imbl::OrdSet::new();
        let mut accepts: imbl::OrdSet<TargetId> = imbl::OrdSet::new();
        let mut paths: OrdMap<TargetId, imbl::OrdSet<NodeName>> = OrdMap::new();
        let mut balanced: imbl::OrdSet<TargetId> = imbl::OrdSet::new();
        let mut add = |target: TargetId, nodes: Vec<NodeName>, accept: bool| {
            if nodes.contains(own) {
                exits.insert(target);
            }
            if accept {
                accepts.insert(target);
            }
            paths.insert(
                target,
                nodes.into_iter().filter(|node| node != own).collect(),
            );
        };
        for gateway in self.gateways.values() {
            if let Some(target) = gateway.state.target {
                let member = gateway
                    .state
                    .members
                    .iter()
                    .any(|member| member.node == *own);
                let candidates =
                    plan::candidates(gateway, self.settings.forward_method, &self.down);
                let is_balanced = plan::forward_method(gateway, self.settings.forward_method)
                    == ForwardMethod::Ecmp;
                if let Some(former) = gateway.state.former {
                    let draining = gateway
                        .state
                        .draining
                        .as_ref()
                        .map(|draining| draining.node.clone());
                    let draining = draining.filter(|node| !self.down.contains(node));
                    // A balanced target's connections through the other nodes have the same mark,
                    // and stay as well.
                    let others = if is_balanced || draining.is_none() {
                        candidates.clone()
                    } else {
                        Vec::new()
                    };
                    add(former, others.into_iter().chain(draining).collect(), member);
                }
                // Who translates on the pod's own node sends nothing that is to be translated here.
                add(target, candidates, member && !plan::is_distributed(gateway));
                balanced.extend(
                    [Some(target), gateway.state.former]
                        .into_iter()
                        .flatten()
                        .filter(|_| is_balanced),
                );
            }
            for member in &gateway.state.members {
                if let Some(target) = member.target {
                    let live = !self.down.contains(&member.node);
                    add(
                        target,
                        live.then(|| member.node.clone()).into_iter().collect(),
                        member.node == *own,
                    );
                }
            }
        }
        let policy = &mut self.desired.policy;
        policy.targets = paths
            .iter()
            .filter(|(_, nodes)| !nodes.is_empty())
            .map(|(target, _)| *target)
            .collect();
        policy.exits = exits;
        policy.accepts = accepts;
        self.desired.paths = paths;
        self.desired.balanced = balanced;
        let members = self
            .gateways
            .values()
            .flat_map(|gateway| &gateway.state.members);
        self.desired.addressed = members.filter_map(|member| member.target).collect();
        let is_exit = self.memberships().next().is_some();
        let translates = self
            .memberships()
            .any(|(gateway, _)| !plan::is_distributed(gateway));
        self.desired.policy.overlay.unknown_may_exit = translates && !self.recognises_all_pods();
        self.desired.policy.node_addresses = if is_exit {
            self.node_addresses()
        } else {
            OrdMap::new()
        };
    }

    /// By the underlay's device what the EgressNode says, by any other what the host says.
    fn node_addresses(&self) -> OrdMap<(String, Family), IpAddr> {
        let underlay = self
            .underlay
            .iter()
            .map(|(family, underlay)| ((underlay.device.clone(), *family), underlay.address));
        self.attachments
            .sources
            .clone()
            .into_iter()
            .chain(underlay)
            .collect()
    }

    fn settle_tunnel(&mut self) {
        let name = &self.settings.node;
        let own = self.egress_nodes.get(name);
        let met: Vec<HostRoute> = own
            .iter()
            .flat_map(|node| &node.overlay)
            .flat_map(|overlay| plan::in_the_way(*overlay, &self.host_routes))
            .collect();
        let mut overlaps = Vec::new();
        let mut is_free = |node: &NodeName, address: IpAddr| {
            let route = plan::holder(address, &met);
            overlaps.extend(route.map(|route| Overlap {
                node: node.clone(),
                address,
                route: route.clone(),
            }));
            route.is_none()
        };
        let local = own.and_then(|node| {
            let free = node
                .overlay
                .iter()
                .filter(|network| is_free(name, network.addr()));
            Some((node.mac?, free.copied().collect::<imbl::OrdSet<IpNet>>()))
        });
        self.desired.tunnel.local = local
            .filter(|(_, overlay)| !overlay.is_empty() && !self.underlay.is_empty())
            .map(|(mac, overlay)| LocalEnd {
                overlay,
                mac,
                underlay: self.underlay.clone(),
            });
        let others = self.egress_nodes.iter().filter(|(other, _)| *other != name);
        let mut peer = |name: &NodeName, node: &EgressNode| {
            let peer = node.peer()?;
            let overlay = peer
                .overlay
                .iter()
                .copied()
                .filter(|address| is_free(name, *address))
                .collect();
            Some((name.clone(), Peer { overlay, ..peer }))
        };
        self.desired.tunnel.peers = others.filter_map(|(name, node)| peer(name, node)).collect();
        self.overlaps = overlaps;
        let addresses = |node: &EgressNode| {
            node.underlay
                .iter()
                .copied()
                .chain(node.attached().map(|network| network.addr()))
                .collect::<Vec<_>>()
        };
        let hosts = self.egress_nodes.values().flat_map(addresses).chain(
            self.nodes
                .values()
                .flat_map(|node| node.addresses.iter().copied()),
        );
        let overlay = &mut self.desired.policy.overlay;
        overlay.peers = self
            .desired
            .tunnel
            .peers
            .values()
            .flat_map(|peer| peer.underlay.iter().copied().collect::<Vec<_>>())
            .collect();
        // What the others still know, where the host has another one already.
        overlay.own = own
            .map(|node| node.underlay.iter().copied().collect())
            .unwrap_or_default();
        overlay.hosts = hosts.collect();
    }

    /// What the underlay and the networks of egress addresses are reached by.
    fn settle_ways_out(&mut self) {
        let underlay = self.underlay.values().map(|underlay| &underlay.device);
        self.desired.policy.ways_out = underlay
            .chain(self.attachments.networks.values())
            .cloned()
            .collect();
    }

    /// What this node translates itself, and to which ports.
    fn settle_ports(&mut self) {
        let used = || self.policies.distributed().values().flatten();
        let policy = &mut self.desired.policy;
        policy.distributed = used().map(|(target, _)| *target).collect();
        policy.relayed = used().map(|(_, address)| *address).collect();
        let own = self.egress_nodes.get(&self.settings.node);
        let blocks = own.into_iter().flat_map(|node| &node.blocks);
        policy.blocks = blocks
            .filter(|(address, _)| policy.relayed.contains(*address))
            .map(|(address, blocks)| {
                let most = blocks.iter().copied().take(PolicyDesired::MAX_BLOCKS);
                (*address, most.collect::<imbl::OrdSet<_>>())
            })
            .collect();
    }

    /// What this node passes on for others: as a member of gateways whose sources are translated on
    /// the pods' own nodes, active or not.
    fn settle_relay(&mut self) {
        let own = &self.settings.node;
        let targets: BTreeSet<TargetId> = self
            .memberships()
            .filter(|(gateway, _)| plan::is_distributed(gateway))
            .filter_map(|(gateway, _)| gateway.state.target)
            .collect();
        let used = self.policies.distributed().values().flatten();
        let addresses: imbl::OrdSet<IpAddr> = used
            .filter(|(target, _)| targets.contains(target))
            .map(|(_, address)| *address)
            .collect();
        if addresses.is_empty() || !self.can_relay {
            self.desired.relay = RelayDesired::default();
            return;
        }
        let mut bindings = OrdMap::new();
        for (name, node) in &self.egress_nodes {
            for (address, blocks) in &node.blocks {
                if !addresses.contains(address) {
                    continue;
                }
                for unit in blocks.iter().flat_map(|block| block.units()) {
                    bindings.entry((*address, unit)).or_insert(name.clone());
                }
            }
        }
        self.desired.relay = RelayDesired {
            addresses,
            bindings,
            own: Some(own.clone()),
            outside: self.desired.policy.ways_out.clone(),
            ..RelayDesired::default()
        };
    }

    fn settle_addresses(&mut self) {
        let place = |address| {
            Some((
                address,
                plan::place(address, &self.attachments, &self.underlay)?,
            ))
        };
        self.desired.addresses.held = self
            .policies
            .addresses_at(&self.settings.node)
            .filter_map(place)
            .collect();
    }
}

/// Whether an exit of this gateway must know whose packet it translates.
fn needs_sources(gateway: &Gateway) -> bool {
    gateway.spec.as_ref().map_or(true, |spec| {
        spec.source_nat != SourceNatMode::NodeAddress && spec.nat == NatMode::Centralized
    })
}
