//! Probes by ICMP echo.

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, SocketAddr, UdpSocket},
    sync::{Mutex, PoisonError},
};

use async_trait::async_trait;
use egressgateway::{Error, ErrorKind, ProbeAddress, Prober, model::Family};
use socket2::{Domain, Protocol, SockFilter, Socket, Type};
use tokio::{sync::mpsc, task::JoinHandle};

/// ICMP types of RFC 792 and RFC 4443.
const ECHO_REQUEST: [u8; 2] = [8, 128];
const ECHO_REPLY: [u8; 2] = [0, 129];
/// Type, code, checksum, identifier and sequence number.
const HEADER: usize = 8;
/// What a probe carries, to be recognised in a capture.
const PAYLOAD: &[u8] = b"egressgateway";
/// Answers that may wait to be heard.
const QUEUE: usize = 1024;

// Instructions of the classic packet filter, `linux/filter.h`.
const LOAD_BYTE: u16 = 0x30;
const LOAD_BYTE_AFTER_X: u16 = 0x50;
const LOAD_HALF: u16 = 0x28;
const LOAD_HALF_AFTER_X: u16 = 0x48;
const HEADER_LENGTH_TO_X: u16 = 0xb1;
const JUMP_UNLESS_EQUAL: u16 = 0x15;
const RETURN: u16 = 0x06;

/// Sends ICMP echo requests through devices, and hears the replies.
///
/// The other node's kernel answers, so that it does not matter whether an agent runs there.
/// `CAP_NET_RAW` is needed. Each device has a socket of its own for each family, bound to it: a
/// probe never takes another way.
#[derive(Debug)]
pub struct EchoProber {
    identifier: u16,
    sockets: Mutex<BTreeMap<(String, Family), Echo>>,
    heard: mpsc::Sender<(IpAddr, u16)>,
    answers: tokio::sync::Mutex<mpsc::Receiver<(IpAddr, u16)>>,
}

impl EchoProber {
    /// No socket is opened before the first probe. Replies to other identifiers are somebody
    /// else's.
    #[must_use]
    pub fn new(identifier: u16) -> Self {
        let (heard, answers) = mpsc::channel(QUEUE);
        Self {
            identifier,
            sockets: Mutex::default(),
            heard,
            answers: answers.into(),
        }
    }
}

#[async_trait]
impl Prober for EchoProber {
    fn probe(&self, to: &ProbeAddress, number: u16) -> Result<(), Error> {
        let what = || format!("probe {} through {}", to.address, to.device);
        let key = (to.device.clone(), Family::of(to.address));
        let mut sockets = self.sockets.lock().unwrap_or_else(PoisonError::into_inner);
        if !sockets.contains_key(&key) {
            let echo = Echo::open(&key.0, key.1, self.identifier, self.heard.clone())
                .map_err(|error| failed(error, what()))?;
            sockets.insert(key.clone(), echo);
        }
        let packet = request(key.1, self.identifier, number);
        let sent = sockets
            .get(&key)
            .map(|echo| echo.socket.send_to(&packet, SocketAddr::new(to.address, 0)));
        match sent {
            Some(Err(error)) => {
                // The device may be another one of that name by now.
                sockets.remove(&key);
                Err(failed(error, what()))
            }
            _ => Ok(()),
        }
    }

    async fn answered(&self) -> (IpAddr, u16) {
        match self.answers.lock().await.recv().await {
            Some(answer) => answer,
            None => std::future::pending().await,
        }
    }
}

fn failed(error: io::Error, what: String) -> Error {
    if error.kind() == io::ErrorKind::WouldBlock {
        Error::new(ErrorKind::Transient, what).with_source(error)
    } else {
        Error::from_io(error, what)
    }
}

