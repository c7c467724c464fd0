//! Single addresses, over netlink: the program nft takes tens of milliseconds to read large sets
//! before it changes one element.
//!
//! Messages are those of `linux/netfilter/nf_tables.h`, between the batch messages of
//! `linux/netfilter/nfnetlink.h`: the kernel commits all of them or none.

use std::{
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use egressgateway::{
    Error,
    model::{ClassId, Family},
};
use imbl::{ordmap, ordset};
use netlink_packet_core::{
    DefaultNla, Emitable as _, NLM_F_ACK, NLM_F_CREATE, NLM_F_REQUEST, NetlinkBuffer, NetlinkHeader,
};
use netlink_sys::{
    AsyncSocket as _, AsyncSocketExt as _, SocketAddr, TokioSocket, protocols::NETLINK_NETFILTER,
};

use crate::{
    observe::monitor::Writers,
    ruleset::names::{NOTIFICATION_FAMILY, Scope, SetName, TABLE_ATTRIBUTE},
    sets::elements::Elements,
    state::NftState,
};

/// So many changes of a plan at most are worth messages of their own.
const MOST: usize = 256;

/// `NFNL_SUBSYS_NFTABLES`.
const SUBSYSTEM: u16 = 10;
/// `NFNL_MSG_BATCH_BEGIN` and `NFNL_MSG_BATCH_END`.
const BATCH: [u16; 2] = [16, 17];
/// `NFT_MSG_NEWSETELEM`.
const NEW: u16 = SUBSYSTEM << 8 | 0x0c;
/// `NFT_MSG_DELSETELEM`.
const DELETE: u16 = SUBSYSTEM << 8 | 0x0e;
/// `NFTA_SET_ELEM_LIST_SET`.
const SET: u16 = 2;
/// `NFTA_SET_ELEM_LIST_ELEMENTS`.
const ELEMENTS: u16 = 3;
/// `NFTA_LIST_ELEM`.
const ELEMENT: u16 = 1;
/// `NFTA_SET_ELEM_KEY`.
const KEY: u16 = 1;
/// `NFTA_SET_ELEM_DATA`.
const DATA: u16 = 2;
/// `NFTA_DATA_VALUE`.
const VALUE: u16 = 1;
/// `NLA_F_NESTED`.
const NESTED: u16 = 0x8000;
/// `NLMSG_ERROR`.
const ERROR: u16 = 2;

/// One address comes to a set or map, or goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ExactChange {
    set: SetName,
    address: IpAddr,
    what: ElementOp,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum ElementOp {
    Delete,
    Add,
    /// To a map.
    AddWithClass(ClassId),
}

/// The changes that lead from `current` to `after`, where there is nothing else to change, and not
/// much of that. What goes comes first.
pub(crate) fn between(current: &NftState, after: &NftState) -> Option<Vec<ExactChange>> {
    let mut only = current.clone();
    only.elements = Elements {
        pods: after.elements.pods.clone(),
        ungoverned: after.elements.ungoverned.clone(),
        peers: after.elements.peers.clone(),
        hosts: after.elements.hosts.clone(),
        ..only.elements
    };
    if only != *after {
        return None;
    }
    let mut changes = Vec::new();
    let pod = |address: &IpAddr, what| ExactChange {
        set: SetName::Pods,
        address: *address,
        what,
    };
    for change in current.elements.pods.diff(&after.elements.pods) {
        match change {
            ordmap::DiffItem::Add(address, class) => {
                changes.push(pod(address, ElementOp::AddWithClass(*class)));
            }
            ordmap::DiffItem::Remove(address, _) => changes.push(pod(address, ElementOp::Delete)),
            ordmap::DiffItem::Update {
                new: (address, class),
                ..
            } => {
                changes.extend([
                    pod(address, ElementOp::Delete),
                    pod(address, ElementOp::AddWithClass(*class)),
                ]);
            }
        }
        if changes.len() > MOST {
            return None;
        }
    }
    let (old, new) = (&current.elements, &after.elements);
    let sets = [
        (SetName::Ungoverned, &old.ungoverned, &new.ungoverned),
        (SetName::Peers, &old.peers, &new.peers),
        (SetName::Hosts, &old.hosts, &new.hosts),
    ];
    for (set, old, new) in sets {
        for change in old.diff(new) {
            changes.push(match change {
                ordset::DiffItem::Add(address) => ExactChange {
                    set,
                    address: *address,
                    what: ElementOp::Add,
                },
                ordset::DiffItem::Remove(address) => ExactChange {
                    set,
                    address: *address,
                    what: ElementOp::Delete,
                },
            });
            if changes.len() > MOST {
                return None;
            }
        }
    }
    changes.sort_by_key(|change| change.what != ElementOp::Delete);
    Some(changes)
}

/// A socket that is kept. The kernel frees what a transaction deletes some milliseconds after it,
/// and lets whoever closes a socket wait for that, and whoever writes meanwhile as well.
///
/// It belongs to the network namespace and the runtime that wrote first. Clones share it.
#[derive(Clone, Default)]
pub(crate) struct Connection {
    writers: Writers,
    idle: Arc<Mutex<Option<Socket>>>,
}

struct Socket {
    socket: TokioSocket,
    port: u32,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection").finish_non_exhaustive()
    }
}

