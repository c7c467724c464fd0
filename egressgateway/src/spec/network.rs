use std::net::IpAddr;

use ipnet::IpNet;

use super::Problem;
use crate::model::{Family, IpRange};

/// A canonical CIDR of `family` (of either where none is given).
///
/// # Errors
/// When the text is no CIDR, has host bits set, or is of the other family.
pub fn parse_network(field: &str, text: &str, family: Option<Family>) -> Result<IpNet, Problem> {
    let net: IpNet = text.parse().map_err(|_| {
        Problem::new(
            field,
            text,
            "must be a CIDR, such as 10.6.1.0/24 or fd00:6::/64",
        )
    })?;
    if net.trunc() != net {
        return Err(Problem::new(
            field,
            text,
            format!("must have its host bits zero: {}", net.trunc()),
        ));
    }
    check_family(field, text, net.addr(), family)?;
    Ok(net)
}

/// An address of `family` (of either where none is given).
///
/// # Errors
/// When the text is no address or one of the other family.
pub fn parse_address(field: &str, text: &str, family: Option<Family>) -> Result<IpAddr, Problem> {
    let address = text
        .parse()
        .map_err(|_| Problem::new(field, text, "must be an IP address"))?;
    check_family(field, text, address, family)?;
    Ok(address)
}

/// An entry of a pool: an address, a CIDR or a range `first-last`, of addresses that a host can
/// have on a network.
///
/// # Errors
/// When the text is none of these, or of the other family, or some of the addresses mean something
/// else.
pub fn parse_pool_entry(field: &str, text: &str, family: Family) -> Result<IpRange, Problem> {
    let range = parse_range(field, text, family)?;
    let reserved = RESERVED.iter().filter_map(|(network, meaning)| {
        Some((IpRange::from(network.parse::<IpNet>().ok()?), meaning))
    });
    match reserved
        .into_iter()
        .find(|(reserved, _)| reserved.overlaps(&range))
    {
        Some((_, meaning)) => Err(Problem::new(
            field,
            text,
            format!("must be unicast addresses of a network: no {meaning}"),
        )),
        None => Ok(range),
    }
}

/// Addresses that no host can have on a network (RFC 6890, RFC 5771, RFC 4291), or that mean
/// another thing on every link.
const RESERVED: [(&str, &str); 7] = [
    ("0.0.0.0/8", "unspecified address"),
    ("127.0.0.0/8", "loopback address"),
    ("224.0.0.0/4", "multicast address"),
    ("255.255.255.255/32", "broadcast address"),
    ("::/127", "unspecified or loopback address"),
    ("fe80::/10", "link-local address"),
    ("ff00::/8", "multicast address"),
];

fn parse_range(field: &str, text: &str, family: Family) -> Result<IpRange, Problem> {
    if text.contains('/') {
        return parse_network(field, text, Some(family)).map(IpRange::from);
    }
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let rule = "must be an address, a CIDR or a range first-last";
    let address = |part: &str| {
        part.trim()
            .parse::<IpAddr>()
            .map_err(|_| Problem::new(field, text, rule))
    };
    let (first, last) = (address(first)?, address(last)?);
    check_family(field, text, first, Some(family))?;
    IpRange::new(first, last).ok_or_else(|| {
        Problem::new(
            field,
            text,
            "must be a range of one family whose first address is not behind its last",
        )
    })
}

fn check_family(
    field: &str,
    text: &str,
    address: IpAddr,
    family: Option<Family>,
) -> Result<(), Problem> {
    match family {
        Some(family) if family != Family::of(address) => {
            Err(Problem::new(field, text, format!("must be {family}")))
        }
        _ => Ok(()),
    }
}
