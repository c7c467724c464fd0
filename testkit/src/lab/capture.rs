//! Every packet on the underlay, kept.

use std::{
    collections::BTreeMap,
    io,
    os::fd::{AsFd, AsRawFd},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{LinkAddr, recvfrom, setsockopt, sockopt},
};
use socket2::{Domain, Protocol, Socket, Type};

use super::{constants::UNDERLAY, lock::locked, packet::Packet, running::Running};

/// All protocols (`ETH_P_ALL`), in network byte order as the kernel wants it.
const ALL: u16 = 0x0003_u16.to_be();
/// A copy of what this host sends (`PACKET_OUTGOING`): of what the switch passes on.
const OUTGOING: u8 = 4;
/// Room for packets that were not read yet, in bytes: a full buffer would lose packets silently.
const ROOM: usize = 64 << 20;
/// How much of a frame is kept; enough for two headers and a tunnel's.
const SNAP: usize = 512;

/// Every packet that entered the underlay's switches since the capture began, each once: where it
/// entered.
#[derive(Debug)]
pub struct Capture {
    wire: Arc<Wire>,
}

#[derive(Debug)]
struct Wire {
    socket: Socket,
    ports: BTreeMap<usize, String>,
    kept: Mutex<Vec<Packet>>,
    stop: AtomicBool,
}

impl Capture {
    pub(super) fn start(running: &Running) -> io::Result<Self> {
        let ports = ports(running)?;
        let socket = running.sandbox.enter(Some(UNDERLAY), || {
            Socket::new(
                Domain::PACKET,
                Type::RAW,
                Some(Protocol::from(i32::from(ALL))),
            )
        })??;
        socket.set_nonblocking(true)?;
        // Beyond the system's limit only for the host's root; a namespace's root takes what the
        // limit allows.
        if setsockopt(&socket, sockopt::RcvBufForce, &ROOM).is_err() {
            setsockopt(&socket, sockopt::RcvBuf, &ROOM)?;
        }
        let wire = Arc::new(Wire {
            socket,
            ports,
            kept: Mutex::default(),
            stop: AtomicBool::new(false),
        });
        let reader = Arc::clone(&wire);
        thread::Builder::new()
            .name("lab-capture".into())
            .spawn(move || reader.read())?;
        Ok(Self { wire })
    }

    /// The packets so far, by arrival.
    ///
    /// # Panics
    /// When the capture cannot be read any more.
    #[must_use]
    pub fn packets(&self) -> Vec<Packet> {
        let mut kept = locked(&self.wire.kept);
        self.wire
            .drain(&mut kept)
            .expect("a capture that can be read");
        kept.clone()
    }

    /// How many packets so far satisfy `filter`.
    ///
    /// # Panics
    /// When the capture cannot be read any more.
    #[must_use]
    pub fn count(&self, filter: impl Fn(&Packet) -> bool) -> usize {
        self.packets()
            .iter()
            .filter(|packet| filter(packet))
            .count()
    }

    /// Forgets the packets so far.
    ///
    /// # Panics
    /// When the capture cannot be read any more.
    pub fn clear(&self) {
        let mut kept = locked(&self.wire.kept);
        self.wire
            .drain(&mut kept)
            .expect("a capture that can be read");
        kept.clear();
    }

    /// Waits for a packet that satisfies `filter`, among those so far or to come.
    ///
    /// # Errors
    /// When there is none after `timeout`.
    ///
    /// # Panics
    /// When the capture cannot be read any more.
    pub fn wait_for(
        &self,
        timeout: Duration,
        filter: impl Fn(&Packet) -> bool,
    ) -> io::Result<Packet> {
        let deadline = Instant::now() + timeout;
        loop {
            if let Some(packet) = self.packets().into_iter().find(|packet| filter(packet)) {
                return Ok(packet);
            }
            if Instant::now() > deadline {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "no such packet"));
            }
            thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.wire.stop.store(true, Ordering::Relaxed);
    }
}

impl Wire {
    /// Keeps the kernel's buffer empty until told to stop.
    fn read(&self) {
        while !self.stop.load(Ordering::Relaxed) {
            let mut waiting = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
            let ready = poll(&mut waiting, PollTimeout::from(50u8));
            // An error shows again, and panics, where the capture is asked.
            if ready.is_err_and(|error| error != Errno::EINTR)
                || self.drain(&mut locked(&self.kept)).is_err()
            {
                return;
            }
        }
    }

    /// Reads everything that has arrived.
    fn drain(&self, kept: &mut Vec<Packet>) -> nix::Result<()> {
        let mut frame = [0; SNAP];
        loop {
            match recvfrom::<LinkAddr>(self.socket.as_raw_fd(), &mut frame) {
                Ok((length, Some(from))) if from.pkttype() != OUTGOING => {
                    let port = self.ports.get(&from.ifindex());
                    kept.extend(
                        port.and_then(|port| Packet::parse(port, &frame[..length.min(SNAP)])),
                    );
                }
                Ok(_) | Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }
}

/// Owners of the switches' ports, by the kernel's index. The switches' own devices are none: they
/// repeat what entered elsewhere.
fn ports(running: &Running) -> io::Result<BTreeMap<usize, String>> {
    let listed = running
        .sandbox
        .script(Some(UNDERLAY), "ip -o link show type veth")?;
    let state = locked(&running.state);
    let port = |line: &str| {
        let mut words = line.split_whitespace();
        let index = words.next()?.trim_end_matches(':').parse().ok()?;
        let name = words.next()?.split('@').next()?;
        Some((index, state.ports.get(name)?.clone()))
    };
    Ok(listed.lines().filter_map(port).collect())
}
