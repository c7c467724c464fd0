//! Notifications of the kernel that something changed.

use egressgateway::Error;
use futures::FutureExt as _;
use netlink_packet_core::{NetlinkMessage, NetlinkPayload};
use netlink_packet_route::{RouteNetlinkMessage, neighbour::NeighbourState};
use netlink_sys::{AsyncSocket as _, AsyncSocketExt as _, SocketAddr, TokioSocket, protocols::NETLINK_ROUTE};

use crate::constants::NOTIFICATION_GROUPS;

/// A socket that is told of every change of its network namespace.
pub(crate) struct Monitor {
    socket: TokioSocket,
}

impl Monitor {
    /// Subscribes; what happens from now on is kept until it is asked for, as long as the kernel's buffer lasts.
    pub(crate) fn open() -> Result<Self, Error> {
        let subscribe = || {
            let mut socket = TokioSocket::new(NETLINK_ROUTE)?;
            socket.socket_mut().bind(&SocketAddr::new(0, 0))?;
            for group in NOTIFICATION_GROUPS {
                socket.socket_mut().add_membership(group)?;
            }
            Ok(Self { socket })
        };
        subscribe().map_err(|error| Error::from_io(error, "subscribe to rtnetlink notifications"))
    }

    /// Waits for a change, and takes in all that are waiting with it. Nothing is lost when the wait is cancelled.
    pub(crate) async fn changed(&mut self) -> Result<(), Error> {
        let failed = |error| Error::from_io(error, "receive rtnetlink notifications");
        loop {
            let (datagram, _) = self.socket.recv_from_full().await.map_err(failed)?;
            let mut matters = says_something(&datagram);
            while let Some(next) = self.socket.recv_from_full().now_or_never() {
                matters |= says_something(&next.map_err(failed)?.0);
            }
            if matters {
                return Ok(());
            }
        }
    }
}

/// Whether a datagram says more than how a neighbour's reachability is going, of which a busy host sends many each second. What cannot
/// be read counts.
fn says_something(datagram: &[u8]) -> bool {
    let mut rest = datagram;
    while !rest.is_empty() {
        let Ok(message) = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest) else { return true };
        if !is_reachability(&message) {
            return true;
        }
        let length = usize::try_from(message.header.length).unwrap_or(usize::MAX).next_multiple_of(4);
        rest = rest.get(length..).unwrap_or_default();
    }
    false
}

fn is_reachability(message: &NetlinkMessage<RouteNetlinkMessage>) -> bool {
    let NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewNeighbour(neighbour)) = &message.payload else { return false };
    matches!(
        neighbour.header.state,
        NeighbourState::Incomplete | NeighbourState::Reachable | NeighbourState::Stale | NeighbourState::Delay | NeighbourState::Probe
    )
}
