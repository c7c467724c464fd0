//! Nothing fails, but all processors are busy: nobody may be taken for dead.

use std::{
    io, thread,
    time::{Duration, Instant},
};

use crate::scene::{As, BACKENDS, FAMILIES, Scene};

pub(crate) fn measure(time: Duration) -> io::Result<String> {
    let mut lines = vec![
        "| backend | family | seconds | datagrams sent | lost | longest gap | false switches |".to_owned(),
        "|---|---|---|---|---|---|---|".to_owned(),
    ];
    for backend in BACKENDS {
        let scene = Scene::start(backend, As::Node)?;
        let before = scene.metric("gateways_lost_total");
        let busy = busy(Instant::now() + time)?;
        let streams = scene.streams()?;
        thread::sleep(time);
        let reports = streams.into_iter().map(egressgateway_testkit::lab::Stream::finish).collect::<io::Result<Vec<_>>>()?;
        for thread in busy {
            thread.join().map_err(|_| io::Error::other("a busy thread panicked"))?;
        }
        // What the client's agent says, or what servers saw of it.
        let lost = scene.metric("gateways_lost_total") - before;
        for (family, report) in FAMILIES.into_iter().zip(reports) {
            let changes = report.answers.windows(2).filter(|pair| pair[0].source.ip() != pair[1].source.ip()).count();
            let switches =
                if lost == 0.0 && changes == 0 { "0".to_owned() } else { format!("{lost} (the source changed {changes} times)") };
            let (sent, gap) = (report.sent, report.longest_gap.as_millis());
            lines.push(format!("| {backend} | {family} | {} | {sent} | {} | {gap} ms | {switches} |", time.as_secs(), report.lost()));
        }
    }
    Ok(lines.join("\n"))
}

/// One thread for each processor, which does nothing else.
fn busy(until: Instant) -> io::Result<Vec<thread::JoinHandle<()>>> {
    let work = move || {
        while Instant::now() < until {
            std::hint::black_box((0..100_000_u64).sum::<u64>());
        }
    };
    Ok((0..thread::available_parallelism()?.get()).map(|_| thread::spawn(work)).collect())
}
