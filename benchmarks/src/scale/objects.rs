//! What a large cluster consists of, as kubelets, the scheduler and users would write it.

use std::net::{Ipv4Addr, Ipv6Addr};

use serde_json::{Value, json};

use super::size::{ADDRESSED, PLAIN, Size};

/// Namespaces that the pods are spread over.
pub(super) const TEAMS: usize = 10;
/// Images on a node, as a kubelet lists them (it lists up to fifty).
const IMAGES: usize = 25;

/// A pod, by what names it: its application, which of the application's replicas it is, and how
/// often it was replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct PodId {
    pub(super) app: usize,
    pub(super) replica: usize,
    pub(super) generation: usize,
}

impl PodId {
    pub(super) fn name(self) -> String {
        format!("app-{}-{}-{}", self.app, self.generation, self.replica)
    }

    pub(super) fn path(self) -> String {
        format!("/api/v1/namespaces/{}/pods", team(self.app))
    }

    /// Replicas of an application are on different nodes, and every node has as many pods as any
    /// other.
    pub(super) fn node(self, size: &Size) -> usize {
        (self.app + self.replica * (size.policies + 101)) % size.nodes
    }
}

fn team(app: usize) -> String {
    format!("team-{}", app % TEAMS)
}

pub(super) fn namespaces() -> impl Iterator<Item = Value> {
    (0..TEAMS).map(|team| {
        let name = format!("team-{team}");
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": {"team": name}}})
    })
}

/// The account that a controller manager makes in every namespace.
pub(super) fn account() -> Value {
    json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}})
}

/// The addresses of a node that is not in the lab: its own, then the networks of its pods.
#[derive(Clone, Copy, Debug)]
pub(super) struct LoadNode(pub(super) usize);

impl LoadNode {
    pub(super) fn name(self) -> String {
        format!("node-{:05}", self.0)
    }

    pub(super) fn v4(self) -> Ipv4Addr {
        let [.., high, low] = index(self.0 + 0x1000).to_be_bytes();
        Ipv4Addr::new(10, 6, high, low)
    }

    pub(super) fn v6(self) -> Ipv6Addr {
        Ipv6Addr::new(0xfd00, 6, 0, 0, 0, 0, 1, index(self.0))
    }

    /// A pod's addresses by its number on the node.
    pub(super) fn pod(self, host: u8) -> [String; 2] {
        let [high, low] = index(self.0).to_be_bytes();
        let v6 = Ipv6Addr::new(
            0xfd10,
            0x8000 | index(self.0),
            0,
            0,
            0,
            0,
            0,
            u16::from(host),
        );
        [
            Ipv4Addr::new(10, 128 + high, low, host).to_string(),
            v6.to_string(),
        ]
    }

    fn pod_networks(self) -> [String; 2] {
        let [v4, v6] = self.pod(0);
        [format!("{v4}/24"), format!("{v6}/64")]
    }

    pub(super) fn node(self) -> Value {
        let networks = self.pod_networks();
        json!({
            "apiVersion": "v1", "kind": "Node",
            "metadata": {"name": self.name(), "labels": {
                "kubernetes.io/hostname": self.name(), "kubernetes.io/os": "linux", "kubernetes.io/arch": "amd64",
                "node.kubernetes.io/instance-type": "m5.xlarge", "topology.kubernetes.io/zone": format!("zone-{}", self.0 % 3),
            }},
            "spec": {"podCIDR": networks[0], "podCIDRs": networks},
        })
    }

