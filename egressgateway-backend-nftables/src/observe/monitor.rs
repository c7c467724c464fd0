//! Notifications of the kernel that somebody changed our table.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
};

use async_trait::async_trait;
use egressgateway::{Error, PolicyMonitor};
use futures::FutureExt as _;
use netlink_sys::{
    AsyncSocket as _, AsyncSocketExt as _, SocketAddr, TokioSocket, protocols::NETLINK_NETFILTER,
};
use nix::sys::socket::{setsockopt, sockopt::RcvBufForce};

use crate::ruleset::names::{
    NOTIFICATION_FAMILY, NOTIFICATION_GROUP, NOTIFICATION_HEADER, NOTIFICATION_INGRESS_FAMILY,
    TABLE_ATTRIBUTE,
};

/// How many of our own writers are remembered: their notifications arrive soon after they wrote.
const REMEMBERED: usize = 16;

/// Bytes of notifications that wait while we write: each element is one, and a table has thousands.
const ROOM: usize = 8 << 20;

/// Processes that wrote for us, by the number under which the kernel knows their netlink socket.
#[derive(Clone, Debug, Default)]
pub(crate) struct Writers(Arc<Mutex<VecDeque<u32>>>);

impl Writers {
    pub(crate) fn remember(&self, process: u32) {
        let mut writers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        writers.truncate(REMEMBERED - 1);
        writers.push_front(process);
    }

    fn contain(&self, process: u32) -> bool {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .contains(&process)
    }
}

/// Is told when somebody other than the driver that it came from changes the driver's table. Made
/// by [`Nftables::monitor`], [`ExitGuard::monitor`] and [`Relay::monitor`].
///
/// [`Relay::monitor`]: crate::Relay::monitor
/// [`Nftables::monitor`]: crate::Nftables::monitor
/// [`ExitGuard::monitor`]: crate::ExitGuard::monitor
pub struct NftMonitor {
    notifications: Notifications,
    table: &'static str,
    writers: Writers,
}

impl std::fmt::Debug for NftMonitor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NftMonitor")
            .field("table", &self.table)
            .field("writers", &self.writers)
            .finish_non_exhaustive()
    }
}

impl NftMonitor {
    pub(crate) fn open(table: &'static str, writers: Writers) -> Result<Self, Error> {
        Ok(Self {
            notifications: Notifications::open()?,
            table,
            writers,
        })
    }
}

#[async_trait]
impl PolicyMonitor for NftMonitor {
    async fn changed(&self) -> Result<(), Error> {
        self.notifications
            .until(|datagram| is_foreign(datagram, self.table, &self.writers))
            .await
    }
}

/// What the kernel tells of changes of nftables, whoever makes them.
pub(crate) struct Notifications(tokio::sync::Mutex<TokioSocket>);

impl std::fmt::Debug for Notifications {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Notifications")
    }
}

impl Notifications {
    pub(crate) fn open() -> Result<Self, Error> {
        let subscribe = || {
            let mut socket = TokioSocket::new(NETLINK_NETFILTER)?;
            socket.socket_mut().bind(&SocketAddr::new(0, 0))?;
            socket.socket_mut().add_membership(NOTIFICATION_GROUP)?;
            // Refused without the capability, and where that is missing nothing can be written
            // either: the usual room is enough.
            let _ = setsockopt(socket.socket_ref(), RcvBufForce, &ROOM);
            Ok(tokio::sync::Mutex::new(socket))
        };
        subscribe()
            .map(Self)
            .map_err(|error| Error::from_io(error, "subscribe to nftables notifications"))
    }

    /// Waits until one of the datagrams since the last call is so.
    pub(crate) async fn until(
        &self,
        is_so: impl Fn(&[u8]) -> bool + Send + Sync,
    ) -> Result<(), Error> {
        let failed = |error| Error::from_io(error, "receive nftables notifications");
        let socket = self.0.lock().await;
        loop {
            let (datagram, _) = socket.recv_from_full().await.map_err(failed)?;
            let mut found = is_so(&datagram);
            while let Some(next) = socket.recv_from_full().now_or_never() {
                found |= is_so(&next.map_err(failed)?.0);
            }
            if found {
                return Ok(());
            }
        }
    }
}

