use std::{fmt::Display, ops::RangeInclusive, path::PathBuf, str::FromStr, time::Duration};

use ipnet::IpNet;
use serde::{Serialize, Serializer};
use serde_yaml::{Mapping, Value};

use super::{Config, Iptables, ReplyPath, yaml};
use crate::{
    api::ForwardMethod,
    model::{Family, GatewayName, MarkMask},
    spec::{self, Problem},
};

/// IPv6 does not work below it (RFC 8200, section 5).
pub(super) const MIN_MTU_V6: u32 = 1280;
/// Every IPv4 host takes a datagram of this size (RFC 791).
const MIN_MTU: u32 = 576;
/// The rule that looks into the main table has priority 32766: ours come before it.
const LAST_RULE_PRIORITY: u32 = 32765;
/// The rule that looks into the local table has priority 0, and the number before ours is the loop
/// guard's.
const FIRST_RULE_PRIORITY: u32 = 2;
/// Route protocols below are the kernel's and the administrator's own (rtnetlink(7)).
const FIRST_FREE_PROTOCOL: u8 = 5;
/// Table numbers above the base that must exist: one for each mark byte.
const TABLES: u32 = 256;
/// Who has connections for longer than a day drains at another time.
const MAX_GRACE: Duration = Duration::from_secs(24 * 60 * 60);
/// Longest name of a device: IFNAMSIZ less its final zero.
const MAX_DEVICE_NAME: usize = 15;

impl Config {
    /// Sets one field from text. `origin` is where the text came from: a flag, an environment
    /// variable, or the path itself; the problem names it.
    ///
    /// # Errors
    /// An unknown path, or a value that breaks the field's rule; nothing is changed then.
    pub fn set(&mut self, path: &str, value: &str, origin: &str) -> Result<(), Problem> {
        let value = value.trim();
        self.set_value(path, value).map_err(|rule| {
            let field = if origin == path {
                path.to_owned()
            } else {
                format!("{path} ({origin})")
            };
            Problem::new(field, value, rule)
        })
    }

    fn set_value(&mut self, path: &str, text: &str) -> Result<(), String> {
        match path {
            "tunnel.kind" => self.tunnel.kind = driver_name(text)?,
            "tunnel.ipv4CIDR" => self.tunnel.ipv4_cidr = overlay(text, Family::V4)?.and_then(v4),
            "tunnel.ipv6CIDR" => self.tunnel.ipv6_cidr = overlay(text, Family::V6)?.and_then(v6),
            "tunnel.vni" => self.tunnel.vni = number(text, 1..=0x00ff_ffff)?,
            "tunnel.port" => self.tunnel.port = number(text, 1..=u16::MAX)?,
            "tunnel.mtu" => self.tunnel.mtu = auto(text, |text| number(text, MIN_MTU..=65535))?,
            "tunnel.parent" => self.tunnel.parent = auto(text, device)?,
            "policyBackend" => self.policy_backend = auto(text, driver_name)?,
            "iptables" => {
                self.iptables = choice(
                    text,
                    &[
                        ("auto", Iptables::Auto),
                        ("legacy", Iptables::Legacy),
                        ("nft", Iptables::Nft),
                    ],
                )?;
            }
            "forwardMethod" => {
                self.forward_method = choice(
                    text,
                    &[
                        ("active-passive", ForwardMethod::ActivePassive),
                        ("ecmp", ForwardMethod::Ecmp),
                    ],
                )?;
            }
            "defaultEgressGateway" => self.default_egress_gateway = gateway(text)?,
            "clusterCIDRs.auto" => self.cluster_cidrs.auto = boolean(text)?,
            "clusterCIDRs.extra" => self.cluster_cidrs.extra = networks(text)?,
            "mark.mask" => self.mark.mask = mask(text)?,
            "routing.tableBase" => self.routing.table_base = number(text, 1..=u32::MAX - TABLES)?,
            "routing.rulePriority" => {
                self.routing.rule_priority =
                    number(text, FIRST_RULE_PRIORITY..=LAST_RULE_PRIORITY)?;
            }
            "routing.protocol" => {
                self.routing.protocol = number(text, FIRST_FREE_PROTOCOL..=u8::MAX)?;
            }
            "failover.interval" => self.failover.interval = duration(text)?,
            "failover.multiplier" => self.failover.multiplier = number(text, 1..=100)?,
            "failover.drainGracePeriod" => self.failover.drain_grace_period = grace(text)?,
            "startGate" => self.start_gate = boolean(text)?,
            "holdAtBoot" => self.hold_at_boot = boolean(text)?,
            "stateFile" => self.state_file = file(text)?,
            "resetConnections" => self.reset_connections = boolean(text)?,
            "replyPath" => {
                self.reply_path = choice(
                    text,
                    &[("cni", ReplyPath::Cni), ("tunnel", ReplyPath::Tunnel)],
                )?;
            }
            _ => return Err("is not a field of the configuration".to_owned()),
        }
        Ok(())
    }

