//! The table of connection tracking, over ctnetlink.

use std::{collections::BTreeSet, net::IpAddr};

use async_trait::async_trait;
use egressgateway::{
    Connection, Connections, Error, ErrorKind,
    model::{Family, MarkMask},
};
use netlink_packet_core::{DefaultNla, NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload, Nla as _};
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily,
    conntrack::{ConntrackAttribute, ConntrackMessage, IPTuple, Tuple},
};
use netlink_sys::{AsyncSocket as _, AsyncSocketExt as _, SocketAddr, TokioSocket, protocols::NETLINK_NETFILTER};

use crate::Netlink;

// `linux/netfilter/nfnetlink_conntrack.h`, where the packet crate has no name for it.
const CTA_ID: u16 = 12;
const CTA_ZONE: u16 = 18;
const CTA_MARK_MASK: u16 = 21;
/// What marks an attribute as nested or in network byte order.
const NLA_FLAGS: u16 = 0xc000;

/// What the kernel answers where it has no ctnetlink, or knows no such message.
const EINVAL: i32 = 22;
/// The connection is gone.
const ENOENT: i32 = 2;

/// Connection tracking of one network namespace.
///
/// The kernel needs `CONFIG_NF_CT_NETLINK` and `CONFIG_NF_CONNTRACK_MARK`.
#[derive(Clone, Debug)]
pub struct ConnectionTable {
    netlink: Netlink,
    mask: MarkMask,
}

impl ConnectionTable {
    /// The table of the network namespace that `netlink` speaks to, which must be the one of the threads that [`Self::forget`] is
    /// called on. Only connections without any of the bits of `mask` in their mark are looked at.
    #[must_use]
    pub fn new(netlink: Netlink, mask: MarkMask) -> Self {
        Self { netlink, mask }
    }

    /// The addresses of this host: what goes there is delivered, not forwarded.
    async fn own(&self) -> Result<BTreeSet<IpAddr>, Error> {
        Ok(self.netlink.addresses().await?.into_iter().map(|address| address.network.addr()).collect())
    }
}

#[async_trait]
impl Connections for ConnectionTable {
    async fn forget(&self, stale: &(dyn for<'a> Fn(&'a Connection) -> bool + Send + Sync)) -> Result<u64, Error> {
        let own = self.own().await?;
        let mut socket = Socket::open()?;
        let mut entries = Vec::new();
        for family in Family::ALL {
            socket
                .list(family, self.mask, |entry| {
                    let to = entry.connection.translated;
                    if !to.is_multicast() && !own.contains(&to) && stale(&entry.connection) {
                        entries.push(entry);
                    }
                })
                .await?;
        }
        let mut forgotten = 0;
        for entry in entries {
            forgotten += u64::from(socket.delete(entry).await?);
        }
        Ok(forgotten)
    }
}

/// A tracked connection, and what names it to the kernel.
struct Entry {
    connection: Connection,
    key: Vec<ConntrackAttribute>,
}

struct Socket {
    socket: TokioSocket,
    sequence: u32,
}

impl Socket {
    fn open() -> Result<Self, Error> {
        let open = || {
            let mut socket = TokioSocket::new(NETLINK_NETFILTER)?;
            socket.socket_mut().bind_auto()?;
            socket.socket_mut().connect(&SocketAddr::new(0, 0))?;
            Ok(Self { socket, sequence: 0 })
        };
        open().map_err(|error: std::io::Error| Error::from_io(error, "open a netlink socket for connection tracking"))
    }

    /// Reads all connections of a family that have none of the mask's bits in their mark, one datagram at a time: the table can be large.
    async fn list(&mut self, family: Family, mask: MarkMask, mut found: impl FnMut(Entry)) -> Result<(), Error> {
        let what = format!("list {family} connections");
        let unmarked = vec![
            ConntrackAttribute::CtaMark(0),
            ConntrackAttribute::Other(DefaultNla::new(CTA_MARK_MASK, mask.bits().to_be_bytes().into())),
        ];
        let end = self.ask(family, ConntrackMessage::Get(unmarked), NLM_F_DUMP, &what, |message| {
            if let ConntrackMessage::New(attributes) = message
                && let Some(entry) = entry(attributes)
            {
                found(entry);
            }
        });
        match end.await? {
            0 => Ok(()),
            EINVAL => {
                let context =
                    format!("{what}: the kernel has no ctnetlink with marks: CONFIG_NF_CT_NETLINK and CONFIG_NF_CONNTRACK_MARK are needed");
                Err(Error::new(ErrorKind::Unsupported, context))
            }
            errno => Err(Error::from_errno(errno, what)),
        }
    }