impl Connection {
    /// One whose writes `writers` remembers as our own.
    pub(crate) fn new(writers: Writers) -> Self {
        Self {
            writers,
            idle: Arc::default(),
        }
    }

    fn idle(&self) -> MutexGuard<'_, Option<Socket>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends a batch by the kept socket, or by a new one where the kept one is of no use any more.
    async fn send(&self, batch: &[u8]) -> std::io::Result<Socket> {
        let kept = self.idle().take();
        if let Some(kept) = kept {
            self.writers.remember(kept.port);
            if kept.socket.send(batch).await.is_ok() {
                return Ok(kept);
            }
        }
        let opened = open()?;
        self.writers.remember(opened.port);
        opened.socket.send(batch).await?;
        Ok(opened)
    }

    /// Keeps a socket that every answer was read from.
    fn keep(&self, socket: Socket) {
        *self.idle() = Some(socket);
    }
}

/// Makes the changes, all or none.
pub(crate) async fn write(
    scope: Scope,
    changes: &[ExactChange],
    context: &str,
    connection: &Connection,
) -> Result<(), Error> {
    let messages: Vec<_> = changes
        .iter()
        .zip(1..)
        .map(|(change, sequence)| change.message(scope, sequence))
        .collect();
    let failure = |index: usize| {
        changes
            .get(index)
            .map(|change| format!("{context}: {change}"))
    };
    send(&messages, failure, context, connection).await
}

/// Empties a set.
pub(crate) async fn flush(
    scope: Scope,
    set: &str,
    context: &str,
    connection: &Connection,
) -> Result<(), Error> {
    send(
        &[elements_message(scope, DELETE, NLM_F_ACK, 1, set, &[])],
        |_| None,
        context,
        connection,
    )
    .await
}

/// Sends messages that are numbered from 1 as one transaction. `of` says in an error what a message
/// was about. After an error the socket is not used again: other answers may be on their way to it.
async fn send(
    messages: &[Vec<u8>],
    of: impl Fn(usize) -> Option<String>,
    context: &str,
    connection: &Connection,
) -> Result<(), Error> {
    let failed = |error| Error::from_io(error, context);
    let used = connection.send(&batch(messages)).await.map_err(failed)?;
    let mut pending = messages.len();
    while pending > 0 {
        let (datagram, _) = used.socket.recv_from_full().await.map_err(failed)?;
        for (sequence, errno) in answers(&datagram) {
            if errno != 0 {
                // Sequence 0 is the batch as a whole.
                let what = (sequence as usize).checked_sub(1).and_then(&of);
                return Err(Error::from_errno(
                    errno,
                    what.unwrap_or_else(|| context.to_owned()),
                ));
            }
            pending = pending.saturating_sub(1);
        }
    }
    connection.keep(used);
    Ok(())
}

fn open() -> std::io::Result<Socket> {
    let mut socket = TokioSocket::new(NETLINK_NETFILTER)?;
    let mut address = SocketAddr::new(0, 0);
    socket.socket_mut().bind_auto()?;
    socket.socket_ref().get_address(&mut address)?;
    socket.socket_mut().connect(&SocketAddr::new(0, 0))?;
    let port = address.port_number();
    Ok(Socket { socket, port })
}

impl std::fmt::Display for ExactChange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let verb = if self.what == ElementOp::Delete {
            "delete"
        } else {
            "add"
        };
        write!(
            f,
            "{verb} element {} {}",
            self.set.name(Family::of(self.address)),
            self.address
        )
    }
}

impl ExactChange {
    fn message(&self, scope: Scope, sequence: u32) -> Vec<u8> {
        let key = match self.address {
            IpAddr::V4(address) => address.octets().to_vec(),
            IpAddr::V6(address) => address.octets().to_vec(),
        };
        let mut element = attribute(KEY | NESTED, &attribute(VALUE, &key));
        if let ElementOp::AddWithClass(class) = self.what {
            // A packet's priority is a number of the host.
            element.extend(attribute(
                DATA | NESTED,
                &attribute(VALUE, &class.get().to_ne_bytes()),
            ));
        }
        let elements = attribute(ELEMENTS | NESTED, &attribute(ELEMENT | NESTED, &element));
        let (kind, flags) = if self.what == ElementOp::Delete {
            (DELETE, NLM_F_ACK)
        } else {
            (NEW, NLM_F_ACK | NLM_F_CREATE)
        };
        elements_message(
            scope,
            kind,
            flags,
            sequence,
            self.set.name(Family::of(self.address)),
            &elements,
        )
    }
}

