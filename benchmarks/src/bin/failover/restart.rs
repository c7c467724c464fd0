//! The agent of the gateway is killed, or told to end, and starts again.

use std::{io, thread, time::Duration};

use egressgateway_testkit::cluster::agent;
use nix::sys::signal::Signal;

use crate::scene::{As, BACKENDS, CLIENT, FAMILIES, Scene};

/// How long no agent runs: more than twice as long as a silent node is waited for.
const ABSENCE: Duration = Duration::from_secs(1);

pub(crate) fn measure(runs: u32) -> io::Result<String> {
    let mut lines = vec![
        "| backend | family | restarts (half of them killed) | datagrams sent | lost | longest gap | switches |".to_owned(),
        "|---|---|---|---|---|---|---|".to_owned(),
    ];
    for backend in BACKENDS {
        let mut scene = Scene::start(backend, As::Node)?;
        let mut sums = [Sum::default(), Sum::default()];
        for run in 0..runs {
            let signal = if run % 2 == 0 {
                Signal::SIGKILL
            } else {
                Signal::SIGTERM
            };
            lose_agent(&mut scene, signal, &mut sums)?;
            eprintln!("{backend}, restart, run {run}: {sums:?}");
        }
        let switches = scene.metric("gateways_lost_total");
        for (family, Sum { sent, lost, gap }) in FAMILIES.into_iter().zip(sums) {
            lines.push(format!(
                "| {backend} | {family} | {runs} | {sent} | {lost} | {} ms | {switches} |",
                gap.as_millis()
            ));
        }
    }
    Ok(lines.join("\n"))
}

/// Of one family, over all runs.
#[derive(Debug, Default)]
struct Sum {
    sent: u64,
    lost: u64,
    gap: Duration,
}

fn lose_agent(scene: &mut Scene, signal: Signal, sums: &mut [Sum; 2]) -> io::Result<()> {
    let streams = scene.streams()?;
    let active = scene.active(&streams[0])?;
    scene.cluster.kill(&agent(active), signal);
    thread::sleep(ABSENCE);
    scene.cluster.start_agent(active);
    scene.cluster.eventually("the new agent has converged", || {
        let synced = scene.cluster.metric(active, "egressgateway_agent_synced");
        if synced == Some(1.0) {
            Ok(())
        } else {
            Err(format!("{synced:?} of {CLIENT}'s gateway {active}"))
        }
    });
    for (stream, sum) in streams.into_iter().zip(sums) {
        let report = stream.finish()?;
        sum.sent += report.sent;
        sum.lost += report.lost();
        sum.gap = sum.gap.max(report.longest_gap);
    }
    Ok(())
}
