//! A tunnel of one's own, without an overlay: nodes that share a switch send steered traffic to
//! each other as it is. The next hop is the other node's own address.
//!
//! Run as root in a network namespace made for it, such as by `unshare --net`: it is held to the
//! public conformance suite there, with two interfaces of which one is the underlay. `custom_tunnel
//! keep` leaves what it made, to look at.

use std::{collections::BTreeSet, fmt, net::IpAddr, process::Stdio, sync::Arc};

use egressgateway::{
    Change, Driver, Encapsulation, Error, ErrorKind, LocalEnd, NextHop, OverlayLinks, Peer, Plan,
    Tunnel, TunnelDesired, Underlay, WriteHook,
    model::{Family, NodeName},
    testing::conformance::{self, Host},
};
use imbl::{OrdMap, OrdSet};

/// Our routes are recognised by this protocol number.
const PROTOCOL: &str = "79";

/// A host route to each peer, so that nobody else's routes decide how the next hop is reached.
type Routes = BTreeSet<(IpAddr, String)>;

struct FlatNetwork {
    hook: Arc<dyn WriteHook>,
}

/// Arguments of `ip`, one call a line: what goes, goes first.
#[derive(Debug)]
struct Edits(Vec<String>);

impl Plan for Edits {
    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Display for Edits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|line| writeln!(f, "{line}"))
    }
}

#[async_trait::async_trait]
impl Driver for FlatNetwork {
    type Desired = TunnelDesired;
    type State = Routes;
    type Plan = Edits;

    async fn observe(&self) -> Result<Routes, Error> {
        let text = ip("-4 route show proto 79").await? + &ip("-6 route show proto 79").await?;
        Ok(text.lines().filter_map(route).collect())
    }

    fn plan(
        &self,
        desired: &TunnelDesired,
        current: &Routes,
    ) -> Result<Change<Edits, Routes>, Error> {
        let mut after = Routes::new();
        if let Some(local) = &desired.local {
            let hops = |peer| {
                Family::ALL
                    .into_iter()
                    .filter_map(move |family| self.next_hop(local, peer, family))
            };
            after.extend(
                desired
                    .peers
                    .values()
                    .flat_map(hops)
                    .map(|hop| (hop.via, hop.device)),
            );
        }
        let line = |verb, (to, device): &(IpAddr, String)| {
            format!("route {verb} {to} dev {device} proto {PROTOCOL}")
        };
        let gone = current.difference(&after).map(|route| line("del", route));
        let edits = gone
            .chain(
                after
                    .difference(current)
                    .map(|route| line("replace", route)),
            )
            .collect();
        Ok(Change {
            plan: Edits(edits),
            after,
        })
    }

    async fn apply(&self, plan: &Edits) -> Result<(), Error> {
        for line in &plan.0 {
            self.hook.before(line)?;
            ip(line).await?;
        }
        Ok(())
    }
}

impl Encapsulation for FlatNetwork {
    fn kind(&self) -> &'static str {
        "flat"
    }

    fn next_hop(&self, local: &LocalEnd, peer: &Peer, family: Family) -> Option<NextHop> {
        let (underlay, via) = (local.underlay.get(&family)?, peer.underlay(family)?);
        Some(NextHop {
            device: underlay.device.clone(),
            via,
            encap: None,
        })
    }

    /// Nothing is taken off a packet here, so there is no outer port, and the underlay's size is
    /// the traffic's.
    fn links(&self, local: &LocalEnd) -> OverlayLinks {
        let devices = local
            .underlay
            .values()
            .map(|underlay| underlay.device.clone())
            .collect();
        OverlayLinks {
            devices,
            port: 0,
            mtu: local
                .underlay
                .iter()
                .map(|(family, underlay)| (*family, underlay.mtu))
                .collect(),
        }
    }
}

/// `10.6.0.12 dev eth0 scope link …`
fn route(line: &str) -> Option<(IpAddr, String)> {
    let (to, rest) = line.split_once(" dev ")?;
    Some((to.parse().ok()?, rest.split_whitespace().next()?.to_owned()))
}

async fn ip(arguments: &str) -> Result<String, Error> {
    let transient =
        |text: String| Error::new(ErrorKind::Transient, format!("ip {arguments}: {text}"));
    let output = tokio::process::Command::new("ip")
        .args(arguments.split(' '))
        .stdin(Stdio::null())
        .output()
        .await;
    let output = output.map_err(|error| transient(error.to_string()))?;
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() {
        Ok(text(&output.stdout))
    } else {
        Err(transient(text(&output.stderr)))
    }
}

/// This network namespace. Its link-local addresses and its routes for multicast come when the
/// kernel has made sure of the links.
struct Here;

#[async_trait::async_trait]
impl Host<FlatNetwork> for Here {
    async fn driver(&self, hook: Arc<dyn WriteHook>) -> FlatNetwork {
        FlatNetwork { hook }
    }

    async fn foreign(&self) -> String {
        let all = ip("-4 route show table all").await.unwrap_or_default()
            + &ip("-6 route show table all").await.unwrap_or_default();
        all.lines()
            .filter(|line| {
                !["proto 79", "fe80:", "ff00::/8"]
                    .iter()
                    .any(|own| line.contains(own))
            })
            .collect::<Vec<_>>()
            .join("\n")
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    ip("link add eth0 type veth peer name switch").await?;
    for line in [
        "addr add 10.6.0.11/16 dev eth0",
        "addr add fd06::11/64 dev eth0 nodad",
        "link set switch up",
        "link set eth0 up",
    ] {
        ip(line).await?;
    }
    let underlay = |address: &str| {
        Ok::<_, std::net::AddrParseError>(Underlay {
            device: "eth0".into(),
            index: 2,
            address: address.parse()?,
            mtu: 1500,
        })
    };
    let local = LocalEnd {
        overlay: OrdSet::new(),
        mac: "66:a1:5e:00:00:11".parse()?,
        underlay: OrdMap::from_iter([
            (Family::V4, underlay("10.6.0.11")?),
            (Family::V6, underlay("fd06::11")?),
        ]),
    };
    let somebody = Peer {
        overlay: OrdSet::new(),
        underlay: OrdSet::new(),
        mac: local.mac,
        mtu: OrdMap::new(),
    };
    let with = |ends: &[&str]| {
        let peer = |end: &&str| {
            Ok((
                NodeName::from(*end),
                Peer {
                    underlay: OrdSet::unit(end.parse()?),
                    ..somebody.clone()
                },
            ))
        };
        let peers: Result<_, Box<dyn std::error::Error>> = ends.iter().map(peer).collect();
        Ok::<_, Box<dyn std::error::Error>>(TunnelDesired {
            local: Some(local.clone()),
            peers: peers?,
        })
    };
    let states = [
        with(&["10.6.0.12", "fd06::12", "10.6.0.13"])?,
        with(&["10.6.0.13"])?,
        with(&["fd06::14"])?,
    ];
    conformance::check(&Here, &states).await;
    let tunnel: &dyn Tunnel<Desired = _, State = _, Plan = _> = &Here.driver(Arc::new(())).await;
    if std::env::args().any(|argument| argument == "keep") {
        tunnel
            .apply(&tunnel.plan(&states[0], &tunnel.observe().await?)?.plan)
            .await?;
    }
    println!("{} keeps every promise of a tunnel", tunnel.kind());
    Ok(())
}
