//! Sockets that ask who has an address, and hear who says so.

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    io,
    net::{IpAddr, UdpSocket},
    os::fd::AsRawFd as _,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use async_trait::async_trait;
use egressgateway::{
    AddressesDesired, Error, ErrorKind, Inquirer,
    model::{Family, MacAddress},
};
use nix::{
    errno::Errno,
    sys::socket::{LinkAddr, MsgFlags, bind, recvfrom, sendto},
};
use socket2::{Domain, Protocol, SockFilter, Socket, Type};
use tokio::{io::Interest, sync::mpsc, task::JoinHandle};

use super::{
    claim::claim,
    devices::{Device, Devices},
    frames::{self, ETHERTYPE_ARP, ETHERTYPE_IPV6, ICMPV6, NEIGHBOUR_ADVERTISEMENT},
};

/// Answers that may wait to be heard; whoever has the address is asked again.
const QUEUE: usize = 64;
/// The longest frame that is read whole, and with it the longest that can be valid.
const FRAME: usize = 1514;
/// Up to this `sll_pkttype` a frame is for this host, for all, or for a group (`PACKET_HOST`,
/// `PACKET_BROADCAST`, `PACKET_MULTICAST` of `linux/if_packet.h`); others are somebody else's, or
/// of a VLAN that nobody here is in.
const PACKET_MULTICAST: u8 = 2;

// Instructions of the classic packet filter, `linux/filter.h`.
const LOAD_BYTE: u16 = 0x30;
const JUMP_UNLESS_EQUAL: u16 = 0x15;
const RETURN: u16 = 0x06;

/// Asks who else has addresses of this host: by ARP probes (RFC 5227), and by the neighbour
/// solicitations of duplicate address detection (RFC 4862), which tell nobody anything. It hears
/// what others say of these addresses, asked or unasked, and nothing that a device of this host
/// says.
///
/// `CAP_NET_RAW` is needed. It listens in the network namespace of the thread that asks first,
/// before the host's packet filters. On a device without Ethernet addresses there is nobody to ask.
/// As long as there is nothing to ask, no socket is open.
#[derive(Debug)]
pub struct NeighbourInquirer {
    sockets: Mutex<Sockets>,
    known: Arc<Mutex<NeighbourCache>>,
    heard: mpsc::Sender<(IpAddr, MacAddress)>,
    answers: tokio::sync::Mutex<mpsc::Receiver<(IpAddr, MacAddress)>>,
}

/// The index of a device, and a family: a device that is made anew is another one.
type Place = (usize, Family);

type Sockets = BTreeMap<Place, Listener>;

/// What tells a claim of somebody else.
#[derive(Debug, Default)]
struct NeighbourCache {
    /// The addresses that are asked for, and the index of the device on which each is.
    asked: BTreeMap<IpAddr, usize>,
    /// The hardware addresses of this host.
    own: BTreeSet<MacAddress>,
}

impl NeighbourInquirer {
    /// Nothing is opened before the first question.
    #[must_use]
    pub fn new() -> Self {
        let (heard, answers) = mpsc::channel(QUEUE);
        Self {
            sockets: Mutex::default(),
            known: Arc::default(),
            heard,
            answers: answers.into(),
        }
    }

    /// Where an address is listened to; none where there is nobody to ask.
    fn listen(
        &self,
        address: IpAddr,
        name: &str,
        devices: &Devices,
        sockets: &mut Sockets,
    ) -> Result<Option<Place>, Error> {
        let what = || format!("hear who else has {address} on {name}");
        let missing = || Error::new(ErrorKind::Conflict, format!("{}: no such device", what()));
        let Some((link, _)) = devices.0.get(name).ok_or_else(missing)?.ethernet() else {
            return Ok(None);
        };
        let place = (link.ifindex(), Family::of(address));
        if let Entry::Vacant(none) = sockets.entry(place) {
            let listener = Listener::open(&link, place.1, self.known.clone(), self.heard.clone());
            none.insert(listener.map_err(|error| Error::from_io(error, what()))?);
        }
        Ok(Some(place))
    }
}

fn ask(address: IpAddr, name: &str, devices: &Devices, listener: &Listener) -> Result<(), Error> {
    let what = || format!("ask who else has {address} on {name}");
    let Some((link, mac)) = devices.0.get(name).and_then(Device::ethernet) else {
        return Ok(());
    };
    let frame = frames::question(address, mac);
    match sendto(
        listener.socket.as_raw_fd(),
        &frame,
        &link,
        MsgFlags::empty(),
    ) {
        Ok(_) => Ok(()),
        Err(Errno::EAGAIN) => Err(Error::new(ErrorKind::Transient, what())
            .with_source(std::io::Error::from(Errno::EAGAIN))),
        Err(error) => Err(Error::from_io(error.into(), what())),
    }
}

impl Default for NeighbourInquirer {
    fn default() -> Self {
        Self::new()
    }
}

