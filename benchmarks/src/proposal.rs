//! The layout that the project was proposed with: for each policy a set of sources, a set of
//! destinations and a rule that sets the mark, asked one after the other for every packet.

use std::fmt::Write as _;

use crate::policies::{Policy, policies};

/// The set of a policy's pods.
#[must_use]
pub fn source_set(number: u32) -> String {
    format!("egress-src-{number}")
}

/// The sets, for `ipset restore`.
#[must_use]
pub fn sets(count: u32) -> String {
    let mut script = String::new();
    for Policy {
        number,
        pod,
        destinations,
    } in policies(count)
    {
        let source = source_set(number);
        let _ = writeln!(
            script,
            "create {source} hash:ip\nadd {source} {pod}\ncreate egress-dst-{number} hash:net"
        );
        for destination in destinations {
            let _ = writeln!(script, "add egress-dst-{number} {destination}");
        }
    }
    script
}

/// The rules, for `iptables-restore`.
#[must_use]
pub fn rules(count: u32) -> String {
    let mut script = "*mangle\n:EGRESS - [0:0]\n".to_owned();
    for number in 1..=count {
        let _ = writeln!(
            script,
            "-A EGRESS -m conntrack --ctdir ORIGINAL -m set --match-set egress-dst-{number} dst -m set --match-set egress-src-{number} src \
             -m comment --comment \"mark request packet\" -j MARK --set-xmark 0x11000000/0xff000000"
        );
    }
    script + "-A PREROUTING -j EGRESS\nCOMMIT\n"
}
