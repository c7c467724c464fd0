//! Traffic: each pod talks to each server all the time, and servers note who they see.

use std::{
    collections::BTreeMap,
    io::{self, Read as _, Write as _},
    mem::MaybeUninit,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use socket2::{Domain, Protocol, Socket, Type};

use crate::lab::{Namespace, Pod, Server};

/// Where servers of the soak listen, by UDP and TCP.
const PORT: u16 = 9000;
/// Between two rounds of a pod.
const STEP: Duration = Duration::from_millis(70);
/// How long a server speaks to somebody who was silent meanwhile.
const MEMORY: Duration = Duration::from_secs(3);
/// How long a TCP connection may take.
const TCP_PATIENCE: Duration = Duration::from_millis(1500);

/// Somebody whom a server has seen.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    /// `namespace/name`, as the pod itself says.
    pub(super) pod: String,
    pub(super) to: IpAddr,
    pub(super) source: IpAddr,
    /// Of a connection that began just then.
    pub(super) fresh: bool,
    pub(super) at: Instant,
}

/// What all servers have seen.
pub(super) type Book = Arc<Mutex<Vec<Seen>>>;

/// A thread that ends with this.
#[derive(Debug)]
pub(super) struct Talker(Arc<AtomicBool>);

impl Drop for Talker {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn start(
    namespace: &Namespace,
    mut work: impl FnMut() -> io::Result<()> + Send + 'static,
) -> io::Result<Talker> {
    let (stop, namespace) = (Arc::new(AtomicBool::new(false)), namespace.clone());
    let stopped = stop.clone();
    thread::Builder::new().name("soak".into()).spawn(move || {
        // Both fail only when the cluster ends.
        if namespace.move_in().is_ok() {
            while !stopped.load(Ordering::Relaxed) && work().is_ok() {}
        }
    })?;
    Ok(Talker(stop))
}

/// Listens at a server's addresses, notes whoever speaks, and speaks first to those who spoke
/// before.
pub(super) fn serve(server: &Server, book: &Book) -> io::Result<Vec<Talker>> {
    let mut talkers = Vec::new();
    for address in server.endpoints().iter().map(SocketAddr::ip) {
        let at = SocketAddr::new(address, PORT);
        let (udp, tcp) = server
            .enter(|| Ok::<_, io::Error>((UdpSocket::bind(at)?, TcpListener::bind(at)?)))??;
        udp.set_read_timeout(Some(STEP))?;
        tcp.set_nonblocking(true)?;
        let (book, mut known, mut spoken) = (book.clone(), BTreeMap::new(), Instant::now());
        talkers.push(start(server, move || {
            datagrams(&udp, address, &book, &mut known);
            connections(&tcp, address, &book);
            if spoken.elapsed() >= STEP {
                spoken = Instant::now();
                known.retain(|_, seen: &mut Instant| seen.elapsed() < MEMORY);
                for source in known.keys() {
                    // Unreachable at the moment: said again.
                    let _ = udp.send_to(b"first", source);
                }
            }
            Ok(())
        })?);
    }
    Ok(talkers)
}

fn datagrams(
    udp: &UdpSocket,
    address: IpAddr,
    book: &Book,
    known: &mut BTreeMap<SocketAddr, Instant>,
) {
    let mut buffer = [0; 256];
    let until = Instant::now() + STEP;
    while let Ok((length, source)) = udp.recv_from(&mut buffer) {
        note(book, &buffer[..length], address, source.ip());
        if buffer[..length].starts_with(b"stays ") {
            known.insert(source, Instant::now());
        }
        if Instant::now() > until {
            return;
        }
    }
}

fn connections(tcp: &TcpListener, address: IpAddr, book: &Book) {
    let mut buffer = [0; 256];
    while let Ok((mut stream, source)) = tcp.accept() {
        let readable = stream
            .set_nonblocking(false)
            .and_then(|()| stream.set_read_timeout(Some(STEP)));
        if let Ok(length) = readable.and_then(|()| stream.read(&mut buffer)) {
            note(book, &buffer[..length], address, source.ip());
        }
    }
}

fn note(book: &Book, said: &[u8], to: IpAddr, source: IpAddr) {
    let Some((how, pod)) = std::str::from_utf8(said)
        .ok()
        .and_then(|text| text.split_once(' '))
    else {
        return;
    };
    let seen = Seen {
        pod: pod.to_owned(),
        to,
        source,
        fresh: how == "fresh",
        at: Instant::now(),
    };
    book.lock()
        .unwrap_or_else(PoisonError::into_inner)
        .push(seen);
}

/// Ports that no pod of an address has used for long: a port that the kernel chose may belong to a
/// connection that is still tracked.
struct Ports(u16);

impl Ports {
    const FIRST: u16 = 2000;
    /// How many a pod uses before the next one with its address begins, at most.
    const EACH: u16 = 3000;

