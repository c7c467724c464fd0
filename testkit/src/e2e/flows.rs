//! Clients: single questions, and flows that are watched while something happens.

use std::{
    collections::BTreeMap,
    fmt,
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use super::{
    net::Net,
    serve::{TCP, UDP},
};

/// How long one answer is waited for.
const ANSWER: Duration = Duration::from_secs(10);
/// How often a flow speaks.
const INTERVAL: Duration = Duration::from_millis(50);
/// How long a new connection of a flow may take: several attempts of the kernel's, and a machine
/// that is busy.
const CONNECT: Duration = Duration::from_secs(10);

/// A client in somebody's network.
#[derive(Debug, Clone)]
pub struct Client {
    name: String,
    network: Net,
}

/// A line of the log of the server outside.
#[derive(Debug, Clone, PartialEq)]
pub struct Seen {
    /// In seconds since 1970.
    pub at: f64,
    /// `udp`, `tcp` or `http`.
    pub kind: String,
    /// The source.
    pub source: IpAddr,
    /// Who asked, by its own word.
    pub who: String,
}

impl Seen {
    pub(super) fn parse(line: &str) -> Option<Self> {
        let mut words = line.split_whitespace();
        let at = words.next()?.parse().ok()?;
        let (kind, source) = (words.next()?.to_owned(), words.next()?.parse().ok()?);
        Some(Self {
            at,
            kind,
            source,
            who: words.next()?.to_owned(),
        })
    }
}

impl Client {
    pub(super) fn new(name: &str, network: Net) -> Self {
        Self {
            name: name.to_owned(),
            network,
        }
    }

    /// Asks the server outside over a new TCP connection; the source that it sees.
    ///
    /// # Errors
    /// When there is no answer after some seconds.
    pub fn ask(&self, to: IpAddr) -> io::Result<IpAddr> {
        self.network.enter(|| {
            let stream = TcpStream::connect_timeout(&(to, TCP).into(), ANSWER)?;
            line(&stream, &self.name)
        })?
    }

    /// Asks by datagrams.
    ///
    /// # Errors
    /// As [`Client::ask`].
    pub fn ask_udp(&self, to: IpAddr) -> io::Result<IpAddr> {
        self.network.enter(|| {
            let socket = datagrams((to, UDP).into())?;
            let mut last = io::Error::from(io::ErrorKind::TimedOut);
            for _ in 0..5 {
                match socket
                    .send(self.name.as_bytes())
                    .and_then(|_| answer(&socket))
                {
                    Ok(source) => return Ok(source),
                    Err(error) => last = error,
                }
            }
            Err(last)
        })?
    }

    /// Tries a new connection and a datagram, each for so long; the source that the server saw, if
    /// one was answered.
    #[must_use]
    pub fn knock(&self, to: IpAddr, patience: Duration) -> Option<IpAddr> {
        let tried = self.network.enter(|| {
            let connection = TcpStream::connect_timeout(&(to, TCP).into(), patience)
                .and_then(|stream| line(&stream, &self.name));
            connection.or_else(|_| {
                let socket = datagrams((to, UDP).into())?;
                socket.set_read_timeout(Some(patience))?;
                socket.send(self.name.as_bytes())?;
                answer(&socket)
            })
        });
        tried.and_then(|answer| answer).ok()
    }

    /// A page over HTTP, by a new connection.
    ///
    /// # Errors
    /// As [`Client::ask`].
    pub fn get(&self, to: SocketAddr, path: &str) -> io::Result<String> {
        let answer = self.network.enter(|| {
            let mut stream = TcpStream::connect_timeout(&to, ANSWER)?;
            stream.set_read_timeout(Some(ANSWER))?;
            stream.write_all(
                format!("GET {path} HTTP/1.0\r\nHost: {}\r\n\r\n", to.ip()).as_bytes(),
            )?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).map(|_| answer)
        })??;
        let split = answer
            .split_once("\r\n\r\n")
            .or_else(|| answer.split_once("\n\n"));
        split
            .map(|(_, page)| page.trim().to_owned())
            .ok_or_else(|| io::Error::other(format!("no page: {answer:?}")))
    }

    /// Asks the cluster's name server for the IPv4 address of a name.
    ///
    /// # Errors
    /// As [`Client::ask`].
    pub fn resolve(&self, server: IpAddr, name: &str) -> io::Result<Ipv4Addr> {
        let mut question = vec![0x65, 0x32, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        for label in name.split('.') {
            question.push(u8::try_from(label.len()).map_err(io::Error::other)?);
            question.extend(label.as_bytes());
        }
        question.extend([0, 0, 1, 0, 1]);
        let answer = self.network.enter(|| {
            let socket = datagrams((server, 53).into())?;
            let mut last = io::Error::from(io::ErrorKind::TimedOut);
            for _ in 0..5 {
                let mut buffer = [0; 1500];
                match socket
                    .send(&question)
                    .and_then(|_| socket.recv(&mut buffer))
                {
                    Ok(length) => return Ok(buffer[..length].to_vec()),
                    Err(error) => last = error,
                }
            }
            Err(last)
        })??;
        // The first record of the answer ends with what the record holds, and no other follows.
        let (flags, answers) = (answer[3] & 0x0f, u16::from_be_bytes([answer[6], answer[7]]));
        match <[u8; 4]>::try_from(&answer[answer.len().saturating_sub(4)..]) {
            Ok(address) if flags == 0 && answers == 1 => Ok(address.into()),
            _ => Err(io::Error::other(format!(
                "{name}: code {flags}, {answers} answers"
            ))),
        }
    }

    /// Begins a connection, a stream of datagrams and a row of new connections to the server
    /// outside, and returns once each had an answer.
    ///
    /// # Panics
    /// When one has none within a minute.
    #[must_use]
    pub fn flows(&self, to: IpAddr) -> Flows {
        let stop = Arc::new(AtomicBool::new(false));
        let start = |flow: fn(&Watch)| {
            let watch = Watch {
                who: self.name.clone(),
                to,
                stop: stop.clone(),
                seen: Arc::default(),
            };
            let seen = watch.seen.clone();
            let network = self.network.clone();
            let thread = thread::spawn(move || {
                network.move_in().expect("the client's network");
                flow(&watch);
            });
            (thread, seen)
        };
        let flows = Flows {
            who: self.name.clone(),
            to,
            stop: stop.clone(),
            lines: [start(stream), start(connection), start(connections)],
        };
        super::eventually(
            &format!("flows of {} have answers", self.name),
            Duration::from_secs(60),
            || {
                let answered = flows
                    .lines
                    .iter()
                    .filter(|(_, seen)| !lock(seen).answers.is_empty())
                    .count();
                if answered == 3 {
                    Ok(())
                } else {
                    Err(format!("{answered} of 3 have"))
                }
            },
        );
        flows
    }
}

fn datagrams(to: SocketAddr) -> io::Result<UdpSocket> {
    let any: IpAddr = if to.is_ipv4() {
        Ipv4Addr::UNSPECIFIED.into()
    } else {
        Ipv6Addr::UNSPECIFIED.into()
    };
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect(to)?;
    socket.set_read_timeout(Some(Duration::from_secs(1)))?;
    Ok(socket)
}

/// The last word of an answer is the source.
fn source(text: &str) -> io::Result<IpAddr> {
    let word = text
        .split_whitespace()
        .last()
        .ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))?;
    word.parse()
        .map_err(|_| io::Error::other(format!("no address: {text:?}")))
}

