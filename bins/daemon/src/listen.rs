use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
};

use egressgateway::Error;
use nix::errno::Errno;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpListener;

/// How many connections may wait to be accepted.
const BACKLOG: i32 = 1024;

/// Listens for TCP at an address.
///
/// `[::]` stands for every address of the host in both families, whatever its default for IPv6
/// sockets (`net.ipv6.bindv6only`), and where the kernel has no IPv6, for every IPv4 address.
/// Others mean what they say: `0.0.0.0` is IPv4 alone.
///
/// # Errors
/// When the address is taken or not this host's.
pub async fn listen_at(address: SocketAddr) -> Result<TcpListener, Error> {
    let open = |domain| {
        Socket::new(
            domain,
            Type::STREAM.nonblocking().cloexec(),
            Some(Protocol::TCP),
        )
    };
    let listener = bind(address, open).and_then(|socket| TcpListener::from_std(socket.into()));
    listener.map_err(|error| Error::from_io(error, format!("listen at {address}")))
}

fn bind(address: SocketAddr, open: impl Fn(Domain) -> io::Result<Socket>) -> io::Result<Socket> {
    let everywhere = address.is_ipv6() && address.ip().is_unspecified();
    let (socket, address) = match open(Domain::for_address(address)) {
        Err(error) if everywhere && without_ipv6(&error) => (
            open(Domain::IPV4)?,
            (Ipv4Addr::UNSPECIFIED, address.port()).into(),
        ),
        socket => (socket?, address),
    };
    if address.is_ipv6() {
        socket.set_only_v6(!everywhere)?;
    }
    // A daemon that starts again does not wait for connections of its last life.
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket)
}

/// The kernel was started with `ipv6.disable=1`, or was built without. Where IPv6 is merely
/// switched off on devices (`disable_ipv6`), sockets can still be opened, and `[::]` takes
/// connections over IPv4.
fn without_ipv6(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::Unsupported
        || error.raw_os_error() == Some(Errno::EAFNOSUPPORT as i32)
}

#[cfg(test)]
mod tests {
    use std::net::TcpStream;

    use super::*;

    fn real(domain: Domain) -> io::Result<Socket> {
        Socket::new(domain, Type::STREAM, Some(Protocol::TCP))
    }

    fn port(socket: &Socket) -> u16 {
        socket.local_addr().unwrap().as_socket().unwrap().port()
    }

    #[test]
    fn everywhere_is_ipv4_alone_where_the_kernel_has_no_ipv6() {
        let without = |domain| match domain {
            Domain::IPV6 => Err(io::Error::from_raw_os_error(Errno::EAFNOSUPPORT as i32)),
            other => real(other),
        };
        let socket = bind("[::]:0".parse().unwrap(), without).unwrap();
        TcpStream::connect(("127.0.0.1", port(&socket))).unwrap();
        let error = bind("[::1]:0".parse().unwrap(), without).unwrap_err();
        assert_eq!(
            error.raw_os_error(),
            Some(Errno::EAFNOSUPPORT as i32),
            "an address that was asked for is not replaced"
        );
    }

    #[test]
    fn everywhere_is_both_families_and_an_address_is_that_address() {
        let socket = bind("[::]:0".parse().unwrap(), real).unwrap();
        for address in ["127.0.0.1", "::1"] {
            TcpStream::connect((address, port(&socket)))
                .unwrap_or_else(|error| panic!("{address}: {error}"));
        }
        let socket = bind("0.0.0.0:0".parse().unwrap(), real).unwrap();
        TcpStream::connect(("127.0.0.1", port(&socket))).unwrap();
        TcpStream::connect(("::1", port(&socket))).unwrap_err();
    }

    #[test]
    fn a_taken_address_is_an_error() {
        let socket = bind("127.0.0.1:0".parse().unwrap(), real).unwrap();
        let taken = SocketAddr::from((Ipv4Addr::LOCALHOST, port(&socket)));
        assert_eq!(
            bind(taken, real).unwrap_err().kind(),
            io::ErrorKind::AddrInUse
        );
    }
}