/// A message about elements of a set; about all, where it has none to delete.
fn elements_message(
    scope: Scope,
    kind: u16,
    flags: u16,
    sequence: u32,
    set: &str,
    elements: &[u8],
) -> Vec<u8> {
    let name = |name: &str| [name.as_bytes(), &[0]].concat();
    let body = [
        &attribute(TABLE_ATTRIBUTE, &name(scope.table())),
        &attribute(SET, &name(set)),
        elements,
    ]
    .concat();
    message(kind, flags, sequence, [NOTIFICATION_FAMILY, 0, 0, 0], &body)
}

/// One transaction.
fn batch(messages: &[Vec<u8>]) -> Vec<u8> {
    // `struct nfgenmsg`: no family, version 0, the subsystem in network byte order.
    let [high, low] = SUBSYSTEM.to_be_bytes();
    let mut bytes = message(BATCH[0], 0, 0, [0, 0, high, low], &[]);
    bytes.extend(messages.concat());
    bytes.extend(message(BATCH[1], 0, 0, [0, 0, high, low], &[]));
    bytes
}

fn message(kind: u16, flags: u16, sequence: u32, generic: [u8; 4], body: &[u8]) -> Vec<u8> {
    let mut header = NetlinkHeader::default();
    header.message_type = kind;
    header.flags = NLM_F_REQUEST | flags;
    header.sequence_number = sequence;
    let length = header.buffer_len() + generic.len() + body.len();
    header.length = u32::try_from(length).unwrap_or(u32::MAX);
    let mut bytes = vec![0; header.buffer_len()];
    header.emit(&mut bytes);
    bytes.extend(generic);
    bytes.extend(body);
    bytes
}

/// Padded to the alignment of the next.
fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let attribute = DefaultNla::new(kind, value.to_vec());
    let mut bytes = vec![0; attribute.buffer_len()];
    attribute.emit(&mut bytes);
    bytes
}

/// What the kernel says of each message: its sequence number, and an errno or 0.
pub(crate) fn answers(datagram: &[u8]) -> impl Iterator<Item = (u32, i32)> {
    let mut rest = datagram;
    std::iter::from_fn(move || {
        loop {
            let message = NetlinkBuffer::new_checked(rest).ok()?;
            let length = usize::try_from(message.length()).ok()?;
            let errno = message
                .payload()
                .get(..4)
                .and_then(|bytes| bytes.try_into().ok())
                .map(i32::from_ne_bytes);
            let (kind, sequence) = (message.message_type(), message.sequence_number());
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
            if let (ERROR, Some(errno)) = (kind, errno) {
                return Some((sequence, errno.saturating_neg()));
            }
        }
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn change(address: &str, what: ElementOp) -> ExactChange {
        ExactChange {
            set: SetName::Pods,
            address: address.parse().unwrap(),
            what,
        }
    }

    #[test]
    fn a_message_is_what_the_kernels_header_says() {
        let bytes = change(
            "10.0.0.1",
            ElementOp::AddWithClass(ClassId::new(7).unwrap()),
        )
        .message(Scope::Whole, 3);
        assert_eq!(bytes.len() % 4, 0);
        assert_eq!(
            u32::from_ne_bytes(bytes[..4].try_into().unwrap()) as usize,
            bytes.len()
        );
        assert_eq!(
            bytes[4..8],
            [
                NEW.to_ne_bytes(),
                (NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE).to_ne_bytes()
            ]
            .concat()
        );
        let position = bytes
            .windows(4)
            .position(|window| window == [10, 0, 0, 1])
            .unwrap();
        assert_eq!(bytes[position + 12..position + 16], 7_u32.to_ne_bytes());
        assert_eq!(
            change("fd00::1", ElementOp::Delete).message(Scope::Whole, 1)[4..6],
            DELETE.to_ne_bytes()
        );
    }

    #[test]
    fn answers_are_read_by_their_number_and_nothing_harms() {
        let answer = |sequence: u32, errno: i32| {
            let [a, b, c, d] = errno.to_ne_bytes();
            message(ERROR, 0, sequence, [a, b, c, d], &[0; 16])
        };
        let both = [answer(1, 0), answer(2, -17)].concat();
        assert_eq!(answers(&both).collect::<Vec<_>>(), [(1, 0), (2, 17)]);
        for length in 0..both.len() {
            let _ = answers(&both[..length]).count();
            let _ = answers(&both[length..]).count();
        }
        assert_eq!(answers(&[0; 64]).count(), 0);
        assert_eq!(answers(&[255; 64]).count(), 0);
    }
}
