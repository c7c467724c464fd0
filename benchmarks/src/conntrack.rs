//! The kernel's table of connections in one namespace.

use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket,
};

/// A netlink socket in the namespace where it was opened.
#[derive(Debug)]
pub struct Conntrack(OwnedFd);

/// `NFNL_SUBSYS_CTNETLINK` and `IPCTNL_MSG_CT_DELETE`; without a tuple it means all connections.
const DELETE: u16 = 1 << 8 | 2;
/// `NLM_F_REQUEST` and `NLM_F_ACK`.
const FLAGS: u16 = 1 | 4;
/// A netlink header, and netfilter's own of four zero bytes: any address family.
const LENGTH: u32 = 16 + 4;

impl Conntrack {
    /// Opens the socket.
    #[must_use]
    pub fn open() -> Self {
        let opened = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkNetFilter,
        );
        Self(opened.expect("a netlink socket"))
    }

    /// Forgets all connections.
    ///
    /// # Panics
    /// When the kernel refuses.
    pub fn flush(&self) {
        let mut request = LENGTH.to_ne_bytes().to_vec();
        request.extend(DELETE.to_ne_bytes());
        request.extend(FLAGS.to_ne_bytes());
        request.resize(LENGTH as usize, 0);
        send(self.0.as_raw_fd(), &request, MsgFlags::empty()).expect("to ask");
        let mut answer = [0; 256];
        let length = recv(self.0.as_raw_fd(), &mut answer, MsgFlags::empty()).expect("an answer");
        assert!(
            length >= 20 && answer[16..20] == [0; 4],
            "the kernel refused to forget connections: {:?}",
            &answer[..length]
        );
    }
}
