//! The daemons run from the images as the chart says: with its user, its capabilities, its mounts
//! and a root that can't be written.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use egressgateway_testkit::{
    cluster::{CONTROLLER, Cluster, agent},
    container::{Container, SERVICE_ACCOUNT, Surroundings},
    image::Root,
    kube,
    lab::{Lab, NodeSpec, PORT, Pod, PodSpec},
    netns::have_root,
    pace::patient,
};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::{contents::assembled, repository};

const CLIENT: &str = "client-1";
const GATEWAY: &str = "gateway-1";
const SERVER: [&str; 2] = ["10.6.1.10", "fd00:6:1::10"];
const NAMESPACE: &str = "egress";
/// `CAP_NET_ADMIN` and `CAP_NET_RAW`, as `/proc` shows them.
const NETWORK: &str = "0000000000003000";
const NOTHING: &str = "0000000000000000";
/// How long a program may take that ends by itself.
const END: Duration = Duration::from_secs(20);

const OBJECTS: &str = "
apiVersion: egressgateway.spidernet.io/v1
kind: EgressGateway
metadata: {name: exit}
spec: {nodeSelector: {matchLabels: {egress: \"true\"}}}
---
apiVersion: egressgateway.spidernet.io/v1
kind: EgressGatewayPolicy
metadata: {name: shopping}
spec:
  egressGatewayName: exit
  appliedTo: {podSelector: {matchLabels: {app: shopping}}}
  destCIDR: [\"10.6.1.0/24\", \"fd00:6:1::/64\"]
";

/// An image, a chart that was rendered for it, and a cluster where its pods start.
struct Site {
    cluster: Cluster,
    shop: Pod,
    root: Root,
    image: &'static str,
    assets: PathBuf,
}

impl Site {
    fn start(image: &'static str) -> Option<Self> {
        let root = have_root().then(|| assembled(image))?;
        let assets = kube::assets()?;
        let lab = Lab::builder()
            .nodes([CLIENT])
            .nodes([NodeSpec::new(GATEWAY).label("egress", "true")])
            .build()
            .unwrap();
        lab.server(SERVER).unwrap();
        lab.namespace(NAMESPACE, []);
        let cluster = Cluster::without_daemons(lab, "");
        write_account(&cluster, &root.folder("account"));
        let shop = cluster.pod(CLIENT, PodSpec::new("shop").label("app", "shopping"));
        Some(Self {
            cluster,
            shop,
            root,
            image,
            assets,
        })
    }

    /// What the chart makes with this in the daemons' configuration.
    fn chart(&self, config: &str) -> Vec<Value> {
        let path = self.root.folder("values").join("values.yaml");
        let arguments = format!("extraArgs: [\"--kubeconfig={SERVICE_ACCOUNT}/kubeconfig\"]");
        let values = [
            format!("image: {{features: {}}}", self.image),
            format!("agent: {{{arguments}}}"),
            format!("controller: {{{arguments}}}"),
            format!("config: {{{config}}}"),
            // They need Secrets, which the API server in this process does not know.
            "webhook: {enabled: false}".to_owned(),
        ];
        fs::write(&path, values.join("\n")).unwrap();
        let mut helm = Command::new(self.assets.join("helm"));
        helm.args([
            "template",
            "eg",
            "--namespace",
            NAMESPACE,
            "--kube-version",
            "1.36.0",
            "--values",
        ])
        .arg(path);
        let output = helm
            .arg(repository("charts/egressgateway"))
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        let text = String::from_utf8(output.stdout).unwrap();
        serde_saphyr::from_multiple(&text).unwrap()
    }

    /// Starts the pod of an object of the chart on a node.
    fn start_pod(&mut self, name: &str, node: &str, object: &str, config: &str) {
        let chart = self.chart(config);
        let (kind, of) = object.split_once('/').unwrap();
        let pod = chart
            .iter()
            .find(|object| object["kind"] == kind && object["metadata"]["name"] == of);
        let pod = pod.unwrap_or_else(|| panic!("the chart makes no {object}"));
        let container = Container::new(&self.root.path(), pod, name, &self.root.folder(name));
        let hosts = format!("127.0.0.1 localhost egressgateway-controller-metrics.{NAMESPACE}\n");
        let account = self.root.folder("account");
        let around = Surroundings {
            objects: &chart,
            hosts: &hosts,
            account: &account,
            services: &[],
        };
        let spec = container.on(&self.cluster.lab.node(node), &around).unwrap();
        self.cluster.start_as(name, spec);
    }

    fn start_agent(&mut self, node: &str, config: &str) {
        self.start_pod(&agent(node), node, "DaemonSet/egressgateway-agent", config);
    }

    /// What a daemon may do, in words of the kernel: its user, capabilities that it has and could
    /// get, and its root's mount.
    fn may(&self, daemon: &str) -> [String; 4] {
        let id = self.cluster.daemon(daemon).id();
        let process = |file: &str| {
            self.cluster
                .lab
                .root()
                .run(&format!("cat /proc/{id}/{file}"))
                .unwrap()
        };
        let status = process("status");
        let of = |name: &str| {
            let line = status
                .lines()
                .find_map(|line| line.strip_prefix(name))
                .unwrap();
            line.split_whitespace().next().unwrap().to_owned()
        };
        assert_eq!(of("NoNewPrivs:"), "1");
        let mounts = process("mountinfo");
        let root = mounts
            .lines()
            .rfind(|line| line.split(' ').nth(4) == Some("/"))
            .unwrap();
        let options = root.split(' ').nth(5).unwrap();
        [
            of("Uid:"),
            of("CapEff:"),
            of("CapBnd:"),
            options.split(',').next().unwrap().to_owned(),
        ]
    }

    /// Waits until servers see the address of `node`.
    fn leaves_by(&self, node: &str) {
        let node = self.cluster.lab.node(node);
        for server in SERVER {
            let to = SocketAddr::new(server.parse().unwrap(), PORT);
            self.cluster
                .eventually(&format!("shop → {to} leaves by {node:?}"), || {
                    let seen = self
                        .shop
                        .connect_tcp(to)
                        .map_err(|error| error.to_string())?;
                    if seen.ip() == node.like(to.ip()) {
                        Ok(())
                    } else {
                        Err(format!("seen as {seen}"))
                    }
                });
        }
    }
}

/// What a pod finds of its account, but for a kubeconfig instead of a token: the API server in this
/// process speaks no TLS, of which clients are asked nevertheless whom they trust, and the image
/// has no authorities of its own.
fn write_account(cluster: &Cluster, folder: &Path) {
    let authority = rcgen::generate_simple_self_signed(["kubernetes".to_owned()])
        .unwrap()
        .cert
        .pem();
    fs::write(folder.join("ca.crt"), authority).unwrap();
    let kubeconfig = fs::read_to_string(cluster.kubeconfig()).unwrap();
    let trusting = kubeconfig.replace(
        "server: ",
        &format!("certificate-authority: {SERVICE_ACCOUNT}/ca.crt, server: "),
    );
    fs::write(folder.join("kubeconfig"), trusting).unwrap();
}

/// The daemons run from an image, the agents with one configuration on the client and one on the
/// gateway, and say that these words name their backends.
fn run(image: &'static str, [client, gateway]: [(&str, &str); 2]) -> Option<Site> {
    let mut site = Site::start(image)?;
    site.start_pod(
        CONTROLLER,
        CLIENT,
        "Deployment/egressgateway-controller",
        "",
    );
    for (node, (config, _)) in [(CLIENT, client), (GATEWAY, gateway)] {
        site.start_agent(node, config);
    }
    site.cluster.tunnels_built();
    site.leaves_by(CLIENT);
    site.cluster.apply(OBJECTS);
    site.leaves_by(GATEWAY);
    for (node, (_, words)) in [(CLIENT, client), (GATEWAY, gateway)] {
        let log = site.cluster.log(&agent(node));
        assert!(log.contains(words), "{words}: {log}");
        assert_eq!(
            site.may(&agent(node)),
            ["0", NETWORK, NETWORK, "ro"],
            "the agent of {node}"
        );
    }
    assert_eq!(
        site.may(CONTROLLER),
        ["65532", NOTHING, NOTHING, "ro"],
        "the controller"
    );
    Some(site)
}

/// An agent that is asked for what its image lacks ends, and says what there is.
fn refuses(site: &mut Site, left_out: &str, there: &str) {
    site.cluster.kill(&agent(CLIENT), Signal::SIGTERM);
    site.start_pod(
        "refused",
        CLIENT,
        "DaemonSet/egressgateway-agent",
        &format!("policyBackend: {left_out}"),
    );
    let status = site.cluster.daemon("refused").wait(patient(END)).unwrap();
    let log = site.cluster.log("refused");
    assert_eq!(status.code(), Some(2), "{log}");
    let refusal = format!(
        "policyBackend: \"{left_out}\": must be auto or {there}: this agent was built without any other backend"
    );
    assert!(log.contains(&refusal), "{log}");
}

#[test]
fn pods_leave_by_a_gateway_whose_daemons_run_from_the_full_image_with_either_backend() {
    let client = ("policyBackend: nftables", "\"nftables, as configured");
    let gateway = ("policyBackend: netfilter", "\"netfilter with iptables-");
    let Some(mut site) = run("full", [client, gateway]) else {
        return;
    };
    site.start_pod("test", CLIENT, "Pod/egressgateway-test", "");
    let status = site.cluster.daemon("test").wait(patient(END)).unwrap();
    let log = site.cluster.log("test");
    assert!(
        status.success() && log.contains(" 200 "),
        "helm test: {status}: {log}"
    );
}

#[test]
fn pods_leave_by_a_gateway_whose_daemons_run_from_the_nftables_image() {
    let auto = ("", "\"nftables, chosen because this host has what it needs");
    let Some(mut site) = run("nftables", [auto, auto]) else {
        return;
    };
    refuses(&mut site, "netfilter", "nftables");
}

#[test]
fn pods_leave_by_a_gateway_whose_daemons_run_from_the_netfilter_image_with_either_iptables() {
    let client = (
        "iptables: legacy",
        "\"netfilter with iptables-legacy, chosen because this host has what it needs",
    );
    let gateway = (
        "iptables: nft",
        "\"netfilter with iptables-nft, chosen because this host has what it needs",
    );
    let Some(mut site) = run("netfilter", [client, gateway]) else {
        return;
    };
    refuses(&mut site, "nftables", "netfilter");
}
