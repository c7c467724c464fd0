//! Packets and new connections per second from a pod through client and gateway to a server, with
//! 1, 1,000 and 10,000 policies.
//!
//! Each figure is a ratio to the same way without a policy, measured right before or after it: the
//! machine's mood is in both. Needs root.
#![allow(missing_docs, clippy::unwrap_used)]

use std::time::{Duration, Instant};

use egressgateway_benchmarks::{
    layout::Layout,
    namespace::{alone, have_root},
    statistics::Figures,
    world::{Way, World},
};
use nix::{
    sched::{CpuSet, sched_setaffinity},
    unistd::Pid,
};

struct Size {
    policies: &'static [u32],
    rounds: usize,
    /// How long is sent for one figure.
    time: Duration,
}

/// The clock is asked after so many packets.
const BURST: u64 = 16;

/// What was measured with one way.
struct Rates {
    packets: Vec<Pair>,
    connections: Vec<Pair>,
}

/// Per second on a way, and without a policy at nearly the same moment.
struct Pair {
    way: f64,
    without: f64,
}

fn main() {
    if !have_root() {
        return;
    }
    let quick = std::env::args().any(|argument| argument == "--quick");
    let size = if quick {
        Size {
            policies: &[1, 100],
            rounds: 1,
            time: Duration::from_millis(20),
        }
    } else {
        Size {
            policies: &[1, 1_000, 10_000],
            rounds: 21,
            time: Duration::from_millis(60),
        }
    };
    alone(|| measure(&size));
}

fn measure(size: &Size) {
    let policies = size
        .policies
        .iter()
        .flat_map(|count| Layout::ALL.map(|layout| Way::Policies(layout, *count)));
    let ways = [Way::NoPolicy, Way::Bare, Way::Marked]
        .into_iter()
        .chain(policies);
    eprintln!("building namespaces");
    let mut worlds: Vec<World> = ways
        .enumerate()
        .map(|(number, way)| World::new(number, way))
        .collect();
    let (without, worlds) = worlds.split_first_mut().unwrap();
    let mut rates: Vec<Rates> = worlds
        .iter()
        .map(|_| Rates {
            packets: Vec::new(),
            connections: Vec::new(),
        })
        .collect();
    // Forwarding runs where the sender does: one processor does all the work.
    let mut processors = CpuSet::new();
    processors
        .set(std::thread::available_parallelism().unwrap().get() - 1)
        .unwrap();
    sched_setaffinity(Pid::from_raw(0), &processors).unwrap();
    eprintln!("sending");
    for round in 0..size.rounds {
        for (world, rates) in worlds.iter_mut().zip(&mut rates) {
            rates.packets.push(pair(round, world, without, |world| {
                packets(world, size.time)
            }));
            rates.connections.push(pair(round, world, without, |world| {
                connections(world, size.time)
            }));
        }
    }
    print(worlds, &rates);
}

/// Measures both, the other one first in every other round.
fn pair(
    round: usize,
    world: &mut World,
    without: &mut World,
    rate: impl Fn(&mut World) -> f64,
) -> Pair {
    if round.is_multiple_of(2) {
        let way = rate(world);
        Pair {
            way,
            without: rate(without),
        }
    } else {
        let without = rate(without);
        Pair {
            way: rate(world),
            without,
        }
    }
}

/// Packets per second of one connection.
fn packets(world: &mut World, time: Duration) -> f64 {
    world.forget();
    world.open();
    rate(world, time, |world| world.send())
}

/// First packets of connections per second.
fn connections(world: &mut World, time: Duration) -> f64 {
    world.forget();
    rate(world, time, World::connect)
}

/// Sends until the time is over; what arrived counts.
fn rate(world: &mut World, time: Duration, one: impl Fn(&mut World)) -> f64 {
    let (tunnel, server) = world.passed();
    let (start, mut sent) = (Instant::now(), 0);
    while start.elapsed() < time {
        (0..BURST).for_each(|_| one(world));
        sent += BURST;
    }
    let elapsed = start.elapsed();
    let (entered, arrived) = world.passed();
    let (entered, arrived) = (entered - tunnel, arrived - server);
    assert!(
        entered.min(arrived) * 100 >= sent * 99,
        "{:?}: of {sent} packets {entered} entered the tunnel, {arrived} arrived",
        world.way()
    );
    #[expect(
        clippy::cast_precision_loss,
        reason = "a packet more or less is no difference"
    )]
    let arrived = arrived as f64;
    arrived / elapsed.as_secs_f64()
}

fn print(worlds: &[World], rates: &[Rates]) {
    let without = |of: fn(&Rates) -> &Vec<Pair>| {
        Figures::new(rates.iter().flat_map(of).map(|pair| pair.without)).spread(0)
    };
    println!(
        "{} rounds; ratios are to the tunnel without a policy, with connection tracking and source translation",
        rates[0].packets.len()
    );
    println!(
        "{:<38} {:>24} {:>22}   {:>24} {:>22}",
        "", "packets/s", "ratio", "new connections/s", "ratio"
    );
    let spread = "min / median / max";
    println!(
        "{:<38} {spread:>24} {spread:>22}   {spread:>24} {spread:>22}",
        ""
    );
    println!(
        "{:<38} {:>24} {:>22}   {:>24}",
        "no policy",
        without(|rates| &rates.packets),
        "",
        without(|rates| &rates.connections)
    );
    for (world, rates) in worlds.iter().zip(rates) {
        let name = match world.way() {
            Way::Policies(layout, count) => format!("{count:>6} {layout}"),
            Way::Bare => "no policy, no connection tracking".to_owned(),
            Way::Marked => "one rule that marks everything".to_owned(),
            Way::NoPolicy => unreachable!("it is what the others are compared with"),
        };
        let [packets, connections] = [&rates.packets, &rates.connections].map(|pairs| {
            let ratio = Figures::new(pairs.iter().map(|pair| pair.way / pair.without));
            format!(
                "{:>24} {:>22}",
                Figures::new(pairs.iter().map(|pair| pair.way)).spread(0),
                ratio.spread(3)
            )
        });
        println!("{name:<38} {packets}   {connections}");
    }
}
