//! What flows met while something happened, as a table.

use std::{
    fmt::{self, Display, Formatter},
    sync::Mutex,
};

use egressgateway_testkit::e2e::Measured;

/// The flows' kinds, in the order in which they are measured.
const KINDS: [&str; 3] = ["a stream of datagrams", "a TCP connection", "new TCP connections"];

#[derive(Debug, Default)]
pub(crate) struct Table(Mutex<Vec<String>>);

impl Table {
    /// Adds what the flows of somebody met.
    pub(crate) fn add(&self, event: &str, who: &str, family: &str, measured: &[Measured; 3]) {
        let mut rows = self.0.lock().unwrap();
        for (kind, flow) in KINDS.iter().zip(measured) {
            let answered: usize = flow.sources.values().sum();
            let sources: Vec<String> = flow.sources.keys().map(ToString::to_string).collect();
            let lost = flow.sent.saturating_sub(answered);
            let row = [
                event,
                who,
                family,
                kind,
                &flow.gap.to_string(),
                &format!("{lost} of {}", flow.sent),
                &flow.ended.to_string(),
                &sources.join(", "),
            ];
            rows.push(format!("| {} |", row.join(" | ")));
        }
    }
}

impl Display for Table {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        let rows = self.0.lock().unwrap();
        if rows.is_empty() {
            return Ok(());
        }
        formatter.write_str(
            "| what | who | family | flow | longest gap | without answer | ended | sources |\n|---|---|---|---|---|---|---|---|\n",
        )?;
        formatter.write_str(&rows.join("\n"))
    }
}
