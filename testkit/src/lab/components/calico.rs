//! Pods as Calico's Felix does them with iptables: its marks, its chains, and where it insists on
//! having its jumps.

use std::fmt::Write;

use super::{
    super::{
        constants::{POD_DEVICE, PODS_V4, PODS_V6},
        options::ChainInsertMode,
    },
    iptables::Iptables,
};

/// A policy accepted the packet.
const ACCEPTED: u32 = 0x0001_0000;
/// A policy passed it on to the next tier.
const PASSED: u32 = 0x0002_0000;
/// It comes from a workload; valid in the raw table alone.
const FROM_WORKLOAD: u32 = 0x0004_0000;
/// What is cleared where a packet begins a new evaluation.
const ALL: u32 = 0x000f_0000;

/// Jumps from the kernel's chains: table, chain, its own chain.
const JUMPS: [(&str, &str, &str); 12] = [
    ("raw", "PREROUTING", "cali-PREROUTING"),
    ("raw", "OUTPUT", "cali-OUTPUT"),
    ("mangle", "PREROUTING", "cali-PREROUTING"),
    ("mangle", "POSTROUTING", "cali-POSTROUTING"),
    ("filter", "INPUT", "cali-INPUT"),
    ("filter", "FORWARD", "cali-FORWARD"),
    ("filter", "OUTPUT", "cali-OUTPUT"),
    ("nat", "PREROUTING", "cali-PREROUTING"),
    ("nat", "OUTPUT", "cali-OUTPUT"),
    ("nat", "POSTROUTING", "cali-POSTROUTING"),
    // Always behind the rules of others, in both modes.
    ("filter", "INPUT", ""),
    ("filter", "FORWARD", ""),
];

/// A shell script for a new node: sets of pools, chains, jumps.
pub(in super::super) fn node(iptables: Iptables, mode: ChainInsertMode) -> String {
    let mut script = String::new();
    for (ipv4, pods) in [(true, PODS_V4), (false, PODS_V6)] {
        let family = if ipv4 { "inet" } else { "inet6" };
        for set in ["masq-ipam-pools", "all-ipam-pools"].map(|what| pool_set(what, ipv4)) {
            let _ = writeln!(
                script,
                "ipset create {set} hash:net family {family} maxelem 1048576\nipset add {set} {pods}"
            );
        }
    }
    script
        + &iptables.restore(|ipv4| {
            ["raw", "mangle", "nat", "filter"]
                .map(|table| self::table(table, ipv4, mode))
                .concat()
        })
}

fn pool_set(what: &str, ipv4: bool) -> String {
    format!("cali{}0{what}", if ipv4 { 4 } else { 6 })
}

fn table(name: &str, ipv4: bool, mode: ChainInsertMode) -> String {
    let chains = match name {
        "raw" => raw(),
        "mangle" => mangle(),
        "nat" => nat(ipv4),
        _ => filter(),
    };
    let mut text = format!("*{name}\n");
    for (chain, _) in &chains {
        let _ = writeln!(text, ":{chain} - [0:0]");
    }
    for (chain, rules) in &chains {
        for (index, rule) in rules.iter().enumerate() {
            let _ = writeln!(text, "-A {chain} {}{rule}", hash(name, chain, index));
        }
    }
    for (index, (_, chain, own)) in JUMPS
        .iter()
        .enumerate()
        .filter(|(_, (table, ..))| *table == name)
    {
        let rule = jump(index, name, chain, own);
        let _ = match mode {
            ChainInsertMode::Insert if !own.is_empty() => writeln!(text, "-I {chain} {rule}"),
            _ => writeln!(text, "-A {chain} {rule}"),
        };
    }
    text + "COMMIT\n"
}

fn jump(index: usize, table: &str, chain: &str, own: &str) -> String {
    let hash = hash(table, chain, index);
    if own.is_empty() {
        return format!(
            "{hash}-m comment --comment \"Policy explicitly accepted packet.\" -m mark --mark {ACCEPTED:#x}/{ACCEPTED:#x} -j ACCEPT"
        );
    }
    format!("{hash}-j {own}")
}

/// The comment by which it recognises a rule as its own and unchanged.
fn hash(table: &str, chain: &str, index: usize) -> String {
    let bytes = table
        .bytes()
        .chain(chain.bytes())
        .chain([u8::try_from(index).unwrap_or_default()]);
    let hash = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    format!("-m comment --comment \"cali:{hash:016x}\" ")
}

