//! Notifications of the kernel that something changed.

use egressgateway::Error;
use futures::FutureExt as _;
use netlink_packet_core::{NetlinkBuffer, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::{RouteNetlinkMessage, neighbour::NeighbourState};
use netlink_sys::{
    AsyncSocket as _, AsyncSocketExt as _, SocketAddr, TokioSocket, protocols::NETLINK_ROUTE,
};

use crate::constants::NOTIFICATION_GROUPS;

/// A socket that is told of every change of its network namespace.
pub(crate) struct Monitor {
    socket: TokioSocket,
}

impl Monitor {
    /// Subscribes; what happens from now on is kept until it is asked for, as long as the kernel's
    /// buffer lasts.
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

    /// Waits for a change, and takes in all that are waiting with it. Nothing is lost when the wait
    /// is cancelled.
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

/// `RTM_NEWNEXTHOPBUCKET` of `linux/rtnetlink.h`: a bucket of a resilient group goes to another of
/// its members.
const BUCKET_MOVED: u16 = 116;

/// Whether a datagram says more than how a neighbour's reachability is going, or which bucket of a
/// group of next hops has moved, of which a busy host sends many each second. What cannot be read
/// counts.
pub(crate) fn says_something(datagram: &[u8]) -> bool {
    let mut rest = datagram;
    while !rest.is_empty() {
        let Ok(message) = NetlinkBuffer::new_checked(rest) else {
            return true;
        };
        let moved = message.message_type() == BUCKET_MOVED;
        if !moved
            && NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest)
                .map_or(true, |message| !is_reachability(&message))
        {
            return true;
        }
        let length = usize::try_from(message.length())
            .unwrap_or(usize::MAX)
            .next_multiple_of(4);
        rest = rest.get(length..).unwrap_or_default();
    }
    false
}

fn is_reachability(message: &NetlinkMessage<RouteNetlinkMessage>) -> bool {
    let NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewNeighbour(neighbour)) =
        &message.payload
    else {
        return false;
    };
    matches!(
        neighbour.header.state,
        NeighbourState::Incomplete
            | NeighbourState::Reachable
            | NeighbourState::Stale
            | NeighbourState::Delay
            | NeighbourState::Probe
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A message of this type with nothing that can be read in it.
    fn message(kind: u16) -> Vec<u8> {
        let mut bytes = vec![0; 16];
        bytes[..4].copy_from_slice(&16_u32.to_ne_bytes());
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes
    }

    #[test]
    fn a_bucket_that_moves_says_nothing_and_a_next_hop_that_changes_does() {
        const NEXT_HOP_GONE: u16 = 105;
        assert!(!says_something(&message(BUCKET_MOVED)));
        assert!(says_something(&message(NEXT_HOP_GONE)));
        assert!(
            says_something(&[message(BUCKET_MOVED), message(NEXT_HOP_GONE)].concat()),
            "the second counts too"
        );
        assert!(
            says_something(&message(BUCKET_MOVED)[..7]),
            "what is cut off counts"
        );
    }
}
