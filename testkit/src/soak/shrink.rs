//! From many events that end badly to few.

use super::{
    event::Event,
    run::{Outcome, Run},
};

/// Leaves out what is not needed for the run to end badly, in at most so many replays; tells each
/// shorter run that does.
pub fn shrink(failing: &Run, after: usize, tries: usize, mut tell: impl FnMut(&Run, &str)) -> Run {
    let mut best = Run {
        events: failing.events.iter().take(after).cloned().collect(),
        ..failing.clone()
    };
    let mut left = tries;
    let mut size = best.events.len().div_ceil(2);
    while size > 0 && left > 0 {
        let mut start = 0;
        while start < best.events.len() && left > 0 {
            let end = (start + size).min(best.events.len());
            let events: Vec<Event> = [&best.events[..start], &best.events[end..]].concat();
            let candidate = Run {
                events,
                ..best.clone()
            };
            left -= 1;
            match candidate.play() {
                Outcome::Wrong { after, what } => {
                    best = candidate;
                    best.events.truncate(after);
                    tell(&best, what.lines().next().unwrap_or_default());
                }
                Outcome::Right { .. } => start = end,
            }
        }
        size = if size == 1 { 0 } else { size.div_ceil(2) };
    }
    best
}
