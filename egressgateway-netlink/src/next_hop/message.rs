//! rtnetlink's messages about next hop objects, which the packet crate does not have
//! (`linux/nexthop.h`).

use std::net::IpAddr;

use egressgateway::model::Family;
use netlink_packet_core::{
    DecodeError, DefaultNla, Emitable as _, NLA_F_NESTED, NLA_TYPE_MASK, NetlinkDeserializable,
    NetlinkHeader, NetlinkPayload, NetlinkSerializable, NlasIterator,
};

use crate::family::{address_family, family_of};

/// What a message is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// An object is to be made, or is there.
    New,
    /// An object is to go.
    Delete,
    /// Which objects are there?
    Get,
    /// What is in a bucket of a resilient group?
    GetBucket,
    /// Something else, such as what is in a bucket.
    Other(u16),
}

// `RTM_*` of `linux/rtnetlink.h`.
const RTM_NEWNEXTHOP: u16 = 104;
const RTM_DELNEXTHOP: u16 = 105;
const RTM_GETNEXTHOP: u16 = 106;
const RTM_GETNEXTHOPBUCKET: u16 = 118;

// `NHA_*`: attributes.
const NHA_ID: u16 = 1;
const NHA_GROUP: u16 = 2;
const NHA_GROUP_TYPE: u16 = 3;
const NHA_OIF: u16 = 5;
const NHA_GATEWAY: u16 = 6;
const NHA_ENCAP_TYPE: u16 = 7;
const NHA_ENCAP: u16 = 8;
const NHA_RES_GROUP: u16 = 12;
const NHA_RES_BUCKET: u16 = 13;

// `NHA_RES_GROUP_*`, inside of that attribute.
const NHA_RES_GROUP_BUCKETS: u16 = 1;
const NHA_RES_GROUP_IDLE_TIMER: u16 = 2;
const NHA_RES_GROUP_UNBALANCED_TIMER: u16 = 3;

/// `NHA_RES_BUCKET_INDEX`, inside of that attribute.
const NHA_RES_BUCKET_INDEX: u16 = 1;

/// Bytes of `struct nhmsg`: family, scope, protocol, a reserved byte, and 32 bits of flags.
const HEADER: usize = 8;
/// Bytes of `struct nexthop_grp`: a number, and a weight less one in the byte after it.
const MEMBER: usize = 8;
/// `RTNH_F_ONLINK`: the gateway is a neighbour, whatever the routes say.
const ONLINK: u32 = 4;

impl Kind {
    const fn number(self) -> u16 {
        match self {
            Self::New => RTM_NEWNEXTHOP,
            Self::Delete => RTM_DELNEXTHOP,
            Self::Get => RTM_GETNEXTHOP,
            Self::GetBucket => RTM_GETNEXTHOPBUCKET,
            Self::Other(number) => number,
        }
    }

    const fn of(number: u16) -> Self {
        match number {
            RTM_NEWNEXTHOP => Self::New,
            RTM_DELNEXTHOP => Self::Delete,
            RTM_GETNEXTHOP => Self::Get,
            RTM_GETNEXTHOPBUCKET => Self::GetBucket,
            other => Self::Other(other),
        }
    }
}

/// A message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NextHopMessage {
    pub(crate) kind: Kind,
    pub(crate) parts: Parts,
}

/// What a message says, as far as it matters here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Parts {
    /// None for a group.
    pub(crate) family: Option<Family>,
    pub(crate) protocol: u8,
    pub(crate) onlink: bool,
    pub(crate) id: Option<u32>,
    /// Numbers and weights of a group's members.
    pub(crate) group: Vec<(u32, u16)>,
    pub(crate) group_type: Option<u16>,
    pub(crate) resilience: Option<Resilience>,
    pub(crate) device: Option<u32>,
    pub(crate) gateway: Option<IpAddr>,
    /// Type and attributes of a lightweight tunnel, as a route has them.
    pub(crate) encap: Option<(Vec<u8>, Vec<u8>)>,
    /// Number of a bucket.
    pub(crate) bucket: Option<u16>,
}

/// What makes a group resilient; times are in `USER_HZ`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Resilience {
    pub(crate) buckets: u16,
    /// A bucket that was not used for so long may go to another member.
    pub(crate) idle: u32,
    /// A bucket goes to another member, used or not, when the buckets have been dealt out unevenly
    /// for so long; 0: never.
    pub(crate) unbalanced: u32,
}

impl NextHopMessage {
    pub(crate) fn new(kind: Kind, parts: Parts) -> Self {
        Self { kind, parts }
    }
}

