//! The table of connection tracking, over ctnetlink.

use std::{collections::BTreeSet, net::IpAddr, time::Duration};

use async_trait::async_trait;
use egressgateway::{Connection, Connections, Ending, Error, ErrorKind, model::Family};
use netlink_packet_core::{
    DecodeError, NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload, Nla as _,
};
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily,
    conntrack::{
        ConntrackAttribute, ConntrackMessage, IPTuple, ProtoInfo, ProtoInfoTCP, ProtoTuple,
        Protocol, Tuple,
    },
};
use netlink_sys::{
    AsyncSocket as _, AsyncSocketExt as _, SocketAddr, TokioSocket, protocols::NETLINK_NETFILTER,
};

use crate::{
    Netlink,
    reset::{Session, notify},
};

// `linux/netfilter/nfnetlink_conntrack.h`, where the packet crate has no name for it.
const CTA_ID: u16 = 12;
const CTA_ZONE: u16 = 18;
/// What marks an attribute as nested or in network byte order.
const NLA_FLAGS: u16 = 0xc000;

/// States of TCP in which it is established, at least in one direction (`TCP_CONNTRACK_ESTABLISHED`
/// to `TCP_CONNTRACK_CLOSE_WAIT` of `linux/netfilter/nf_conntrack_tcp.h`).
const ESTABLISHED: std::ops::RangeInclusive<u8> = 3..=5;

/// The kernel did not see how a connection of TCP began, so it can't check its windows
/// (`IP_CT_TCP_FLAG_BE_LIBERAL` of `linux/netfilter/nf_conntrack_tcp.h`).
const PICKED_UP: u8 = 0x08;

/// When connections are looked for that an answer may have begun, each time after the one before.
const TURNED: [Duration; 4] = [
    Duration::from_millis(20),
    Duration::from_millis(80),
    Duration::from_millis(400),
    Duration::from_millis(1500),
];

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
}

impl ConnectionTable {
    /// The table of the network namespace that `netlink` speaks to, which must be the one of the
    /// threads that [`Self::forget`] is called on.
    #[must_use]
    pub fn new(netlink: Netlink) -> Self {
        Self { netlink }
    }

    /// The addresses of this host: what goes there is delivered, not forwarded.
    async fn own(&self) -> Result<BTreeSet<IpAddr>, Error> {
        Ok(self
            .netlink
            .addresses()
            .await?
            .into_iter()
            .map(|address| address.network.addr())
            .collect())
    }
}

#[async_trait]
impl Connections for ConnectionTable {
    async fn forget(
        &self,
        stale: &(dyn for<'a> Fn(&'a Connection) -> Option<Ending> + Send + Sync),
    ) -> Result<u64, Error> {
        let own = self.own().await?;
        let mut socket = Socket::open()?;
        let mut entries = Vec::new();
        for family in Family::ALL {
            socket
                .list(family, |mut entry| {
                    let Connection {
                        translated: to,
                        seen_as,
                        is_own,
                        ..
                    } = &mut entry.connection;
                    *is_own = own.contains(seen_as);
                    if !to.is_multicast() && !own.contains(to) && stale(&entry.connection).is_some()
                    {
                        entries.push(entry);
                    }
                })
                .await?;
        }
        // One that came between the addresses and the table would look like somebody else's.
        let own = if entries.is_empty() {
            own
        } else {
            self.own().await?
        };
        let (mut forgotten, mut sessions, mut turned, mut result) =
            (0, Vec::new(), Vec::new(), Ok(()));
        for mut entry in entries {
            entry.connection.is_own |= own.contains(&entry.connection.seen_as);
            let Some(ending) = stale(&entry.connection) else {
                continue;
            };
            let (session, answers) = (entry.session, entry.answers.clone());
            if ending != Ending::Elsewhere {
                match socket.delete(entry).await {
                    Ok(deleted) => {
                        forgotten += u64::from(deleted);
                        turned.push(answers);
                    }
                    Err(error) => {
                        result = Err(error);
                        break;
                    }
                }
            }
            // Of one that was tracked the other way round nobody knows whether it is the pod's.
            sessions.extend(
                session
                    .filter(|_| ending != Ending::Turned)
                    .map(|session| (session, ending)),
            );
        }
        // Nobody waits for these: the next look must not.
        if !turned.is_empty() {
            drop(tokio::spawn(forget_turned(turned)));
        }
        if !sessions.is_empty() {
            drop(tokio::spawn(notify(self.netlink.clone(), sessions)));
        }
        result.map(|()| forgotten)
    }
}

