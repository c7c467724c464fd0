//! Somebody else may insist on the first place in a chain as much as we do.
//!
//! Calico in insert mode is one: after each of its writes it looks after 1, 2, 4, 8… seconds
//! whether its jumps are still first, and moves them there again. Two who always answer at once
//! would rewrite a host's rules for ever.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use crate::{
    names::NAT,
    ruleset::table::{Jump, Table, Tables},
};

/// How long others may stay before us once they came again.
const FIRST: Duration = Duration::from_secs(5);
/// And at most, if they come again and again.
const LONGEST: Duration = Duration::from_secs(600);
/// Whoever stays away for so long, and twice as long as they were given last, has given up.
const FORGOTTEN: Duration = Duration::from_secs(60);

/// How often our jumps had to be moved to the front, and until when that is left alone. Clones are
/// one.
///
/// It only remembers; what follows from its [`Tolerance`] is for `plan` to decide.
#[derive(Clone, Debug, Default)]
pub(crate) struct JumpContention(Arc<Mutex<ContentionHistory>>);

/// What we tolerate from others now. Part of what is observed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tolerance {
    /// Others may stay before our jumps for now.
    pub(crate) places: bool,
    /// Others may translate sources before us at any time: they have done so again and again.
    pub(crate) sources: bool,
}

#[derive(Debug, Default)]
struct ContentionHistory {
    moved: Option<Instant>,
    wait: Duration,
    warned: bool,
    /// The nat table was among what had to be moved again.
    nat: bool,
}

impl ContentionHistory {
    /// Whether somebody who came again may come once more.
    fn goes_on(&self, now: Instant) -> bool {
        !self.wait.is_zero() && self.is_remembered(now)
    }

    fn is_remembered(&self, now: Instant) -> bool {
        self.moved
            .is_some_and(|moved| now < moved + 2 * self.wait + FORGOTTEN)
    }
}

impl Tolerance {
    /// Where a jump of ours belongs, when the table is `current` now: before all others, or as long
    /// as others may stay there where it is, if it is there once.
    pub(crate) fn place(self, jump: Jump, current: Option<&Table>) -> Jump {
        let mut alike = current
            .into_iter()
            .flat_map(|table| &table.jumps)
            .filter(|other| other.is_like(&jump));
        match (alike.next(), alike.next()) {
            (Some(there), None) if self.places => there.clone(),
            _ => jump,
        }
    }
}

impl JumpContention {
    /// What is to be borne at `now`, at which `tables` were read. Tells the log once that it is.
    pub(crate) fn tolerance(&self, tables: &Tables, now: Instant) -> Tolerance {
        let mut dispute = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let places = dispute
            .moved
            .is_some_and(|moved| now < moved + dispute.wait);
        let mut later = tables
            .iter()
            .flat_map(|(key, table)| table.jumps.iter().map(move |jump| (key, jump)));
        if places
            && let Some(((family, table), jump)) = later.find(|(_, jump)| jump.position > 0)
            && !std::mem::replace(&mut dispute.warned, true)
        {
            tracing::warn!(
                %family, table, chain = jump.chain, pause = ?dispute.wait,
                "another program keeps inserting rules before ours; packets that it accepts, drops or translates bypass ours; configure it to append"
            );
        }
        Tolerance {
            places,
            sources: dispute.nat && dispute.goes_on(now),
        }
    }

