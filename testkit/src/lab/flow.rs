//! A connection that stays open, to see that it goes on.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket},
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

/// How often a datagram is sent before its response counts as lost.
const ATTEMPTS: u32 = 3;

/// Numbers of all questions of the process: a response that comes late, to a socket that has the
/// port of an earlier one, is told from its own.
static QUESTIONS: AtomicU64 = AtomicU64::new(1);

/// An open connection to an answering [`Namespace`](super::Namespace).
#[derive(Debug)]
pub struct Flow {
    wire: Wire,
    source: SocketAddr,
}

#[derive(Debug)]
enum Wire {
    Tcp(BufReader<TcpStream>),
    Udp {
        socket: UdpSocket,
        /// How often a question is sent.
        attempts: u32,
    },
}

impl Flow {
    /// Opens in the calling thread's namespace.
    pub(super) fn tcp(to: SocketAddr, patience: Duration) -> io::Result<Self> {
        let stream = TcpStream::connect_timeout(&to, patience)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(patience))?;
        stream.set_write_timeout(Some(patience))?;
        let mut stream = BufReader::new(stream);
        let mut line = String::new();
        stream.read_line(&mut line).map_err(lost)?;
        Ok(Self {
            source: source(&line)?,
            wire: Wire::Tcp(stream),
        })
    }

    /// Opens in the calling thread's namespace, and asks once for the source seen. Port 0 is a
    /// fresh one.
    pub(super) fn udp(to: SocketAddr, port: u16, patience: Duration) -> io::Result<Self> {
        Self::udp_with(to, port, patience, ATTEMPTS)
    }

    /// The same with so many attempts, spread over all of the patience.
    pub(super) fn udp_with(
        to: SocketAddr,
        port: u16,
        patience: Duration,
        attempts: u32,
    ) -> io::Result<Self> {
        let socket = udp_socket(to, port, patience / attempts)?;
        let mut flow = Self {
            wire: Wire::Udp { socket, attempts },
            source: to,
        };
        flow.echo()?;
        Ok(flow)
    }

    /// The source that the other end saw last: of a TCP connection at its beginning, of a UDP flow
    /// at the last echo.
    #[must_use]
    pub const fn source_seen(&self) -> SocketAddr {
        self.source
    }

    /// This end's own address.
    ///
    /// # Errors
    /// From the kernel.
    pub fn local(&self) -> io::Result<SocketAddr> {
        match &self.wire {
            Wire::Tcp(stream) => stream.get_ref().local_addr(),
            Wire::Udp { socket, .. } => socket.local_addr(),
        }
    }

    /// Sends something and waits until it comes back; returns the source that the other end sees.
    ///
    /// # Errors
    /// When the connection is broken, or nothing comes back in time (two seconds; a datagram is
    /// sent three times).
    pub fn echo(&mut self) -> io::Result<SocketAddr> {
        let text = format!("echo {}\n", QUESTIONS.fetch_add(1, Ordering::Relaxed));
        match &mut self.wire {
            Wire::Tcp(stream) => {
                stream.get_mut().write_all(text.as_bytes())?;
                let mut back = vec![0; text.len()];
                stream.read_exact(&mut back).map_err(lost)?;
                if back != text.as_bytes() {
                    return Err(io::Error::other("something else came back"));
                }
            }
            Wire::Udp { socket, attempts } => self.source = ask(socket, &text, *attempts)?,
        }
        Ok(self.source)
    }

    /// Sends `length` bytes and waits until all came back: for the sizes of packets that pass.
    ///
    /// # Errors
    /// As [`Flow::echo`]; for UDP, when `length` exceeds a datagram.
    pub fn echo_bytes(&mut self, length: usize) -> io::Result<()> {
        let bytes = vec![b'x'; length];
        match &mut self.wire {
            Wire::Tcp(stream) => {
                let mut writer = stream.get_ref().try_clone()?;
                let payload = bytes.clone();
                // Both directions at once, or full buffers would stop both ends.
                let sender = std::thread::spawn(move || writer.write_all(&payload));
                let mut back = vec![0; length];
                stream.read_exact(&mut back).map_err(lost)?;
                sender
                    .join()
                    .map_err(|_| io::Error::other("the sender panicked"))??;
                if back == bytes {
                    Ok(())
                } else {
                    Err(io::Error::other("something else came back"))
                }
            }
            Wire::Udp { socket, attempts } => {
                let text = String::from_utf8_lossy(&bytes);
                self.source = ask(socket, &text, *attempts)?;
                Ok(())
            }
        }
    }
}

/// A UDP socket from this port, or with 0 a fresh one, to `to`.
pub(super) fn udp_socket(to: SocketAddr, port: u16, patience: Duration) -> io::Result<UdpSocket> {
    let any: IpAddr = if to.is_ipv4() {
        Ipv4Addr::UNSPECIFIED.into()
    } else {
        Ipv6Addr::UNSPECIFIED.into()
    };
    let socket = UdpSocket::bind((any, port))?;
    socket.connect(to)?;
    socket.set_read_timeout(Some(patience))?;
    Ok(socket)
}

/// Sends until the response comes, so often, at the distance of the socket's timeout.
fn ask(socket: &UdpSocket, text: &str, attempts: u32) -> io::Result<SocketAddr> {
    let distance = socket.read_timeout()?.unwrap_or_default();
    let mut last = io::Error::from(io::ErrorKind::TimedOut);
    for _ in 0..attempts {
        let next = Instant::now() + distance;
        match socket
            .send(text.as_bytes())
            .and_then(|_| receive_response(socket, text, next))
        {
            Ok(source) => return Ok(source),
            Err(error) => last = lost(error),
        }
        // What is unreachable at this moment, as the kernel says at once, may not be at the next.
        thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    Err(last)
}

/// Waits for the response to this question; late ones to earlier questions are passed over.
fn receive_response(socket: &UdpSocket, text: &str, deadline: Instant) -> io::Result<SocketAddr> {
    let mut buffer = vec![0; 65_536];
    loop {
        let length = socket.recv(&mut buffer)?;
        match split_response(&buffer[..length]) {
            Some((source, rest)) if rest == text.as_bytes() => return Ok(source),
            _ if Instant::now() > deadline => return Err(io::ErrorKind::TimedOut.into()),
            _ => {}
        }
    }
}

/// The source and the echoed payload of a datagram's response.
pub(super) fn split_response(response: &[u8]) -> Option<(SocketAddr, &[u8])> {
    let end = response.iter().position(|byte| *byte == b'\n')?;
    let source = std::str::from_utf8(&response[..end]).ok()?.parse().ok()?;
    Some((source, &response[end + 1..]))
}

fn source(line: &str) -> io::Result<SocketAddr> {
    line.trim().parse().map_err(|_| {
        io::Error::new(
            io::ErrorKind::UnexpectedEof,
            format!("no source address in {line:?}"),
        )
    })
}

/// The kernel reports an elapsed timeout of a socket as `WouldBlock`.
fn lost(error: io::Error) -> io::Error {
    if error.kind() == io::ErrorKind::WouldBlock {
        io::ErrorKind::TimedOut.into()
    } else {
        error
    }
}