/// An answer that was under way while its connection was forgotten begins another one, in the
/// opposite direction: all that the pod sends would be an answer in it, and have no way of its own.
/// So such connections are forgotten too, as soon as they may have come.
async fn forget_turned(answers: Vec<Vec<ConntrackAttribute>>) {
    let forget = async || {
        let mut socket = Socket::open()?;
        for key in &answers {
            let Some(entry) = socket.find(key).await? else {
                continue;
            };
            // The kernel finds a connection by either of its directions.
            if origin(key).is_some_and(|(source, _)| source == entry.connection.source) {
                socket.delete(entry).await?;
            }
        }
        Ok::<_, Error>(())
    };
    for pause in TURNED {
        tokio::time::sleep(pause).await;
        if let Err(error) = forget().await {
            tracing::debug!(
                error = error.chain(),
                "cannot find the answers to ended connections"
            );
        }
    }
}

/// A tracked connection, and what names it to the kernel.
struct Entry {
    connection: Connection,
    /// Its ends, where it is established TCP.
    session: Option<Session>,
    key: Vec<ConntrackAttribute>,
    /// What would name a connection that an answer to it began.
    answers: Vec<ConntrackAttribute>,
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
            Ok(Self {
                socket,
                sequence: 0,
            })
        };
        open().map_err(|error: std::io::Error| {
            Error::from_io(error, "open a netlink socket for connection tracking")
        })
    }

    /// Reads all connections of a family, one datagram at a time: the table can be large.
    async fn list(&mut self, family: Family, mut found: impl FnMut(Entry)) -> Result<(), Error> {
        let what = format!("list {family} connections");
        let end = self.ask(
            family,
            ConntrackMessage::Get(Vec::new()),
            NLM_F_DUMP,
            &what,
            |message| {
                if let ConntrackMessage::New(attributes) = message
                    && let Some(entry) = entry(attributes)
                {
                    found(entry);
                }
            },
        );
        match end.await? {
            0 => Ok(()),
            EINVAL => {
                let context = format!(
                    "{what}: the kernel has no ctnetlink with marks: CONFIG_NF_CT_NETLINK and CONFIG_NF_CONNTRACK_MARK are needed"
                );
                Err(Error::new(ErrorKind::Unsupported, context))
            }
            errno => Err(Error::from_errno(errno, what)),
        }
    }

    /// The connection that a packet with these ends belongs to.
    async fn find(&mut self, key: &[ConntrackAttribute]) -> Result<Option<Entry>, Error> {
        let what = "look for a connection";
        let Some((source, _)) = origin(key) else {
            return Ok(None);
        };
        let mut found = None;
        let end = self.ask(
            Family::of(source),
            ConntrackMessage::Get(key.to_vec()),
            NLM_F_ACK,
            what,
            |message| {
                if let ConntrackMessage::New(attributes) = message {
                    found = entry(attributes);
                }
            },
        );
        match end.await? {
            0 => Ok(found),
            ENOENT => Ok(None),
            errno => Err(Error::from_errno(errno, what)),
        }
    }

    /// Whether it was there to delete.
    async fn delete(&mut self, entry: Entry) -> Result<bool, Error> {
        let Connection {
            source,
            destination,
            ..
        } = entry.connection;
        let what = format!("forget the connection from {source} to {destination}");
        match self
            .ask(
                Family::of(source),
                ConntrackMessage::Delete(entry.key),
                NLM_F_ACK,
                &what,
                |_| {},
            )
            .await?
        {
            0 => Ok(true),
            ENOENT => Ok(false),
            errno => Err(Error::from_errno(errno, what)),
        }
    }

    /// Sends a request, tells of each message that comes, and returns the number that the kernel
    /// ended with: 0 or an errno.
    async fn ask(
        &mut self,
        family: Family,
        message: ConntrackMessage,
        flags: u16,
        what: &str,
        mut heard: impl FnMut(ConntrackMessage),
    ) -> Result<i32, Error> {
        self.sequence = self.sequence.wrapping_add(1);
        let bytes = request(family, message, flags, self.sequence);
        let failed = |error| Error::from_io(error, what);
        self.socket.send(&bytes).await.map_err(failed)?;
        loop {
            let (datagram, _) = self.socket.recv_from_full().await.map_err(failed)?;
            for answer in messages(&datagram) {
                let unreadable = |error| {
                    Error::new(
                        ErrorKind::Transient,
                        format!("{what}: the kernel's answer can't be read"),
                    )
                    .with_source(error)
                };
                let answer = answer.map_err(unreadable)?;
                if answer.header.sequence_number != self.sequence {
                    continue;
                }
                match answer.payload {
                    NetlinkPayload::InnerMessage(NetfilterMessage {
                        inner: NetfilterMessageInner::Conntrack(message),
                        ..
                    }) => {
                        heard(message);
                    }
                    NetlinkPayload::Error(error) => {
                        return Ok(error.code.map_or(0, |code| code.get().saturating_abs()));
                    }
                    NetlinkPayload::Done(done) => return Ok(done.code.saturating_abs()),
                    _ => {}
                }
            }
        }
    }
}

