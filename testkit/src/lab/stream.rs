//! A steady sender that measures gaps.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    io,
    net::{IpAddr, SocketAddr, UdpSocket},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use super::{
    flow::{split_response, udp_socket},
    lock::locked,
    namespace::{Namespace, PATIENCE},
};
use crate::pace::patient;

/// How long responses are waited for once the last datagram was sent, while some are missing.
const AFTERMATH: Duration = Duration::from_secs(2);

/// A sender to be.
#[derive(Debug, Clone)]
pub struct StreamSpec {
    namespace: Namespace,
    to: SocketAddr,
    interval: Duration,
    fresh: bool,
    patience: Duration,
}

impl Namespace {
    /// Describes a sender of numbered datagrams at an interval; see [`StreamSpec::start`].
    #[must_use]
    pub fn stream(&self, to: SocketAddr, interval: Duration) -> StreamSpec {
        StreamSpec::new(self.clone(), to, interval)
    }
}

impl StreamSpec {
    const fn new(namespace: Namespace, to: SocketAddr, interval: Duration) -> Self {
        Self {
            namespace,
            to,
            interval,
            fresh: false,
            patience: PATIENCE,
        }
    }

    /// Sends each datagram from a fresh port: every one is a connection of its own.
    #[must_use]
    pub const fn fresh_ports(mut self) -> Self {
        self.fresh = true;
        self
    }

    /// Waits so long for the first response.
    #[must_use]
    pub const fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// Starts, and returns once the first response is back.
    ///
    /// # Errors
    /// When there is no first response within two seconds, or the patience given.
    pub fn start(self) -> io::Result<Stream> {
        let shared = Arc::new(Shared::default());
        let patience = patient(self.patience);
        let thread = {
            let shared = Arc::clone(&shared);
            let Self {
                namespace,
                to,
                interval,
                fresh,
                ..
            } = self;
            thread::Builder::new()
                .name("lab-stream".into())
                .spawn(move || {
                    namespace.move_in()?;
                    send(&shared, to, interval, fresh)
                })?
        };
        let stream = Stream {
            shared,
            thread: Some(thread),
        };
        let deadline = Instant::now() + patience;
        while stream.answered() == 0 {
            if Instant::now() > deadline
                || stream.thread.as_ref().is_some_and(JoinHandle::is_finished)
            {
                stream.finish()?;
                return Err(io::Error::new(io::ErrorKind::TimedOut, "no first response"));
            }
            thread::sleep(Duration::from_millis(1));
        }
        Ok(stream)
    }
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    responses: Mutex<Vec<Response>>,
}

/// A running sender.
#[derive(Debug)]
pub struct Stream {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<io::Result<Sent>>>,
}

/// One response of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Response {
    /// Number of the datagram, from 0.
    pub number: u64,
    /// The source that the other end saw.
    pub source: SocketAddr,
    /// When the response arrived.
    pub at: Instant,
}

#[derive(Debug, Clone, Copy)]
struct Sent {
    count: u64,
    first: Instant,
    last: Instant,
}

/// What a stream measured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamReport {
    /// Datagrams sent.
    pub sent: u64,
    /// The responses, by arrival.
    pub responses: Vec<Response>,
    /// The longest time without a response, between the first datagram and the last.
    pub longest_gap: Duration,
    /// How many responses tell of each source address.
    pub sources: BTreeMap<IpAddr, usize>,
}

impl StreamReport {
    /// How many datagrams have no response.
    #[must_use]
    pub fn lost(&self) -> u64 {
        let answered: BTreeSet<u64> = self
            .responses
            .iter()
            .map(|response| response.number)
            .collect();
        self.sent.saturating_sub(answered.len() as u64)
    }
}

impl Stream {
    /// How many responses have come so far.
    #[must_use]
    pub fn answered(&self) -> usize {
        locked(&self.shared.responses).len()
    }

    /// The last response so far.
    #[must_use]
    pub fn last(&self) -> Option<Response> {
        locked(&self.shared.responses).last().copied()
    }

