//! One network namespace of a lab: where commands run, sockets open and programs live.

use std::{
    fmt, io,
    net::{SocketAddr, TcpListener},
    ops::Range,
    sync::Arc,
    time::Duration,
};

use super::{flow::Flow, running::Running};
use crate::pace::patient;

/// How long a connection or a response may take before it counts as lost.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// A network namespace of a lab. [`Node`](super::Node), [`Pod`](super::Pod) and
/// [`Server`](super::Server) are dereferenced to it.
#[derive(Clone)]
pub struct Namespace {
    pub(super) running: Arc<Running>,
    /// `None`: the lab's root.
    pub(super) name: Option<String>,
}

impl fmt::Debug for Namespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Namespace").field(&self.name).finish()
    }
}

impl Namespace {
    /// Runs a shell script (`sh -eu`) here; returns what it printed.
    ///
    /// # Errors
    /// When it exits non-zero, with everything it printed.
    pub fn run(&self, script: &str) -> io::Result<String> {
        self.running.sandbox.script(self.name.as_deref(), script)
    }

    /// Runs `work` on a thread inside this network namespace and returns what it returned. Sockets
    /// opened there stay there, and may be used from any thread.
    ///
    /// # Errors
    /// When the lab has ended or the namespace is gone.
    ///
    /// # Panics
    /// When `work` does.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> io::Result<T> {
        self.running.sandbox.enter(self.name.as_deref(), work)
    }

    /// Moves the calling thread into this network namespace, for good: for a test's own thread with
    /// a current-thread runtime.
    ///
    /// # Errors
    /// When the lab has ended or the namespace is gone.
    pub fn move_in(&self) -> io::Result<()> {
        self.running.sandbox.move_in(self.name.as_deref())
    }

    /// A listening TCP socket here; port 0 lets the kernel choose.
    ///
    /// # Errors
    /// When the address cannot be bound.
    pub fn listen_tcp(&self, address: SocketAddr) -> io::Result<TcpListener> {
        self.enter(|| TcpListener::bind(address))?
    }

    /// Opens a TCP connection and returns the source that the other end sees.
    ///
    /// # Errors
    /// When it is refused, or when there is no response for two seconds.
    pub fn connect_tcp(&self, to: SocketAddr) -> io::Result<SocketAddr> {
        self.open_tcp(to).map(|flow| flow.source_seen())
    }

    /// Sends a datagram from a fresh port and returns the source that the other end sees.
    ///
    /// # Errors
    /// When there is no response for two seconds (it is asked for three times).
    pub fn connect_udp(&self, to: SocketAddr) -> io::Result<SocketAddr> {
        self.open_udp(to).map(|flow| flow.source_seen())
    }

    /// Opens a TCP connection that stays.
    ///
    /// # Errors
    /// As [`Namespace::connect_tcp`].
    pub fn open_tcp(&self, to: SocketAddr) -> io::Result<Flow> {
        self.enter(|| Flow::tcp(to, patient(PATIENCE)))?
    }

    /// Opens a UDP flow that keeps its port.
    ///
    /// # Errors
    /// As [`Namespace::connect_udp`].
    pub fn open_udp(&self, to: SocketAddr) -> io::Result<Flow> {
        self.enter(|| Flow::udp(to, 0, patient(PATIENCE)))?
    }

    /// Whether nothing answers at `to`, asked once by TCP and once by UDP, each for `patience`.
    ///
    /// # Errors
    /// With the source that was seen when something did answer; when the lab has ended.
    pub fn cannot_reach(&self, to: SocketAddr, patience: Duration) -> io::Result<()> {
        let responses = self.enter(|| [Flow::tcp(to, patience), Flow::udp(to, 0, patience)])?;
        match responses.into_iter().flatten().next() {
            None => Ok(()),
            Some(flow) => Err(io::Error::other(format!(
                "{to} answered, and saw {}",
                flow.source_seen()
            ))),
        }
    }

    /// Sends from `count` fresh UDP ports, one after the other, and returns the sources seen: for
    /// the spread over ECMP paths.
    ///
    /// # Errors
    /// At the first without a response.
    pub fn connect_many(&self, to: SocketAddr, count: usize) -> io::Result<Vec<SocketAddr>> {
        self.enter(|| {
            (0..count)
                .map(|_| Flow::udp(to, 0, patient(PATIENCE)).map(|flow| flow.source_seen()))
                .collect()
        })?
    }

    /// Sends from each of these UDP ports, one after the other, and returns the sources seen. From
    /// the same ports again, these are the same connections, although no socket stays open. What a
    /// busy machine loses is sent again, for ten seconds.
    ///
    /// # Errors
    /// At the first without a response.
    pub fn connect_from(&self, to: SocketAddr, ports: Range<u16>) -> io::Result<Vec<SocketAddr>> {
        const ATTEMPTS: u32 = 40;
        let open = |port| Flow::udp_with(to, port, patient(PATIENCE * 5), ATTEMPTS);
        self.enter(|| {
            ports
                .map(|port| open(port).map(|flow| flow.source_seen()))
                .collect()
        })?
    }
}
