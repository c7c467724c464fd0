//! The main job, shown: four nodes in network namespaces, controller and agents as processes, the
//! proposal's YAML, and who the outside sees. Ends with an error when anything differs from what it
//! should be.

use std::{
    io::{self, BufRead as _, Write as _},
    net::{IpAddr, SocketAddr},
    process::ExitCode,
    thread,
    time::{Duration, Instant},
};

use clap::Parser;
use egressgateway::model::Family;
use egressgateway_testkit::{
    cluster::Cluster,
    lab::{Lab, NodeSpec, PORT, Pod, PodSpec},
    pace::patient,
};

/// The YAML of the project's proposal, completed to valid values.
const PROPOSAL: &str = include_str!("../proposal.yaml");
/// The same for IPv6, of which the proposal gives no example.
const IPV6: &str = include_str!("../ipv6.yaml");

const CLIENTS: [&str; 2] = ["client-1", "client-2"];
const GATEWAYS: [&str; 2] = ["gateway-1", "gateway-2"];
/// In 10.6.1.0/24 and fd00:6:1::/64, which the policies govern.
const DATABASE: [&str; 2] = ["10.6.1.92", "fd00:6:1::92"];
/// In 10.6.2.0/24 and fd00:6:2::/64, which nobody governs at first.
const PARTNER: [&str; 2] = ["10.6.2.92", "fd00:6:2::92"];
/// How long a change may take until it is seen outside.
const PATIENCE: Duration = Duration::from_secs(15);

/// Shows a cluster whose pods leave through gateways. Needs root, for network namespaces; the
/// host's network is not touched.
#[derive(Parser)]
struct Arguments {
    /// Stay when everything was shown, and say how to look around.
    #[arg(long)]
    keep: bool,
    /// Packet filter of the nodes: auto, or one by its name.
    #[arg(long, default_value = "auto")]
    backend: String,
}

/// One connection and what it should look like from outside.
struct Row {
    pod: &'static str,
    destination: IpAddr,
    policy: Option<&'static str>,
    /// The node whose address the server should see.
    exit: &'static str,
}

struct Demo {
    cluster: Cluster,
    pods: Vec<Pod>,
    differences: usize,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if !nix::unistd::geteuid().is_root() {
        eprintln!("demo: needs root, for network namespaces");
        return ExitCode::FAILURE;
    }
    let start = Instant::now();
    let mut demo = match Demo::start(&arguments.backend) {
        Ok(demo) => demo,
        Err(error) => {
            eprintln!("demo: {error}");
            return ExitCode::FAILURE;
        }
    };
    demo.run();
    println!();
    if arguments.keep {
        demo.stay();
    }
    if demo.differences > 0 {
        println!(
            "{} connections differ from what they should be. The daemons' last words:\n{}",
            demo.differences,
            demo.cluster.logs()
        );
        return ExitCode::FAILURE;
    }
    println!(
        "Every connection was seen as expected ({:.0} s).",
        start.elapsed().as_secs_f32()
    );
    ExitCode::SUCCESS
}

impl Demo {
    fn start(backend: &str) -> io::Result<Self> {
        progress("Four nodes, their pods, and two servers outside");
        let gateways = GATEWAYS.map(|name| {
            NodeSpec::new(name).label(
                "egress",
                if name == GATEWAYS[0] {
                    "true"
                } else {
                    "standby"
                },
            )
        });
        let lab = Lab::builder().nodes(CLIENTS).nodes(gateways).build()?;
        for servers in [DATABASE, PARTNER] {
            lab.server(servers)?;
        }
        progress("API server, controller, and an agent on each node");
        let cluster = Cluster::start(lab, &format!("policyBackend: {backend}\n"));
        let pods = [
            ("shop-1", CLIENTS[0], "shopping"),
            ("shop-2", CLIENTS[1], "shopping"),
            ("blog", CLIENTS[0], "blog"),
            ("shop-3", GATEWAYS[0], "shopping"),
        ]
        .map(|(name, node, app)| cluster.pod(node, PodSpec::new(name).label("app", app)));
        Ok(Self {
            cluster,
            pods: pods.into(),
            differences: 0,
        })
    }

    fn run(&mut self) {
        let [client_1, client_2] = CLIENTS;
        let [gateway_1, gateway_2] = GATEWAYS;

        step("No policy yet: every pod leaves with its own node's address.");
        self.check(&rows(&[
            ("shop-1", DATABASE, None, client_1),
            ("shop-2", DATABASE, None, client_2),
        ]));

        step(
            "The proposal's EgressGateway and EgressGatewayPolicy are applied, and a second policy for IPv6.",
        );
        self.cluster.apply(PROPOSAL);
        self.cluster.apply(IPV6);
        let governed = |exit: &'static str| {
            rows(&[
                ("shop-1", DATABASE, Some("policy"), exit),
                ("shop-2", DATABASE, Some("policy"), exit),
                ("shop-3", DATABASE, Some("policy"), exit),
                ("shop-1", PARTNER, None, client_1),
                ("blog", DATABASE, None, client_1),
            ])
        };
        self.check(&governed(gateway_1));
        println!("\nbackend: {}", self.backend());

        step("The label egress=true moves from gateway-1 to gateway-2.");
        self.cluster.label_node(gateway_2, "egress", Some("true"));
        self.cluster.label_node(gateway_1, "egress", None);
        self.check(&governed(gateway_2));

