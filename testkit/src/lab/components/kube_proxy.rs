//! Services as kube-proxy does them in its iptables mode.

use std::{fmt::Write, net::SocketAddr};

use super::{
    super::{
        constants::{MASQUERADE_MARK, PODS_V4, PODS_V6},
        topology::ServiceFacts,
    },
    iptables::Iptables,
};

/// Chains that tell it, by their absence, that somebody flushed a table.
const CANARIES: &str = ":KUBE-KUBELET-CANARY - [0:0]\n:KUBE-PROXY-CANARY - [0:0]\n";
const PROTOCOLS: [&str; 2] = ["tcp", "udp"];

/// A shell script for a new node.
pub(in super::super) fn node(iptables: Iptables) -> String {
    iptables.restore(|ipv4| {
        let loopback = if ipv4 {
            "-A KUBE-FIREWALL ! -s 127.0.0.0/8 -d 127.0.0.0/8 -m comment --comment \"block incoming localnet connections\" \
             -m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -j DROP\n"
        } else {
            ""
        };
        format!(
            "*mangle
{CANARIES}COMMIT
*nat
{CANARIES}:KUBE-SERVICES - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-MARK-MASQ - [0:0]
-I PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
-I OUTPUT -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
-I POSTROUTING -m comment --comment \"kubernetes postrouting rules\" -j KUBE-POSTROUTING
-A KUBE-MARK-MASQ -j MARK --or-mark {MASQUERADE_MARK:#x}
-A KUBE-POSTROUTING -m mark ! --mark {MASQUERADE_MARK:#x}/{MASQUERADE_MARK:#x} -j RETURN
-A KUBE-POSTROUTING -j MARK --xor-mark {MASQUERADE_MARK:#x}
-A KUBE-POSTROUTING -m comment --comment \"kubernetes service traffic requiring SNAT\" -j MASQUERADE --random-fully
-A KUBE-SERVICES -m comment --comment \"kubernetes service nodeports; NOTE: this must be the last rule in this chain\" \
             -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS
COMMIT
*filter
{CANARIES}:KUBE-SERVICES - [0:0]
:KUBE-EXTERNAL-SERVICES - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-FORWARD - [0:0]
:KUBE-FIREWALL - [0:0]
:KUBE-PROXY-FIREWALL - [0:0]
-I INPUT -j KUBE-FIREWALL
-I OUTPUT -j KUBE-FIREWALL
-I FORWARD -m comment --comment \"kubernetes forwarding rules\" -j KUBE-FORWARD
-I FORWARD -m conntrack --ctstate NEW -m comment --comment \"kubernetes externally-visible service portals\" -j KUBE-EXTERNAL-SERVICES
-I FORWARD -m conntrack --ctstate NEW -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
-I FORWARD -m conntrack --ctstate NEW -m comment --comment \"kubernetes load balancer firewall\" -j KUBE-PROXY-FIREWALL
-I INPUT -m conntrack --ctstate NEW -m comment --comment \"kubernetes externally-visible service portals\" -j KUBE-EXTERNAL-SERVICES
-I INPUT -m comment --comment \"kubernetes health check service ports\" -j KUBE-NODEPORTS
-I INPUT -m conntrack --ctstate NEW -m comment --comment \"kubernetes load balancer firewall\" -j KUBE-PROXY-FIREWALL
-I OUTPUT -m conntrack --ctstate NEW -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
{loopback}-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP
-A KUBE-FORWARD -m comment --comment \"kubernetes forwarding rules\" -m mark --mark {MASQUERADE_MARK:#x}/{MASQUERADE_MARK:#x} -j ACCEPT
-A KUBE-FORWARD -m comment --comment \"kubernetes forwarding conntrack rule\" -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
COMMIT
"
        )
    })
}

/// A shell script for a service, on a node with the backends `own`.
pub(in super::super) fn service(
    iptables: Iptables,
    facts: &ServiceFacts,
    own: &[SocketAddr],
) -> String {
    iptables.restore(|ipv4| {
        let mut rules = String::new();
        for address in facts.addresses.iter().filter(|address| address.is_ipv4() == ipv4) {
            let of_family =
                |backends: &[SocketAddr]| backends.iter().filter(|backend| backend.is_ipv4() == ipv4).copied().collect::<Vec<_>>();
            let (all, own) = (of_family(&facts.backends), of_family(own));
            let (pods, length) = if ipv4 { (PODS_V4, 32) } else { (PODS_V6, 128) };
            for protocol in PROTOCOLS {
                let name = format!("{}-{protocol}", facts.name).to_uppercase();
                let (service, external, local) = (format!("KUBE-SVC-{name}"), format!("KUBE-EXT-{name}"), format!("KUBE-SVL-{name}"));
                let is = format!("-m comment --comment \"default/{} cluster IP\" -p {protocol} -m {protocol}", facts.name);
                let to = format!("-d {address}/{length} {is} --dport {}", facts.port);
                let _ = writeln!(rules, ":{service} - [0:0]\n:{external} - [0:0]\n:{local} - [0:0]");
                for (index, backend) in all.iter().enumerate() {
                    let ip = backend.ip();
                    let endpoint = format!("KUBE-SEP-{name}-{index}");
                    let _ = writeln!(rules, ":{endpoint} - [0:0]\n-A {endpoint} -s {ip}/{length} -j KUBE-MARK-MASQ");
                    let _ = writeln!(rules, "-A {endpoint} -p {protocol} -m {protocol} -j DNAT --to-destination {backend}");
                }
                let _ = writeln!(rules, "-A {service} ! -s {pods} {to} -j KUBE-MARK-MASQ");
                let indices =
                    |backends: &[SocketAddr]| -> Vec<usize> { (0..all.len()).filter(|index| backends.contains(&all[*index])).collect() };
                for (chain, endpoints) in [(&service, indices(&all)), (&local, indices(&own))] {
                    for (position, index) in endpoints.iter().enumerate() {
                        let chance = chance(endpoints.len() - position);
                        let _ = writeln!(rules, "-A {chain} {chance}-j KUBE-SEP-{name}-{index}");
                    }
                }
                if facts.local {
                    let _ = writeln!(rules, "-A {external} -s {pods} -j {service}\n-A {external} -j {local}");
                } else {
                    let _ = writeln!(rules, "-A {external} -j KUBE-MARK-MASQ\n-A {external} -j {service}");
                }
                let _ = writeln!(rules, "-I KUBE-SERVICES {to} -j {service}");
                let node = format!("-m comment --comment \"default/{}\" -p {protocol} -m {protocol}", facts.name);
                let _ = writeln!(rules, "-A KUBE-NODEPORTS {node} --dport {} -j {external}", facts.node_port);
            }
        }
        if rules.is_empty() { rules } else { format!("*nat\n{rules}COMMIT\n") }
    })
}

/// For one of `left` backends that are left to choose from.
fn chance(left: usize) -> String {
    #[expect(clippy::cast_precision_loss, reason = "a handful of backends")]
    let probability = 1.0 / left as f64;
    if left > 1 {
        format!("-m statistic --mode random --probability {probability:.10} ")
    } else {
        String::new()
    }
}