fn request(family: Family, message: ConntrackMessage, flags: u16, sequence: u32) -> Vec<u8> {
    let family = match family {
        Family::V4 => NetfilterProtoFamily::IPv4,
        Family::V6 => NetfilterProtoFamily::IPv6,
    };
    let mut request = NetlinkMessage::from(NetfilterMessage::new(
        NetfilterHeader::new(family, 0, 0),
        message,
    ));
    request.header.flags = NLM_F_REQUEST | flags;
    request.header.sequence_number = sequence;
    request.finalize();
    let mut bytes = vec![0; request.buffer_len()];
    request.serialize(&mut bytes);
    bytes
}

/// The messages of a datagram, up to the first that can't be read.
fn messages(
    datagram: &[u8],
) -> impl Iterator<Item = Result<NetlinkMessage<NetfilterMessage>, DecodeError>> {
    let mut rest = datagram;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let message = NetlinkMessage::<NetfilterMessage>::deserialize(rest);
        let length = message.as_ref().map_or(rest.len(), |message| {
            usize::try_from(message.header.length)
                .unwrap_or(usize::MAX)
                .next_multiple_of(4)
        });
        rest = rest.get(length..).unwrap_or_default();
        Some(message)
    })
}

fn entry(attributes: Vec<ConntrackAttribute>) -> Option<Entry> {
    let (mut original, mut reply, mut mark) = (None, None, 0);
    let (mut ports, mut is_established, mut is_opening_seen) = (None, false, false);
    let (mut key, mut answers) = (Vec::new(), Vec::new());
    for attribute in attributes {
        match &attribute {
            ConntrackAttribute::CtaTupleOrig(tuple) => {
                original = ends(tuple);
                ports = tcp_ports(tuple);
                is_opening_seen |= asks(tuple);
                key.push(attribute);
            }
            ConntrackAttribute::CtaTupleReply(tuple) => {
                reply = ends(tuple);
                answers.push(ConntrackAttribute::CtaTupleOrig(tuple.clone()));
            }
            ConntrackAttribute::CtaMark(value) => mark = *value,
            ConntrackAttribute::CtaProtoInfo(infos) => {
                let tcp = || {
                    infos.iter().flat_map(|info| {
                        if let ProtoInfo::TCP(parts) = info {
                            parts.as_slice()
                        } else {
                            &[]
                        }
                    })
                };
                is_established = tcp().any(|part| matches!(part, ProtoInfoTCP::State(state) if ESTABLISHED.contains(state)));
                is_opening_seen |= tcp().any(|part| matches!(part, ProtoInfoTCP::OriginalFlags(flags) if flags.flags & PICKED_UP == 0));
            }
            // The number keeps an heir with the same addresses and ports from being meant.
            ConntrackAttribute::Other(other)
                if [CTA_ID, CTA_ZONE].contains(&(other.kind() & !NLA_FLAGS)) =>
            {
                if other.kind() & !NLA_FLAGS == CTA_ZONE {
                    answers.push(attribute.clone());
                }
                key.push(attribute);
            }
            _ => {}
        }
    }
    let (source, destination) = original?;
    let (translated, seen_as) = reply?;
    let session = ports.filter(|_| is_established).map(|(from, to)| Session {
        pod: (source, from).into(),
        server: (destination, to).into(),
    });
    let connection = Connection {
        source,
        destination,
        translated,
        seen_as,
        is_own: false,
        mark,
        is_opening_seen,
    };
    Some(Entry {
        connection,
        session,
        key,
        answers,
    })
}

