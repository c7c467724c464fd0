//! Rules of the stand-ins for CNI and kube-proxy, written by the tool that the lab is to use.

use std::{fmt::Write, net::SocketAddr};

use super::{
    components::{Iptables, calico, kube_proxy},
    constants::{MASQUERADE_MARK, POD_DEVICE, PODS_V4, PODS_V6},
    options::{ChainInsertMode, Components, Families, ForwardPolicy, RuleTool},
    topology::ServiceFacts,
    translation::{Translation, translations},
};

/// The tool and the families it writes for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rules {
    pub(super) tool: RuleTool,
    pub(super) families: Families,
    pub(super) components: Components,
}

impl Rules {
    /// A shell script for a new node: masquerading, forwarding, and an empty list of services.
    pub(super) fn node(self, masquerade: bool, forward: ForwardPolicy) -> String {
        match self.tool {
            RuleTool::Nft => nft_node(masquerade, forward),
            RuleTool::IptablesNft | RuleTool::IptablesLegacy => {
                self.iptables_node(masquerade, forward)
            }
        }
    }

    /// A shell script for a new pod behind this device.
    pub(super) fn pod(self, device: &str) -> String {
        match (self.components.calico(), self.writer()) {
            (Some(_), Some(iptables)) => calico::workload(iptables, device),
            _ => String::new(),
        }
    }

    /// A shell script for one service; these backends are the node's own.
    pub(super) fn service(self, facts: &ServiceFacts, own: &[SocketAddr]) -> String {
        match self.writer().filter(|_| self.components.has_kube_proxy()) {
            Some(iptables) => kube_proxy::service(iptables, facts, own),
            None => translations(facts, own)
                .iter()
                .map(|translation| self.translation(translation))
                .collect(),
        }
    }

    /// A shell script that puts jumps before all others again, where a component insists on that;
    /// it prints what it had to move.
    pub(super) fn reinsert(self) -> String {
        match (self.components.calico(), self.writer()) {
            (Some(ChainInsertMode::Insert), Some(iptables)) => calico::reinsert(iptables),
            _ => String::new(),
        }
    }

    const fn writer(self) -> Option<Iptables> {
        Iptables::of(self.tool, self.families)
    }

    /// A shell script that adds one service address.
    fn translation(self, service: &Translation) -> String {
        let mut script = String::new();
        for protocol in ["tcp", "udp"] {
            let matches = self.service_match(service, protocol);
            if service.masquerade {
                let mark = match self.tool {
                    RuleTool::Nft => format!("meta mark set meta mark or {MASQUERADE_MARK:#x}"),
                    _ => format!("-j MARK --set-xmark {MASQUERADE_MARK:#x}/{MASQUERADE_MARK:#x}"),
                };
                let _ = writeln!(script, "{matches} {mark}{}", self.end());
            }
            for (index, backend) in service.backends.iter().enumerate() {
                let left = service.backends.len() - index;
                let _ = writeln!(
                    script,
                    "{matches} {}{}",
                    self.translate(*backend, left),
                    self.end()
                );
            }
        }
        script
    }

    fn service_match(self, service: &Translation, protocol: &str) -> String {
        let Translation {
            address,
            port,
            ipv4,
            ..
        } = service;
        if self.tool == RuleTool::Nft {
            let (family, nfproto) = if *ipv4 {
                ("ip", "ipv4")
            } else {
                ("ip6", "ipv6")
            };
            let to = address.map_or("fib daddr type local".into(), |address| {
                format!("{family} daddr {address}")
            });
            return format!(
                "nft 'add rule inet cni services meta nfproto {nfproto} {to} {protocol} dport {port}"
            );
        }
        let to = address.map_or("-m addrtype --dst-type LOCAL".into(), |address| {
            format!("-d {address}")
        });
        format!(
            "{} -t nat -A CNI-SERVICES {to} -p {protocol} --dport {port}",
            self.iptables(*ipv4)
        )
    }

    /// One of `left` backends that are left to choose from.
    fn translate(self, backend: SocketAddr, left: usize) -> String {
        if self.tool == RuleTool::Nft {
            let family = if backend.is_ipv4() { "ip" } else { "ip6" };
            let chance = if left > 1 {
                format!("numgen random mod {left} == 0 ")
            } else {
                String::new()
            };
            return format!("{chance}dnat {family} to {backend}");
        }
        #[expect(clippy::cast_precision_loss, reason = "a handful of backends")]
        let chance = if left > 1 {
            format!(
                "-m statistic --mode random --probability {} ",
                1.0 / left as f64
            )
        } else {
            String::new()
        };
        format!("{chance}-j DNAT --to-destination {backend}")
    }

