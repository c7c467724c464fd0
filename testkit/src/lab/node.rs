//! A node: a machine of the cluster.

use std::{
    fmt::Write,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    ops::Deref,
};

use super::{
    cables,
    constants::{UNDERLAY, node_management},
    namespace::Namespace,
    topology::NodeFacts,
};

/// A node of the cluster.
#[derive(Debug, Clone)]
pub struct Node {
    pub(super) namespace: Namespace,
    pub(super) facts: NodeFacts,
}

impl Deref for Node {
    type Target = Namespace;

    fn deref(&self) -> &Namespace {
        &self.namespace
    }
}

impl Node {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.facts.name
    }

    /// Its addresses on the underlay, IPv4 first.
    #[must_use]
    pub fn addresses(&self) -> Vec<IpAddr> {
        self.facts.addresses()
    }

    /// Its IPv4 address on the underlay.
    ///
    /// # Panics
    /// In a lab without IPv4.
    #[must_use]
    pub fn v4(&self) -> Ipv4Addr {
        self.facts.v4.expect("a lab with IPv4")
    }

    /// Its IPv6 address on the underlay.
    ///
    /// # Panics
    /// In a lab without IPv6.
    #[must_use]
    pub fn v6(&self) -> Ipv6Addr {
        self.facts.v6.expect("a lab with IPv6")
    }

    /// The address of the underlay in `other`'s family.
    ///
    /// # Panics
    /// In a lab without that family.
    #[must_use]
    pub fn like(&self, other: IpAddr) -> IpAddr {
        if other.is_ipv4() {
            self.v4().into()
        } else {
            self.v6().into()
        }
    }

    /// Its address on the management network.
    #[must_use]
    pub const fn management(&self) -> Ipv4Addr {
        node_management(self.facts.n)
    }

    /// Pulls the cable to the underlay: the node's device loses its carrier. The management network
    /// stays.
    ///
    /// # Errors
    /// When the lab has ended.
    pub fn cut(&self) -> io::Result<()> {
        self.switch_port("down")
    }

    /// Puts the cable back.
    ///
    /// # Errors
    /// When the lab has ended.
    pub fn restore(&self) -> io::Result<()> {
        self.switch_port("up")
    }

    /// Pulls every cable, that of the management network included: for all others the node has lost
    /// its power.
    ///
    /// # Errors
    /// When the lab has ended.
    pub fn power_off(&self) -> io::Result<()> {
        self.switch_port("down")?;
        self.management_port("down")
    }

    /// Puts every cable back.
    ///
    /// # Errors
    /// When the lab has ended.
    pub fn power_on(&self) -> io::Result<()> {
        self.switch_port("up")?;
        self.management_port("up")
    }

    /// Cuts the node from the management network (and so from the API server) alone.
    ///
    /// # Errors
    /// When the lab has ended.
    pub fn cut_management(&self) -> io::Result<()> {
        self.management_port("down")
    }

    /// Connects the node to the management network again.
    ///
    /// # Errors
    /// When the lab has ended.
    pub fn restore_management(&self) -> io::Result<()> {
        self.management_port("up")
    }

    /// Lets components that insist on the first place look once whether they have it, and take it;
    /// says what they had to move, one table and chain a line. See
    /// [`ChainInsertMode::Insert`](super::ChainInsertMode::Insert).
    ///
    /// # Errors
    /// From the tool that writes the rules.
    pub fn reinsert_jumps(&self) -> io::Result<String> {
        self.namespace
            .run(&self.namespace.running.rules().reinsert())
    }

    fn switch_port(&self, state: &str) -> io::Result<()> {
        let n = self.facts.n;
        let mut ports = vec![cables::node_port(n)];
        if !self.facts.second.is_empty() {
            ports.push(cables::node_second_port(n));
        }
        self.namespace
            .running
            .sandbox
            .script(Some(UNDERLAY), &set_ports(&ports, state))
            .map(drop)
    }

    fn management_port(&self, state: &str) -> io::Result<()> {
        let port = cables::node_management_port(self.facts.n);
        self.namespace
            .running
            .sandbox
            .script(None, &set_ports(&[port], state))
            .map(drop)
    }
}

/// Lines that set ports of a switch up or down. A port that comes up is waited for: the kernel lets
/// it forward only when it has heard of its carrier, which may take a second where many links
/// change.
fn set_ports(ports: &[String], state: &str) -> String {
    let mut script = String::new();
    for port in ports {
        let _ = writeln!(script, "ip link set {port} {state}");
    }
    if state == "up" {
        for port in ports {
            let forwards = format!("bridge link show dev {port} | grep -q 'state forwarding'");
            let _ = writeln!(
                script,
                "for i in $(seq 500); do if {forwards}; then break; fi; sleep 0.01; done; {forwards}"
            );
        }
    }
    script
}