/// Source and destination that a key asks for.
fn origin(key: &[ConntrackAttribute]) -> Option<(IpAddr, IpAddr)> {
    key.iter().find_map(|attribute| {
        if let ConntrackAttribute::CtaTupleOrig(tuple) = attribute {
            ends(tuple)
        } else {
            None
        }
    })
}

/// Whether a direction is ICMP's: the kernel tracks nothing of it that does not begin with a
/// request.
fn asks(tuple: &[Tuple]) -> bool {
    let mut parts = tuple.iter().flat_map(|part| {
        if let Tuple::Proto(parts) = part {
            parts.as_slice()
        } else {
            &[]
        }
    });
    parts.any(|part| {
        matches!(
            part,
            ProtoTuple::Protocol(Protocol::Icmp | Protocol::Ipv6Icmp)
        )
    })
}

/// Source and destination port of one direction of TCP.
fn tcp_ports(tuple: &[Tuple]) -> Option<(u16, u16)> {
    let parts = || {
        tuple.iter().flat_map(|part| {
            if let Tuple::Proto(parts) = part {
                parts.as_slice()
            } else {
                &[]
            }
        })
    };
    let is_tcp = parts().any(|part| matches!(part, ProtoTuple::Protocol(Protocol::Tcp)));
    let source = parts().find_map(|part| {
        if let ProtoTuple::SourcePort(port) = part {
            Some(*port)
        } else {
            None
        }
    });
    let destination = parts().find_map(|part| {
        if let ProtoTuple::DestinationPort(port) = part {
            Some(*port)
        } else {
            None
        }
    });
    source.zip(destination).filter(|_| is_tcp)
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

/// For fuzz targets: the connections of a listing, whose names are written and read again.
pub(crate) fn fuzz(datagram: &[u8]) {
    for message in messages(datagram).map_while(Result::ok) {
        let NetlinkPayload::InnerMessage(NetfilterMessage {
            inner: NetfilterMessageInner::Conntrack(ConntrackMessage::New(attributes)),
            ..
        }) = message.payload
        else {
            continue;
        };
        let Some(Entry { key, answers, .. }) = entry(attributes) else {
            continue;
        };
        for name in [key, answers] {
            let ends = origin(&name);
            let written = request(Family::V4, ConntrackMessage::Delete(name), NLM_F_ACK, 1);
            let again = messages(&written).next().and_then(Result::ok);
            let Some(NetlinkPayload::InnerMessage(NetfilterMessage {
                inner: NetfilterMessageInner::Conntrack(ConntrackMessage::Delete(again)),
                ..
            })) = again.map(|again| again.payload)
            else {
                panic!("what was written can't be read");
            };
            assert_eq!(origin(&again), ends, "read, written and read again");
        }
    }
    assert!(messages(datagram).count() <= datagram.len());
}