fn answer(socket: &UdpSocket) -> io::Result<IpAddr> {
    let mut buffer = [0; 1500];
    let length = socket.recv(&mut buffer)?;
    source(&String::from_utf8_lossy(&buffer[..length]))
}

fn line(stream: &TcpStream, text: &str) -> io::Result<IpAddr> {
    stream.set_read_timeout(Some(ANSWER))?;
    (&*stream).write_all(format!("{text}\n").as_bytes())?;
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer)?;
    source(&answer)
}

/// What one flow has met so far.
#[derive(Debug, Default)]
struct Met {
    sent: usize,
    asked: Option<Instant>,
    pause: Duration,
    answers: Vec<(Instant, IpAddr)>,
    ended: Vec<(Instant, String)>,
}

fn lock(met: &Arc<std::sync::Mutex<Met>>) -> std::sync::MutexGuard<'_, Met> {
    met.lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

struct Watch {
    who: String,
    to: IpAddr,
    stop: Arc<AtomicBool>,
    seen: Arc<std::sync::Mutex<Met>>,
}

impl Watch {
    fn goes_on(&self) -> bool {
        !self.stop.load(Ordering::Relaxed)
    }

    fn sent(&self) {
        let now = Instant::now();
        let mut met = lock(&self.seen);
        met.sent += 1;
        if let Some(before) = met.asked.replace(now) {
            met.pause = met.pause.max(now.saturating_duration_since(before));
        }
    }

    fn answered(&self, source: IpAddr) {
        lock(&self.seen).answers.push((Instant::now(), source));
    }

    fn ended(&self, error: &io::Error) {
        lock(&self.seen)
            .ended
            .push((Instant::now(), error.to_string()));
    }
}

/// One socket that sends a datagram at each interval, whether answers come or not.
fn stream(watch: &Watch) {
    let Ok(socket) = datagrams((watch.to, UDP).into()) else {
        return;
    };
    let mut next = Instant::now();
    while watch.goes_on() {
        watch.sent();
        // What is unreachable for the moment is a gap.
        let _ = socket.send(watch.who.as_bytes());
        next += INTERVAL;
        loop {
            let left = next.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            let _ = socket.set_read_timeout(Some(left));
            if let Ok(source) = answer(&socket) {
                watch.answered(source);
            }
        }
        // After a pause of the machine it does not send what it missed.
        next = next.max(Instant::now());
    }
}

