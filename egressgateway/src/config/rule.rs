//! The rules of values: how each is read from text, and how it stands in a file.

use std::{
    fmt::Display, marker::PhantomData, ops::RangeInclusive, path::PathBuf, str::FromStr,
    time::Duration,
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde_json::Value;

use crate::{
    model::{Family, GatewayName, MarkMask},
    spec,
};

/// Longest name of a device: IFNAMSIZ less its final zero.
const MAX_DEVICE_NAME: usize = 15;
/// How often gateways are probed at most: a shorter time finds none sooner, and costs.
const SHORTEST_INTERVAL: Duration = Duration::from_millis(10);
/// How rarely they are probed at least.
const LONGEST_INTERVAL: Duration = Duration::from_secs(60);
/// Who has connections for longer than a day drains at another time.
const LONGEST_GRACE: Duration = Duration::from_secs(24 * 60 * 60);

/// The rule that values of a field keep.
pub(super) trait Rule {
    /// What a text becomes.
    type Of;

    /// The value that a text says, or the rule that the text breaks.
    fn parse(&self, text: &str) -> Result<Self::Of, String>;

    /// The value as it stands in a file.
    fn print(&self, value: &Self::Of) -> Value;

    /// Whether a file has a list here, whose entries text separates by commas.
    fn is_list(&self) -> bool {
        false
    }
}

/// A field that has its own value where nobody chooses one.
pub(super) struct Auto<R>(pub(super) R);

impl<R: Rule> Rule for Auto<R> {
    type Of = Option<R::Of>;

    fn parse(&self, text: &str) -> Result<Self::Of, String> {
        if text == "auto" {
            return Ok(None);
        }
        let parsed = self.0.parse(text).map(Some);
        parsed.map_err(|rule| format!("{rule}, or auto"))
    }

    fn print(&self, value: &Self::Of) -> Value {
        value
            .as_ref()
            .map_or_else(|| "auto".into(), |value| self.0.print(value))
    }
}

pub(super) struct Number<T>(pub(super) RangeInclusive<T>);

impl<T: Copy + Display + FromStr + Into<Value> + PartialOrd> Rule for Number<T> {
    type Of = T;

    fn parse(&self, text: &str) -> Result<T, String> {
        let Self(range) = self;
        let parsed = text.parse().ok().filter(|number| range.contains(number));
        parsed.ok_or_else(|| format!("must be a number from {} to {}", range.start(), range.end()))
    }

    fn print(&self, value: &T) -> Value {
        (*value).into()
    }
}

pub(super) struct Boolean;

impl Rule for Boolean {
    type Of = bool;

    fn parse(&self, text: &str) -> Result<bool, String> {
        text.parse().map_err(|_| "must be true or false".to_owned())
    }

    fn print(&self, value: &bool) -> Value {
        (*value).into()
    }
}

/// One of a few values, by name.
pub(super) struct Choice<T: 'static>(pub(super) &'static [(&'static str, T)]);

impl<T: Copy + PartialEq> Rule for Choice<T> {
    type Of = T;

    fn parse(&self, text: &str) -> Result<T, String> {
        let chosen = self.0.iter().find(|(name, _)| *name == text);
        chosen.map(|(_, value)| *value).ok_or_else(|| {
            let names: Vec<&str> = self.0.iter().map(|(name, _)| *name).collect();
            format!("must be {}", names.join(" or "))
        })
    }

    fn print(&self, value: &T) -> Value {
        let name = self.0.iter().find(|(_, choice)| choice == value);
        name.map(|(name, _)| *name).into()
    }
}

pub(super) struct DriverName;

impl Rule for DriverName {
    type Of = String;

    fn parse(&self, text: &str) -> Result<String, String> {
        let fits = !text.is_empty()
            && text
                .bytes()
                .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
        fits.then(|| text.to_owned())
            .ok_or_else(|| "must be a name in lower case, such as vxlan".to_owned())
    }

    fn print(&self, value: &String) -> Value {
        value.as_str().into()
    }
}

pub(super) struct DeviceName;

impl Rule for DeviceName {
    type Of = String;

    fn parse(&self, text: &str) -> Result<String, String> {
        let fits = !text.is_empty()
            && text.len() <= MAX_DEVICE_NAME
            && !text.contains(|c: char| c == '/' || c.is_whitespace())
            && text != "."
            && text != "..";
        fits.then(|| text.to_owned())
            .ok_or_else(|| "must be the name of a network device".to_owned())
    }

    fn print(&self, value: &String) -> Value {
        value.as_str().into()
    }
}

pub(super) struct GatewayOrNone;

impl Rule for GatewayOrNone {
    type Of = Option<GatewayName>;

    fn parse(&self, text: &str) -> Result<Self::Of, String> {
        if text.is_empty() {
            return Ok(None);
        }
        spec::parse_name("", text).map_err(|problem| problem.rule)?;
        Ok(Some(GatewayName::from(text)))
    }

    fn print(&self, value: &Self::Of) -> Value {
        or_empty(value.as_ref())
    }
}

/// A network of the tunnel, of one family.
pub(super) struct Overlay<N>(PhantomData<N>);

impl<N> Overlay<N> {
    pub(super) const fn new() -> Self {
        Self(PhantomData)
    }
}

/// A network of one family.
pub(super) trait FamilyNet: Display + Sized {
    const FAMILY: Family;

    fn of(net: IpNet) -> Option<Self>;
}

impl FamilyNet for Ipv4Net {
    const FAMILY: Family = Family::V4;

    fn of(net: IpNet) -> Option<Self> {
        match net {
            IpNet::V4(net) => Some(net),
            IpNet::V6(_) => None,
        }
    }
}

impl FamilyNet for Ipv6Net {
    const FAMILY: Family = Family::V6;

    fn of(net: IpNet) -> Option<Self> {
        match net {
            IpNet::V6(net) => Some(net),
            IpNet::V4(_) => None,
        }
    }
}

impl<N: FamilyNet> Rule for Overlay<N> {
    type Of = Option<N>;

    fn parse(&self, text: &str) -> Result<Option<N>, String> {
        if text.is_empty() {
            return Ok(None);
        }
        let net = spec::parse_network("", text, Some(N::FAMILY)).map_err(|problem| problem.rule)?;
        // The network's own address and the last one are never given out: two bits leave two
        // addresses.
        let longest = N::FAMILY.bits() - 2;
        if net.prefix_len() > longest {
            return Err(format!(
                "must have a prefix of at most {longest} bits: nodes need addresses"
            ));
        }
        Ok(N::of(net))
    }

    fn print(&self, value: &Option<N>) -> Value {
        or_empty(value.as_ref())
    }
}

/// Networks: a list in a file, separated by commas elsewhere.
pub(super) struct Networks;

impl Rule for Networks {
    type Of = Vec<IpNet>;

    fn parse(&self, text: &str) -> Result<Vec<IpNet>, String> {
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

    fn print(&self, value: &Vec<IpNet>) -> Value {
        value.iter().map(ToString::to_string).collect()
    }

    fn is_list(&self) -> bool {
        true
    }
}

pub(super) struct Mask;

impl Rule for Mask {
    type Of = MarkMask;

    fn parse(&self, text: &str) -> Result<MarkMask, String> {
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

    fn print(&self, value: &MarkMask) -> Value {
        value.to_string().into()
    }
}

pub(super) struct FilePath;

impl Rule for FilePath {
    type Of = Option<PathBuf>;

    fn parse(&self, text: &str) -> Result<Self::Of, String> {
        if text.is_empty() {
            return Ok(None);
        }
        let path = PathBuf::from(text);
        let fits = path.is_absolute()
            && path.file_name().is_some()
            && !text.ends_with('/')
            && !text.contains('\0');
        fits.then_some(Some(path))
            .ok_or_else(|| "must be the absolute path of a file".to_owned())
    }

    fn print(&self, value: &Self::Of) -> Value {
        or_empty(value.as_ref().map(|path| path.display()))
    }
}

/// Time between two probes.
pub(super) struct Interval;

impl Rule for Interval {
    type Of = Duration;

    fn parse(&self, text: &str) -> Result<Duration, String> {
        let range = SHORTEST_INTERVAL..=LONGEST_INTERVAL;
        let parsed = humantime::parse_duration(text)
            .ok()
            .filter(|duration| range.contains(duration));
        parsed.ok_or_else(|| "must be a duration from 10ms to 1m, such as 150ms".to_owned())
    }

    fn print(&self, value: &Duration) -> Value {
        humantime::format_duration(*value).to_string().into()
    }
}

/// A time that may be none, as statuses have it.
pub(super) struct WholeSeconds;

impl Rule for WholeSeconds {
    type Of = Duration;

    fn parse(&self, text: &str) -> Result<Duration, String> {
        let parsed = humantime::parse_duration(text)
            .ok()
            .filter(|duration| duration.subsec_nanos() == 0 && *duration <= LONGEST_GRACE);
        parsed.ok_or_else(|| {
            "must be a duration in whole seconds from 0s to 1d, such as 60s".to_owned()
        })
    }

    fn print(&self, value: &Duration) -> Value {
        humantime::format_duration(*value).to_string().into()
    }
}

fn or_empty(value: Option<impl Display>) -> Value {
    value
        .map(|value| value.to_string())
        .unwrap_or_default()
        .into()
}
