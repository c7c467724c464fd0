//! Random clusters: the explanation, the packet's way through the plans, and the rules read
//! literally say the same.
#![allow(clippy::unwrap_used, missing_docs)]

mod naive;
mod support;
mod world;

use egressgateway::explain::{self, Manifests, Offline, OfflineSettings, Statuses};
use egressgateway::model::PodName;

use support::{Answer, BACKENDS, Plans, tunnel};
use world::{Dice, World};

/// How many worlds are tried, and from which seed on; `WORLD=seed` tries that one alone.
const WORLDS: u64 = 2000;
/// How many packets are sent in each.
const PACKETS: usize = 24;

fn offline(world: &World) -> Offline {
    let mut manifests = Manifests::default();
    manifests.read("world", &world.manifest());
    let settings = OfflineSettings::of_tunnel(tunnel())
        .with_statuses(Statuses::Given)
        .with_default_gateway(world.default_gateway.as_deref().map(Into::into));
    Offline::new(&manifests, settings)
}

/// Tries one world; what was met is counted in `met`: pass, egress, drop.
fn try_world(seed: u64, met: &mut [usize; 3]) {
    let mut dice = Dice::new(seed);
    let world = World::random(&mut dice);
    let offline = offline(&world);
    let plans = BACKENDS.map(|(name, rules)| (name, Plans::of(&offline, rules)));
    for _ in 0..PACKETS {
        // Most addresses are nobody's business; what happens to the others is what is wanted here.
        let draw = || {
            let packet = world.packet(&mut dice);
            (
                packet,
                naive::ask(&world, packet.0, packet.1, packet.2) != Answer::Pass,
            )
        };
        let drawn: Vec<_> = std::iter::repeat_with(draw).take(8).collect();
        let (pod, source, destination) = drawn
            .iter()
            .find(|(_, governed)| *governed)
            .unwrap_or(&drawn[0])
            .0;
        let explanation = explain::explain(
            &offline,
            &PodName::new(pod.namespace.as_str(), pod.name.as_str()),
            destination,
        )
        .unwrap();
        let naive = naive::ask(&world, pod, source, destination);
        let context = || {
            format!(
                "seed {seed}: {source} → {destination}\n{}\n{explanation}",
                world.manifest()
            )
        };
        assert_eq!(
            naive,
            Answer::of(&explanation),
            "the rules read literally against the explanation, {}",
            context()
        );
        for (backend, plans) in &plans {
            let traced = plans.trace(&pod.node.as_str().into(), source, destination);
            assert_eq!(
                naive,
                traced,
                "the rules read literally against the packet's way with {backend}, {}",
                context()
            );
        }
        met[match naive {
            Answer::Pass => 0,
            Answer::Egress(_) => 1,
            Answer::Drop => 2,
        }] += 1;
    }
}

#[test]
fn explanations_plans_and_the_rules_agree_in_random_worlds() {
    let only = std::env::var("WORLD")
        .ok()
        .map(|seed| seed.parse().unwrap());
    let seeds: Vec<u64> = only.map_or_else(|| (0..WORLDS).collect(), |seed| vec![seed]);
    println!("seeds {}..={}", seeds[0], seeds[seeds.len() - 1]);
    let halves: Vec<&[u64]> = seeds.chunks(seeds.len().div_ceil(2)).collect();
    let met = std::thread::scope(|scope| {
        let run = |seeds: &[u64]| {
            let mut met = [0; 3];
            for seed in seeds {
                try_world(*seed, &mut met);
            }
            met
        };
        let threads: Vec<_> = halves
            .into_iter()
            .map(|seeds| scope.spawn(move || run(seeds)))
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .fold([0; 3], |all, met| {
                [all[0] + met[0], all[1] + met[1], all[2] + met[2]]
            })
    });
    println!("passed {}, left {}, dropped {}", met[0], met[1], met[2]);
    if only.is_none() {
        let packets = met.iter().sum::<usize>();
        assert!(
            met.iter().all(|count| count * 10 > packets),
            "worlds that tell nothing: {met:?} of {packets}"
        );
    }
}
