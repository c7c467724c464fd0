//! ipset messages, there and back.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use egressgateway::model::Family;
use ipnet::IpNet;

use super::constants::{
    AF_INET, AF_INET6, ATTR_ADT, ATTR_CADT_FLAGS, ATTR_CIDR, ATTR_DATA, ATTR_FAMILY, ATTR_IP,
    ATTR_IPADDR_IPV4, ATTR_IPADDR_IPV6, ATTR_LINENO, ATTR_MAXELEM, ATTR_PROTOCOL, ATTR_REVISION,
    ATTR_SETNAME, ATTR_SETNAME2, ATTR_SKBMARK, ATTR_TIMEOUT, ATTR_TYPENAME, FLAG_NOMATCH,
    FLAG_SKBINFO, NLA_F_NESTED, NLA_F_NET_BYTEORDER, NLA_TYPE_MASK, NLM_F_ACK, NLM_F_REQUEST,
    PROTOCOL, SUBSYSTEM,
};
use crate::sets::set::{Entry, Kind, MAX_ELEMENTS, Shape};

/// Length of a netlink header.
pub(super) const HEADER: usize = 16;
/// Length of `struct nfgenmsg`, which follows it.
pub(super) const GENERIC: usize = 4;

/// A request that is being written.
pub(super) struct Request(Vec<u8>);

impl Request {
    pub(super) fn new(command: u8, flags: u16) -> Self {
        let mut bytes = vec![0; HEADER + GENERIC];
        bytes[4..6]
            .copy_from_slice(&(u16::from(SUBSYSTEM) << 8 | u16::from(command)).to_ne_bytes());
        bytes[6..8].copy_from_slice(&(NLM_F_REQUEST | NLM_F_ACK | flags).to_ne_bytes());
        bytes[HEADER] = AF_INET;
        let mut request = Self(bytes);
        request.put(ATTR_PROTOCOL, &[PROTOCOL]);
        request
    }

    fn put(&mut self, kind: u16, value: &[u8]) {
        let length = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
        self.0.extend(length.to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }

    fn number(&mut self, kind: u16, value: u32) {
        self.put(kind | NLA_F_NET_BYTEORDER, &value.to_be_bytes());
    }

    fn nested(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) {
        let begin = self.0.len();
        self.put(kind | NLA_F_NESTED, &[]);
        fill(self);
        let length = u16::try_from(self.0.len() - begin).unwrap_or(u16::MAX);
        self.0[begin..begin + 2].copy_from_slice(&length.to_ne_bytes());
    }

    fn text(&mut self, kind: u16, text: &str) {
        self.put(kind, &[text.as_bytes(), &[0]].concat());
    }

    pub(super) fn set(mut self, name: &str) -> Self {
        self.text(ATTR_SETNAME, name);
        self
    }

    /// The other set of a swap.
    pub(super) fn second(mut self, name: &str) -> Self {
        self.text(ATTR_SETNAME2, name);
        self
    }

    /// A set's type and what it is made with.
    pub(super) fn shape(mut self, shape: Shape) -> Self {
        self.kind_of(shape.kind, shape.family);
        self.put(ATTR_REVISION, &[shape.kind.revision()]);
        self.nested(ATTR_DATA, |data| {
            data.number(ATTR_MAXELEM, MAX_ELEMENTS);
            if shape.marked {
                data.number(ATTR_CADT_FLAGS, FLAG_SKBINFO);
            }
        });
        self
    }

    pub(super) fn kind(mut self, kind: Kind, family: Family) -> Self {
        self.kind_of(kind, family);
        self
    }

    fn kind_of(&mut self, kind: Kind, family: Family) {
        self.text(ATTR_TYPENAME, kind.name());
        self.put(
            ATTR_FAMILY,
            &[if family == Family::V4 {
                AF_INET
            } else {
                AF_INET6
            }],
        );
    }

    /// Entries of a set of this kind; the kernel says the number of the one that it refuses,
    /// counted from 1.
    pub(super) fn entries(
        mut self,
        kind: Kind,
        entries: &[(IpNet, Entry)],
        with_marks: bool,
    ) -> Self {
        self.number(ATTR_LINENO, 0);
        self.nested(ATTR_ADT, |all| {
            for ((net, entry), line) in entries.iter().zip(1..) {
                all.nested(ATTR_DATA, |data| {
                    data.entry(
                        kind,
                        *net,
                        if with_marks { *entry } else { Entry::In },
                        line,
                    );
                });
            }
        });
        self
    }

    fn entry(&mut self, kind: Kind, net: IpNet, entry: Entry, line: u32) {
        self.nested(ATTR_IP, |ip| match net.addr() {
            IpAddr::V4(address) => {
                ip.put(ATTR_IPADDR_IPV4 | NLA_F_NET_BYTEORDER, &address.octets());
            }
            IpAddr::V6(address) => {
                ip.put(ATTR_IPADDR_IPV6 | NLA_F_NET_BYTEORDER, &address.octets());
            }
        });
        if kind == Kind::Networks {
            self.put(ATTR_CIDR, &[net.prefix_len()]);
        }
        match entry {
            Entry::In => {}
            Entry::Out => self.number(ATTR_CADT_FLAGS, FLAG_NOMATCH),
            Entry::Mark { value, mask } => {
                let both = u64::from(value) << 32 | u64::from(mask);
                self.put(ATTR_SKBMARK | NLA_F_NET_BYTEORDER, &both.to_be_bytes());
            }
        }
        self.number(ATTR_LINENO, line);
    }

    /// The finished message.
    pub(super) fn finish(mut self, sequence: u32) -> Vec<u8> {
        let length = u32::try_from(self.0.len()).unwrap_or(u32::MAX);
        self.0[0..4].copy_from_slice(&length.to_ne_bytes());
        self.0[8..12].copy_from_slice(&sequence.to_ne_bytes());
        self.0
    }
}

/// One message of an answer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Answer<'a> {
    pub(super) kind: u16,
    pub(super) sequence: u32,
    /// What follows the netlink header.
    pub(super) body: &'a [u8],
}

