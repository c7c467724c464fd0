//! The answering side: TCP and UDP, telling the source that is seen.

use std::{
    io,
    net::{IpAddr, SocketAddr, TcpListener, UdpSocket},
    sync::{Arc, Mutex},
};

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{lock::locked, namespace::Namespace};

/// Largest datagram or read.
const BUFFER: usize = 65_536;

/// The sources that an answering namespace has seen, oldest first.
#[derive(Debug, Clone, Default)]
pub struct Seen(Arc<Mutex<Vec<SocketAddr>>>);

impl Seen {
    /// Every connection's and datagram's source so far.
    #[must_use]
    pub fn sources(&self) -> Vec<SocketAddr> {
        locked(&self.0).clone()
    }

    /// Forgets them.
    pub fn clear(&self) {
        locked(&self.0).clear();
    }

    fn note(&self, source: SocketAddr) {
        locked(&self.0).push(source);
    }
}

impl Namespace {
    /// Answers TCP and UDP on these addresses of the namespace, with the source that is seen, until
    /// the lab ends.
    ///
    /// TCP: the line `address:port` at once, then everything comes back. UDP: each datagram comes
    /// back behind such a line.
    ///
    /// # Errors
    /// When an address cannot be bound.
    pub fn respond(&self, addresses: &[IpAddr], port: u16) -> io::Result<Seen> {
        start(self, addresses, port)
    }
}

/// Opens the sockets in the namespace and answers on the lab's own runtime.
fn start(namespace: &Namespace, addresses: &[IpAddr], port: u16) -> io::Result<Seen> {
    let seen = Seen::default();
    // One socket per address: datagrams are then answered from the address they were sent to.
    for address in addresses {
        let at = SocketAddr::new(*address, port);
        let (tcp, udp) = namespace
            .enter(|| Ok::<_, io::Error>((TcpListener::bind(at)?, UdpSocket::bind(at)?)))??;
        tcp.set_nonblocking(true)?;
        udp.set_nonblocking(true)?;
        namespace.running.with_runtime(|runtime| {
            let _inside = runtime.enter();
            let (tcp, udp) = (
                tokio::net::TcpListener::from_std(tcp)?,
                tokio::net::UdpSocket::from_std(udp)?,
            );
            runtime.spawn(respond_tcp(tcp, seen.clone()));
            runtime.spawn(respond_udp(udp, seen.clone()));
            Ok(())
        })?;
    }
    Ok(seen)
}

async fn respond_tcp(listener: tokio::net::TcpListener, seen: Seen) {
    loop {
        // An error here is one connection's (aborted before it was accepted), not the listener's.
        let Ok((mut stream, source)) = listener.accept().await else {
            continue;
        };
        seen.note(source);
        tokio::spawn(async move {
            stream.write_all(format!("{source}\n").as_bytes()).await?;
            let mut buffer = vec![0; BUFFER];
            loop {
                match stream.read(&mut buffer).await? {
                    0 => return Ok::<(), io::Error>(()),
                    length => stream.write_all(&buffer[..length]).await?,
                }
            }
        });
    }
}

async fn respond_udp(socket: tokio::net::UdpSocket, seen: Seen) {
    let mut buffer = vec![0; BUFFER];
    loop {
        // An error here is an ICMP message about an earlier response.
        let Ok((length, source)) = socket.recv_from(&mut buffer).await else {
            continue;
        };
        seen.note(source);
        let mut response = format!("{source}\n").into_bytes();
        response.extend_from_slice(&buffer[..length]);
        let _ = socket.send_to(&response, source).await;
    }
}