/// Whether a datagram tells of a change of our table by somebody else.
pub(crate) fn is_foreign(datagram: &[u8], ours: &str, writers: &Writers) -> bool {
    messages(datagram).any(|(writer, body)| !writers.contain(writer) && is_about(body, ours))
}

/// The messages of a datagram: the socket that caused each, and what follows the netlink header.
pub(crate) fn messages(datagram: &[u8]) -> impl Iterator<Item = (u32, &[u8])> {
    let mut rest = datagram;
    std::iter::from_fn(move || {
        let number = |at: usize| Some(u32::from_ne_bytes(rest.get(at..at + 4)?.try_into().ok()?));
        let (length, writer) = (usize::try_from(number(0)?).ok()?, number(12)?);
        let body = rest.get(16..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((writer, body))
    })
}

fn is_about(body: &[u8], ours: &str) -> bool {
    body.first()
        .is_some_and(|family| [NOTIFICATION_FAMILY, NOTIFICATION_INGRESS_FAMILY].contains(family))
        && table(body) == Some(ours.as_bytes())
}

/// The name of the table that a message is about: every kind of nftables object has it as its first
/// attribute, except generations, which have a number there.
pub(crate) fn table(body: &[u8]) -> Option<&[u8]> {
    let attribute = body.get(NOTIFICATION_HEADER..)?;
    let number = |at: usize| {
        Some(u16::from_ne_bytes(
            attribute.get(at..at + 2)?.try_into().ok()?,
        ))
    };
    let (length, kind) = (usize::from(number(0)?), number(2)?);
    let text = attribute
        .get(4..length)
        .filter(|_| kind == TABLE_ATTRIBUTE)?;
    Some(text.strip_suffix(&[0]).unwrap_or(text))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ruleset::names::TABLE;

    fn message(writer: u32, table: &str) -> Vec<u8> {
        let mut attribute = [
            u16::try_from(table.len() + 5)
                .unwrap_or_default()
                .to_ne_bytes(),
            TABLE_ATTRIBUTE.to_ne_bytes(),
        ]
        .concat();
        attribute.extend(table.bytes().chain([0]));
        attribute.resize(attribute.len().next_multiple_of(4), 0);
        let length = u32::try_from(16 + NOTIFICATION_HEADER + attribute.len()).unwrap_or_default();
        let header = [
            length.to_ne_bytes(),
            [0; 4],
            [0; 4],
            writer.to_ne_bytes(),
            [NOTIFICATION_FAMILY, 0, 0, 0],
        ]
        .concat();
        [header, attribute].concat()
    }

    #[test]
    fn only_what_others_do_to_our_table_counts() {
        let writers = Writers::default();
        writers.remember(7);
        assert!(is_foreign(&message(8, TABLE), TABLE, &writers));
        assert!(!is_foreign(&message(7, TABLE), TABLE, &writers));
        assert!(!is_foreign(&message(8, "kube-proxy"), TABLE, &writers));
        assert!(is_foreign(
            &[message(8, "kube-proxy"), message(8, TABLE)].concat(),
            TABLE,
            &writers
        ));
    }

    #[test]
    fn whatever_a_kernel_sends_is_read_without_harm() {
        let whole = [message(8, "kube-proxy"), message(8, TABLE)].concat();
        for length in 0..whole.len() {
            let _ = is_foreign(&whole[..length], TABLE, &Writers::default());
        }
        assert!(!is_foreign(&[0; 64], TABLE, &Writers::default()));
        assert!(!is_foreign(&[255; 64], TABLE, &Writers::default()));
    }

    #[test]
    fn old_writers_are_forgotten() {
        let writers = Writers::default();
        (0..100).for_each(|process| writers.remember(process));
        assert!(writers.contain(99) && !writers.contain(0));
        assert_eq!(
            writers
                .0
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .len(),
            REMEMBERED
        );
    }
}
