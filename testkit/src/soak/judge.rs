//! What was seen, against what the objects allowed.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;

use super::{
    foreign::foreign_addresses,
    oracle::{KINDS, Way, Ways, addresses, ways},
    talk::Seen,
};
use crate::{
    apiserver::Reader,
    lab::{Packet, Protocol},
};

/// How often the objects are looked at.
const GLANCE: Duration = Duration::from_millis(25);

type Objects = Vec<Value>;

/// Objects, and when they were seen first.
type State = (Instant, Objects);

/// What happened, and when.
pub(super) type Timeline = Vec<(Instant, String)>;

/// Watches the objects, so that each state that lasted is known.
#[derive(Debug)]
pub(super) struct Historian {
    reader: Reader,
    states: Arc<Mutex<Vec<State>>>,
    stop: Arc<AtomicBool>,
}

impl Historian {
    pub(super) fn start(reader: Reader) -> std::io::Result<Self> {
        let (states, stop) = (
            Arc::<Mutex<Vec<State>>>::default(),
            Arc::new(AtomicBool::new(false)),
        );
        let (kept, stopped, own) = (states.clone(), stop.clone(), reader.clone());
        thread::Builder::new()
            .name("historian".into())
            .spawn(move || {
                while !stopped.load(Ordering::Relaxed) {
                    keep(&kept, now(&own));
                    thread::sleep(GLANCE);
                }
            })?;
        Ok(Self {
            reader,
            states,
            stop,
        })
    }

    /// The objects as they are.
    pub(super) fn now(&self) -> Objects {
        now(&self.reader)
    }

    /// Keeps the state of this moment, whatever the thread sees.
    pub(super) fn note(&self) {
        keep(&self.states, self.now());
    }

    /// The states since this was asked last, and forgets all but the last one.
    fn take(&self) -> Vec<State> {
        let mut states = self.states.lock().unwrap_or_else(PoisonError::into_inner);
        let last = states.last().cloned();
        std::mem::replace(&mut *states, last.into_iter().collect())
    }
}

impl Drop for Historian {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn keep(states: &Mutex<Vec<State>>, objects: Objects) {
    let mut states = states.lock().unwrap_or_else(PoisonError::into_inner);
    if states.last().is_none_or(|(_, last)| *last != objects) {
        states.push((Instant::now(), objects));
    }
}

/// Without what changes and decides nothing.
fn now(reader: &Reader) -> Objects {
    let mut objects: Objects = KINDS.iter().flat_map(|kind| reader.list(kind)).collect();
    for object in &mut objects {
        if let Some(metadata) = object["metadata"].as_object_mut() {
            metadata.retain(|name, _| {
                [
                    "name",
                    "namespace",
                    "labels",
                    "annotations",
                    "creationTimestamp",
                ]
                .contains(&name.as_str())
            });
        }
        let ours = object["kind"]
            .as_str()
            .is_some_and(|kind| kind.starts_with("Egress"));
        if let Some(status) = object["status"].as_object_mut().filter(|_| ours) {
            status.remove("conditions");
        }
    }
    objects
}

/// What one round allowed.
#[derive(Debug, Default)]
struct Round {
    /// The ways of each state, the calm one first.
    ways: Vec<(Instant, Ways)>,
    /// What an ungoverned pod may be seen as there: the node's addresses, and what somebody else
    /// may put beside them.
    nodes: BTreeMap<String, Vec<IpAddr>>,
    /// Addresses and nodes of pods.
    pods: BTreeMap<String, (Vec<IpAddr>, String)>,
    states: Vec<Objects>,
}

impl Round {
    fn of(states: &[State], servers: &[IpAddr]) -> Result<Self, String> {
        let mut round = Self::default();
        for (at, objects) in states {
            round.ways.push((*at, ways(objects, servers)?));
            round.states.push(objects.clone());
            for object in objects {
                let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
                let name = text(&object["metadata"]["name"]);
                if object["kind"] == "Node" {
                    let foreign = foreign_addresses(&name);
                    round
                        .nodes
                        .insert(name, addresses(object).into_iter().chain(foreign).collect());
                } else if object["kind"] == "Pod" {
                    let own = object["status"]["podIPs"].as_array().into_iter().flatten();
                    let own = own
                        .filter_map(|ip| ip["ip"].as_str()?.parse().ok())
                        .collect();
                    round.pods.insert(
                        format!("{}/{name}", text(&object["metadata"]["namespace"])),
                        (own, text(&object["spec"]["nodeName"])),
                    );
                }
            }
        }
        Ok(round)
    }

    /// Whether a pod that was there from the beginning was governed all along.
    fn always_governed(&self, pod: &str, server: IpAddr) -> bool {
        let key = (pod.to_owned(), server);
        self.ways
            .first()
            .is_some_and(|(_, first)| first.contains_key(&key))
            && self
                .ways
                .iter()
                .filter_map(|(_, ways)| ways.get(&key))
                .all(Way::is_governed)
    }

