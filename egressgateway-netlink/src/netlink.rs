//! The connection.

use std::{sync::Arc, time::Duration};

use egressgateway::{Error, ErrorKind};
use futures::{Stream, StreamExt as _};
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_proto::ConnectionHandle;
use netlink_sys::{SocketAddr, protocols::NETLINK_ROUTE};
use rtnetlink::Handle;
use tokio::sync::Mutex;

use crate::next_hop::NextHopMessage;

/// How often a list is read again when it changed while it was read.
const DUMP_ATTEMPTS: u32 = 8;
/// What it is left alone for when it is busy.
const DUMP_PAUSE: Duration = Duration::from_millis(5);

/// One rtnetlink connection, with a typed call for each thing that drivers read and write. (There
/// is a second one below, for messages that the packet crate does not know.)
///
/// Clones share the connection; it ends with the last of them.
#[derive(Clone, Debug)]
pub struct Netlink {
    handle: Handle,
    next_hops: ConnectionHandle<NextHopMessage>,
    /// Whose turn it is to read a list: a socket is good for one at a time (`EBUSY`).
    turn: Arc<Mutex<()>>,
}

impl Netlink {
    /// Opens a connection to the network namespace of the calling thread; a task of the current
    /// runtime serves it.
    ///
    /// # Errors
    /// When the kernel refuses the socket, or outside of a Tokio runtime.
    pub fn open() -> Result<Self, Error> {
        let what = "open an rtnetlink connection";
        let runtime = tokio::runtime::Handle::try_current()
            .map_err(|error| Error::new(ErrorKind::Invalid, what).with_source(error))?;
        let (mut connection, handle, _) =
            rtnetlink::new_connection().map_err(|error| Error::from_io(error, what))?;
        // Without these, a connection that died looks like one where all went well.
        connection.set_forward_ack(true);
        connection.set_forward_done(true);
        runtime.spawn(connection);
        let (mut connection, next_hops, _) = netlink_proto::new_connection(NETLINK_ROUTE)
            .map_err(|error| Error::from_io(error, what))?;
        connection.set_forward_ack(true);
        connection.set_forward_done(true);
        runtime.spawn(connection);
        Ok(Self {
            handle,
            next_hops,
            turn: Arc::default(),
        })
    }

    /// Sends one change and waits until the kernel confirms it.
    pub(crate) async fn write(
        &self,
        message: RouteNetlinkMessage,
        flags: u16,
        what: &str,
    ) -> Result<(), Error> {
        let mut request = NetlinkMessage::from(message);
        request.header.flags = NLM_F_REQUEST | NLM_F_ACK | flags;
        confirmation(
            self.handle
                .clone()
                .request(request)
                .map_err(|error| lost(what).with_source(error))?,
            what,
        )
        .await
    }

    /// As [`Self::write`].
    pub(crate) async fn write_next_hop(
        &self,
        message: NextHopMessage,
        flags: u16,
        what: &str,
    ) -> Result<(), Error> {
        let mut request = NetlinkMessage::from(message);
        request.header.flags = NLM_F_REQUEST | NLM_F_ACK | flags;
        confirmation(
            self.next_hops
                .request(request, kernel())
                .map_err(|_| lost(what))?,
            what,
        )
        .await
    }

    /// Asks one question that has one answer.
    pub(crate) async fn ask(
        &self,
        message: RouteNetlinkMessage,
        what: &str,
    ) -> Result<RouteNetlinkMessage, Error> {
        let mut request = NetlinkMessage::from(message);
        request.header.flags = NLM_F_REQUEST;
        answer(
            self.handle
                .clone()
                .request(request)
                .map_err(|error| lost(what).with_source(error))?,
            what,
        )
        .await
    }

    /// As [`Self::ask`].
    pub(crate) async fn ask_next_hop(
        &self,
        message: NextHopMessage,
        what: &str,
    ) -> Result<NextHopMessage, Error> {
        let mut request = NetlinkMessage::from(message);
        request.header.flags = NLM_F_REQUEST;
        answer(
            self.next_hops
                .request(request, kernel())
                .map_err(|_| lost(what))?,
            what,
        )
        .await
    }