/// The messages of a datagram.
pub(super) fn answers(datagram: &[u8]) -> impl Iterator<Item = Answer<'_>> {
    let mut rest = datagram;
    std::iter::from_fn(move || {
        let length = usize::try_from(u32_at(rest, 0)?).ok()?;
        let answer = Answer {
            kind: u16_at(rest, 4)?,
            sequence: u32_at(rest, 8)?,
            body: rest.get(HEADER..length)?,
        };
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(answer)
    })
}

impl Answer<'_> {
    /// The errno of an error message, positive; 0 is an acknowledgement.
    pub(super) fn errno(&self) -> i32 {
        u32_at(self.body, 0).map_or(0, |errno| errno.cast_signed().saturating_neg())
    }

    /// The number of the entry that was refused: the kernel writes it into the copy of the request
    /// that it sends back.
    pub(super) fn refused_entry(&self) -> Option<usize> {
        let request = self.body.get(4 + HEADER + GENERIC..)?;
        let line = attributes(request)
            .find(|(kind, _)| *kind == ATTR_LINENO)?
            .1;
        usize::try_from(u32::from_be_bytes(line.get(..4)?.try_into().ok()?))
            .ok()
            .filter(|line| *line > 0)
    }
}

/// What a listing says of a set: the type and the flags only in its first message.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Listed {
    pub(super) name: String,
    /// None in later messages, and where it is like none that we make.
    pub(super) shape: Option<Shape>,
    pub(super) entries: Vec<(IpNet, Entry)>,
}

/// One message of a listing; none when it is about no set that we could have made.
pub(super) fn listed(body: &[u8]) -> Option<Listed> {
    let mut listed = Listed::default();
    let (mut kind, mut family, mut marked) = (None, None, None);
    for (attribute, value) in attributes(body.get(GENERIC..)?) {
        match attribute {
            ATTR_SETNAME => text(value)?.clone_into(&mut listed.name),
            ATTR_TYPENAME => {
                kind = Kind::ALL
                    .into_iter()
                    .find(|kind| text(value) == Some(kind.name()));
            }
            ATTR_FAMILY => {
                family = value.first().map(|family| {
                    if *family == AF_INET {
                        Family::V4
                    } else {
                        Family::V6
                    }
                });
            }
            ATTR_DATA => {
                let number = |wanted| {
                    attributes(value)
                        .find(|(kind, _)| *kind == wanted)
                        .and_then(|(_, number)| be_u32(number))
                };
                marked = match (
                    number(ATTR_CADT_FLAGS).unwrap_or(0),
                    number(ATTR_MAXELEM),
                    number(ATTR_TIMEOUT),
                ) {
                    (0, Some(MAX_ELEMENTS), None) => Some(false),
                    (FLAG_SKBINFO, Some(MAX_ELEMENTS), None) => Some(true),
                    _ => None,
                };
            }
            ATTR_ADT => listed
                .entries
                .extend(attributes(value).filter_map(|(_, entry)| self::entry(entry))),
            _ => {}
        }
    }
    if let (Some(kind), Some(family), Some(marked)) = (kind, family, marked) {
        listed.shape = Some(Shape {
            kind,
            family,
            marked,
        });
    }
    Some(listed)
}