        step("The policies' destCIDR becomes 10.6.2.0/24 and fd00:6:2::/64.");
        self.cluster
            .apply(&PROPOSAL.replace("10.6.1.0/24", "10.6.2.0/24"));
        self.cluster
            .apply(&IPV6.replace("fd00:6:1::/64", "fd00:6:2::/64"));
        self.check(&rows(&[
            ("shop-1", DATABASE, None, client_1),
            ("shop-2", DATABASE, None, client_2),
            ("shop-1", PARTNER, Some("policy"), gateway_2),
            ("shop-2", PARTNER, Some("policy"), gateway_2),
            ("blog", PARTNER, None, client_1),
        ]));

        step("The policies are deleted.");
        for policy in ["policy", "policy-v6"] {
            self.cluster.delete("EgressGatewayPolicy", policy);
        }
        self.check(&rows(&[
            ("shop-1", PARTNER, None, client_1),
            ("shop-2", PARTNER, None, client_2),
            ("shop-3", DATABASE, None, gateway_1),
        ]));
    }

    /// What a node says of its policy backend, such as "nftables, chosen because this host has what
    /// it needs".
    fn backend(&self) -> String {
        let status = self.cluster.status("EgressNode", CLIENTS[0]);
        let conditions = status["conditions"].as_array().cloned().unwrap_or_default();
        let programmed = conditions
            .iter()
            .find(|condition| condition["type"] == "PolicyProgrammed");
        let message = programmed
            .and_then(|condition| condition["message"].as_str())
            .unwrap_or_default();
        message.strip_prefix("in ").unwrap_or("unknown").to_owned()
    }

    /// Waits until all connections look as expected, then makes each once more and prints it.
    fn check(&mut self, rows: &[Row]) {
        let start = Instant::now();
        while start.elapsed() < patient(PATIENCE)
            && rows.iter().any(|row| self.seen(row) != self.expected(row))
        {
            thread::sleep(Duration::from_millis(100));
        }
        println!(
            "  {:<7} {:<13} {:<10} {:<10} {:<12} {:<12}",
            "pod", "destination", "policy", "gateway", "expected", "seen"
        );
        for row in rows {
            let (expected, seen) = (self.expected(row), self.seen(row));
            let gateway = row.policy.map_or("-", |_| row.exit);
            let verdict = if seen == expected { "ok" } else { "DIFFERS" };
            self.differences += usize::from(seen != expected);
            let (destination, policy) = (row.destination.to_string(), policy_name(row));
            println!(
                "  {:<7} {destination:<13} {policy:<10} {gateway:<10} {expected:<12} {seen:<12} {verdict}",
                row.pod
            );
        }
    }

    fn expected(&self, row: &Row) -> String {
        self.cluster
            .lab
            .node(row.exit)
            .like(row.destination)
            .to_string()
    }

    /// The source address that the server saw, or why it saw none.
    fn seen(&self, row: &Row) -> String {
        let Some(pod) = self.pods.iter().find(|pod| pod.name() == row.pod) else {
            return format!("no pod {}", row.pod);
        };
        let seen = pod.connect_tcp(SocketAddr::new(row.destination, PORT));
        seen.map_or_else(|error| error.to_string(), |source| source.ip().to_string())
    }

    fn stay(&self) {
        self.cluster.apply(PROPOSAL);
        self.cluster.apply(IPV6);
        let enter = format!("nsenter -t {} -m -n -p", self.cluster.lab.holder());
        println!(
            "The cluster stays, with the policies applied again and gateway-2 as gateway. In another shell, as root:\n"
        );
        for (what, command) in [
            (
                "rules of a client",
                "ip netns exec client-1 nft list table inet egressgateway",
            ),
            (
                "its routes",
                "ip netns exec client-1 ip route show table all proto 77",
            ),
            (
                "a gateway's tunnel",
                "ip netns exec gateway-2 ip -d link show egress-vxlan-v4",
            ),
            (
                "a gateway's traffic",
                "ip netns exec gateway-2 tcpdump -ni any port 8080 or port 7789",
            ),
            (
                "as whom a pod is seen",
                "ip netns exec pod.default.shop-1 timeout 1 bash -c 'head -1 </dev/tcp/10.6.1.92/8080'",
            ),
            ("all namespaces", "ip netns list"),
        ] {
            println!("  {what:<22} {enter} {command}");
        }
        println!(
            "  {:<22} KUBECONFIG={} (in namespace: {enter} bash)",
            "the API server",
            self.cluster.kubeconfig().display()
        );
        println!("\nEnter ends it.");
        let _ = io::stdin().lock().read_line(&mut String::new());
    }
}

/// Two rows of each: IPv4 and IPv6.
fn rows(table: &[(&'static str, [&str; 2], Option<&'static str>, &'static str)]) -> Vec<Row> {
    let both = |&(pod, destinations, policy, exit): &(
        &'static str,
        [&str; 2],
        Option<&'static str>,
        &'static str,
    )| {
        destinations.map(|destination| Row {
            pod,
            destination: address(destination),
            policy,
            exit,
        })
    };
    table.iter().flat_map(both).collect()
}

fn policy_name(row: &Row) -> &'static str {
    match (row.policy, Family::of(row.destination)) {
        (None, _) => "-",
        (Some(name), Family::V4) => name,
        (Some(_), Family::V6) => "policy-v6",
    }
}

fn address(text: &str) -> IpAddr {
    text.parse()
        .unwrap_or_else(|error| panic!("{text}: {error}"))
}

fn step(what: &str) {
    println!("\n{what}");
    let _ = io::stdout().flush();
}

fn progress(what: &str) {
    println!("{what} …");
}
