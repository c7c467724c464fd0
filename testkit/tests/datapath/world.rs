//! Two clients, two gateways, servers outside, and the pods that most checks talk from.

use std::{
    net::{IpAddr, SocketAddr},
    sync::OnceLock,
    time::{Duration, Instant},
};

use egressgateway_testkit::{
    cluster::Cluster,
    lab::{
        Builder, Capture, Families, Lab, Namespace, NodeSpec, PORT, Pod, PodSpec, Protocol, Server,
    },
    pace::patient,
};

/// How packets are classified and carried.
#[derive(Debug)]
pub(crate) struct DataPath {
    pub(crate) backend: &'static str,
    pub(crate) tunnel: &'static str,
}

/// Where the policy reaches to.
pub(crate) const GOVERNED: [&str; 2] = ["10.6.1.10", "fd00:6:1::10"];
/// Inside of the same networks, but excepted.
pub(crate) const EXCEPTED: [&str; 2] = ["10.6.1.77", "fd00:6:1::77"];
/// Elsewhere.
pub(crate) const OTHER: [&str; 2] = ["10.6.2.10", "fd00:6:2::10"];
/// Elsewhere, and knows the way to pods.
pub(crate) const KNOWING: [&str; 2] = ["10.6.3.10", "fd00:6:3::10"];

pub(crate) const CLIENT: &str = "client-1";
pub(crate) const GATEWAYS: [&str; 2] = ["gateway-1", "gateway-2"];

