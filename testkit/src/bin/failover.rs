//! How long traffic stops when a gateway's node loses its power, and whether anything stops it that should not. Prints a table; changes
//! nothing outside of its own network namespaces.

use std::{
    fs, io,
    net::SocketAddr,
    process::ExitCode,
    thread,
    time::{Duration, Instant},
};

use clap::Parser;
use egressgateway_testkit::{
    cluster::{Cluster, agent},
    lab::{Answer, Lab, NodeSpec, PORT, Pod, PodSpec, Stream},
};
use nix::sys::signal::Signal;

const CLIENT: &str = "client-1";
const GATEWAYS: [&str; 2] = ["gateway-1", "gateway-2"];
const BACKENDS: [&str; 2] = ["nftables", "netfilter"];
const SERVER: [&str; 2] = ["10.6.1.10", "fd00:6:1::10"];
const FAMILIES: [&str; 2] = ["IPv4", "IPv6"];
/// How often a sender sends.
const STEP: Duration = Duration::from_millis(1);
const PATIENCE: Duration = Duration::from_secs(20);

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

/// Measures failovers. Needs root, for network namespaces; the host's network is not touched.
#[derive(Parser)]
struct Arguments {
    /// How often a gateway's node loses its power, for each backend.
    #[arg(long, default_value_t = 30)]
    runs: usize,
    /// How long the last part runs, in seconds: a sender of each family while nothing fails, and the processors are busy.
    #[arg(long, default_value_t = 600)]
    load: u64,
    /// Writes the table into this file, between its markers.
    #[arg(long)]
    write: Option<String>,
}

struct World {
    cluster: Cluster,
    pod: Pod,
}

impl World {
    fn start(backend: &str) -> io::Result<Self> {
        let gateways = GATEWAYS.map(|name| NodeSpec::new(name).label("egress", "true"));
        let lab = Lab::builder().nodes([CLIENT]).nodes(gateways).build()?;
        lab.server(SERVER)?;
        let cluster = Cluster::start(lab, &format!("policyBackend: {backend}\n"));
        let pod = cluster.pod(CLIENT, PodSpec::new("shop").label("app", "shopping"));
        cluster.apply(OBJECTS);
        let world = Self { cluster, pod };
        world.probed();
        Ok(world)
    }

    fn metric(&self, name: &str) -> f64 {
        self.cluster.metric(CLIENT, &format!("egressgateway_agent_{name}")).unwrap_or_default()
    }

    /// Waits until both gateways have answered the client's agent, and traffic takes one of them.
    fn probed(&self) {
        self.cluster.eventually("the client's probes are answered", || {
            let (answered, down) = (self.metric("probes_answered_total"), self.metric("gateways_down"));
            if answered >= 20.0 && down == 0.0 { Ok(()) } else { Err(format!("{answered} answers, {down} down")) }
        });
        self.cluster.eventually("traffic leaves by a gateway", || {
            for to in Self::servers() {
                let seen = self.pod.connect_udp(to).map_err(|error| error.to_string())?;
                self.holder(seen).ok_or_else(|| format!("seen as {seen}"))?;
            }
            Ok(())
        });
    }

    fn servers() -> [SocketAddr; 2] {
        SERVER.map(|address| SocketAddr::new(address.parse().unwrap_or_else(|_| unreachable!("a constant")), PORT))
    }

