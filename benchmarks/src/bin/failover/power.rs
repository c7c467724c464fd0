//! The node of the active gateway loses its power: the standby takes over, without the API server's
//! help.

use std::{io, thread, time::Duration};

use egressgateway_testkit::{cluster::agent, lab::Response};
use nix::sys::signal::Signal;

use crate::{
    distribution::{Distribution, HEADS},
    scene::{As, BACKENDS, CLIENT, FAMILIES, PATIENCE, Scene},
};

/// Time between two probes: the power goes at any moment between them.
const INTERVAL: u64 = 150;

pub(crate) fn measure(runs: u32) -> io::Result<String> {
    let mut lines = vec![
        format!("| backend | family | losses of power | {HEADS} |"),
        "|---|---|---|---|---|---|---|".to_owned(),
    ];
    for backend in BACKENDS {
        let mut scene = Scene::start(backend, As::Node)?;
        let mut gaps = [Vec::new(), Vec::new()];
        for run in 0..runs {
            let measured = lose_power(&mut scene, u64::from(run) * 37 % INTERVAL)?;
            eprintln!("{backend}, power, run {run}: {measured:?}");
            gaps.iter_mut()
                .zip(measured)
                .for_each(|(all, gap)| all.push(gap));
        }
        for (family, gaps) in FAMILIES.into_iter().zip(gaps) {
            lines.push(format!(
                "| {backend} | {family} | {} | {} |",
                gaps.len(),
                Distribution::of(gaps)
            ));
        }
    }
    Ok(lines.join("\n"))
}

/// The gap of each family.
fn lose_power(scene: &mut Scene, after: u64) -> io::Result<Vec<Duration>> {
    let streams = scene.streams()?;
    let active = scene.active(&streams[0])?;
    thread::sleep(Duration::from_millis(after));
    scene.cluster.lab.node(active).power_off()?;
    let addresses = scene.cluster.lab.node(active).addresses();
    let elsewhere = |response: &Response| !addresses.contains(&response.source.ip());
    for stream in &streams {
        stream.wait_for(PATIENCE, elsewhere)?;
    }
    let gaps = streams
        .into_iter()
        .map(|stream| Ok(stream.finish()?.longest_gap))
        .collect::<io::Result<_>>()?;
    scene.cluster.lab.node(active).power_on()?;
    // A fresh agent, so that no node is held down for what happened before.
    scene.cluster.kill(&agent(CLIENT), Signal::SIGKILL);
    scene.cluster.start_agent(CLIENT);
    scene.probed();
    Ok(gaps)
}