/// A socket on a device, and the task that hears its replies.
#[derive(Debug)]
struct Echo {
    socket: UdpSocket,
    task: JoinHandle<()>,
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Echo {
    fn open(
        device: &str,
        family: Family,
        identifier: u16,
        heard: mpsc::Sender<(IpAddr, u16)>,
    ) -> io::Result<Self> {
        let (domain, protocol) = match family {
            Family::V4 => (Domain::IPV4, Protocol::ICMPV4),
            Family::V6 => (Domain::IPV6, Protocol::ICMPV6),
        };
        let socket = Socket::new(domain, Type::RAW, Some(protocol))?;
        // First the filter: what comes in before it is nobody's.
        socket.attach_filter(&replies_only(family, identifier))?;
        socket.bind_device(Some(device.as_bytes()))?;
        socket.set_nonblocking(true)?;
        // The standard library's and Tokio's datagram sockets speak to any socket that knows
        // addresses.
        let socket = UdpSocket::from(socket);
        let listening = tokio::net::UdpSocket::from_std(socket.try_clone()?)?;
        let task = tokio::spawn(async move {
            let mut buffer = [0; 256];
            loop {
                match listening.recv_from(&mut buffer).await {
                    Ok((length, from)) => {
                        if let Some(number) = reply(family, identifier, &buffer[..length]) {
                            // Where nobody listens any more, or too many wait, an answer is as good
                            // as lost.
                            let _ = heard.try_send((from.ip(), number));
                        }
                    }
                    Err(error) => {
                        // Such as the device being down for a while, told once.
                        tracing::debug!(%error, ?family, "cannot receive probe replies");
                        tokio::task::yield_now().await;
                    }
                }
            }
        });
        Ok(Self { socket, task })
    }
}

/// Passes echo replies with our identifier. An IPv4 socket sees the IP header too.
fn replies_only(family: Family, identifier: u16) -> Vec<SockFilter> {
    let of = |v4: u16, v6: u16| if family == Family::V4 { v4 } else { v6 };
    let mut program = Vec::new();
    if family == Family::V4 {
        program.push(SockFilter::new(HEADER_LENGTH_TO_X, 0, 0, 0));
    }
    program.extend([
        SockFilter::new(of(LOAD_BYTE_AFTER_X, LOAD_BYTE), 0, 0, 0),
        SockFilter::new(
            JUMP_UNLESS_EQUAL,
            0,
            3,
            u32::from(of(ECHO_REPLY[0].into(), ECHO_REPLY[1].into())),
        ),
        SockFilter::new(of(LOAD_HALF_AFTER_X, LOAD_HALF), 0, 0, 4),
        SockFilter::new(JUMP_UNLESS_EQUAL, 0, 1, u32::from(identifier)),
        SockFilter::new(RETURN, 0, 0, u32::MAX),
        SockFilter::new(RETURN, 0, 0, 0),
    ]);
    program
}

/// An echo request. The kernel fills in the checksum of ICMPv6, which covers addresses that are not
/// chosen yet.
fn request(family: Family, identifier: u16, number: u16) -> Vec<u8> {
    let kind = if family == Family::V4 {
        ECHO_REQUEST[0]
    } else {
        ECHO_REQUEST[1]
    };
    let mut packet = vec![kind, 0, 0, 0];
    packet.extend(identifier.to_be_bytes());
    packet.extend(number.to_be_bytes());
    packet.extend(PAYLOAD);
    if family == Family::V4 {
        let sum = checksum(&packet);
        packet[2..4].copy_from_slice(&sum.to_be_bytes());
    }
    packet
}

/// RFC 1071.
pub(crate) fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or_default()));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or_default()
}

/// The sequence number of a reply of ours.
pub(crate) fn reply(family: Family, identifier: u16, packet: &[u8]) -> Option<u16> {
    let (message, kind) = match family {
        Family::V4 => (
            packet.get(usize::from(packet.first()? & 0xf) * 4..)?,
            ECHO_REPLY[0],
        ),
        Family::V6 => (packet, ECHO_REPLY[1]),
    };
    let header = message.get(..HEADER)?;
    let ours = header[0] == kind
        && header[4..6] == identifier.to_be_bytes()
        && message.get(HEADER..)? == PAYLOAD;
    ours.then(|| u16::from_be_bytes([header[6], header[7]]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_of_a_request_makes_the_sum_of_all_words_zero() {
        for number in [0, 1, 0xffff, 0x1234] {
            assert_eq!(checksum(&request(Family::V4, 0xbeef, number)), 0);
        }
    }

    #[test]
    fn replies_are_read_and_nothing_else_is() {
        let mut v6 = request(Family::V6, 7, 9);
        v6[0] = ECHO_REPLY[1];
        assert_eq!(reply(Family::V6, 7, &v6), Some(9));
        assert_eq!(reply(Family::V6, 8, &v6), None, "another's");
        let mut v4 = request(Family::V4, 7, 9);
        v4[0] = ECHO_REPLY[0];
        let with_header = |header: &[u8]| [header, &v4].concat();
        assert_eq!(
            reply(
                Family::V4,
                7,
                &with_header(&[[0x45; 1].as_slice(), &[0; 19]].concat())
            ),
            Some(9)
        );
        assert_eq!(
            reply(
                Family::V4,
                7,
                &with_header(&[[0x46; 1].as_slice(), &[0; 23]].concat())
            ),
            Some(9),
            "with an option"
        );
        for end in 0..28 {
            let whole = with_header(&[[0x45; 1].as_slice(), &[0; 19]].concat());
            assert_eq!(reply(Family::V4, 7, &whole[..end]), None, "cut at {end}");
        }
        assert_eq!(reply(Family::V4, 7, &[0xff; 64]), None);
    }
}