impl Parts {
    fn attributes(&self) -> Vec<DefaultNla> {
        let mut attributes = Vec::new();
        let mut add = |kind, value: Vec<u8>| attributes.push(DefaultNla::new(kind, value));
        if let Some(id) = self.id {
            add(NHA_ID, id.to_ne_bytes().into());
        }
        if !self.group.is_empty() {
            add(
                NHA_GROUP,
                self.group
                    .iter()
                    .flat_map(|(id, weight)| member(*id, *weight))
                    .collect(),
            );
        }
        if let Some(number) = self.group_type {
            add(NHA_GROUP_TYPE, number.to_ne_bytes().into());
        }
        if let Some(resilience) = self.resilience {
            add(
                NHA_RES_GROUP | NLA_F_NESTED,
                nested(&resilience.attributes()),
            );
        }
        if let Some(index) = self.device {
            add(NHA_OIF, index.to_ne_bytes().into());
        }
        match self.gateway {
            Some(IpAddr::V4(address)) => add(NHA_GATEWAY, address.octets().into()),
            Some(IpAddr::V6(address)) => add(NHA_GATEWAY, address.octets().into()),
            None => {}
        }
        if let Some((kind, parts)) = &self.encap {
            add(NHA_ENCAP_TYPE, kind.clone());
            add(NHA_ENCAP | NLA_F_NESTED, parts.clone());
        }
        if let Some(bucket) = self.bucket {
            let index = DefaultNla::new(NHA_RES_BUCKET_INDEX, bucket.to_ne_bytes().into());
            add(NHA_RES_BUCKET | NLA_F_NESTED, nested(&[index]));
        }
        attributes
    }

    fn take(&mut self, kind: u16, value: &[u8]) {
        match kind {
            NHA_ID => self.id = u32_of(value),
            NHA_GROUP => {
                self.group = value
                    .chunks_exact(MEMBER)
                    .filter_map(parse_member)
                    .collect();
            }
            NHA_GROUP_TYPE => self.group_type = u16_of(value),
            NHA_RES_GROUP => self.resilience = Some(Resilience::parse(value)),
            NHA_OIF => self.device = u32_of(value),
            NHA_GATEWAY => self.gateway = address(value),
            NHA_ENCAP_TYPE => self.encap.get_or_insert_default().0 = value.to_vec(),
            NHA_ENCAP => self.encap.get_or_insert_default().1 = value.to_vec(),
            _ => {}
        }
    }
}

impl Resilience {
    fn attributes(self) -> [DefaultNla; 3] {
        [
            DefaultNla::new(NHA_RES_GROUP_BUCKETS, self.buckets.to_ne_bytes().into()),
            DefaultNla::new(NHA_RES_GROUP_IDLE_TIMER, self.idle.to_ne_bytes().into()),
            DefaultNla::new(
                NHA_RES_GROUP_UNBALANCED_TIMER,
                self.unbalanced.to_ne_bytes().into(),
            ),
        ]
    }

    fn parse(bytes: &[u8]) -> Self {
        let mut parsed = Self::default();
        for (kind, value) in attributes(bytes) {
            match kind {
                NHA_RES_GROUP_BUCKETS => parsed.buckets = u16_of(value).unwrap_or_default(),
                NHA_RES_GROUP_IDLE_TIMER => parsed.idle = u32_of(value).unwrap_or_default(),
                NHA_RES_GROUP_UNBALANCED_TIMER => {
                    parsed.unbalanced = u32_of(value).unwrap_or_default();
                }
                _ => {}
            }
        }
        parsed
    }
}

impl From<NextHopMessage> for NetlinkPayload<NextHopMessage> {
    fn from(message: NextHopMessage) -> Self {
        Self::InnerMessage(message)
    }
}

impl NetlinkSerializable for NextHopMessage {
    fn message_type(&self) -> u16 {
        self.kind.number()
    }

    fn buffer_len(&self) -> usize {
        HEADER + self.parts.attributes().as_slice().buffer_len()
    }

    fn serialize(&self, buffer: &mut [u8]) {
        let (header, rest) = buffer.split_at_mut(HEADER);
        let flags = if self.parts.onlink { ONLINK } else { 0 };
        header.fill(0);
        header[0] = self
            .parts
            .family
            .map_or(0, |family| u8::from(address_family(family)));
        header[2] = self.parts.protocol;
        header[4..].copy_from_slice(&flags.to_ne_bytes());
        self.parts.attributes().as_slice().emit(rest);
    }
}

impl NetlinkDeserializable for NextHopMessage {
    type Error = DecodeError;

    fn deserialize(header: &NetlinkHeader, payload: &[u8]) -> Result<Self, DecodeError> {
        let kind = Kind::of(header.message_type);
        let mut parts = Parts::default();
        if let Kind::Other(_) = kind {
            return Ok(Self { kind, parts });
        }
        let (head, rest) = payload
            .split_at_checked(HEADER)
            .ok_or_else(|| DecodeError::from("a next hop's header is cut off"))?;
        parts.family = family_of(head[0].into());
        parts.protocol = head[2];
        parts.onlink = u32_of(&head[4..]).is_some_and(|flags| flags & ONLINK != 0);
        for (kind, value) in attributes(rest) {
            parts.take(kind, value);
        }
        Ok(Self { kind, parts })
    }
}