    /// The ways of a pod to a server, each time that another one came into force.
    fn told(&self, pod: &str, server: IpAddr) -> Timeline {
        let key = (pod.to_owned(), server);
        let mut told: Timeline = Vec::new();
        for (at, ways) in &self.ways {
            let way = ways.get(&key).map_or_else(
                || "there is no such pod".to_owned(),
                |way| format!("{pod} to {server}: {way:?}"),
            );
            if told.last().is_none_or(|(_, last)| *last != way) {
                told.push((*at, way));
            }
        }
        told
    }

    /// The sources that a pod's connection may have had at some moment.
    fn allowed(&self, pod: &str, server: IpAddr) -> BTreeSet<IpAddr> {
        let key = (pod.to_owned(), server);
        let mut allowed = BTreeSet::new();
        // Somebody who was not there in the calm may speak before it is known.
        let mut free = self
            .ways
            .first()
            .is_none_or(|(_, first)| !first.contains_key(&key));
        for way in self.ways.iter().filter_map(|(_, ways)| ways.get(&key)) {
            match way {
                Way::Free => free = true,
                Way::Through(sources, others) => allowed.extend(sources | others),
                Way::Held => {}
            }
        }
        if let Some((own, node)) = self.pods.get(pod).filter(|_| free) {
            allowed.extend(own.iter().chain(self.nodes.get(node).into_iter().flatten()));
        }
        allowed
    }

    /// The ways of a pod where a node heard of one kind of objects earlier or later than of
    /// another: watches keep no order among each other.
    fn crossed(&self, pod: &str, server: IpAddr) -> Vec<Way> {
        let is_other_pod = |object: &Value| {
            let name = |field: &str| {
                object["metadata"][field]
                    .as_str()
                    .unwrap_or_default()
                    .to_owned()
            };
            object["kind"] == "Pod" && format!("{}/{}", name("namespace"), name("name")) != pod
        };
        let distinct = |kinds: &[&str]| {
            let mut parts: Vec<Objects> = Vec::new();
            for objects in &self.states {
                let of_kinds = |object: &&Value| {
                    object["kind"]
                        .as_str()
                        .is_some_and(|kind| kinds.contains(&kind))
                        && !is_other_pod(object)
                };
                let part: Objects = objects.iter().filter(of_kinds).cloned().collect();
                if !parts.contains(&part) {
                    parts.push(part);
                }
            }
            parts
        };
        let key = (pod.to_owned(), server);
        let mut all = vec![Objects::new()];
        for kinds in [
            &["Namespace", "Pod"][..],
            &["EgressGatewayPolicy"],
            &["EgressGateway"],
            &["Node", "EgressNode"],
        ] {
            let parts = distinct(kinds);
            all = all
                .iter()
                .flat_map(|objects| parts.iter().map(|part| [&objects[..], part].concat()))
                .collect();
        }
        all.iter()
            .filter_map(|objects| ways(objects, &[server]).ok()?.remove(&key))
            .collect()
    }

