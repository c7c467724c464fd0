//! A run: its events from a seed or a file, and how it ends.

use std::panic::{AssertUnwindSafe, catch_unwind};

use serde::{Deserialize, Serialize};

use super::{
    event::{Event, events},
    stage::Stage,
};

/// One run, as it is written into a file and read again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// The policy backend.
    pub backend: String,
    /// What the events came from; only for the reader.
    #[serde(default)]
    pub seed: u64,
    /// What happens.
    pub events: Vec<Event>,
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing was wrong.
    Right {
        /// How many packets of the underlay were looked at.
        packets: usize,
        /// How many answers at servers were looked at.
        answers: usize,
    },
    /// What was wrong, after so many events.
    Wrong {
        /// Events that had happened.
        after: usize,
        /// What was seen, and what would have been right.
        what: String,
    },
}

impl Run {
    /// The events of a seed.
    #[must_use]
    pub fn of_seed(backend: &str, seed: u64, count: usize, without: &[String]) -> Self {
        let mut events = events(seed, count);
        events.retain(|event| !without.contains(&event.kind()));
        Self {
            backend: backend.to_owned(),
            seed,
            events,
        }
    }

    /// Lets everything happen, in a cluster of its own.
    #[must_use]
    pub fn play(&self) -> Outcome {
        let mut after = 0;
        // A part of the cluster that does not come up panics with its logs: that is a finding too.
        let played = catch_unwind(AssertUnwindSafe(|| {
            let mut stage = Stage::set(&self.backend)?;
            for event in self.events.iter().chain([&Event::Calm]) {
                after += 1;
                stage.happen(event)?;
            }
            Ok(stage.looked_at())
        }));
        match played {
            Ok(Ok((packets, answers))) => Outcome::Right { packets, answers },
            Ok(Err(what)) => Outcome::Wrong { after, what },
            Err(panic) => {
                let text = panic
                    .downcast_ref::<String>()
                    .cloned()
                    .or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
                Outcome::Wrong {
                    after,
                    what: text.unwrap_or_default(),
                }
            }
        }
    }
}