    /// Reads a whole list; one that changed meanwhile is read again.
    pub(crate) async fn dump(
        &self,
        message: RouteNetlinkMessage,
        what: &str,
    ) -> Result<Vec<RouteNetlinkMessage>, Error> {
        let ask = |request| {
            self.handle
                .clone()
                .request(request)
                .map_err(|error| lost(what).with_source(error))
        };
        self.dump_by(message, ask, what).await
    }

    /// As [`Self::dump`].
    pub(crate) async fn dump_next_hops(
        &self,
        message: NextHopMessage,
        what: &str,
    ) -> Result<Vec<NextHopMessage>, Error> {
        self.dump_by(
            message,
            |request| {
                self.next_hops
                    .request(request, kernel())
                    .map_err(|_| lost(what))
            },
            what,
        )
        .await
    }

    async fn dump_by<T: Clone, R: Stream<Item = NetlinkMessage<T>> + Unpin>(
        &self,
        message: T,
        ask: impl Fn(NetlinkMessage<T>) -> Result<R, Error>,
        what: &str,
    ) -> Result<Vec<T>, Error>
    where
        NetlinkMessage<T>: From<T>,
    {
        let _turn = self.turn.lock().await;
        for _ in 0..DUMP_ATTEMPTS {
            let mut request = NetlinkMessage::from(message.clone());
            request.header.flags = NLM_F_REQUEST | NLM_F_DUMP;
            match list(ask(request)?, what).await {
                Ok(Some(list)) => return Ok(list),
                Ok(None) => {}
                // The kernel still tells somebody who does not listen any more.
                Err(error) if error.kind == ErrorKind::Conflict => {
                    tokio::time::sleep(DUMP_PAUSE).await;
                }
                Err(error) => return Err(error),
            }
        }
        Err(restless(what))
    }
}

async fn confirmation<T>(
    mut replies: impl Stream<Item = NetlinkMessage<T>> + Unpin,
    what: &str,
) -> Result<(), Error> {
    while let Some(reply) = replies.next().await {
        if let NetlinkPayload::Error(error) = reply.payload {
            return error.code.map_or(Ok(()), |code| {
                Err(Error::from_errno(code.get().saturating_abs(), what))
            });
        }
    }
    Err(lost(what))
}

async fn answer<T>(
    mut replies: impl Stream<Item = NetlinkMessage<T>> + Unpin,
    what: &str,
) -> Result<T, Error> {
    match replies.next().await.map(|reply| reply.payload) {
        Some(NetlinkPayload::InnerMessage(message)) => Ok(message),
        Some(NetlinkPayload::Error(error)) => Err(Error::from_errno(
            error.code.map_or(0, |code| code.get().saturating_abs()),
            what,
        )),
        _ => Err(lost(what)),
    }
}

/// None when the list changed while it was read.
async fn list<T>(
    mut replies: impl Stream<Item = NetlinkMessage<T>> + Unpin,
    what: &str,
) -> Result<Option<Vec<T>>, Error> {
    let (mut list, mut torn) = (Vec::new(), false);
    while let Some(reply) = replies.next().await {
        torn |= reply.header.flags & NLM_F_DUMP_INTR != 0;
        match reply.payload {
            NetlinkPayload::InnerMessage(message) => list.push(message),
            NetlinkPayload::Error(error) => {
                return Err(Error::from_errno(
                    error.code.map_or(0, |code| code.get().saturating_abs()),
                    what,
                ));
            }
            NetlinkPayload::Done(done) if done.code < 0 => {
                return Err(Error::from_errno(done.code.saturating_abs(), what));
            }
            NetlinkPayload::Done(_) => return Ok((!torn).then_some(list)),
            _ => {}
        }
    }
    Err(lost(what))
}

/// The kernel's end of a connection.
fn kernel() -> SocketAddr {
    SocketAddr::new(0, 0)
}

fn restless(what: &str) -> Error {
    Error::new(
        ErrorKind::Transient,
        format!("{what}: the list changes faster than it can be read"),
    )
}

fn lost(what: &str) -> Error {
    Error::new(
        ErrorKind::Transient,
        format!("{what}: the rtnetlink connection is gone"),
    )
}