    /// Those of the pod that is made as this one.
    fn of(number: usize) -> Self {
        let starts = usize::from((u16::MAX - Self::FIRST) / Self::EACH);
        Self(Self::FIRST + u16::try_from(number % starts).unwrap_or_default() * Self::EACH)
    }

    fn next(&mut self) -> u16 {
        let port = self.0;
        self.0 = port.checked_add(1).unwrap_or(Self::FIRST);
        port
    }
}

/// A pod that talks to these servers: datagrams from fresh ports and from ones that stay,
/// connections, and pings. It is the pod that was made as this one of all.
pub(super) fn talk(pod: &Pod, number: usize, servers: &[IpAddr]) -> io::Result<Talker> {
    let name = format!("{}/{}", pod.namespace(), pod.name());
    let servers: Vec<SocketAddr> = servers
        .iter()
        .map(|address| SocketAddr::new(*address, PORT))
        .collect();
    let (mut staying, mut connecting) = (BTreeMap::new(), Vec::new());
    let mut round = 0_u64;
    let mut ports = Ports::of(number);
    start(pod, move || {
        let port = ports.next();
        for to in &servers {
            // What can't be sent at the moment is not sent.
            let _ =
                open(*to, port).and_then(|socket| socket.send(format!("fresh {name}").as_bytes()));
            if !staying.contains_key(to) {
                staying.extend(open(*to, ports.next()).map(|socket| (*to, socket)));
            }
            if let Some(socket) = staying.get(to) {
                converse(socket, &name, round);
            }
            match round % 6 {
                0 => {
                    let _ = ping(*to);
                }
                3 => connecting.extend(connect(*to, port).map(|socket| (socket, Instant::now()))),
                _ => {}
            }
        }
        // Said once, as soon as somebody listens.
        connecting.retain_mut(|(socket, since): &mut (Socket, Instant)| {
            socket
                .write_all(format!("fresh {name}").as_bytes())
                .is_err()
                && since.elapsed() < TCP_PATIENCE
        });
        round += 1;
        thread::sleep(STEP);
        Ok(())
    })
}

/// Answers what the server said first, and seldom says something itself.
fn converse(socket: &UdpSocket, name: &str, round: u64) {
    let mut buffer = [0; 64];
    let mut asked = 0;
    while socket.recv(&mut buffer).is_ok() {
        asked += 1;
    }
    if asked > 0 || round.is_multiple_of(8) {
        let _ = socket.send(format!("stays {name}").as_bytes());
    }
}

fn any(to: SocketAddr, port: u16) -> SocketAddr {
    let any: IpAddr = if to.is_ipv4() {
        Ipv4Addr::UNSPECIFIED.into()
    } else {
        Ipv6Addr::UNSPECIFIED.into()
    };
    SocketAddr::new(any, port)
}

fn open(to: SocketAddr, port: u16) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind(any(to, port))?;
    socket.connect(to)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

fn connect(to: SocketAddr, port: u16) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    socket.set_reuse_address(true)?;
    socket.bind(&any(to, port).into())?;
    match socket.connect(&to.into()) {
        Err(error) if error.raw_os_error() != Some(nix::libc::EINPROGRESS) => Err(error),
        _ => Ok(socket),
    }
}

fn ping(to: SocketAddr) -> io::Result<()> {
    let (protocol, kind) = if to.is_ipv4() {
        (Protocol::ICMPV4, 8)
    } else {
        (Protocol::ICMPV6, 128)
    };
    let socket = Socket::new(Domain::for_address(to), Type::RAW, Some(protocol))?;
    socket.set_nonblocking(true)?;
    // Identifier and number are the same each time; the kernel sums up ICMPv6, and of IPv4 the sum
    // is that of these bytes.
    let sum = if to.is_ipv4() {
        (!(u16::from(kind) << 8)).to_be_bytes()
    } else {
        [0, 0]
    };
    socket.send_to(
        &[kind, 0, sum[0], sum[1], 0, 0, 0, 0],
        &SocketAddr::new(to.ip(), 0).into(),
    )?;
    let _ = socket.recv(&mut [MaybeUninit::uninit(); 64]);
    Ok(())
}