type Chains = Vec<(&'static str, Vec<String>)>;

fn clear(mask: u32) -> String {
    format!("-j MARK --set-xmark 0x0/{mask:#x}")
}

fn accepted(verdict: &str) -> String {
    format!(
        "-m comment --comment \"Host endpoint policy accepted packet.\" -m mark --mark {ACCEPTED:#x}/{ACCEPTED:#x} -j {verdict}"
    )
}

/// Workloads may not use others' addresses; host endpoints could be excepted from connection
/// tracking here.
fn raw() -> Chains {
    let from_workload = format!("{FROM_WORKLOAD:#x}/{FROM_WORKLOAD:#x}");
    vec![
        (
            "cali-PREROUTING",
            vec![
                clear(ALL),
                format!("-i {POD_DEVICE}+ -j MARK --set-xmark {from_workload}"),
                format!(
                    "-m mark --mark {from_workload} -m rpfilter --validmark --invert -j cali-rpf-skip"
                ),
                format!("-m mark --mark {from_workload} -m rpfilter --validmark --invert -j DROP"),
                format!("-m mark --mark 0x0/{FROM_WORKLOAD:#x} -j cali-from-host-endpoint"),
                accepted("ACCEPT"),
            ],
        ),
        (
            "cali-OUTPUT",
            vec![
                clear(ALL),
                "-j cali-to-host-endpoint".into(),
                accepted("ACCEPT"),
            ],
        ),
        ("cali-rpf-skip", vec![]),
        ("cali-from-host-endpoint", vec![]),
        ("cali-to-host-endpoint", vec![]),
    ]
}

/// What is established is accepted at once: no rule behind the jump sees it.
fn mangle() -> Chains {
    vec![
        (
            "cali-PREROUTING",
            vec![
                "-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT".into(),
                format!("-m mark --mark {ACCEPTED:#x}/{ACCEPTED:#x} -j ACCEPT"),
                "-j cali-from-host-endpoint".into(),
                accepted("ACCEPT"),
            ],
        ),
        (
            "cali-POSTROUTING",
            vec![
                format!("-m mark --mark {ACCEPTED:#x}/{ACCEPTED:#x} -j RETURN"),
                clear(ALL),
                "-m conntrack --ctstate DNAT -j cali-to-host-endpoint".into(),
                accepted("RETURN"),
            ],
        ),
        ("cali-from-host-endpoint", vec![]),
        ("cali-to-host-endpoint", vec![]),
    ]
}

/// What leaves the pools is masqueraded, wherever it goes.
fn nat(ipv4: bool) -> Chains {
    let (masqueraded, all) = (
        pool_set("masq-ipam-pools", ipv4),
        pool_set("all-ipam-pools", ipv4),
    );
    vec![
        ("cali-PREROUTING", vec!["-j cali-fip-dnat".into()]),
        ("cali-OUTPUT", vec!["-j cali-fip-dnat".into()]),
        (
            "cali-POSTROUTING",
            vec!["-j cali-fip-snat".into(), "-j cali-nat-outgoing".into()],
        ),
        ("cali-fip-dnat", vec![]),
        ("cali-fip-snat", vec![]),
        (
            "cali-nat-outgoing",
            vec![format!(
                "-m set --match-set {masqueraded} src -m set ! --match-set {all} dst -j MASQUERADE --random-fully"
            )],
        ),
    ]
}

/// Packets of workloads go through the chain of their device; one that no device is known for is
/// dropped.
fn filter() -> Chains {
    let unknown = || vec!["-m comment --comment \"Unknown interface\" -j DROP".to_owned()];
    vec![
        (
            "cali-FORWARD",
            vec![
                clear(ALL & !ACCEPTED),
                format!("-m mark --mark 0x0/{ACCEPTED:#x} -j cali-from-hep-forward"),
                format!("-i {POD_DEVICE}+ -j cali-from-wl-dispatch"),
                format!("-o {POD_DEVICE}+ -j cali-to-wl-dispatch"),
                "-j cali-to-hep-forward".into(),
                "-j cali-cidr-block".into(),
            ],
        ),
        (
            "cali-INPUT",
            vec![
                format!("-i {POD_DEVICE}+ -g cali-wl-to-host"),
                format!("-m mark --mark {ACCEPTED:#x}/{ACCEPTED:#x} -j ACCEPT"),
                clear(ALL),
                "-j cali-from-host-endpoint".into(),
                accepted("ACCEPT"),
            ],
        ),
        (
            "cali-OUTPUT",
            vec![
                format!("-m mark --mark {ACCEPTED:#x}/{ACCEPTED:#x} -j ACCEPT"),
                format!("-o {POD_DEVICE}+ -j RETURN"),
                clear(ALL),
                "-m conntrack ! --ctstate DNAT -j cali-to-host-endpoint".into(),
                accepted("ACCEPT"),
            ],
        ),
        (
            "cali-wl-to-host",
            vec![
                "-j cali-from-wl-dispatch".into(),
                "-m comment --comment \"Configured DefaultEndpointToHostAction\" -j ACCEPT".into(),
            ],
        ),
        ("cali-from-wl-dispatch", unknown()),
        ("cali-to-wl-dispatch", unknown()),
        (
            "cali-pro-kns.default",
            vec![
                format!(
                    "-m comment --comment \"Profile kns.default\" -j MARK --set-xmark {ACCEPTED:#x}/{ACCEPTED:#x}"
                ),
                format!("-m mark --mark {ACCEPTED:#x}/{ACCEPTED:#x} -j RETURN"),
            ],
        ),
        ("cali-from-hep-forward", vec![]),
        ("cali-to-hep-forward", vec![]),
        ("cali-cidr-block", vec![]),
        ("cali-from-host-endpoint", vec![]),
        ("cali-to-host-endpoint", vec![]),
    ]
}

/// A shell script for a new pod behind `device`: a chain for each direction, and the way to them.
pub(in super::super) fn workload(iptables: Iptables, device: &str) -> String {
    iptables.restore(|_| {
        let mut text = "*filter\n".to_owned();
        for (way, side, dispatch) in [("fw", "i", "from"), ("tw", "o", "to")] {
            let chain = format!("cali-{way}-{device}");
            let mut rules = vec![
                "-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT".to_owned(),
                "-m conntrack --ctstate INVALID -j DROP".to_owned(),
                clear(ACCEPTED | PASSED),
            ];
            if way == "fw" {
                rules.push(
                    "-p udp -m comment --comment \"Drop VXLAN encapped packets originating in workloads\" -m udp --dport 4789 -j DROP"
                        .into(),
                );
                rules.push("-p 4 -m comment --comment \"Drop IPinIP encapped packets originating in workloads\" -j DROP".into());
            }
            rules.extend([
                "-j cali-pro-kns.default".to_owned(),
                format!("-m comment --comment \"Return if profile accepted\" -m mark --mark {ACCEPTED:#x}/{ACCEPTED:#x} -j RETURN"),
                "-m comment --comment \"Drop if no profiles matched\" -j DROP".to_owned(),
            ]);
            let _ = writeln!(text, ":{chain} - [0:0]");
            for (index, rule) in rules.iter().enumerate() {
                let _ = writeln!(text, "-A {chain} {}{rule}", hash("filter", &chain, index));
            }
            let _ = writeln!(text, "-I cali-{dispatch}-wl-dispatch {}-{side} {device} -g {chain}", hash("filter", &chain, rules.len()));
        }
        text + "COMMIT\n"
    })
}

/// A shell script that looks once at each jump and moves those before others' rules that are no
/// longer; it prints one line for each.
pub(in super::super) fn reinsert(iptables: Iptables) -> String {
    let mut script = String::new();
    for ipv4 in [true, false].into_iter().filter(|ipv4| {
        if *ipv4 {
            iptables.families.v4()
        } else {
            iptables.families.v6()
        }
    }) {
        let program = iptables.program(ipv4, "");
        for (index, (table, chain, own)) in JUMPS
            .iter()
            .enumerate()
            .filter(|(_, (.., own))| !own.is_empty())
        {
            let rule = jump(index, table, chain, own);
            let _ = writeln!(
                script,
                "case \"$({program} -w -t {table} -S {chain} 1)\" in *{own}) ;; *)
  printf '*{table}\\n%s\\n%s\\nCOMMIT\\n' '-D {chain} {rule}' '-I {chain} 1 {rule}' | {program}-restore --noflush -w
  echo {table} {chain};; esac"
            );
        }
    }
    script
}

#[cfg(test)]
mod tests {
    use super::{super::super::constants::CALICO_MARK_MASK, *};

    #[test]
    fn every_mark_is_within_the_mask() {
        for mark in [ACCEPTED, PASSED, FROM_WORKLOAD, ALL] {
            assert_eq!(mark & !CALICO_MARK_MASK, 0, "{mark:#x}");
        }
    }
}
