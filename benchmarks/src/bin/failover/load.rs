//! Nothing fails, but all processors are busy: nobody may be taken for dead.

use std::{
    io, thread,
    time::{Duration, Instant},
};

use crate::scene::{As, BACKENDS, FAMILIES, Scene};

/// Both backends at once, each in namespaces of its own.
pub(crate) fn measure(time: Duration) -> io::Result<String> {
    let mut lines = vec![
        "| backend | family | seconds | datagrams sent | lost | longest gap | false switches |"
            .to_owned(),
        "|---|---|---|---|---|---|---|".to_owned(),
    ];
    let scenes = BACKENDS.map(|backend| Scene::start(backend, As::Node));
    let scenes = scenes.into_iter().collect::<io::Result<Vec<_>>>()?;
    let before: Vec<f64> = scenes.iter().map(lost).collect();
    let busy = busy(Instant::now() + time)?;
    let streams = scenes
        .iter()
        .map(Scene::streams)
        .collect::<io::Result<Vec<_>>>()?;
    thread::sleep(time);
    for thread in busy {
        thread
            .join()
            .map_err(|_| io::Error::other("a busy thread panicked"))?;
    }
    for (((backend, scene), streams), before) in
        BACKENDS.into_iter().zip(&scenes).zip(streams).zip(before)
    {
        let reports = streams
            .into_iter()
            .map(egressgateway_testkit::lab::Stream::finish)
            .collect::<io::Result<Vec<_>>>()?;
        // What the client's agent says, or what servers saw of it.
        let lost = lost(scene) - before;
        for (family, report) in FAMILIES.into_iter().zip(reports) {
            let changes = report
                .responses
                .windows(2)
                .filter(|pair| pair[0].source.ip() != pair[1].source.ip())
                .count();
            let switches = if lost == 0.0 && changes == 0 {
                "0".to_owned()
            } else {
                format!("{lost} (the source changed {changes} times)")
            };
            let (sent, gap) = (report.sent, report.longest_gap.as_millis());
            lines.push(format!(
                "| {backend} | {family} | {} | {sent} | {} | {gap} ms | {switches} |",
                time.as_secs(),
                report.lost()
            ));
        }
    }
    Ok(lines.join("\n"))
}

/// How often the client's agent took a gateway for lost.
fn lost(scene: &Scene) -> f64 {
    scene.metric("gateways_lost_total")
}

/// One thread for each processor, which does nothing else.
fn busy(until: Instant) -> io::Result<Vec<thread::JoinHandle<()>>> {
    let work = move || {
        while Instant::now() < until {
            std::hint::black_box((0..100_000_u64).sum::<u64>());
        }
    };
    Ok((0..thread::available_parallelism()?.get())
        .map(|_| thread::spawn(work))
        .collect())
}