    /// What a kubelet says of the node; it says it anew every five minutes.
    pub(super) fn status(self, now: &str) -> Value {
        let condition = |kind: &str, status: &str, reason: &str, message: &str| json!({"type": kind, "status": status, "reason": reason, "message": message, "lastHeartbeatTime": now, "lastTransitionTime": "2026-01-01T00:00:00Z"});
        let images: Vec<Value> = (0..IMAGES)
            .map(|image| {
                let digest = format!("registry.example/team/image-{image}@sha256:{image:064x}");
                json!({"names": [digest, format!("registry.example/team/image-{image}:v1.2.{image}")], "sizeBytes": 100_000_000 + image})
            })
            .collect();
        json!({"status": {
            "addresses": [
                {"type": "InternalIP", "address": self.v4()}, {"type": "InternalIP", "address": self.v6()},
                {"type": "Hostname", "address": self.name()},
            ],
            "capacity": {"cpu": "4", "memory": "16Gi", "pods": "110", "ephemeral-storage": "100Gi"},
            "allocatable": {"cpu": "4", "memory": "15Gi", "pods": "110", "ephemeral-storage": "90Gi"},
            "conditions": [
                condition("MemoryPressure", "False", "KubeletHasSufficientMemory", "kubelet has sufficient memory available"),
                condition("DiskPressure", "False", "KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
                condition("PIDPressure", "False", "KubeletHasSufficientPID", "kubelet has sufficient PID available"),
                condition("Ready", "True", "KubeletReady", "kubelet is posting ready status"),
            ],
            "nodeInfo": {
                "machineID": format!("{:032x}", self.0), "systemUUID": format!("{:032x}", self.0), "bootID": format!("{:032x}", self.0),
                "kernelVersion": "6.12.0", "osImage": "Debian GNU/Linux 13", "containerRuntimeVersion": "containerd://2.1.0",
                "kubeletVersion": "v1.36.3", "kubeProxyVersion": "", "operatingSystem": "linux", "architecture": "amd64",
            },
            "images": images,
        }})
    }

    /// What an agent writes of its node, its own part of the status.
    pub(super) fn egress_node(self) -> Value {
        let condition = |kind: &str, reason: &str, message: &str| json!({"type": kind, "status": "True", "reason": reason, "message": message, "lastTransitionTime": "2026-01-01T00:00:00Z"});
        json!({
            "apiVersion": "egressgateway.spidernet.io/v1", "kind": "EgressNode", "metadata": {"name": self.name()},
            "status": {
                "phase": "Succeeded", "physicalInterface": "eth0", "physicalInterfaceIPv4": self.v4(), "physicalInterfaceIPv6": self.v6(),
                "interfaces": [{"name": "eth0", "ipv4": [format!("{}/16", self.v4())], "ipv6": [format!("{}/64", self.v6())]}],
                "conditions": [
                    condition("PolicyProgrammed", "Programmed", "in nftables"), condition("TunnelReady", "Built", "tunnel and routes are built"),
                ],
            },
        })
    }

    /// The Lease as an agent renews it.
    pub(super) fn lease(self, now: &str) -> Value {
        json!({
            "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
            "metadata": {"name": format!("egressgateway-agent-{}", self.name()), "labels": {"app.kubernetes.io/component": "egressgateway-agent"}},
            "spec": {"holderIdentity": self.name(), "leaseDurationSeconds": 40, "renewTime": now},
        })
    }
}

/// Sizes are checked to be far below 65,536.
fn index(number: usize) -> u16 {
    u16::try_from(number).unwrap_or(u16::MAX)
}

pub(super) fn gateways(size: &Size) -> [Value; 2] {
    let gateway = |name: &str, spec: Value| json!({"apiVersion": "egressgateway.spidernet.io/v1", "kind": "EgressGateway", "metadata": {"name": name}, "spec": spec});
    let last = index(size.policies.div_ceil(10)).to_be_bytes();
    let pool = json!({"ipv4": [format!("10.6.200.1-10.6.{}.{}", 200 + last[0], last[1].max(1))],
        "ipv6": [format!("fd00:6::2:1-fd00:6::2:{:x}", index(size.policies.div_ceil(10)))]});
    [
        gateway(
            PLAIN,
            json!({"nodeSelector": {"matchLabels": {"exit": "plain"}}}),
        ),
        gateway(
            ADDRESSED,
            json!({"nodeSelector": {"matchLabels": {"exit": "addressed"}}, "sourceNAT": "EgressIP", "egressIPs": pool}),
        ),
    ]
}

/// Whether the policy of this application names [`ADDRESSED`].
pub(super) fn is_addressed(app: usize) -> bool {
    app.is_multiple_of(10)
}

/// One policy for each application, with destinations of its own.
pub(super) fn policy(app: usize) -> Value {
    let [high, low] = index(app).to_be_bytes();
    json!({
        "apiVersion": "egressgateway.spidernet.io/v1", "kind": "EgressGatewayPolicy", "metadata": {"name": format!("app-{app}")},
        "spec": {
            "egressGatewayName": if is_addressed(app) { ADDRESSED } else { PLAIN },
            "appliedTo": {"podSelector": {"matchLabels": {"app": format!("app-{app}")}}},
            "destCIDR": [format!("20.{high}.{low}.0/24"), format!("fd20:{app:x}::/64")],
        },
    })
}

/// A pod as a ReplicaSet creates it, about as large as pods are.
pub(super) fn pod(id: PodId) -> Value {
    let container = |name: &str| {
        let environment: Vec<Value> =
            (0..10).map(|n| json!({"name": format!("SETTING_{n}"), "value": format!("value of setting {n}")})).collect();
        json!({
            "name": name, "image": format!("registry.example/{name}:v1"), "env": environment,
            "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"memory": "256Mi"}},
            "ports": [{"name": format!("{name}-http"), "containerPort": if name == "main" { 8080 } else { 9090 }}],
            "readinessProbe": {"httpGet": {"path": "/ready", "port": 8080}, "periodSeconds": 5},
            "livenessProbe": {"httpGet": {"path": "/alive", "port": 8080}, "periodSeconds": 10},
            "volumeMounts": [{"name": "config", "mountPath": "/etc/app"}],
        })
    };
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": id.name(), "namespace": team(id.app),
            "labels": {"app": format!("app-{}", id.app), "pod-template-hash": format!("{:010x}", id.generation), "tier": "backend"},
            "annotations": {"checksum/config": format!("{:064x}", id.app)},
        },
        "spec": {
            "containers": [container("main"), container("sidecar")],
            "volumes": [{"name": "config", "configMap": {"name": format!("app-{}", id.app)}}],
            "terminationGracePeriodSeconds": 30,
        },
    })
}

