//! Resets TCP connections in pods whose conntrack entry was deleted. A pod that only reads would
//! wait for its own timeout.
//!
//! A pod's kernel answers a segment that fits nowhere with an acknowledgement (RFC 9293, 3.10.7.4).
//! This answer goes the new way: a connection that can go on is known there from then on, and of
//! one that can't the answer says the only number that its reset may have (RFC 5961, 3.2). Both is
//! said on the pod's own device, past the host's packet filters and its connection tracking.

mod segment;

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, SocketAddr, UdpSocket},
    os::fd::AsRawFd as _,
    time::Duration,
};

use egressgateway::{
    Ending,
    model::{Family, MacAddress},
};
use nix::{
    errno::Errno,
    sys::socket::{LinkAddr, MsgFlags, bind, recvfrom, sendto},
};
use socket2::{Domain, Protocol, SockFilter, Socket, Type};
use tokio::{
    io::Interest,
    time::{Instant, timeout_at},
};

use crate::{
    Netlink,
    announce::{Device, Devices},
};
use segment::{ACK, RST, Segment};

/// When pods are asked to speak, counted from the first time: the new way may not be there yet, and
/// on a busy host it may take seconds. A pod that only waits says nothing else by which the new
/// gateway would know its connection. A kernel answers a connection's stray segments twice a second
/// at most.
const ROUNDS: [Duration; 6] = [
    Duration::ZERO,
    Duration::from_millis(700),
    Duration::from_secs(2),
    Duration::from_secs(5),
    Duration::from_secs(12),
    Duration::from_secs(30),
];
/// After so many rounds nothing is reset any more: whoever did not answer may have begun another
/// connection with the same ports.
const RESETS: usize = 3;
/// How long answers to the last round are waited for.
const AFTERMATH: Duration = Duration::from_millis(300);
/// Sequence numbers of which at most one can be inside of a window.
const STRAY: [u32; 2] = [0, 1 << 31];
/// The longest packet whose headers are read.
const HEADERS: usize = 128;
/// Length of an Ethernet header.
const ETHERNET: usize = 14;

// Types of Ethernet frames.
const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_IPV6: u16 = 0x86dd;

// Instructions of the classic packet filter, `linux/filter.h`.
const LOAD_BYTE: u16 = 0x30;
const JUMP_UNLESS_EQUAL: u16 = 0x15;
const RETURN: u16 = 0x06;

/// An established TCP connection as its pod knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Session {
    pub(crate) pod: SocketAddr,
    pub(crate) server: SocketAddr,
}

/// Where a pod of this host is.
#[derive(Clone, Copy, Debug)]
struct Place {
    link: LinkAddr,
    host: MacAddress,
    pod: MacAddress,
}

/// What a pod is to be told of, and where.
type Told = (Session, Ending, Place);

/// Asks the pods of `sessions` to speak, and resets those whose connections break. Pods of other
/// hosts are left alone, and so are those that can't be found: they notice when they send.
pub(crate) async fn notify(netlink: Netlink, sessions: Vec<(Session, Ending)>) {
    let mut places: BTreeMap<IpAddr, Option<Place>> = BTreeMap::new();
    let devices = match Devices::read() {
        Ok(devices) => devices,
        Err(error) => return tracing::debug!(%error, "cannot read the devices of pods"),
    };
    let mut by_device: BTreeMap<(usize, Family), Vec<Told>> = BTreeMap::new();
    for (session, ending) in sessions {
        let pod = session.pod.ip();
        let place = match places.get(&pod) {
            Some(known) => *known,
            None => *places
                .entry(pod)
                .or_insert(find(&netlink, &devices, pod).await),
        };
        if let Some(place) = place {
            by_device
                .entry((place.link.ifindex(), Family::of(pod)))
                .or_default()
                .push((session, ending, place));
        }
    }
    let all = by_device
        .into_iter()
        .map(|((_, family), sessions)| async move {
            if let Err(error) = on_device(family, sessions).await {
                tracing::debug!(%error, "pods are not told that their connections were ended");
            }
        });
    futures::future::join_all(all).await;
}

/// The device and the hardware address of a pod; none where it is behind another host.
async fn find(netlink: &Netlink, devices: &Devices, pod: IpAddr) -> Option<Place> {
    let index = netlink.device_of_neighbour(pod).await?;
    let mac = netlink.mac_of(index, pod).await.ok().flatten()?;
    let (link, host) = devices
        .0
        .values()
        .filter_map(Device::ethernet)
        .find(|(link, _)| u32::try_from(link.ifindex()) == Ok(index))?;
    Some(Place {
        link,
        host,
        pod: mac,
    })
}

