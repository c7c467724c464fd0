//! Connection tracking of a node, as an administrator handles it.

use std::{
    io,
    os::fd::{AsRawFd, OwnedFd},
};

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, connect, recv, send,
    socket,
};

use super::node::Node;

/// `NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_DELETE`.
const DELETE: u16 = 0x0102;
/// `NLM_F_REQUEST | NLM_F_ACK`.
const REQUEST: u16 = 0x0005;
/// Of a message without attributes: `struct nlmsghdr` and `struct nfgenmsg`.
const LENGTH: u32 = 20;
/// Where an acknowledgement has its number: behind its header.
const ERRNO: std::ops::Range<usize> = 16..20;

impl Node {
    /// Makes the kernel forget every connection, as `conntrack -F` does.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn forget_connections(&self) -> io::Result<()> {
        self.enter(flush)?
    }
}

fn flush() -> io::Result<()> {
    let socket: OwnedFd = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkNetFilter,
    )?;
    connect(socket.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
    let mut request = Vec::with_capacity(LENGTH as usize);
    request.extend(LENGTH.to_ne_bytes());
    request.extend(DELETE.to_ne_bytes());
    request.extend(REQUEST.to_ne_bytes());
    // Sequence, sender, and any family.
    request.resize(LENGTH as usize, 0);
    send(socket.as_raw_fd(), &request, MsgFlags::empty())?;
    let mut response = [0; 256];
    let length = recv(socket.as_raw_fd(), &mut response, MsgFlags::empty())?;
    let errno = response[..length]
        .get(ERRNO)
        .and_then(|bytes| bytes.try_into().ok())
        .map(i32::from_ne_bytes);
    match errno {
        Some(0) => Ok(()),
        Some(errno) => Err(io::Error::from_raw_os_error(errno.saturating_abs())),
        None => Err(io::Error::other(
            "the kernel's response is no acknowledgement",
        )),
    }
}
