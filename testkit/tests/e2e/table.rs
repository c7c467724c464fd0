//! What flows met while something happened, as a table.

use std::{
    fmt::{self, Display, Formatter},
    sync::Mutex,
    time::Duration,
};

use egressgateway_testkit::e2e::{Gap, Measured};

/// The flows' kinds, in the order in which they are measured.
pub(crate) const KINDS: [&str; 3] = [
    "a stream of datagrams",
    "a TCP connection",
    "new TCP connections",
];

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

/// What flows of all kinds met, of all pods of a kind of place.
#[derive(Debug, Default)]
struct Row {
    /// By kinds, and by families.
    gaps: [[Option<Duration>; 2]; 3],
    sent: [usize; 3],
    answered: [usize; 3],
    ended: [usize; 3],
    pause: Duration,
}

impl Table {
    /// Adds what the flows of somebody met.
    pub(crate) fn add(&self, event: &str, place: &str, six: bool, measured: &[Measured; 3]) {
        let entry = Entry {
            event: event.to_owned(),
            place: place.to_owned(),
            six,
            measured: measured.clone(),
        };
        self.0.lock().unwrap().push(entry);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.lock().unwrap().is_empty()
    }
}

impl Row {
    fn add(&mut self, six: bool, measured: &[Measured; 3]) {
        for (kind, flow) in measured.iter().enumerate() {
            let gap = &mut self.gaps[kind][usize::from(six)];
            *gap = (*gap).max(Some(flow.gap.0));
            self.sent[kind] += flow.sent;
            self.answered[kind] += flow.sources.values().sum::<usize>();
            self.ended[kind] += flow.ended;
        }
        // Only the stream asks whatever comes.
        self.pause = self.pause.max(measured[0].pause);
    }
}

impl Display for Table {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        let entries = self.0.lock().unwrap();
        formatter.write_str(
            "| what happens | pods on | datagrams, IPv4 and IPv6 | lost | a connection | ended | new connections | failed | the machine's pause |\n\
             |---|---|---|---|---|---|---|---|---|",
        )?;
        let mut rows: Vec<([&str; 2], Row)> = Vec::new();
        for Entry {
            event,
            place,
            six,
            measured,
        } in entries.iter()
        {
            let name = [event.as_str(), place.as_str()];
            let at = rows
                .iter()
                .position(|(own, _)| *own == name)
                .unwrap_or_else(|| {
                    rows.push((name, Row::default()));
                    rows.len() - 1
                });
            rows[at].1.add(*six, measured);
        }
        for ([event, place], row) in rows {
            let gaps = row.gaps.map(|gaps| {
                gaps.map(|gap| gap.map_or_else(|| "-".to_owned(), |gap| Gap(gap).to_string()))
                    .join(", ")
            });
            let lost = format!(
                "{} of {}",
                row.sent[0].saturating_sub(row.answered[0]),
                row.sent[0]
            );
            let [_, ended, failed] = row.ended;
            let ([datagrams, connection, new], pause) = (gaps, Gap(row.pause));
            write!(
                formatter,
                "\n| {event} | {place} | {datagrams} | {lost} | {connection} | {ended} | {new} | {failed} | {pause} |"
            )?;
        }
        Ok(())
    }
}