async fn on_device(family: Family, sessions: Vec<Told>) -> io::Result<()> {
    let Some((_, _, Place { link, .. })) = sessions.first().copied() else {
        return Ok(());
    };
    let socket = open(&link, family)?;
    let send = |place: &Place, segment: Segment| {
        let Some(packet) = segment.packet() else {
            return;
        };
        let kind = if family == Family::V4 {
            ETHERTYPE_IPV4
        } else {
            ETHERTYPE_IPV6
        };
        let frame = [
            place.pod.0.as_slice(),
            &place.host.0,
            &kind.to_be_bytes(),
            &packet,
        ]
        .concat();
        // What does not fit into the queue is asked for again in the next round.
        let _ = sendto(socket.as_raw_fd(), &frame, &link, MsgFlags::empty());
    };
    let mut breaking: BTreeMap<Session, Place> = BTreeMap::new();
    let mut resuming: BTreeMap<Session, Place> = BTreeMap::new();
    for (session, ending, place) in sessions {
        let list = if ending == Ending::Breaks {
            &mut breaking
        } else {
            &mut resuming
        };
        list.insert(session, place);
    }
    let began = Instant::now();
    let ends = ROUNDS
        .into_iter()
        .skip(1)
        .map(|round| began + round)
        .chain([began + ROUNDS[ROUNDS.len() - 1] + AFTERMATH]);
    for (round, end) in ends.enumerate() {
        if round == RESETS {
            breaking.clear();
        }
        for (session, place) in breaking.iter().chain(&resuming) {
            for sequence in STRAY {
                let (from, to) = (session.server, session.pod);
                send(
                    place,
                    Segment {
                        from,
                        to,
                        sequence,
                        acknowledges: sequence,
                        flags: ACK,
                    },
                );
            }
        }
        while !breaking.is_empty() {
            let Ok(answer) = timeout_at(end, hear(&socket, link.ifindex())).await else {
                break;
            };
            let Some(answer) = answer? else { continue };
            let session = Session {
                pod: answer.from,
                server: answer.to,
            };
            if let Some(place) = breaking.remove(&session) {
                // Without an acknowledgement there is nothing to reset: the pod has closed it.
                if answer.flags & ACK != 0 && answer.flags & RST == 0 {
                    let reset = Segment {
                        from: session.server,
                        to: session.pod,
                        sequence: answer.acknowledges,
                        acknowledges: 0,
                        flags: RST,
                    };
                    send(&place, reset);
                }
            }
        }
        if breaking.is_empty() && resuming.is_empty() {
            break;
        }
        tokio::time::sleep_until(end).await;
    }
    Ok(())
}

/// Hears the TCP of a family that comes in by a device, and nothing that this host sends.
fn open(link: &LinkAddr, family: Family) -> io::Result<tokio::net::UdpSocket> {
    let (ethertype, protocol_at) = if family == Family::V4 {
        (ETHERTYPE_IPV4, 23)
    } else {
        (ETHERTYPE_IPV6, 20)
    };
    let protocol = Protocol::from(i32::from(ethertype.to_be()));
    let socket = Socket::new(Domain::PACKET, Type::RAW.nonblocking(), Some(protocol))?;
    socket.attach_filter(&[
        SockFilter::new(LOAD_BYTE, 0, 0, protocol_at),
        SockFilter::new(JUMP_UNLESS_EQUAL, 0, 1, 6),
        SockFilter::new(RETURN, 0, 0, u32::try_from(HEADERS).unwrap_or(u32::MAX)),
        SockFilter::new(RETURN, 0, 0, 0),
    ])?;
    bind(socket.as_raw_fd(), link).map_err(errno)?;
    // Of Tokio's sockets any can wait for any; how this one is read is another matter.
    tokio::net::UdpSocket::from_std(UdpSocket::from(socket))
}

/// The next segment of TCP; none where something else came.
async fn hear(socket: &tokio::net::UdpSocket, device: usize) -> io::Result<Option<Segment>> {
    let mut buffer = [0; HEADERS];
    let receive = || recvfrom::<LinkAddr>(socket.as_raw_fd(), &mut buffer).map_err(errno);
    let (length, from) = socket.async_io(Interest::READABLE, receive).await?;
    let here = from.is_some_and(|from| from.ifindex() == device);
    Ok(buffer
        .get(ETHERNET..length.min(HEADERS))
        .filter(|_| here)
        .and_then(Segment::read))
}

fn errno(error: Errno) -> io::Error {
    io::Error::from(error)
}

/// For fuzz targets: a segment that is read, written and read again is the same.
pub(crate) fn fuzz(packet: &[u8]) {
    if let Some(segment) = Segment::read(packet) {
        let again = segment.packet().as_deref().and_then(Segment::read);
        assert_eq!(again, Some(segment), "read, written and read again");
    }
}
