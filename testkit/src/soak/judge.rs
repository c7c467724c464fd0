//! What was seen, against what the objects allowed.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use serde_json::Value;

use super::{
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

/// Watches the objects, so that each state that lasted is known.
#[derive(Debug)]
pub(super) struct Historian {
    reader: Reader,
    states: Arc<Mutex<Vec<Objects>>>,
    stop: Arc<AtomicBool>,
}

impl Historian {
    pub(super) fn start(reader: Reader) -> std::io::Result<Self> {
        let (states, stop) = (Arc::<Mutex<Vec<Objects>>>::default(), Arc::new(AtomicBool::new(false)));
        let (kept, stopped, own) = (states.clone(), stop.clone(), reader.clone());
        thread::Builder::new().name("historian".into()).spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                keep(&kept, now(&own));
                thread::sleep(GLANCE);
            }
        })?;
        Ok(Self { reader, states, stop })
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
    fn take(&self) -> Vec<Objects> {
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

fn keep(states: &Mutex<Vec<Objects>>, objects: Objects) {
    let mut states = states.lock().unwrap_or_else(PoisonError::into_inner);
    if states.last() != Some(&objects) {
        states.push(objects);
    }
}

/// Without what changes and decides nothing.
fn now(reader: &Reader) -> Objects {
    let mut objects: Objects = KINDS.iter().flat_map(|kind| reader.list(kind)).collect();
    for object in &mut objects {
        if let Some(metadata) = object["metadata"].as_object_mut() {
            metadata.retain(|name, _| ["name", "namespace", "labels", "annotations", "creationTimestamp"].contains(&name.as_str()));
        }
        let ours = object["kind"].as_str().is_some_and(|kind| kind.starts_with("Egress"));
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
    ways: Vec<Ways>,
    nodes: BTreeMap<String, Vec<IpAddr>>,
    /// Addresses and nodes of pods.
    pods: BTreeMap<String, (Vec<IpAddr>, String)>,
}

impl Round {
    fn of(states: &[Objects], servers: &[IpAddr]) -> Result<Self, String> {
        let mut round = Self::default();
        for objects in states {
            round.ways.push(ways(objects, servers)?);
            for object in objects {
                let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
                let name = text(&object["metadata"]["name"]);
                if object["kind"] == "Node" {
                    round.nodes.insert(name, addresses(object));
                } else if object["kind"] == "Pod" {
                    let own = object["status"]["podIPs"].as_array().into_iter().flatten();
                    let own = own.filter_map(|ip| ip["ip"].as_str()?.parse().ok()).collect();
                    round
                        .pods
                        .insert(format!("{}/{name}", text(&object["metadata"]["namespace"])), (own, text(&object["spec"]["nodeName"])));
                }
            }
        }
        Ok(round)
    }

    /// Whether a pod that was there from the beginning was governed all along.
    fn always_governed(&self, pod: &str, server: IpAddr) -> bool {
        let key = (pod.to_owned(), server);
        self.ways.first().is_some_and(|first| first.contains_key(&key))
            && self.ways.iter().filter_map(|ways| ways.get(&key)).all(Way::is_governed)
    }

    /// The sources that a pod's connection may have had at some moment.
    fn allowed(&self, pod: &str, server: IpAddr) -> BTreeSet<IpAddr> {
        let key = (pod.to_owned(), server);
        let mut allowed = BTreeSet::new();
        // Somebody who was not there in the calm may speak before it is known.
        let mut free = self.ways.first().is_none_or(|first| !first.contains_key(&key));
        for way in self.ways.iter().filter_map(|ways| ways.get(&key)) {
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
    /// Judges what was seen since the last time; `lenient` names nodes whose rules somebody took away.
    ///
    /// # Errors
    /// With what was wrong.
    pub(super) fn judge(
        &mut self,
        historian: &Historian,
        servers: &[IpAddr],
        packets: &[Packet],
        book: &[Seen],
        lenient: &BTreeSet<String>,
    ) -> Result<(), String> {
        historian.note();
        let round = Round::of(&historian.take(), servers)?;
        self.judged.0 += packets.len();
        self.judged.1 += book.len();
        let spared = |pod: &str| round.pods.get(pod).is_none_or(|(_, node)| lenient.contains(node));
        for packet in packets.iter().filter(|packet| packet.inner.is_none() && packet.protocol != Protocol::Arp) {
            if !servers.contains(&packet.destination) || !round.nodes.contains_key(&packet.from) {
                continue;
            }
            let owners: Vec<&String> = round.pods.iter().filter(|(_, (own, _))| own.contains(&packet.source)).map(|(pod, _)| pod).collect();
            let wrong = |pod: &&String| round.always_governed(pod, packet.destination) && !spared(pod);
            if !owners.is_empty() && owners.iter().all(wrong) {
                return Err(format!("a governed pod's own address is on the wire: {owners:?}: {packet:?}"));
            }
        }
        for seen in book {
            let key = (seen.pod.clone(), seen.to);
            let mut allowed = round.allowed(&seen.pod, seen.to);
            // What was sent before the last calm may arrive after it.
            allowed.extend(self.before.allowed(&seen.pod, seen.to));
            let ever = self.ever.entry(key).or_default();
            ever.extend(allowed.iter());
            let allowed = if seen.fresh { &allowed } else { &*ever };
            // Rules that are missing at an exit translate nothing.
            if !allowed.contains(&seen.source) && lenient.is_empty() {
                return Err(format!("{} is seen by {} as {}, and may be {allowed:?}", seen.pod, seen.to, seen.source));
            }
        }
        self.before = round;
        Ok(())
    }
}