    /// Our jumps were put first in these tables.
    pub(crate) fn moved(&self, tables: &BTreeSet<&str>, now: Instant) {
        if tables.is_empty() {
            return;
        }
        let mut dispute = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let again = dispute.is_remembered(now);
        let wait = if again {
            (2 * dispute.wait).clamp(FIRST, LONGEST)
        } else {
            Duration::ZERO
        };
        let nat = again && (tables.contains(NAT) || dispute.goes_on(now) && dispute.nat);
        *dispute = ContentionHistory {
            moved: Some(now),
            wait,
            warned: false,
            nat,
        };
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use egressgateway::model::Family;

    use super::*;
    use crate::names::{MANGLE, PREROUTING};

    fn first() -> Jump {
        Jump::first("PREROUTING", PREROUTING)
    }

    fn at(positions: &[usize]) -> Table {
        Table {
            jumps: positions
                .iter()
                .map(|position| Jump {
                    position: *position,
                    ..first()
                })
                .collect(),
            ..Table::default()
        }
    }

    fn tolerance(contention: &JumpContention, now: Instant) -> Tolerance {
        contention.tolerance(
            &[((Family::V4, MANGLE.to_owned()), Arc::new(at(&[1])))].into(),
            now,
        )
    }

    /// Whether a jump that is second now is to be put first.
    fn answers(contention: &JumpContention, now: Instant) -> bool {
        tolerance(contention, now)
            .place(first(), Some(&at(&[1])))
            .position
            == 0
    }

    /// Seconds from our first write to each later one, and the number of theirs, over a day in
    /// which they follow `next` after each write.
    fn fight(look: Duration, next: impl Fn(Duration) -> Duration) -> (Vec<u64>, usize) {
        let (contention, start) = (JumpContention::default(), Instant::now());
        contention.moved(&[MANGLE].into(), start);
        let (mut ours, mut theirs, mut their_write, mut first) = (Vec::new(), 0, start, true);
        let mut now = start;
        while now < start + Duration::from_secs(86_400) {
            // They notice at the next of their looks; we see it at the next of ours.
            if first {
                their_write = now.max(next_look(their_write, now, &next));
                theirs += 1;
                first = false;
            }
            now += look;
            if now >= their_write && answers(&contention, now) {
                contention.moved(&[MANGLE].into(), now);
                ours.push((now - start).as_secs());
                first = true;
            }
        }
        (ours, theirs)
    }

    fn next_look(write: Instant, now: Instant, next: &impl Fn(Duration) -> Duration) -> Instant {
        let mut since = Duration::from_secs(1);
        while write + since < now {
            since = next(since);
        }
        write + since
    }

    #[test]
    fn two_who_insist_write_less_and_less() {
        let calico = |since: Duration| (since * 2).min(since + Duration::from_secs(90));
        let (ours, theirs) = fight(FIRST, calico);
        assert!(ours[0] <= 10, "answered at once the first time: {ours:?}");
        assert!(
            ours.len() < 160 && theirs < 160,
            "{} and {theirs} writes in a day: {ours:?}",
            ours.len()
        );
        let pauses: Vec<u64> = ours.windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert!(
            pauses.iter().rev().take(100).all(|pause| *pause >= 600),
            "{pauses:?}"
        );
    }

    #[test]
    fn who_comes_once_in_a_while_is_answered_at_once_each_time() {
        let (contention, start) = (JumpContention::default(), Instant::now());
        for hour in 0..24 {
            let now = start + Duration::from_secs(3600 * hour);
            assert!(answers(&contention, now), "hour {hour}");
            contention.moved(&[MANGLE].into(), now);
        }
    }

    #[test]
    fn only_the_place_of_a_jump_is_left_alone() {
        let (contention, now) = (JumpContention::default(), Instant::now());
        contention.moved(&[MANGLE].into(), now);
        contention.moved(&[MANGLE].into(), now);
        assert!(!answers(&contention, now), "tolerated");
        let place =
            |table: Option<&Table>| tolerance(&contention, now).place(first(), table).position;
        assert_eq!(place(Some(&at(&[7]))), 7);
        assert_eq!(place(Some(&at(&[]))), 0, "one that is missing");
        assert_eq!(place(None), 0, "its table is missing");
        assert_eq!(place(Some(&at(&[1, 7]))), 0, "one that is there twice");
        let other = Table {
            jumps: [Jump {
                position: 7,
                ..Jump::first("INPUT", PREROUTING)
            }]
            .into(),
            ..Table::default()
        };
        assert_eq!(place(Some(&other)), 0, "another chain's");
        assert!(answers(&contention, now + FIRST), "over");
    }

    #[test]
    fn sources_are_in_dispute_from_the_second_time_on_until_nobody_comes_any_more() {
        let (contention, start) = (JumpContention::default(), Instant::now());
        let (nat, other) = ([NAT].into(), [MANGLE].into());
        contention.moved(&nat, start);
        assert!(!tolerance(&contention, start).sources, "our first write");
        contention.moved(&other, start);
        assert!(!tolerance(&contention, start).sources, "another table");
        contention.moved(&nat, start);
        contention.moved(&other, start);
        assert!(
            tolerance(&contention, start).sources,
            "one that was in dispute before"
        );
        assert!(
            tolerance(&contention, start + 2 * FIRST * 4).sources,
            "not forgotten yet"
        );
        assert!(
            !tolerance(&contention, start + 2 * FIRST * 4 + FORGOTTEN).sources,
            "{:?}",
            contention.0
        );
    }
}