    /// The gateway with this address.
    fn holder(&self, seen: SocketAddr) -> Option<&'static str> {
        GATEWAYS.into_iter().find(|node| self.cluster.lab.node(node).addresses().contains(&seen.ip()))
    }

    fn streams(&self) -> io::Result<Vec<Stream>> {
        Self::servers().into_iter().map(|to| self.pod.stream(to, STEP).start()).collect()
    }

    /// One loss of power: the gap of each family.
    fn lose_power(&mut self) -> io::Result<Vec<Duration>> {
        let streams = self.streams()?;
        let seen = streams[0].last().map(|answer| answer.source);
        let active = seen.and_then(|seen| self.holder(seen)).ok_or_else(|| io::Error::other("no gateway is active"))?;
        // At any moment between two probes.
        thread::sleep(Duration::from_millis(u64::from(std::process::id().wrapping_add(nanoseconds()) % 150)));
        self.cluster.lab.node(active).power_off()?;
        let addresses = self.cluster.lab.node(active).addresses();
        let elsewhere = |answer: &Answer| !addresses.contains(&answer.source.ip());
        for stream in &streams {
            stream.wait_for(PATIENCE, elsewhere)?;
        }
        let gaps = streams.into_iter().map(|stream| Ok(stream.finish()?.longest_gap)).collect::<io::Result<_>>()?;
        self.cluster.lab.node(active).power_on()?;
        // A fresh agent, so that no node is held down for what happened before.
        self.cluster.kill(&agent(CLIENT), Signal::SIGKILL);
        self.cluster.start_agent(CLIENT);
        self.probed();
        Ok(gaps)
    }

    /// Kills the active gateway's agent and starts it again: lost datagrams of each family.
    fn lose_agent(&mut self) -> io::Result<Vec<u64>> {
        let streams = self.streams()?;
        let seen = streams[0].last().map(|answer| answer.source);
        let active = seen.and_then(|seen| self.holder(seen)).ok_or_else(|| io::Error::other("no gateway is active"))?;
        self.cluster.kill(&agent(active), Signal::SIGKILL);
        thread::sleep(Duration::from_secs(1));
        self.cluster.start_agent(active);
        thread::sleep(Duration::from_secs(1));
        streams.into_iter().map(|stream| Ok(stream.finish()?.lost())).collect()
    }

    /// Nothing fails, for so long; every processor is busy. How often a gateway was found down, and the longest gap.
    fn endure(&self, time: Duration) -> io::Result<(f64, Duration)> {
        let before = self.metric("gateways_lost_total");
        let until = Instant::now() + time;
        let busy: Vec<_> = (0..thread::available_parallelism()?.get())
            .map(|_| {
                thread::spawn(move || {
                    while Instant::now() < until {
                        std::hint::black_box((0..100_000_u64).sum::<u64>());
                    }
                })
            })
            .collect();
        let streams = self.streams()?;
        thread::sleep(time);
        let gaps = streams.into_iter().map(|stream| Ok(stream.finish()?.longest_gap)).collect::<io::Result<Vec<_>>>()?;
        for thread in busy {
            thread.join().map_err(|_| io::Error::other("a busy thread panicked"))?;
        }
        Ok((self.metric("gateways_lost_total") - before, gaps.into_iter().max().unwrap_or_default()))
    }
}

fn nanoseconds() -> u32 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.subsec_nanos())
}

/// The smallest value that so many per cent of all do not exceed.
fn percentile(sorted: &[Duration], percent: usize) -> u128 {
    let rank = (sorted.len() * percent).div_ceil(100).clamp(1, sorted.len());
    sorted[rank - 1].as_millis()
}

fn measure(arguments: &Arguments) -> io::Result<String> {
    let mut lines = vec![
        format!(
            "| backend | family | losses of power | p50 | p90 | p99 | longest | datagrams lost in {} losses of the agent |",
            agents(arguments)
        ),
        "|---|---|---|---|---|---|---|---|".to_owned(),
    ];
    let mut quiet = Vec::new();
    for backend in BACKENDS {
        let mut world = World::start(backend)?;
        let mut gaps = [Vec::new(), Vec::new()];
        for run in 0..arguments.runs {
            for (all, gap) in gaps.iter_mut().zip(world.lose_power()?) {
                eprintln!("{backend}, run {run}: {gap:?}");
                all.push(gap);
            }
        }
        let mut lost = [0; 2];
        for _ in 0..agents(arguments) {
            for (all, lost) in lost.iter_mut().zip(world.lose_agent()?) {
                *all += lost;
            }
        }
        for ((family, mut gaps), lost) in FAMILIES.into_iter().zip(gaps).zip(lost) {
            gaps.sort();
            let [half, most, nearly, all] = [50, 90, 99, 100].map(|percent| percentile(&gaps, percent));
            lines.push(format!("| {backend} | {family} | {} | {half} ms | {most} ms | {nearly} ms | {all} ms | {lost} |", gaps.len()));
        }
        let (switches, gap) = world.endure(Duration::from_secs(arguments.load / 2))?;
        quiet.push(format!("{switches} with {backend} (longest gap {} ms)", gap.as_millis()));
    }
    lines.push(String::new());
    lines.push(format!(
        "False switches in {} seconds each while nothing failed and every processor was busy: {}.",
        arguments.load / 2,
        quiet.join(", ")
    ));
    Ok(lines.join("\n"))
}

fn agents(arguments: &Arguments) -> usize {
    arguments.runs.div_ceil(3)
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if !nix::unistd::geteuid().is_root() {
        eprintln!("failover: needs root, for network namespaces");
        return ExitCode::FAILURE;
    }
    let result = measure(&arguments).and_then(|table| {
        println!("{table}");
        match &arguments.write {
            Some(path) => write_between_markers(path, &table),
            None => Ok(()),
        }
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("failover: {error}");
            ExitCode::FAILURE
        }
    }
}

fn write_between_markers(path: &str, table: &str) -> io::Result<()> {
    const MARKERS: [&str; 2] = ["<!-- table -->", "<!-- end of table -->"];
    let text = fs::read_to_string(path)?;
    let missing = || io::Error::other(format!("{path} has no {} and {}", MARKERS[0], MARKERS[1]));
    let (before, rest) = text.split_once(MARKERS[0]).ok_or_else(missing)?;
    let (_, after) = rest.split_once(MARKERS[1]).ok_or_else(missing)?;
    fs::write(path, format!("{before}{}\n{table}\n{}{after}", MARKERS[0], MARKERS[1]))
}