/// The scheduler's answer.
pub(super) fn binding(id: PodId, node: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Binding", "metadata": {"name": id.name()},
        "target": {"apiVersion": "v1", "kind": "Node", "name": node},
    })
}

/// How far a kubelet has come with a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// Containers are being created; no address yet.
    Creating,
    /// It runs, and has its addresses.
    Ready,
    /// Its containers have ended.
    Ended,
}

/// What a kubelet writes of a pod.
pub(super) fn pod_status(addresses: &[String; 2], stage: Stage) -> Value {
    let ready = if stage == Stage::Ready {
        "True"
    } else {
        "False"
    };
    let conditions: Vec<Value> = ["PodScheduled", "Initialized", "ContainersReady", "Ready"]
        .into_iter()
        .map(|kind| {
            let status = if kind.ends_with("eady") {
                ready
            } else {
                "True"
            };
            json!({"type": kind, "status": status, "lastTransitionTime": "2026-01-01T00:00:00Z"})
        })
        .collect();
    let containers: Vec<Value> = ["main", "sidecar"]
        .into_iter()
        .map(|name| {
            let how = match stage {
                Stage::Creating => json!({"waiting": {"reason": "ContainerCreating"}}),
                Stage::Ready => json!({"running": {"startedAt": "2026-01-01T00:00:00Z"}}),
                Stage::Ended => json!({"terminated": {"exitCode": 0, "reason": "Completed"}}),
            };
            json!({
                "name": name, "ready": stage == Stage::Ready, "restartCount": 0, "image": format!("registry.example/{name}:v1"),
                "imageID": format!("registry.example/{name}@sha256:{:064x}", 7), "started": stage == Stage::Ready, "state": how,
            })
        })
        .collect();
    let phase = if stage == Stage::Creating {
        "Pending"
    } else {
        "Running"
    };
    let mut status = json!({"phase": phase, "conditions": conditions, "containerStatuses": containers, "qosClass": "Burstable"});
    if stage != Stage::Creating {
        status["podIP"] = json!(addresses[0]);
        status["podIPs"] = addresses.iter().map(|ip| json!({"ip": ip})).collect();
    }
    json!({"status": status})
}
