//! What flows met while something happened, as a table.

use std::{
    fmt::{self, Display, Formatter},
    sync::Mutex,
    time::Duration,
};

use egressgateway_testkit::e2e::{Gap, Measured};

/// The flows' kinds, in the order in which they are measured.
pub(crate) const KINDS: [&str; 3] = ["a stream of datagrams", "a TCP connection", "new TCP connections"];

#[derive(Debug, Default)]
pub(crate) struct Table(Mutex<Vec<Entry>>);

/// What one pod's flows met in one family.
#[derive(Debug)]
struct Entry {
    event: String,
    place: String,
    six: bool,
    measured: [Measured; 3],
}

/// What flows of one kind met, of all pods of a kind of place.
#[derive(Debug, Default)]
struct Row {
    gaps: [Option<Duration>; 2],
    pause: Duration,
    sent: usize,
    answered: usize,
    ended: usize,
}

impl Table {
    /// Adds what the flows of somebody met.
    pub(crate) fn add(&self, event: &str, place: &str, six: bool, measured: &[Measured; 3]) {
        let entry = Entry { event: event.to_owned(), place: place.to_owned(), six, measured: measured.clone() };
        self.0.lock().unwrap().push(entry);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.lock().unwrap().is_empty()
    }
}

impl Row {
    fn add(&mut self, six: bool, flow: &Measured) {
        let gap = &mut self.gaps[usize::from(six)];
        *gap = (*gap).max(Some(flow.gap.0));
        self.pause = self.pause.max(flow.pause);
        self.sent += flow.sent;
        self.answered += flow.sources.values().sum::<usize>();
        self.ended += flow.ended;
    }
}

impl Display for Table {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        let entries = self.0.lock().unwrap();
        formatter.write_str(
            "| what happens | pods on | flow | longest gap, IPv4 | IPv6 | without answer | ended | the machine's pause |\n|---|---|---|---|---|---|---|---|",
        )?;
        let mut rows: Vec<([&str; 3], Row)> = Vec::new();
        for Entry { event, place, six, measured } in entries.iter() {
            for (kind, flow) in KINDS.iter().zip(measured) {
                let name = [event.as_str(), place, kind];
                let at = rows.iter().position(|(own, _)| *own == name).unwrap_or_else(|| {
                    rows.push((name, Row::default()));
                    rows.len() - 1
                });
                rows[at].1.add(*six, flow);
            }
        }
        for ([event, place, kind], row) in rows {
            let [gap, gap6] = row.gaps.map(|gap| gap.map_or_else(|| "-".to_owned(), |gap| Gap(gap).to_string()));
            // Only the stream asks whatever comes.
            let pause = if kind == KINDS[0] { Gap(row.pause).to_string() } else { String::new() };
            let lost = format!("{} of {}", row.sent.saturating_sub(row.answered), row.sent);
            write!(formatter, "\n| {event} | {place} | {kind} | {gap} | {gap6} | {lost} | {} | {pause} |", row.ended)?;
        }
        Ok(())
    }
}
