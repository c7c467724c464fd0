//! Where the daemons listen unless told otherwise, on hosts of both families and of one. No control
//! plane is asked.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream},
    process::{Child, ChildStderr, Command, Stdio},
};

use egressgateway_testkit::{
    cluster::{AGENT_PORT, CONTROLLER_PORT, binary},
    netns::in_namespace,
    shell::run,
};

const WEBHOOK_PORT: u16 = 9443;
const V4: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const V6: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);
const KUBECONFIG: &str = "{apiVersion: v1, kind: Config, current-context: a, clusters: [{name: a, cluster: {server: 'http://127.0.0.1:1'}}], \
                          users: [{name: a, user: {}}], contexts: [{name: a, context: {cluster: a, user: a}}]}";

/// A daemon that ends with the test, and its logs: it could not write any more if nobody held the
/// other end.
struct Daemon(Child, Option<BufReader<ChildStderr>>);

impl Daemon {
    fn start(program: &str, arguments: &[&str], folder: &tempfile::TempDir) -> Self {
        let kubeconfig = folder.path().join("kubeconfig");
        std::fs::write(&kubeconfig, KUBECONFIG).unwrap();
        let mut command = Command::new(binary(program));
        command
            .args(arguments)
            .arg("--kubeconfig")
            .arg(kubeconfig)
            .stderr(Stdio::piped());
        let mut daemon = Self(command.spawn().unwrap(), None);
        let mut logs = BufReader::new(daemon.0.stderr.take().unwrap());
        let mut said = String::new();
        // It listens before it asks the API server that is not there.
        while logs.read_line(&mut said).unwrap() > 0 {
            if said.contains("watch failed; starting again")
                || said.contains("leader election request failed")
            {
                daemon.1 = Some(logs);
                return daemon;
            }
        }
        panic!("{program} ended: {said}")
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill().and_then(|()| self.0.wait());
    }
}

fn answer(to: SocketAddr) -> io::Result<String> {
    let mut connection = TcpStream::connect(to)?;
    connection.write_all(b"GET /healthz HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    connection.read_to_string(&mut answer)?;
    Ok(answer)
}

/// Both daemons answer probes at these addresses, and the controller's webhooks take connections
/// there.
fn all_answer_at(addresses: &[IpAddr]) {
    let folder = tempfile::tempdir().unwrap();
    let webhooks = format!("[::]:{WEBHOOK_PORT}");
    let _agent = Daemon::start("egressgateway-agent", &["--node-name=a"], &folder);
    let _controller = Daemon::start(
        "egressgateway-controller",
        &["--identity=a", "--webhook-listen", &webhooks],
        &folder,
    );
    for address in addresses {
        for port in [AGENT_PORT, CONTROLLER_PORT] {
            let answer = answer((*address, port).into())
                .unwrap_or_else(|error| panic!("{address} port {port}: {error}"));
            assert!(
                answer.starts_with("HTTP/1.1 200"),
                "{address} port {port}: {answer}"
            );
        }
        TcpStream::connect((*address, WEBHOOK_PORT))
            .unwrap_or_else(|error| panic!("webhooks at {address}: {error}"));
    }
}

#[test]
fn daemons_answer_over_both_families_even_where_sockets_for_ipv6_are_for_it_alone() {
    in_namespace(|| async {
        run("ip link set lo up; sysctl -qw net.ipv6.bindv6only=1");
        all_answer_at(&[V4, V6]);
    });
}

#[test]
fn daemons_answer_on_hosts_without_ipv4() {
    in_namespace(|| async {
        run("ip link set lo up; ip addr del 127.0.0.1/8 dev lo");
        all_answer_at(&[V6]);
    });
}

#[test]
fn daemons_answer_on_hosts_where_ipv6_is_switched_off() {
    in_namespace(|| async {
        run(
            "sysctl -qw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1; ip link set lo up",
        );
        assert!(
            TcpStream::connect((V6, 1))
                .is_err_and(|error| error.kind() != io::ErrorKind::ConnectionRefused),
            "there is no IPv6"
        );
        all_answer_at(&[V4]);
    });
}