    /// A field's value as it stands in a file; none for an unknown path.
    #[must_use]
    pub fn value(&self, path: &str) -> Option<Value> {
        let text = |text: &dyn Display| Value::from(text.to_string());
        let or = |text: Option<String>, absent: &str| {
            Value::from(text.unwrap_or_else(|| absent.to_owned()))
        };
        Some(match path {
            "tunnel.kind" => text(&self.tunnel.kind),
            "tunnel.ipv4CIDR" => or(self.tunnel.ipv4_cidr.map(|net| net.to_string()), ""),
            "tunnel.ipv6CIDR" => or(self.tunnel.ipv6_cidr.map(|net| net.to_string()), ""),
            "tunnel.vni" => self.tunnel.vni.into(),
            "tunnel.port" => self.tunnel.port.into(),
            "tunnel.mtu" => self.tunnel.mtu.map_or_else(|| "auto".into(), Value::from),
            "tunnel.parent" => or(self.tunnel.parent.clone(), "auto"),
            "policyBackend" => or(self.policy_backend.clone(), "auto"),
            "iptables" => text(&match self.iptables {
                Iptables::Auto => "auto",
                Iptables::Legacy => "legacy",
                Iptables::Nft => "nft",
            }),
            "forwardMethod" => text(&match self.forward_method {
                ForwardMethod::ActivePassive => "active-passive",
                ForwardMethod::Ecmp => "ecmp",
            }),
            "defaultEgressGateway" => or(
                self.default_egress_gateway
                    .as_ref()
                    .map(ToString::to_string),
                "",
            ),
            "clusterCIDRs.auto" => self.cluster_cidrs.auto.into(),
            "clusterCIDRs.extra" => self
                .cluster_cidrs
                .extra
                .iter()
                .map(|net| Value::from(net.to_string()))
                .collect(),
            "mark.mask" => text(&self.mark.mask),
            "routing.tableBase" => self.routing.table_base.into(),
            "routing.rulePriority" => self.routing.rule_priority.into(),
            "routing.protocol" => self.routing.protocol.into(),
            "failover.interval" => text(&humantime::format_duration(self.failover.interval)),
            "failover.multiplier" => self.failover.multiplier.into(),
            "failover.drainGracePeriod" => text(&humantime::format_duration(
                self.failover.drain_grace_period,
            )),
            "startGate" => self.start_gate.into(),
            "holdAtBoot" => self.hold_at_boot.into(),
            "stateFile" => or(
                self.state_file
                    .as_ref()
                    .map(|path| path.display().to_string()),
                "",
            ),
            "resetConnections" => self.reset_connections.into(),
            "replyPath" => text(&match self.reply_path {
                ReplyPath::Cni => "cni",
                ReplyPath::Tunnel => "tunnel",
            }),
            _ => return None,
        })
    }
}

impl Serialize for Config {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut root = Mapping::new();
        for field in Self::FIELDS {
            let value = self.value(field.path).unwrap_or_default();
            match field.path.split_once('.') {
                None => _ = root.insert(field.path.into(), value),
                Some((section, name)) => {
                    let section = root
                        .entry(section.into())
                        .or_insert_with(|| Value::Mapping(Mapping::new()));
                    section
                        .as_mapping_mut()
                        .map(|section| section.insert(name.into(), value));
                }
            }
        }
        root.serialize(serializer)
    }
}

impl<'de> serde::Deserialize<'de> for Config {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut config = Self::default();
        let problems = yaml::apply_value(&mut config, &Value::deserialize(deserializer)?);
        match problems.first() {
            None => Ok(config),
            Some(problem) => Err(serde::de::Error::custom(problem)),
        }
    }
}

fn auto<T>(text: &str, parse: impl FnOnce(&str) -> Result<T, String>) -> Result<Option<T>, String> {
    if text == "auto" {
        Ok(None)
    } else {
        parse(text)
            .map(Some)
            .map_err(|rule| format!("{rule}, or auto"))
    }
}