    /// Pods that had one of the addresses of this one, which a node takes it for until it hears of
    /// both.
    fn namesakes<'a>(&'a self, addresses: &'a [IpAddr]) -> impl Iterator<Item = &'a str> {
        let of = |(_, (own, _)): &(&String, &(Vec<IpAddr>, String))| {
            own.iter().any(|own| addresses.contains(own))
        };
        self.pods.iter().filter(of).map(|(pod, _)| pod.as_str())
    }
}

/// Something wrong.
#[derive(Debug)]
pub(super) struct Finding {
    pub(super) what: String,
    pub(super) known: Timeline,
    /// Nodes, and addresses whose connections there are of interest.
    pub(super) tracked: Vec<(String, IpAddr)>,
}

/// How long before a sight packets are of interest.
const AROUND: Duration = Duration::from_secs(2);

fn is_between(packet: &Packet, one: IpAddr, other: IpAddr) -> bool {
    packet.touches(one) && packet.touches(other)
}

/// Whether both have the same server and, as most translations leave it, the same port of the pod.
fn is_same_flow(one: &Packet, other: &Packet) -> bool {
    let ports = |packet: &Packet| BTreeSet::from([packet.source_port, packet.destination_port]);
    one.protocol == other.protocol && other.touches(one.destination) && ports(one) == ports(other)
}

fn tell(packet: &Packet) -> (Instant, String) {
    let how = if packet.inner.is_some() {
        " through the tunnel"
    } else {
        ""
    };
    let Packet {
        source,
        destination,
        protocol,
        source_port,
        destination_port,
        length,
        ..
    } = packet.innermost();
    let from = &packet.from;
    (
        packet.at,
        format!(
            "{from}{how}: {protocol:?} {source} {source_port} to {destination} {destination_port}, {length} bytes"
        ),
    )
}

/// Judges one round after the other.
#[derive(Debug, Default)]
pub(super) struct Judge {
    before: Round,
    /// What was ever allowed to a pod, for connections that stay.
    ever: BTreeMap<(String, IpAddr), BTreeSet<IpAddr>>,
    /// Packets and sights judged.
    pub(super) judged: (usize, usize),
}

impl Judge {
    /// Judges what was seen since the last time; `lenient` names nodes whose rules somebody took
    /// away.
    ///
    /// # Errors
    /// With what was wrong, and what is known about it.
    pub(super) fn judge(
        &mut self,
        historian: &Historian,
        servers: &[IpAddr],
        packets: &[Packet],
        book: &[Seen],
        lenient: &BTreeSet<String>,
    ) -> Result<(), Finding> {
        historian.note();
        let unclear = |what| Finding {
            what,
            known: Timeline::new(),
            tracked: Vec::new(),
        };
        let round = Round::of(&historian.take(), servers).map_err(unclear)?;
        self.judged.0 += packets.len();
        self.judged.1 += book.len();
        let spared = |pod: &str| {
            round
                .pods
                .get(pod)
                .is_none_or(|(_, node)| lenient.contains(node))
        };
        for packet in packets
            .iter()
            .filter(|packet| packet.inner.is_none() && packet.protocol != Protocol::Arp)
        {
            if !servers.contains(&packet.destination) || !round.nodes.contains_key(&packet.from) {
                continue;
            }
            let owners: Vec<&String> = round
                .pods
                .iter()
                .filter(|(_, (own, _))| own.contains(&packet.source))
                .map(|(pod, _)| pod)
                .collect();
            // Rules that are missing where it exits translate nothing.
            let wrong = |pod: &&String| {
                round.always_governed(pod, packet.destination)
                    && !spared(pod)
                    && !lenient.contains(&packet.from)
            };
            let crossed = |pod: &String| {
                round
                    .crossed(pod, packet.destination)
                    .iter()
                    .all(Way::is_governed)
            };
            if !owners.is_empty()
                && owners.iter().all(wrong)
                && owners.iter().any(|pod| crossed(pod))
            {
                let mut known = self.before.told(owners[0], packet.destination);
                known.extend(round.told(owners[0], packet.destination));
                known.extend(
                    packets
                        .iter()
                        .filter(|other| is_same_flow(packet, other.innermost()))
                        .map(tell),
                );
                let what = format!(
                    "a governed pod's own address is on the wire: {owners:?}: {}",
                    tell(packet).1
                );
                return Err(Finding {
                    what,
                    known,
                    tracked: vec![(packet.from.clone(), packet.source)],
                });
            }
        }
        for seen in book {
            let key = (seen.pod.clone(), seen.to);
            let mut allowed = round.allowed(&seen.pod, seen.to);
            // What was sent before the last calm may arrive after it.
            allowed.extend(self.before.allowed(&seen.pod, seen.to));
            if round
                .ways
                .first()
                .is_none_or(|(_, first)| !first.contains_key(&key))
            {
                let own = round.pods.get(&seen.pod).map_or(&[][..], |(own, _)| own);
                for former in [&self.before, &round] {
                    allowed.extend(
                        former
                            .namesakes(own)
                            .flat_map(|pod| former.allowed(pod, seen.to)),
                    );
                }
            }
            let ever = self.ever.entry(key).or_default();
            ever.extend(allowed.iter());
            let allowed = if seen.fresh { &allowed } else { &*ever };
            // Rules that are missing at an exit translate nothing.
            if !allowed.contains(&seen.source) && lenient.is_empty() {
                let crossed = [&self.before, &round]
                    .map(|round| round.crossed(&seen.pod, seen.to))
                    .concat();
                let hosts = round
                    .pods
                    .get(&seen.pod)
                    .and_then(|(_, node)| round.nodes.get(node));
                let may_be = |way: &Way| match way {
                    Way::Free => hosts.is_some_and(|hosts| hosts.contains(&seen.source)),
                    Way::Through(sources, others) => {
                        sources.contains(&seen.source) || others.contains(&seen.source)
                    }
                    Way::Held => false,
                };
                if crossed.iter().any(may_be) {
                    continue;
                }
                let mut known = self.before.told(&seen.pod, seen.to);
                known.extend(round.told(&seen.pod, seen.to));
                let same = |other: &&Packet| {
                    is_between(other, seen.source, seen.to)
                        && other.at + AROUND > seen.at
                        && other.at < seen.at
                };
                known.extend(packets.iter().filter(same).map(tell));
                known.push((
                    seen.at,
                    format!("{} is seen by {} as {}", seen.pod, seen.to, seen.source),
                ));
                let what = format!(
                    "{} is seen by {} as {}, and may be {allowed:?}",
                    seen.pod, seen.to, seen.source
                );
                let own = round
                    .pods
                    .get(&seen.pod)
                    .into_iter()
                    .flat_map(|(own, node)| own.iter().map(|own| (node.clone(), *own)));
                return Err(Finding {
                    what,
                    known,
                    tracked: own.collect(),
                });
            }
        }
        self.before = round;
        Ok(())
    }
}
