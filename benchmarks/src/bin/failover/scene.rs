//! The cluster that all parts measure: one client, two gateways, a server outside.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use egressgateway_testkit::{
    cluster::Cluster,
    lab::{Lab, NodeSpec, PORT, Pod, PodSpec, Server, Stream},
};

pub(crate) const CLIENT: &str = "client-1";
pub(crate) const GATEWAYS: [&str; 2] = ["gateway-1", "gateway-2"];
pub(crate) const BACKENDS: [&str; 2] = ["nftables", "netfilter"];
pub(crate) const FAMILIES: [&str; 2] = ["IPv4", "IPv6"];
/// How often a sender sends.
pub(crate) const STEP: Duration = Duration::from_millis(1);
/// How long anything that is waited for may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

const SERVER: [&str; 2] = ["10.6.1.10", "fd00:6:1::10"];

/// As which address traffic leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum As {
    Node,
    EgressIp,
}

fn objects(source: As) -> String {
    let pool = match source {
        As::Node => "",
        As::EgressIp => {
            ", sourceNAT: EgressIP, egressIPs: {ipv4: [10.6.0.60], ipv6: [\"fd00:6::60\"]}"
        }
    };
    format!(
        "
apiVersion: egressgateway.spidernet.io/v1
kind: EgressGateway
metadata: {{name: exit}}
spec: {{nodeSelector: {{matchLabels: {{egress: \"true\"}}}}{pool}}}
---
apiVersion: egressgateway.spidernet.io/v1
kind: EgressGatewayPolicy
metadata: {{name: shopping}}
spec:
  egressGatewayName: exit
  appliedTo: {{podSelector: {{matchLabels: {{app: shopping}}}}}}
  destCIDR: [\"10.6.1.0/24\", \"fd00:6:1::/64\"]
"
    )
}

pub(crate) struct Scene {
    pub(crate) cluster: Cluster,
    pub(crate) pod: Pod,
    /// Somebody on the underlay who may forget who has an address, and ask again. The router would
    /// lose the answers of servers that wait for its own answer.
    pub(crate) neighbour: Server,
}

impl Scene {
    /// Waits until both gateways are Ready and probed, and traffic leaves as it should.
    pub(crate) fn start(backend: &str, source: As) -> io::Result<Self> {
        let gateways = GATEWAYS.map(|name| NodeSpec::new(name).label("egress", "true"));
        let lab = Lab::builder().nodes([CLIENT]).nodes(gateways).build()?;
        lab.server(SERVER)?;
        let neighbour = lab.server(["10.6.250.1", "fd00:6::250:1"])?;
        let cluster = Cluster::start(lab, &format!("policyBackend: {backend}\n"));
        let pod = cluster.pod(CLIENT, PodSpec::new("shop").label("app", "shopping"));
        cluster.apply(&objects(source));
        let scene = Self {
            cluster,
            pod,
            neighbour,
        };
        scene.all_ready();
        scene.probed();
        Ok(scene)
    }

    /// A metric of the client's agent.
    pub(crate) fn metric(&self, name: &str) -> f64 {
        self.cluster
            .metric(CLIENT, &format!("egressgateway_agent_{name}"))
            .unwrap_or_default()
    }

    /// Waits until the controller counts on both gateways.
    pub(crate) fn all_ready(&self) {
        self.cluster.eventually("both gateways are Ready", || {
            let status = self.cluster.status("EgressGateway", "exit");
            let ready = status["nodeList"]
                .as_array()
                .into_iter()
                .flatten()
                .filter(|node| node["status"] == "Ready")
                .count();
            if ready == GATEWAYS.len() {
                Ok(())
            } else {
                Err(status.to_string())
            }
        });
    }

    /// Waits until both gateways have answered the client's agent, and traffic is answered.
    pub(crate) fn probed(&self) {
        self.cluster
            .eventually("the client's probes are answered", || {
                let (answered, down) = (
                    self.metric("probes_answered_total"),
                    self.metric("gateways_down"),
                );
                if answered >= 20.0 && down == 0.0 {
                    Ok(())
                } else {
                    Err(format!("{answered} answers, {down} down"))
                }
            });
        let allowed = self.sources();
        self.cluster.eventually("traffic leaves by a gateway", || {
            for to in Self::servers() {
                let seen = self
                    .pod
                    .connect_udp(to)
                    .map_err(|error| error.to_string())?;
                if !allowed.contains(&seen.ip()) {
                    return Err(format!("seen as {seen}"));
                }
            }
            Ok(())
        });
    }

    pub(crate) fn servers() -> [SocketAddr; 2] {
        SERVER.map(|address| {
            SocketAddr::new(
                address
                    .parse()
                    .unwrap_or_else(|_| unreachable!("a constant")),
                PORT,
            )
        })
    }

    /// The addresses that governed traffic may leave with.
    fn sources(&self) -> Vec<IpAddr> {
        let nodes = GATEWAYS
            .iter()
            .flat_map(|node| self.cluster.lab.node(node).addresses());
        let given = self.cluster.status("EgressGatewayPolicy", "shopping");
        let given = ["ipv4", "ipv6"]
            .into_iter()
            .filter_map(|family| given["egressIP"][family].as_str()?.parse().ok());
        let given: Vec<IpAddr> = given.collect();
        if given.is_empty() {
            nodes.collect()
        } else {
            given
        }
    }

    /// The gateway that carries the client's traffic: by the source that a stream was last seen
    /// with.
    pub(crate) fn active(&self, stream: &Stream) -> io::Result<&'static str> {
        let seen = stream.last().map(|answer| answer.source.ip());
        let holds = |node: &&str| {
            seen.is_some_and(|seen| self.cluster.lab.node(node).addresses().contains(&seen))
        };
        GATEWAYS.into_iter().find(holds).ok_or_else(|| {
            io::Error::other(format!("no gateway is active; the last source is {seen:?}"))
        })
    }

    /// A sender of each family from one port, once both are answered.
    pub(crate) fn streams(&self) -> io::Result<Vec<Stream>> {
        Self::servers()
            .into_iter()
            .map(|to| self.pod.stream(to, STEP).start())
            .collect()
    }
}