    /// Waits for the next response that satisfies `wanted` and arrives after this call.
    ///
    /// # Errors
    /// When none does within `timeout`.
    pub fn wait_for(
        &self,
        timeout: Duration,
        wanted: impl Fn(&Response) -> bool,
    ) -> io::Result<Response> {
        let mut from = self.answered();
        let deadline = Instant::now() + timeout;
        loop {
            {
                let responses = locked(&self.shared.responses);
                if let Some(response) = responses[from..].iter().find(|response| wanted(response)) {
                    return Ok(*response);
                }
                from = responses.len();
            }
            if Instant::now() > deadline {
                return Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    format!("no such response; the last is {:?}", self.last()),
                ));
            }
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// Stops sending, waits a moment for responses under way, and reports.
    ///
    /// # Errors
    /// When sending was impossible from the beginning (a destination that is unreachable for a
    /// while is a gap, no error).
    pub fn finish(mut self) -> io::Result<StreamReport> {
        let Some(thread) = self.thread.take() else {
            return Err(io::Error::other("finished before"));
        };
        self.shared.stop.store(true, Ordering::Relaxed);
        let sent = thread
            .join()
            .map_err(|_| io::Error::other("the sender panicked"))??;
        let responses = locked(&self.shared.responses).clone();
        let mut sources = BTreeMap::new();
        for response in &responses {
            *sources.entry(response.source.ip()).or_default() += 1;
        }
        Ok(StreamReport {
            sent: sent.count,
            longest_gap: longest_gap(&responses, sent),
            responses,
            sources,
        })
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
    }
}

fn longest_gap(responses: &[Response], sent: Sent) -> Duration {
    let times = responses
        .iter()
        .map(|response| response.at)
        .filter(|at| *at < sent.last)
        .chain([sent.last]);
    let mut longest = Duration::ZERO;
    let mut before = sent.first;
    for at in times {
        longest = longest.max(at.saturating_duration_since(before));
        before = at;
    }
    longest
}

/// A socket, and the number of the first datagram that it sent.
type Sender = (u64, UdpSocket);

/// Sends until told to stop; receives in between on every socket whose datagram may still be
/// answered. How fast the host is decides how late a response comes, and not whether it is counted.
fn send(shared: &Shared, to: SocketAddr, interval: Duration, fresh: bool) -> io::Result<Sent> {
    /// So many datagrams may be without a response; one that is older is lost.
    const WAITING: usize = 400;
    let open = || {
        let socket = udp_socket(to, 0, interval)?;
        socket.set_nonblocking(true).map(|()| socket)
    };
    let mut waiting: VecDeque<Sender> = VecDeque::from([(0, open()?)]);
    let first = Instant::now();
    let mut sent = Sent {
        count: 0,
        first,
        last: first,
    };
    while !shared.stop.load(Ordering::Relaxed) {
        if fresh && sent.count > 0 {
            // No route at the moment: the datagram is lost like others.
            if let Ok(socket) = open() {
                waiting.push_back((sent.count, socket));
            }
            if waiting.len() > WAITING {
                waiting.pop_front();
            }
        }
        sent.last = Instant::now();
        if let Some((_, socket)) = waiting.back() {
            // Unreachable for the moment: a gap.
            let _ = socket.send(sent.count.to_string().as_bytes());
        }
        sent.count += 1;
        // What was missed while the host was busy is not sent all at once.
        receive_until(shared, &mut waiting, fresh, Instant::now() + interval);
    }
    let end = Instant::now() + patient(AFTERMATH);
    let answered = |shared: &Shared| locked(&shared.responses).len() as u64 >= sent.count;
    while !answered(shared) && Instant::now() < end {
        receive_until(shared, &mut waiting, fresh, Instant::now() + interval);
    }
    Ok(sent)
}

/// Receives what comes until `deadline`. A fresh socket has done its work once it has a response.
fn receive_until(shared: &Shared, waiting: &mut VecDeque<Sender>, fresh: bool, deadline: Instant) {
    let mut buffer = [0; 256];
    loop {
        let mut answered = BTreeSet::new();
        for (first, socket) in &*waiting {
            while let Ok(length) = socket.recv(&mut buffer) {
                let Some((source, payload)) = split_response(&buffer[..length]) else {
                    continue;
                };
                let Some(number) = std::str::from_utf8(payload)
                    .ok()
                    .and_then(|text| text.parse().ok())
                else {
                    continue;
                };
                locked(&shared.responses).push(Response {
                    number,
                    source,
                    at: Instant::now(),
                });
                answered.insert(*first);
            }
        }
        if fresh {
            waiting.retain(|(first, _)| !answered.contains(first));
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return;
        }
        thread::sleep(left.min(Duration::from_millis(1)));
    }
}