/// Numbers and values of attributes, up to the first that is cut off.
pub(super) fn attributes(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    NlasIterator::new(bytes)
        .map_while(Result::ok)
        .map(|attribute| {
            (
                attribute.kind() & NLA_TYPE_MASK,
                value(attribute.into_inner()),
            )
        })
}

/// What comes after an attribute's own header, without what fills it up.
fn value(attribute: &[u8]) -> &[u8] {
    const NLA_HEADER: usize = 4;
    let length = attribute.get(..2).and_then(u16_of).map_or(0, usize::from);
    attribute.get(NLA_HEADER..length).unwrap_or_default()
}

fn nested(attributes: &[DefaultNla]) -> Vec<u8> {
    let mut bytes = vec![0; attributes.buffer_len()];
    attributes.emit(&mut bytes);
    bytes
}

fn member(id: u32, weight: u16) -> [u8; MEMBER] {
    let mut bytes = [0; MEMBER];
    bytes[..4].copy_from_slice(&id.to_ne_bytes());
    let [low, high] = weight.saturating_sub(1).to_le_bytes();
    (bytes[4], bytes[5]) = (low, high);
    bytes
}

fn parse_member(bytes: &[u8]) -> Option<(u32, u16)> {
    let weight = u16::from_le_bytes([*bytes.get(4)?, *bytes.get(5)?]);
    Some((u32_of(bytes.get(..4)?)?, weight.saturating_add(1)))
}

fn u32_of(bytes: &[u8]) -> Option<u32> {
    bytes.try_into().ok().map(u32::from_ne_bytes)
}

fn u16_of(bytes: &[u8]) -> Option<u16> {
    bytes.try_into().ok().map(u16::from_ne_bytes)
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    v4.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from))
        .ok()
}

/// For fuzz targets: the message of this type that a body holds, which is the same when it is
/// written and read again.
pub(super) fn fuzz(kind: u16, body: &[u8]) -> Option<NextHopMessage> {
    let mut header = NetlinkHeader::default();
    header.message_type = kind;
    let read = NextHopMessage::deserialize(&header, body).ok()?;
    let mut written = vec![0; read.buffer_len()];
    read.serialize(&mut written);
    let again = NextHopMessage::deserialize(&header, &written).ok();
    assert_eq!(again.as_ref(), Some(&read), "read, written and read again");
    Some(read)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(kind: Kind) -> NetlinkHeader {
        let mut header = NetlinkHeader::default();
        header.message_type = kind.number();
        header
    }

    fn bytes(message: &NextHopMessage) -> Vec<u8> {
        let mut bytes = vec![0xff; message.buffer_len()];
        message.serialize(&mut bytes);
        bytes
    }

    #[test]
    fn messages_are_read_as_they_were_written() {
        let hop = Parts {
            family: Some(Family::V6),
            protocol: 77,
            onlink: true,
            id: Some(1_600_000_000),
            device: Some(7),
            gateway: Some("fd31::11".parse().unwrap()),
            encap: Some((vec![4, 0], vec![8, 0, 1, 0, 1, 2, 3, 4])),
            ..Parts::default()
        };
        let group = Parts {
            protocol: 77,
            id: Some(5),
            group: vec![(1, 1), (2, 256)],
            group_type: Some(1),
            resilience: Some(Resilience {
                buckets: 4096,
                idle: 30_000,
                unbalanced: 9,
            }),
            ..Parts::default()
        };
        for parts in [hop, group] {
            let message = NextHopMessage::new(Kind::New, parts);
            assert_eq!(
                NextHopMessage::deserialize(&header(Kind::New), &bytes(&message)).unwrap(),
                message
            );
        }
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn the_bytes_are_the_kernels() {
        let parts = Parts {
            protocol: 77,
            id: Some(5),
            group: vec![(1, 1), (2, 3)],
            group_type: Some(1),
            ..Parts::default()
        };
        let expected = [
            &[0, 0, 77, 0, 0, 0, 0, 0][..], // struct nhmsg
            &[8, 0, 1, 0, 5, 0, 0, 0],      // NHA_ID
            &[20, 0, 2, 0, 1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 2, 0, 0, 0], // NHA_GROUP
            &[6, 0, 3, 0, 1, 0, 0, 0],      // NHA_GROUP_TYPE
        ];
        assert_eq!(
            bytes(&NextHopMessage::new(Kind::New, parts)),
            expected.concat()
        );
    }

    #[test]
    fn what_is_cut_off_or_strange_is_no_panic() {
        let parts = Parts {
            id: Some(5),
            group: vec![(1, 1)],
            resilience: Some(Resilience::default()),
            ..Parts::default()
        };
        let whole = bytes(&NextHopMessage::new(Kind::New, parts));
        for length in 0..whole.len() {
            let read = NextHopMessage::deserialize(&header(Kind::New), &whole[..length]);
            assert_eq!(read.is_ok(), length >= HEADER, "{length}");
        }
        assert!(NextHopMessage::deserialize(&header(Kind::Other(116)), &[]).is_ok());
    }
}