    /// Whether it was there to delete.
    async fn delete(&mut self, entry: Entry) -> Result<bool, Error> {
        let Connection { source, destination, .. } = entry.connection;
        let what = format!("forget the connection from {source} to {destination}");
        match self.ask(Family::of(source), ConntrackMessage::Delete(entry.key), NLM_F_ACK, &what, |_| {}).await? {
            0 => Ok(true),
            ENOENT => Ok(false),
            errno => Err(Error::from_errno(errno, what)),
        }
    }

    /// Sends a request, tells of each message that comes, and returns the number that the kernel ended with: 0 or an errno.
    async fn ask(
        &mut self,
        family: Family,
        message: ConntrackMessage,
        flags: u16,
        what: &str,
        mut heard: impl FnMut(ConntrackMessage),
    ) -> Result<i32, Error> {
        self.sequence = self.sequence.wrapping_add(1);
        let family = match family {
            Family::V4 => NetfilterProtoFamily::IPv4,
            Family::V6 => NetfilterProtoFamily::IPv6,
        };
        let mut request = NetlinkMessage::from(NetfilterMessage::new(NetfilterHeader::new(family, 0, 0), message));
        request.header.flags = NLM_F_REQUEST | flags;
        request.header.sequence_number = self.sequence;
        request.finalize();
        let mut bytes = vec![0; request.buffer_len()];
        request.serialize(&mut bytes);
        let failed = |error| Error::from_io(error, what);
        self.socket.send(&bytes).await.map_err(failed)?;
        loop {
            let (datagram, _) = self.socket.recv_from_full().await.map_err(failed)?;
            let mut rest = &datagram[..];
            while !rest.is_empty() {
                let unreadable =
                    |error| Error::new(ErrorKind::Transient, format!("{what}: the kernel's answer can't be read")).with_source(error);
                let answer = NetlinkMessage::<NetfilterMessage>::deserialize(rest).map_err(unreadable)?;
                let length = usize::try_from(answer.header.length).unwrap_or(usize::MAX).next_multiple_of(4);
                rest = rest.get(length..).unwrap_or_default();
                if answer.header.sequence_number != self.sequence {
                    continue;
                }
                match answer.payload {
                    NetlinkPayload::InnerMessage(NetfilterMessage { inner: NetfilterMessageInner::Conntrack(message), .. }) => {
                        heard(message);
                    }
                    NetlinkPayload::Error(error) => return Ok(error.code.map_or(0, |code| code.get().saturating_abs())),
                    NetlinkPayload::Done(done) => return Ok(done.code.saturating_abs()),
                    _ => {}
                }
            }
        }
    }
}

fn entry(attributes: Vec<ConntrackAttribute>) -> Option<Entry> {
    let (mut original, mut reply, mut mark) = (None, None, 0);
    let mut key = Vec::new();
    for attribute in attributes {
        match &attribute {
            ConntrackAttribute::CtaTupleOrig(tuple) => {
                original = ends(tuple);
                key.push(attribute);
            }
            ConntrackAttribute::CtaTupleReply(tuple) => reply = ends(tuple),
            ConntrackAttribute::CtaMark(value) => mark = *value,
            // The number keeps an heir with the same addresses and ports from being meant.
            ConntrackAttribute::Other(other) if [CTA_ID, CTA_ZONE].contains(&(other.kind() & !NLA_FLAGS)) => key.push(attribute),
            _ => {}
        }
    }
    let (source, destination) = original?;
    let (translated, _) = reply?;
    Some(Entry { connection: Connection { source, destination, translated, mark }, key })
}

/// Source and destination of one direction.
fn ends(tuple: &[Tuple]) -> Option<(IpAddr, IpAddr)> {
    let (mut source, mut destination) = (None, None);
    for part in tuple {
        let Tuple::Ip(addresses) = part else { continue };
        for address in addresses {
            match address {
                IPTuple::SourceAddress(address) => source = Some(*address),
                IPTuple::DestinationAddress(address) => destination = Some(*address),
                _ => {}
            }
        }
    }
    Some((source?, destination?))
}