/// One connection that asks at each interval; another one when it ends.
fn connection(watch: &Watch) {
    while watch.goes_on() {
        let asked =
            TcpStream::connect_timeout(&(watch.to, TCP).into(), CONNECT).and_then(|mut stream| {
                stream.set_nodelay(true)?;
                stream.set_read_timeout(Some(INTERVAL))?;
                let mut reader = BufReader::new(stream.try_clone()?);
                while watch.goes_on() {
                    watch.sent();
                    stream.write_all(format!("{}\n", watch.who).as_bytes())?;
                    let mut text = String::new();
                    while watch.goes_on() {
                        match reader.read_line(&mut text) {
                            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                            Ok(_) => {
                                watch.answered(source(&text)?);
                                break;
                            }
                            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                            Err(error) => return Err(error),
                        }
                    }
                    thread::sleep(INTERVAL);
                }
                Ok(())
            });
        if let Err(error) = asked {
            watch.ended(&error);
            thread::sleep(INTERVAL);
        }
    }
}

/// A new connection at each interval, or when the one before has ended.
fn connections(watch: &Watch) {
    while watch.goes_on() {
        watch.sent();
        let asked = TcpStream::connect_timeout(&(watch.to, TCP).into(), CONNECT)
            .and_then(|stream| line(&stream, &watch.who));
        match asked {
            Ok(source) => watch.answered(source),
            Err(error) => watch.ended(&error),
        }
        thread::sleep(INTERVAL);
    }
}

type Line = (JoinHandle<()>, Arc<std::sync::Mutex<Met>>);

/// Flows that are under way.
#[derive(Debug)]
pub struct Flows {
    who: String,
    to: IpAddr,
    stop: Arc<AtomicBool>,
    lines: [Line; 3],
}

/// The longest time without an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gap(pub Duration);

/// What one flow has met.
#[derive(Debug, Clone)]
pub struct Measured {
    /// The longest time without an answer, up to the end.
    pub gap: Gap,
    /// The longest time between two questions. In a stream of datagrams more than an interval is
    /// the machine's: it asks whether answers come or not.
    pub pause: Duration,
    /// Questions.
    pub sent: usize,
    /// Answers by source.
    pub sources: BTreeMap<IpAddr, usize>,
    /// How often a connection ended or did not begin, and what was said first.
    pub ended: usize,
    /// What was said first.
    pub error: Option<String>,
    /// The source of the last answer.
    pub last: Option<IpAddr>,
    /// When the last answer came, before the end.
    pub silent: Duration,
}

impl Flows {
    /// Who sends.
    #[must_use]
    pub fn who(&self) -> &str {
        &self.who
    }

    /// Waits until each flow has an answer that was asked for after this call; not longer than
    /// `patience`. Whether that came.
    #[must_use]
    pub fn all_answered(&self, patience: Duration) -> bool {
        let from: Vec<usize> = self
            .lines
            .iter()
            .map(|(_, seen)| lock(seen).answers.len() + 1)
            .collect();
        let deadline = Instant::now() + crate::pace::patient(patience);
        while Instant::now() < deadline {
            if self
                .lines
                .iter()
                .zip(&from)
                .all(|((_, seen), from)| lock(seen).answers.len() > *from)
            {
                return true;
            }
            thread::sleep(INTERVAL);
        }
        false
    }

    /// Ends the flows: the stream of datagrams, the long connection, the new connections.
    ///
    /// # Panics
    /// When one of them did.
    #[must_use]
    pub fn finish(self) -> [Measured; 3] {
        let end = Instant::now();
        self.stop.store(true, Ordering::Relaxed);
        self.lines.map(|(thread, seen)| {
            thread
                .join()
                .unwrap_or_else(|_| panic!("a flow of {} to {} panicked", self.who, self.to));
            measure(&lock(&seen), end)
        })
    }
}

fn measure(met: &Met, end: Instant) -> Measured {
    let mut sources = BTreeMap::new();
    let mut gap = Duration::ZERO;
    let mut before = None;
    for (at, source) in &met.answers {
        *sources.entry(*source).or_default() += 1;
        gap = gap.max(before.map_or(Duration::ZERO, |before| {
            at.saturating_duration_since(before)
        }));
        before = Some(*at);
    }
    let silent = before.map_or(Duration::MAX, |before| {
        end.saturating_duration_since(before)
    });
    Measured {
        gap: Gap(gap.max(silent)),
        pause: met.pause,
        sent: met.sent,
        sources,
        ended: met.ended.len(),
        error: met.ended.first().map(|(_, error)| error.clone()),
        last: met.answers.last().map(|(_, source)| *source),
        silent,
    }
}

impl fmt::Display for Gap {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 == Duration::MAX {
            formatter.write_str("no answer")
        } else {
            write!(formatter, "{} ms", self.0.as_millis())
        }
    }
}
