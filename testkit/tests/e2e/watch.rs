//! Pods that speak while something happens, and what their flows may meet.

use std::{net::IpAddr, time::Duration};

use egressgateway_testkit::e2e::{Flows, Measured, NODES, OUTSIDE, Pod, Space};

use crate::{Run, node_address, table::KINDS};

/// What is slow is not what is broken.
const PATIENCE: Duration = Duration::from_secs(180);
/// Where the pod runs that nothing governs.
const YARDSTICK: &str = NODES[3];

/// Flows of pods, each with a word on where its pod is.
pub(crate) struct Watch<'a> {
    run: &'a Run,
    watched: Vec<Watched>,
}

struct Watched {
    place: String,
    to: IpAddr,
    governed: bool,
    flows: Flows,
}

/// What governed flows may meet.
pub(crate) struct Allowed<'a> {
    /// The sources that the server may see for an address of its; the last answer has the last of
    /// them.
    pub(crate) sources: &'a dyn Fn(IpAddr) -> Vec<IpAddr>,
    /// How often a connection may end, and how many new ones may fail.
    pub(crate) ends: usize,
}

impl<'a> Watch<'a> {
    /// Starts to watch: a pod that nothing governs, as a yardstick of the machine and the network
    /// beside.
    pub(crate) fn beside(run: &'a Run, space: &Space<'_>) -> Self {
        let mut watch = Self {
            run,
            watched: Vec::new(),
        };
        let pod = space
            .pods(&[("free-yardstick", YARDSTICK, false)])
            .remove(0);
        for outside in OUTSIDE {
            space.wait_for_source(&pod, outside, node_address(YARDSTICK, outside));
        }
        watch.add("not governed", &pod, false);
        watch
    }

    /// Watches a governed pod as well, once the server sees it with these sources.
    pub(crate) fn governed(
        &mut self,
        space: &Space<'_>,
        place: &str,
        pod: &Pod,
        source: &dyn Fn(IpAddr) -> IpAddr,
    ) {
        for outside in OUTSIDE {
            space.wait_for_source(pod, outside, source(outside));
        }
        self.add(place, pod, true);
    }

    fn add(&mut self, place: &str, pod: &Pod, governed: bool) {
        for to in OUTSIDE {
            self.watched.push(Watched {
                place: place.to_owned(),
                to,
                governed,
                flows: pod.client.flows(to),
            });
        }
    }

    /// Governed pods on all nodes but the control plane's, and the yardstick. `active` is the
    /// gateway's node that carries them.
    pub(crate) fn everywhere(run: &'a Run, space: &Space<'_>, active: &str) -> Self {
        let names: Vec<String> = NODES[1..]
            .iter()
            .map(|node| format!("governed-{node}"))
            .collect();
        let wanted: Vec<_> = names
            .iter()
            .zip(&NODES[1..])
            .map(|(name, node)| (name.as_str(), *node, true))
            .collect();
        let mut watch = Self::beside(run, space);
        for pod in space.pods(&wanted) {
            let place = match pod.node.as_str() {
                node if node == active => "the gateway itself",
                "node3" => "a node that is no gateway",
                _ => "the other gateway",
            };
            watch.governed(space, place, &pod, &|outside| node_address(active, outside));
        }
        watch
    }

    /// Whether each flow goes on.
    pub(crate) fn goes_on(&self) -> Result<(), String> {
        let silent: Vec<String> = self
            .watched
            .iter()
            .filter(|own| !own.flows.all_answered(PATIENCE))
            .map(|own| format!("{} to {} ({})", own.flows.who(), own.to, own.place))
            .collect();
        if silent.is_empty() {
            Ok(())
        } else {
            Err(format!("flows that do not go on: {}", silent.join(", ")))
        }
    }

    /// Ends the flows, writes down what they met, and says what was not allowed.
    pub(crate) fn end(
        self,
        event: &str,
        allowed: &Allowed<'_>,
    ) -> Result<Vec<Measurement>, String> {
        let mut wrong: Vec<String> = self.goes_on().err().into_iter().collect();
        let mut measurements = Vec::new();
        for Watched {
            place,
            to,
            governed,
            flows,
        } in self.watched
        {
            let measured = flows.finish();
            self.run.table.add(event, &place, to.is_ipv4(), &measured);
            let sources = if governed {
                (allowed.sources)(to)
            } else {
                vec![node_address(YARDSTICK, to)]
            };
            let ends = if governed { allowed.ends } else { 0 };
            for (flow, kind) in measured.iter().zip(KINDS) {
                let others = flow.sources.keys().any(|source| !sources.contains(source));
                if others || flow.ended > ends || flow.last != sources.last().copied() {
                    wrong.push(format!(
                        "{place}, {to}, {kind}: allowed {sources:?} and {ends} ends: {flow:?}"
                    ));
                }
            }
            measurements.push(Measurement { governed, measured });
        }
        if wrong.is_empty() {
            Ok(measurements)
        } else {
            Err(format!("{event}:\n{}", wrong.join("\n")))
        }
    }
}

/// What the flows of a pod met.
pub(crate) struct Measurement {
    pub(crate) governed: bool,
    pub(crate) measured: [Measured; 3],
}