#[async_trait]
impl Inquirer for NeighbourInquirer {
    fn inquire(
        &self,
        addresses: &AddressesDesired,
        questions: &BTreeSet<IpAddr>,
    ) -> Vec<(IpAddr, Error)> {
        let mut sockets = lock(&self.sockets);
        if addresses.held.is_empty() {
            *lock(&self.known) = NeighbourCache::default();
            sockets.clear();
            return Vec::new();
        }
        let devices = match Devices::read() {
            Ok(devices) => devices,
            Err(error) => {
                let failed = |address: &IpAddr| {
                    Error::from_io(error.into(), format!("ask who else has {address}"))
                };
                return addresses
                    .held
                    .keys()
                    .map(|address| (*address, failed(address)))
                    .collect();
            }
        };
        let mut places = BTreeMap::new();
        let mut failures = Vec::new();
        for (address, device) in &addresses.held {
            match self.listen(*address, device, &devices, &mut sockets) {
                Ok(place) => places.extend(place.map(|place| (*address, place))),
                Err(error) => failures.push((*address, error)),
            }
        }
        // At once: what is said meanwhile of an address that was listened to before is heard.
        let asked = places
            .iter()
            .map(|(address, place)| (*address, place.0))
            .collect();
        *lock(&self.known) = NeighbourCache {
            asked,
            own: devices.macs(),
        };
        for (address, place) in places
            .iter()
            .filter(|(address, _)| questions.contains(*address))
        {
            let listener = addresses.held.get(address).zip(sockets.get(place));
            if let Some(Err(error)) =
                listener.map(|(device, listener)| ask(*address, device, &devices, listener))
            {
                failures.push((*address, error));
            }
        }
        let used: BTreeSet<Place> = places.into_values().collect();
        sockets.retain(|place, _| used.contains(place));
        failures
    }

    async fn answered(&self) -> (IpAddr, MacAddress) {
        match self.answers.lock().await.recv().await {
            Some(answer) => answer,
            None => std::future::pending().await,
        }
    }
}

impl NeighbourCache {
    /// Who else has which address, if a frame that came in by this device says so.
    fn other(&self, frame: &[u8], device: usize) -> Option<(IpAddr, MacAddress)> {
        let claim = claim(frame)?;
        let asked = self.asked.get(&claim.address) == Some(&device);
        let own = [claim.mac, claim.sender]
            .iter()
            .any(|mac| self.own.contains(mac));
        (asked && !own).then_some((claim.address, claim.mac))
    }
}

/// A socket on a device, and the task that hears what comes in by it.
#[derive(Debug)]
struct Listener {
    socket: Arc<tokio::net::UdpSocket>,
    task: JoinHandle<()>,
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Listener {
    fn open(
        link: &LinkAddr,
        family: Family,
        known: Arc<Mutex<NeighbourCache>>,
        heard: mpsc::Sender<(IpAddr, MacAddress)>,
    ) -> io::Result<Self> {
        let ethertype = if family == Family::V4 {
            ETHERTYPE_ARP
        } else {
            ETHERTYPE_IPV6
        };
        // A packet socket takes its protocol in network byte order. It does not hear what this host
        // sends.
        let protocol = Protocol::from(i32::from(ethertype.to_be()));
        let socket = Socket::new(Domain::PACKET, Type::RAW.nonblocking(), Some(protocol))?;
        if family == Family::V6 {
            socket.attach_filter(&advertisements_only())?;
        }
        bind(socket.as_raw_fd(), link).map_err(std::io::Error::from)?;
        // Of Tokio's sockets any can wait for any; how this one is read is another matter.
        let socket = Arc::new(tokio::net::UdpSocket::from_std(UdpSocket::from(socket))?);
        let task = tokio::spawn(listen(socket.clone(), link.ifindex(), known, heard));
        Ok(Self { socket, task })
    }
}

async fn listen(
    socket: Arc<tokio::net::UdpSocket>,
    device: usize,
    known: Arc<Mutex<NeighbourCache>>,
    heard: mpsc::Sender<(IpAddr, MacAddress)>,
) {
    let mut buffer = [0; FRAME];
    loop {
        let receive =
            || recvfrom::<LinkAddr>(socket.as_raw_fd(), &mut buffer).map_err(std::io::Error::from);
        match socket.async_io(Interest::READABLE, receive).await {
            // What came in before the socket was bound, or is of a VLAN on this device, came in
            // elsewhere.
            Ok((length, Some(from)))
                if from.ifindex() == device && from.pkttype() <= PACKET_MULTICAST =>
            {
                if let Some(other) = lock(&known).other(&buffer[..length.min(FRAME)], device) {
                    // Where too many wait, this one is heard the next time.
                    let _ = heard.try_send(other);
                }
            }
            Ok(_) => {}
            Err(error) => {
                // Such as the device being down for a while, told once.
                tracing::debug!(%error, "cannot receive answers about egress addresses");
                tokio::task::yield_now().await;
            }
        }
    }
}

/// Passes neighbour advertisements, of all that IPv6 there may be on the device.
fn advertisements_only() -> Vec<SockFilter> {
    vec![
        SockFilter::new(LOAD_BYTE, 0, 0, 20), // The header that follows that of IPv6.
        SockFilter::new(JUMP_UNLESS_EQUAL, 0, 3, ICMPV6.into()),
        SockFilter::new(LOAD_BYTE, 0, 0, 54),
        SockFilter::new(JUMP_UNLESS_EQUAL, 0, 1, NEIGHBOUR_ADVERTISEMENT.into()),
        SockFilter::new(RETURN, 0, 0, u32::MAX),
        SockFilter::new(RETURN, 0, 0, 0),
    ]
}

/// What the lock guards is whole at any time.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
