//! Which rules of others may drop, before our rules see it, what exits here.
//!
//! Our jump in `FORWARD` lets pass what rules after it, or the chain's policy, would drop. Those
//! who keep network policies by iptables want the first place there too, and decide about pods
//! alone: they may have it. A firewall that drops what is forwarded may not.

use std::collections::{BTreeMap, BTreeSet};

/// The rules of one table, by chain.
pub(crate) struct Barriers<'a> {
    chains: BTreeMap<&'a str, Vec<&'a str>>,
    /// Devices that our own rules name: what exits here comes and goes by them.
    devices: BTreeSet<&'a str>,
}

impl<'a> Barriers<'a> {
    /// From the lines of one table of `iptables-save`; `own` tells our chains.
    pub(crate) fn of(lines: impl Iterator<Item = &'a str>, own: impl Fn(&str) -> bool) -> Self {
        let (mut chains, mut devices) = (BTreeMap::<_, Vec<_>>::new(), BTreeSet::new());
        for (chain, rule) in lines.filter_map(|line| line.strip_prefix("-A ")?.split_once(' ')) {
            if own(chain) {
                devices.extend(values(rule, ["-i", "-o"]).map(|(device, _)| device));
            }
            chains.entry(chain).or_default().push(rule);
        }
        Self { chains, devices }
    }

    /// Whether a rule, or one of a chain that it leads to, may drop what exits here, or the answers
    /// to it.
    pub(crate) fn may_drop(&self, rule: &'a str) -> bool {
        let (mut rules, mut seen) = (vec![rule], BTreeSet::new());
        while let Some(rule) = rules.pop() {
            match values(rule, ["-j", "-g"]).next() {
                _ if !self.may_match(rule) => {}
                Some(("DROP" | "REJECT" | "QUEUE" | "NFQUEUE", _)) => return true,
                Some((chain, _)) if seen.insert(chain) => {
                    rules.extend(self.chains.get(chain).into_iter().flatten());
                }
                _ => {}
            }
        }
        false
    }

    /// A rule for one address is about a pod or a service, one for a device that we do not name is
    /// about that device's own traffic, and what exits here belongs to a connection.
    fn may_match(&self, rule: &str) -> bool {
        let one_address = |(value, negated): (&str, bool)| {
            !negated && (value.ends_with("/32") || value.ends_with("/128"))
        };
        let other_device = |(value, negated): (&str, bool)| {
            !negated && !self.devices.iter().any(|device| is(value, device))
        };
        let invalid = |(value, negated): (&str, bool)| !negated && value == "INVALID";
        !values(rule, ["-s", "-d"]).any(one_address)
            && !values(rule, ["-i", "-o"]).any(other_device)
            && !values(rule, ["--ctstate", "--state"]).any(invalid)
    }
}

/// Whether a device's name is the one that a rule has, of which a plus at the end is any rest.
fn is(pattern: &str, device: &str) -> bool {
    pattern
        .strip_suffix('+')
        .map_or(pattern == device, |start| device.starts_with(start))
}

/// What follows these words in a rule, and whether it is negated. Comments are not looked into.
fn values<'a>(rule: &'a str, words: [&'static str; 2]) -> impl Iterator<Item = (&'a str, bool)> {
    let quoted = rule
        .split('"')
        .enumerate()
        .filter(|(index, _)| index % 2 == 0)
        .map(|(_, part)| part);
    let all: Vec<&str> = quoted
        .flat_map(|part| part.split(' ').filter(|word| !word.is_empty()))
        .collect();
    let found: Vec<_> = (0..all.len())
        .filter(|index| words.contains(&all[*index]))
        .filter_map(|index| Some((*all.get(index + 1)?, index > 0 && all[index - 1] == "!")))
        .collect();
    found.into_iter()
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: &str = "-A EGW-FORWARD -i egress-vxlan-v4 -o eth0 -m connmark --mark 0x12000000/0xff000000 -j ACCEPT\n";

    fn may_drop(rules: &str) -> bool {
        let text = format!("{OWN}{rules}");
        let barriers = Barriers::of(text.lines(), |chain| chain.starts_with("EGW-"));
        let first = rules
            .lines()
            .next()
            .and_then(|line| line.strip_prefix("-A FORWARD "));
        first.is_some_and(|rule| barriers.may_drop(rule))
    }

    #[test]
    fn rules_about_pods_and_other_devices_are_no_barrier_and_a_firewall_is_one() {
        for (rules, expected) in [
            ("-A FORWARD -j DROP", true),
            (
                "-A FORWARD -j REJECT --reject-with icmp-host-prohibited",
                true,
            ),
            ("-A FORWARD -s 10.244.0.0/16 -j DROP", true),
            (
                "-A FORWARD -i eth0 -j FROM-OUTSIDE\n-A FROM-OUTSIDE -m mark ! --mark 0x1 -j DROP",
                true,
            ),
            ("-A FORWARD ! -i docker0 -j DROP", true),
            ("-A FORWARD -i eth+ -j DROP", true),
            (
                "-A FORWARD -j ufw-reject\n-A ufw-reject -g ufw-last\n-A ufw-last -p udp -j DROP",
                true,
            ),
            ("-A FORWARD -j ROUND\n-A ROUND -j ROUND", false),
            ("-A FORWARD -j ACCEPT", false),
            ("-A FORWARD -i docker0 ! -o docker0 -j DROP", false),
            (
                "-A FORWARD -m comment --comment \"we -j DROP\" -j MARK --set-xmark 0x1/0x1",
                false,
            ),
            (
                "-A FORWARD -j KUBE-FORWARD\n-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP",
                false,
            ),
            (
                "-A FORWARD -j cali-FORWARD\n-A cali-FORWARD -i cali+ -j cali-from\n-A cali-from -j DROP",
                false,
            ),
            (
                "-A FORWARD -j KUBE-ROUTER-FORWARD\n-A KUBE-ROUTER-FORWARD -d 10.244.1.10/32 -j KUBE-POD-FW\n-A KUBE-POD-FW -j REJECT",
                false,
            ),
            (
                "-A FORWARD -j KUBE-ROUTER-FORWARD\n-A KUBE-ROUTER-FORWARD -s fd00::1/128 -j KUBE-POD-FW\n-A KUBE-POD-FW -j REJECT",
                false,
            ),
        ] {
            assert_eq!(may_drop(rules), expected, "{rules}");
        }
    }
}