pub(crate) const GATEWAY: &str = "
apiVersion: egressgateway.spidernet.io/v1
kind: EgressGateway
metadata: {name: exit}
spec: {nodeSelector: {matchLabels: {egress: \"true\"}}}
";

/// How long nothing may be answered before it counts as dropped.
const SILENCE: Duration = Duration::from_millis(400);

pub(crate) struct World {
    pub(crate) cluster: Cluster,
    pub(crate) families: Families,
    /// On client-1, governed.
    pub(crate) shop: Pod,
    /// On client-1, not governed.
    pub(crate) blog: Pod,
    /// On gateway-1, governed.
    pub(crate) local: Pod,
    /// At [`GOVERNED`].
    pub(crate) server: Server,
    neighbour: OnceLock<Server>,
}

/// The usual nodes; gateways are labelled.
pub(crate) fn lab() -> Builder {
    Lab::builder()
        .nodes([CLIENT, "client-2"])
        .nodes(GATEWAYS.map(|name| NodeSpec::new(name).label("egress", "true")))
}

/// A policy `shopping` for pods labelled `app=shopping`, with these further lines of its spec.
pub(crate) fn policy(spec: &str) -> String {
    format!(
        "apiVersion: egressgateway.spidernet.io/v1\nkind: EgressGatewayPolicy\nmetadata: {{name: shopping}}\nspec:\n  \
         egressGatewayName: exit\n  appliedTo: {{podSelector: {{matchLabels: {{app: shopping}}}}}}\n{spec}"
    )
}

/// [`GOVERNED`] without [`EXCEPTED`].
pub(crate) fn usual_policy() -> String {
    policy(
        "  destCIDR: [\"10.6.1.0/24\", \"fd00:6:1::/64\"]\n  exceptCIDR: [\"10.6.1.77/32\", \"fd00:6:1::77/128\"]\n",
    )
}

/// A world before any daemon was started.
pub(crate) struct Place {
    pub(crate) lab: Lab,
    families: Families,
    shop: Pod,
    blog: Pod,
    local: Pod,
    server: Server,
}

impl Place {
    pub(crate) fn make(lab: Builder, families: Families) -> Self {
        let lab = lab.families(families).build().unwrap();
        let own = |addresses: [&'static str; 2]| {
            addresses
                .into_iter()
                .filter(move |text| families.has(text.parse().unwrap()))
        };
        let server = lab.server(own(GOVERNED)).unwrap();
        for addresses in [EXCEPTED, OTHER] {
            lab.server(own(addresses)).unwrap();
        }
        let pod = |node: &str, name: &str, app: &str| {
            lab.pod(node, PodSpec::new(name).label("app", app)).unwrap()
        };
        let (shop, blog, local) = (
            pod(CLIENT, "shop", "shopping"),
            pod(CLIENT, "blog", "blog"),
            pod(GATEWAYS[0], "local", "shopping"),
        );
        Self {
            lab,
            families,
            shop,
            blog,
            local,
            server,
        }
    }

    pub(crate) fn with_daemons(self, path: &DataPath) -> World {
        self.with_configured_daemons(path, "")
    }

    /// With these further lines in the configuration.
    pub(crate) fn with_configured_daemons(self, path: &DataPath, more: &str) -> World {
        self.without_daemons(path, more).start_daemons()
    }

    /// With these further fields of the tunnel, each behind a comma.
    pub(crate) fn with_tunnel(self, path: &DataPath, fields: &str) -> World {
        self.configured(&format!(
            "policyBackend: {}\ntunnel: {{kind: {}{fields}}}\n",
            path.backend, path.tunnel
        ))
        .start_daemons()
    }

    pub(crate) fn without_daemons(self, path: &DataPath, more: &str) -> World {
        self.configured(&format!(
            "policyBackend: {}\ntunnel: {{kind: {}}}\n{more}",
            path.backend, path.tunnel
        ))
    }

    fn configured(self, config: &str) -> World {
        let Self {
            lab,
            families,
            shop,
            blog,
            local,
            server,
        } = self;
        World {
            cluster: Cluster::without_daemons(lab, config),
            families,
            shop,
            blog,
            local,
            server,
            neighbour: OnceLock::new(),
        }
    }
}

impl World {
    pub(crate) fn start_daemons(mut self) -> Self {
        self.cluster.start_daemons();
        self
    }

    /// Somebody on the underlay who may forget who has an address, and ask again. Whoever forgets
    /// loses the packets that wait for the answer, so it must not be the router, by which answers
    /// of servers come.
    pub(crate) fn neighbour(&self) -> &Server {
        self.neighbour.get_or_init(|| {
            self.cluster
                .lab
                .server(["10.6.250.1", "fd00:6::250:1"])
                .unwrap()
        })
    }

    /// Without any policy.
    pub(crate) fn start(path: &DataPath) -> Self {
        Self::start_in(path, lab(), Families::Dual)
    }

    /// Without any policy, and with these further lines in the configuration.
    pub(crate) fn start_with(path: &DataPath, more: &str) -> Self {
        Place::make(lab(), Families::Dual).with_configured_daemons(path, more)
    }

    /// Without any policy, and with agents whose Leases last only so long, in whole seconds.
    pub(crate) fn start_with_leases_of(path: &DataPath, duration: Duration) -> Self {
        let mut world = Place::make(lab(), Families::Dual).without_daemons(path, "");
        world
            .cluster
            .start_agents_with(&["--lease-duration", &format!("{}s", duration.as_secs())]);
        world.start_daemons()
    }

    pub(crate) fn start_in(path: &DataPath, lab: Builder, families: Families) -> Self {
        Place::make(lab, families).with_daemons(path)
    }

    /// With the usual gateway and policy in force.
    pub(crate) fn governed(path: &DataPath) -> Self {
        Self::start(path).with_usual_policy()
    }

    pub(crate) fn with_usual_policy(self) -> Self {
        self.make_gateway();
        self.cluster.apply(&usual_policy());
        self.leaves_by(&self.shop, GOVERNED, GATEWAYS[0]);
        self.leaves_by(&self.local, GOVERNED, GATEWAYS[0]);
        self
    }

    /// Makes the usual gateway, with its first node active.
    ///
    /// Watches keep no order among each other: a controller may hear of the gateway before it hears
    /// that its first node is Ready. It takes the other one then, and keeps its choice.
    pub(crate) fn make_gateway(&self) {
        self.cluster.apply(GATEWAY);
        let is_active = self
            .cluster
            .eventually("the gateway's first node is Ready", || {
                let status = self.cluster.status("EgressGateway", "exit");
                let nodes = status["nodeList"].as_array().into_iter().flatten();
                nodes
                    .filter(|node| node["name"] == GATEWAYS[0] && node["status"] == "Ready")
                    .map(|node| node["active"] == true)
                    .next()
                    .ok_or_else(|| status.to_string())
            });
        if !is_active {
            self.cluster
                .api
                .delete("EgressGateway", "", "exit")
                .unwrap();
            self.cluster.apply(GATEWAY);
        }
    }

    /// These addresses with the servers' port, as far as the lab has their family.
    pub(crate) fn endpoints(&self, addresses: [&str; 2]) -> Vec<SocketAddr> {
        let all = addresses.map(|text| SocketAddr::new(text.parse().unwrap(), PORT));
        all.into_iter()
            .filter(|endpoint| self.families.has(endpoint.ip()))
            .collect()
    }

    /// Waits until servers see the address of `node`, and then looks at TCP and UDP.
    #[track_caller]
    pub(crate) fn leaves_by(&self, from: &Namespace, to: [&str; 2], node: &str) {
        let node = self.cluster.lab.node(node);
        for endpoint in self.endpoints(to) {
            self.seen_as(from, endpoint, node.like(endpoint.ip()));
        }
    }

    /// Waits until a server sees this source.
    #[track_caller]
    pub(crate) fn seen_as(&self, from: &Namespace, to: SocketAddr, expected: IpAddr) {
        let what = format!("{from:?} → {to} is seen as {expected}");
        self.cluster.eventually(&what, || {
            let seen = [from.connect_tcp(to), from.connect_udp(to)]
                .map(|seen| seen.map_err(|error| error.to_string()));
            for seen in seen {
                let seen = seen?.ip();
                if seen != expected {
                    return Err(format!("seen as {seen}"));
                }
            }
            Ok(())
        });
    }

    /// Waits until nothing gets through any more.
    #[track_caller]
    pub(crate) fn is_dropped(&self, from: &Namespace, to: [&str; 2]) {
        for endpoint in self.endpoints(to) {
            self.cluster
                .eventually(&format!("{from:?} → {endpoint} is dropped"), || {
                    from.cannot_reach(endpoint, patient(SILENCE))
                        .map_err(|error| error.to_string())
                });
        }
    }

    /// What went over the underlay to the governed servers in no tunnel, and with another source
    /// than a gateway's: leaks.
    pub(crate) fn leaks(&self, capture: &Capture) -> Vec<String> {
        let gateways: Vec<IpAddr> = GATEWAYS
            .iter()
            .flat_map(|node| self.cluster.lab.node(node).addresses())
            .collect();
        self.leaks_besides(capture, &gateways)
    }

    /// The same where these are the only sources that may be seen.
    pub(crate) fn leaks_besides(&self, capture: &Capture, allowed: &[IpAddr]) -> Vec<String> {
        let servers: Vec<IpAddr> = self
            .endpoints(GOVERNED)
            .iter()
            .map(SocketAddr::ip)
            .collect();
        let packets = capture.packets().into_iter();
        let bare =
            packets.filter(|packet| packet.inner.is_none() && packet.protocol != Protocol::Arp);
        let leaks = bare.filter(|packet| {
            servers.contains(&packet.destination) && !allowed.contains(&packet.source)
        });
        leaks.map(|packet| format!("{packet:?}")).collect()
    }

    /// Packets that a node's agent counted as dropped for want of a gateway.
    pub(crate) fn counted(&self, node: &str, rule: &str) -> f64 {
        self.cluster
            .metric(
                node,
                &format!("egressgateway_agent_packets_total{{rule=\"{rule}\"}}"),
            )
            .unwrap_or_default()
    }
}

/// How long something took, printed for the reader of a test's output.
pub(crate) fn measured<T>(what: &str, work: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let result = work();
    eprintln!("{what}: {:?}", start.elapsed());
    result
}