fn number<T: FromStr + PartialOrd + Display>(
    text: &str,
    range: RangeInclusive<T>,
) -> Result<T, String> {
    let parsed = text.parse().ok().filter(|number| range.contains(number));
    parsed.ok_or_else(|| format!("must be a number from {} to {}", range.start(), range.end()))
}

fn boolean(text: &str) -> Result<bool, String> {
    text.parse().map_err(|_| "must be true or false".to_owned())
}

fn choice<T: Copy>(text: &str, choices: &[(&str, T)]) -> Result<T, String> {
    let names: Vec<&str> = choices.iter().map(|(name, _)| *name).collect();
    choices
        .iter()
        .find(|(name, _)| *name == text)
        .map(|(_, value)| *value)
        .ok_or_else(|| format!("must be {}", names.join(" or ")))
}

fn driver_name(text: &str) -> Result<String, String> {
    let fits = !text.is_empty()
        && text
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
    if fits {
        Ok(text.to_owned())
    } else {
        Err("must be a name in lower case, such as vxlan".to_owned())
    }
}

fn device(text: &str) -> Result<String, String> {
    let fits = !text.is_empty()
        && text.len() <= MAX_DEVICE_NAME
        && !text.contains(|c: char| c == '/' || c.is_whitespace());
    if fits && text != "." && text != ".." {
        Ok(text.to_owned())
    } else {
        Err("must be the name of a network device".to_owned())
    }
}

fn gateway(text: &str) -> Result<Option<GatewayName>, String> {
    if text.is_empty() {
        return Ok(None);
    }
    match spec::parse_name("", text) {
        Ok(()) => Ok(Some(GatewayName::from(text))),
        Err(problem) => Err(problem.rule),
    }
}

fn overlay(text: &str, family: Family) -> Result<Option<IpNet>, String> {
    if text.is_empty() {
        return Ok(None);
    }
    let net = spec::parse_network("", text, Some(family)).map_err(|problem| problem.rule)?;
    // The network's own address and the last one are never given out: two bits leave two addresses.
    if net.prefix_len() + 2 > family.bits() {
        return Err(format!(
            "must have a prefix of at most {} bits: nodes need addresses",
            family.bits() - 2
        ));
    }
    Ok(Some(net))
}

fn v4(net: IpNet) -> Option<ipnet::Ipv4Net> {
    if let IpNet::V4(net) = net {
        Some(net)
    } else {
        None
    }
}

fn v6(net: IpNet) -> Option<ipnet::Ipv6Net> {
    if let IpNet::V6(net) = net {
        Some(net)
    } else {
        None
    }
}

fn networks(text: &str) -> Result<Vec<IpNet>, String> {
    let entries = text
        .split(',')
        .map(str::trim)
        .filter(|entry| !entry.is_empty());
    entries
        .map(|entry| {
            spec::parse_network("", entry, None)
                .map_err(|problem| format!("{} ({entry})", problem.rule))
        })
        .collect()
}

fn mask(text: &str) -> Result<MarkMask, String> {
    let bits = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(digits) if digits.bytes().all(|byte| byte.is_ascii_hexdigit()) => {
            u32::from_str_radix(digits, 16).ok()
        }
        Some(_) => None,
        None => text.parse().ok(),
    };
    bits.and_then(|bits| MarkMask::new(bits).ok())
        .ok_or_else(|| "must be eight adjacent bits, such as 0xff000000".to_owned())
}

fn file(text: &str) -> Result<Option<PathBuf>, String> {
    let path = PathBuf::from(text);
    let fits = path.is_absolute()
        && path.file_name().is_some()
        && !text.ends_with('/')
        && !text.contains('\0');
    if text.is_empty() {
        Ok(None)
    } else {
        fits.then_some(Some(path))
            .ok_or_else(|| "must be the absolute path of a file".to_owned())
    }
}

/// Statuses have whole seconds.
fn grace(text: &str) -> Result<Duration, String> {
    let whole = |grace: &Duration| grace.subsec_nanos() == 0 && *grace <= MAX_GRACE;
    let parsed = humantime::parse_duration(text).ok().filter(whole);
    parsed
        .ok_or_else(|| "must be a duration in whole seconds from 0s to 1d, such as 60s".to_owned())
}

fn duration(text: &str) -> Result<Duration, String> {
    let range = Duration::from_millis(10)..=Duration::from_secs(60);
    let parsed = humantime::parse_duration(text)
        .ok()
        .filter(|duration| range.contains(duration));
    parsed.ok_or_else(|| "must be a duration from 10ms to 1m, such as 150ms".to_owned())
}
