//! What others take out of connection tracking with iptables, of either flavour.

use std::{collections::BTreeSet, net::IpAddr};

use async_trait::async_trait;
use egressgateway::{
    Error, ErrorKind, ForeignChains, ForeignRule, UntrackingRule, UntrackingRules, model::Family,
};
use ipnet::IpNet;

use crate::{exec::flavour::Flavour, exec::iptables, names::CHAIN_PREFIX};

/// The table that comes before connection tracking.
const TABLE: &str = "raw";
/// Where what comes in passes it.
const ENTRY: &str = "PREROUTING";

/// Reads the raw tables of both iptables flavours; one whose programs or tables the host does not
/// have has no rules.
#[derive(Clone, Copy, Debug, Default)]
pub struct IptablesUntracking;

#[async_trait]
impl UntrackingRules for IptablesUntracking {
    async fn untracking(&self) -> Result<BTreeSet<UntrackingRule>, Error> {
        let mut all = BTreeSet::new();
        for flavour in [Flavour::Nft, Flavour::Legacy] {
            for family in Family::ALL {
                // The legacy program would make the kernel's table by asking for it.
                let saved = match flavour {
                    Flavour::Nft => iptables::save_table(flavour, family, TABLE).await,
                    Flavour::Legacy => iptables::save(flavour, family, false).await,
                };
                match saved {
                    Ok(saved) => all.extend(parse(&saved, &flavour.program(family, ""))),
                    Err(error) if error.kind == ErrorKind::Unsupported => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(all)
    }
}

/// The rules of others in what `iptables-save` printed; `program` is what keeps them.
pub(crate) fn parse(saved: &str, program: &str) -> BTreeSet<UntrackingRule> {
    let table = saved
        .lines()
        .skip_while(|line| line.strip_prefix('*') != Some(TABLE))
        .take_while(|line| *line != "COMMIT");
    let mut chains = ForeignChains::default();
    for (chain, rule) in table.filter_map(|line| line.strip_prefix("-A ")?.split_once(' ')) {
        if !chain.starts_with(CHAIN_PREFIX) {
            chains.push(chain, foreign(chain, rule, program));
        }
    }
    chains.untracking(ENTRY)
}

fn foreign(chain: &str, rule: &str, program: &str) -> ForeignRule {
    let words = words(rule);
    let mut found = ForeignRule::default();
    let (mut negated, mut rest) = (false, words.iter().map(String::as_str));
    while let Some(word) = rest.next() {
        if word == "!" {
            negated = true;
            continue;
        }
        if word == "-j" || word == "-g" {
            let target = rest.next().unwrap_or_default();
            if target == "NOTRACK" || (target == "CT" && rest.any(|option| option == "--notrack")) {
                found.untracks = Some(format!(
                    "{program} table {TABLE}, chain {chain}, rule {rule}"
                ));
            } else {
                found.jumps.push(target.to_owned());
            }
            break;
        }
        // Each option of these is followed by its value; what is negated restricts nothing that
        // counts here.
        let value = || rest.clone().next().unwrap_or_default();
        if !negated {
            match word {
                "-i" => found.packets.device = Some(value().to_owned()),
                "-s" => found.packets.source = network(value()),
                "-d" => found.packets.destination = network(value()),
                "--dport" | "--dports" => found.packets.ports = ports(value()),
                "--dst-type" => found.packets.to_host = value() == "LOCAL",
                "--mark" => found.packets.marked = true,
                _ => {}
            }
        }
        negated = false;
    }
    found
}

fn network(text: &str) -> Option<BTreeSet<IpNet>> {
    let net = text
        .parse::<IpNet>()
        .ok()
        .or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from));
    net.map(|net| BTreeSet::from([net]))
}

/// Single ports; where ranges are among them, nothing is said.
fn ports(text: &str) -> Option<BTreeSet<u16>> {
    text.split(',').map(|port| port.parse().ok()).collect()
}

/// The words of a rule; what stands in quotes, such as a comment, is one.
fn words(rule: &str) -> Vec<String> {
    let (mut words, mut word, mut quoted, mut escaped) = (Vec::new(), String::new(), false, false);
    for char in rule.chars() {
        match char {
            _ if std::mem::take(&mut escaped) => word.push(char),
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            ' ' if !quoted => words.push(std::mem::take(&mut word)),
            _ => word.push(char),
        }
    }
    words.push(word);
    words
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use egressgateway::Surroundings;

    use super::*;

    /// The rules of [`parse`], and whether each is an alarm.
    fn found(rules: &str) -> Vec<(bool, String)> {
        let saved = format!(
            "*raw\n:PREROUTING ACCEPT [0:0]\n{rules}\nCOMMIT\n*nat\n-A PREROUTING -j NOTRACK\nCOMMIT\n"
        );
        let known = Surroundings {
            services: vec!["10.96.0.0/12".parse().unwrap()],
            hosts: ["10.6.0.11".parse().unwrap()].into(),
        };
        let rules = parse(&saved, "iptables-nft").into_iter();
        let mut found: Vec<_> = rules
            .map(|rule| (rule.packets.may_be_governed(&known), rule.place))
            .collect();
        found.sort();
        found
    }

    fn alarms(rules: &str) -> usize {
        found(rules).iter().filter(|(alarm, _)| *alarm).count()
    }

    const CILIUM: &str = r#"-A PREROUTING -m comment --comment "cilium-feeder: CILIUM_PRE_raw" -j CILIUM_PRE_raw
-A CILIUM_PRE_raw -m mark --mark 0x200/0xf00 -m comment --comment "cilium: NOTRACK for proxy traffic" -j CT --notrack"#;

    #[test]
    fn what_cilium_always_has_is_no_alarm_and_what_it_has_for_pods_is() {
        assert_eq!(found(CILIUM).len(), 1);
        assert_eq!(alarms(CILIUM), 0);
        let pods = r#"-A CILIUM_PRE_raw -s 10.244.0.0/16 -m comment --comment "cilium: NOTRACK for pod traffic" -j CT --notrack"#;
        let answers = pods.replace("-s", "-d").replace("CT --notrack", "NOTRACK");
        let found = found(&format!("{CILIUM}\n{pods}\n{answers}"));
        let alarms: Vec<_> = found
            .into_iter()
            .filter_map(|(alarm, place)| alarm.then_some(place))
            .collect();
        let place = format!(
            "iptables-nft table raw, chain CILIUM_PRE_raw, rule {}",
            pods.strip_prefix("-A CILIUM_PRE_raw ").unwrap()
        );
        assert_eq!(alarms.len(), 2);
        assert!(alarms.contains(&place), "{alarms:?}");
    }

    #[test]
    fn what_a_cache_of_names_calico_and_kube_proxy_have_is_no_alarm() {
        let cache = "-A PREROUTING -d 10.96.0.10/32 -p udp -m udp --dport 53 -m comment --comment \"NodeLocal DNS Cache: skip conntrack\" -j NOTRACK
-A PREROUTING -d 169.254.20.10/32 -p tcp -m tcp --dport 53 -m comment --comment \"NodeLocal DNS Cache: skip conntrack\" -j CT --notrack
-A OUTPUT -s 169.254.20.10/32 -p tcp -m tcp --sport 8080 -j NOTRACK";
        assert_eq!(found(cache).len(), 2, "only what comes in");
        assert_eq!(alarms(cache), 0);
        let calico = "-A PREROUTING -m comment --comment \"cali:6gwbT8clXdHdC1b1\" -j cali-PREROUTING
-A cali-PREROUTING -m comment --comment \"cali:x\" -j MARK --set-xmark 0x0/0xf0000
-A cali-PREROUTING -p udp -m comment --comment \"cali:y\" -m udp --dport 4789 -j NOTRACK
-A cali-PREROUTING -i cali+ -m comment --comment \"cali:z\" -j MARK --set-xmark 0x40000/0x40000
-A cali-PREROUTING -m comment --comment \"cali:u\" -m mark --mark 0x0/0x40000 -j cali-from-host-endpoint
-A cali-from-host-endpoint -m mark --mark 0x10000/0x10000 -j NOTRACK";
        assert_eq!(found(calico).len(), 2);
        assert_eq!(alarms(calico), 0);
        // kube-proxy has nothing there but a chain that shows whether somebody flushes.
        assert_eq!(found(":KUBE-KUBELET-CANARY - [0:0]").len(), 0);
    }

    #[test]
    fn negated_matches_and_our_own_rules() {
        assert_eq!(alarms("-A PREROUTING ! -i lo -j NOTRACK"), 1);
        assert_eq!(alarms("-A PREROUTING ! -d 10.96.0.0/12 -j CT --notrack"), 1);
        assert_eq!(alarms("-A PREROUTING -i lo -j NOTRACK"), 0);
        assert_eq!(
            alarms("-A PREROUTING -m addrtype --dst-type LOCAL -j NOTRACK"),
            1
        );
        assert_eq!(
            alarms(
                "-A PREROUTING -p tcp -m multiport --dports 22,6443 -m addrtype --dst-type LOCAL -j NOTRACK"
            ),
            0
        );
        assert_eq!(alarms("-A PREROUTING -j CT --zone 7"), 0);
        assert_eq!(found("-A PREROUTING -j EGW-PREROUTING\n-A EGW-PREROUTING -p udp -m udp --dport 7789 -j CT --notrack").len(), 0);
    }

    #[test]
    fn whatever_is_printed_is_read_without_harm() {
        for length in (0..CILIUM.len()).filter(|at| CILIUM.is_char_boundary(*at)) {
            found(&CILIUM[..length]);
            found(&CILIUM[length..]);
        }
        assert_eq!(words(r#"a "b \" c" d"#), ["a", "b \" c", "d"]);
    }
}