    const fn end(self) -> &'static str {
        if matches!(self.tool, RuleTool::Nft) {
            "'"
        } else {
            ""
        }
    }

    fn iptables(self, ipv4: bool) -> String {
        let flavour = if self.tool == RuleTool::IptablesLegacy {
            "legacy"
        } else {
            "nft"
        };
        format!(
            "{}-{flavour} -w",
            if ipv4 { "iptables" } else { "ip6tables" }
        )
    }

    fn iptables_node(self, masquerade: bool, forward: ForwardPolicy) -> String {
        let mut script = String::new();
        if let Some(iptables) = self.writer().filter(|_| self.components.has_kube_proxy()) {
            script.push_str(&kube_proxy::node(iptables));
            if let Some(mode) = self.components.calico() {
                script.push_str(&calico::node(iptables, mode));
            }
        }
        for (ipv4, pods) in [(true, PODS_V4), (false, PODS_V6)] {
            if !(if ipv4 {
                self.families.v4()
            } else {
                self.families.v6()
            }) {
                continue;
            }
            let mut rule = |text: &str| {
                let _ = writeln!(script, "{} {text}", self.iptables(ipv4));
            };
            if forward != ForwardPolicy::Accept {
                rule("-P FORWARD DROP");
            }
            if self.components.calico().is_some() {
                continue;
            }
            if !self.components.has_kube_proxy() {
                rule("-t nat -N CNI-SERVICES");
                rule("-t nat -A PREROUTING -j CNI-SERVICES");
                rule("-t nat -A OUTPUT -j CNI-SERVICES");
                let marked = format!("-m mark --mark {MASQUERADE_MARK:#x}/{MASQUERADE_MARK:#x}");
                rule(&format!(
                    "-t nat -A POSTROUTING {marked} -j MASQUERADE --random-fully"
                ));
            }
            if masquerade {
                rule(&format!(
                    "-t nat -A POSTROUTING -s {pods} ! -d {pods} -j MASQUERADE --random-fully"
                ));
            }
            if forward != ForwardPolicy::Accept && !self.components.has_kube_proxy() {
                // Of services alone, both directions; kube-proxy lets every established connection
                // pass, and would hide what the gateway lacks.
                rule("-A FORWARD -m conntrack --ctstate DNAT -j ACCEPT");
            }
            match forward {
                ForwardPolicy::Accept => {}
                ForwardPolicy::DropButPods => {
                    for side in ["s", "d"] {
                        rule(&format!("-A FORWARD -{side} {pods} -j ACCEPT"));
                    }
                }
                ForwardPolicy::DropButWorkloads => {
                    for side in ["i", "o"] {
                        rule(&format!("-A FORWARD -{side} {POD_DEVICE}+ -j ACCEPT"));
                    }
                }
            }
        }
        script
    }
}

fn nft_node(masquerade: bool, forward: ForwardPolicy) -> String {
    let masquerade = if masquerade {
        format!(
            "ip saddr {PODS_V4} ip daddr != {PODS_V4} masquerade fully-random
    ip6 saddr {PODS_V6} ip6 daddr != {PODS_V6} masquerade fully-random"
        )
    } else {
        String::new()
    };
    let (policy, accept) = match forward {
        ForwardPolicy::Accept => ("accept", String::new()),
        ForwardPolicy::DropButPods => (
            "drop",
            format!(
                "ip saddr {PODS_V4} accept; ip daddr {PODS_V4} accept; ip6 saddr {PODS_V6} accept; ip6 daddr {PODS_V6} accept"
            ),
        ),
        ForwardPolicy::DropButWorkloads => (
            "drop",
            format!("iifname \"{POD_DEVICE}*\" accept; oifname \"{POD_DEVICE}*\" accept"),
        ),
    };
    format!(
        "nft -f - <<'END'
table inet cni {{
  chain services {{ }}
  chain prerouting {{ type nat hook prerouting priority dstnat; jump services; }}
  chain output {{ type nat hook output priority -100; jump services; }}
  chain postrouting {{
    type nat hook postrouting priority srcnat;
    meta mark & {MASQUERADE_MARK:#x} == {MASQUERADE_MARK:#x} masquerade fully-random
    {masquerade}
  }}
  chain forward {{
    type filter hook forward priority filter; policy {policy};
    ct status dnat accept
    {accept}
  }}
}}
END
"
    )
}