fn entry(data: &[u8]) -> Option<(IpNet, Entry)> {
    let (mut address, mut prefix, mut entry) = (None, None, Entry::In);
    for (attribute, value) in attributes(data) {
        match attribute {
            ATTR_IP => {
                address = attributes(value)
                    .next()
                    .and_then(|(_, bytes)| self::address(bytes));
            }
            ATTR_CIDR => prefix = value.first().copied(),
            ATTR_CADT_FLAGS if be_u32(value)? & FLAG_NOMATCH != 0 => entry = Entry::Out,
            ATTR_SKBMARK => {
                entry = Entry::Mark {
                    value: be_u32(value)?,
                    mask: be_u32(value.get(4..)?)?,
                }
            }
            _ => {}
        }
    }
    let address: IpAddr = address?;
    let net = IpNet::new(address, prefix.unwrap_or(Family::of(address).bits())).ok()?;
    Some((net, entry))
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => Some(Ipv4Addr::from_bits(be_u32(bytes)?).into()),
        16 => Some(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?).into()),
        _ => None,
    }
}

/// Kind and value of each attribute.
fn attributes(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let length = usize::from(u16_at(rest, 0)?);
        let attribute = (u16_at(rest, 2)? & NLA_TYPE_MASK, rest.get(4..length)?);
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(attribute)
    })
}

fn text(value: &[u8]) -> Option<&str> {
    std::str::from_utf8(value.strip_suffix(&[0]).unwrap_or(value)).ok()
}

fn be_u32(value: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(value.get(..4)?.try_into().ok()?))
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::{super::constants::CMD_CREATE, *};

    fn request() -> Vec<u8> {
        let entries = [
            ("10.0.0.0/8".parse().unwrap(), Entry::Out),
            (
                "10.1.0.0/16".parse().unwrap(),
                Entry::Mark {
                    value: 0x1100_0001,
                    mask: 0xff00_ffff,
                },
            ),
        ];
        let shape = Shape {
            kind: Kind::Networks,
            family: Family::V4,
            marked: true,
        };
        Request::new(CMD_CREATE, 0)
            .set("egw-x")
            .shape(shape)
            .entries(Kind::Networks, &entries, true)
            .finish(7)
    }

    #[test]
    fn what_is_written_is_read_again() {
        let bytes = request();
        let answer = answers(&bytes).next().unwrap();
        let listed = listed(answer.body).unwrap();
        assert_eq!((answer.sequence, listed.name.as_str()), (7, "egw-x"));
        assert_eq!(
            listed.shape,
            Some(Shape {
                kind: Kind::Networks,
                family: Family::V4,
                marked: true
            })
        );
        assert_eq!(
            listed.entries[1],
            (
                "10.1.0.0/16".parse().unwrap(),
                Entry::Mark {
                    value: 0x1100_0001,
                    mask: 0xff00_ffff
                }
            )
        );
        assert_eq!(listed.entries[0].1, Entry::Out);
    }

    #[test]
    fn whatever_a_kernel_sends_is_read_without_harm() {
        let bytes = request();
        for length in 0..bytes.len() {
            for answer in answers(&bytes[..length]) {
                let _ = (listed(answer.body), answer.errno(), answer.refused_entry());
            }
            let _ = listed(&bytes[length..]);
        }
        assert_eq!(answers(&[0; 64]).count(), 0);
        assert!(listed(&[255; 64]).is_none_or(|listed| listed.entries.is_empty()));
    }
}
