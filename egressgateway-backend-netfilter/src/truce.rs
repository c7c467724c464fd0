//! Somebody else may insist on the first place in a chain as much as we do.
//!
//! Calico in insert mode is one: after each of its writes it looks after 1, 2, 4, 8… seconds whether its jumps are still first, and moves them
//! there again. Two who always answer at once would rewrite a host's rules for ever.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use crate::{
    names::NAT,
    state::{Jump, Tables},
};

/// How long others may stay before us once they came again.
const FIRST: Duration = Duration::from_secs(5);
/// And at most, if they come again and again.
const LONGEST: Duration = Duration::from_secs(600);
/// Whoever stays away for so long, and twice as long as they were given last, has given up.
const FORGOTTEN: Duration = Duration::from_secs(60);

/// How often our jumps had to be moved to the front, and how long that is left alone. Clones are one.
#[derive(Clone, Debug, Default)]
pub(crate) struct Truce(Arc<Mutex<Terms>>);

#[derive(Debug, Default)]
struct Terms {
    moved: Option<Instant>,
    wait: Duration,
    warned: bool,
    /// The nat table was among what had to be moved again.
    nat: bool,
}

impl Terms {
    /// Whether somebody who came again may come once more.
    fn is_dispute(&self, now: Instant) -> bool {
        !self.wait.is_zero() && self.is_remembered(now)
    }

    fn is_remembered(&self, now: Instant) -> bool {
        self.moved.is_some_and(|moved| now < moved + 2 * self.wait + FORGOTTEN)
    }
}

impl Truce {
    /// As long as it lasts, jumps of ours that are there once, but not first, are taken for first: nothing is to be done about them.
    pub(crate) fn grant(&self, tables: &mut Tables, now: Instant) {
        let mut terms = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if terms.moved.is_none_or(|moved| now >= moved + terms.wait) {
            return;
        }
        for ((family, name), table) in tables {
            let later: Vec<Jump> = table.jumps.iter().filter(|jump| jump.position > 0 && jump.is_ours()).cloned().collect();
            for jump in later {
                let alike = table.jumps.iter().filter(|other| other.chain == jump.chain && other.rule == jump.rule).count();
                if alike > 1 {
                    continue;
                }
                if !std::mem::replace(&mut terms.warned, true) {
                    tracing::warn!(
                        %family, table = name, chain = jump.chain, pause = ?terms.wait,
                        "somebody keeps inserting rules before ours; what they accept, drop or translate we never see; let them append instead"
                    );
                }
                let jumps = &mut Arc::make_mut(table).jumps;
                jumps.remove(&jump);
                jumps.insert(Jump { position: 0, ..jump });
            }
        }
    }

    /// Our jumps were put first in these tables.
    pub(crate) fn moved(&self, tables: &BTreeSet<&str>, now: Instant) {
        if tables.is_empty() {
            return;
        }
        let mut terms = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let again = terms.is_remembered(now);
        let wait = if again { (2 * terms.wait).clamp(FIRST, LONGEST) } else { Duration::ZERO };
        let nat = again && (tables.contains(NAT) || terms.is_dispute(now) && terms.nat);
        *terms = Terms { moved: Some(now), wait, warned: false, nat };
    }

    /// Whether others may translate sources before us at any moment: they have done so again and again.
    pub(crate) fn is_about_sources(&self, now: Instant) -> bool {
        let terms = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        terms.nat && terms.is_dispute(now)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use egressgateway::model::Family;

    use super::*;
    use crate::{
        names::{MANGLE, PREROUTING},
        state::Table,
    };

    fn tables(position: usize) -> Tables {
        let jump = Jump { position, ..Jump::first("PREROUTING", PREROUTING) };
        let table = Table { chains: [(PREROUTING.to_owned(), Vec::new())].into(), jumps: [jump].into() };
        [((Family::V4, MANGLE.to_owned()), Arc::new(table))].into()
    }

    fn sees_displaced(truce: &Truce, now: Instant) -> bool {
        let mut seen = tables(1);
        truce.grant(&mut seen, now);
        seen != tables(0)
    }

    /// Seconds from our first write to each later one, and the number of theirs, over a day in which they follow `next` after each write.
    fn fight(look: Duration, next: impl Fn(Duration) -> Duration) -> (Vec<u64>, usize) {
        let (truce, start) = (Truce::default(), Instant::now());
        truce.moved(&[MANGLE].into(), start);
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
            if now >= their_write && sees_displaced(&truce, now) {
                truce.moved(&[MANGLE].into(), now);
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
        assert!(ours.len() < 160 && theirs < 160, "{} and {theirs} writes in a day: {ours:?}", ours.len());
        let pauses: Vec<u64> = ours.windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert!(pauses.iter().rev().take(100).all(|pause| *pause >= 600), "{pauses:?}");
    }

    #[test]
    fn who_comes_once_in_a_while_is_answered_at_once_each_time() {
        let (truce, start) = (Truce::default(), Instant::now());
        for hour in 0..24 {
            let now = start + Duration::from_secs(3600 * hour);
            assert!(sees_displaced(&truce, now), "hour {hour}");
            truce.moved(&[MANGLE].into(), now);
        }
    }

    #[test]
    fn only_the_place_of_a_jump_is_left_alone() {
        let (truce, now) = (Truce::default(), Instant::now());
        truce.moved(&[MANGLE].into(), now);
        truce.moved(&[MANGLE].into(), now);
        assert!(!sees_displaced(&truce, now), "a truce");
        let granted = |change: fn(&mut Table)| {
            let mut seen = tables(1);
            change(Arc::make_mut(seen.values_mut().next().unwrap()));
            truce.grant(&mut seen, now);
            seen != tables(0)
        };
        assert!(granted(|table| table.jumps.clear()), "a jump that is missing");
        assert!(granted(|table| table.jumps.extend([Jump { position: 7, ..Jump::first("PREROUTING", PREROUTING) }])), "one that is twice");
        assert!(granted(|table| table.jumps.extend([Jump { position: 7, ..Jump::first("INPUT", PREROUTING) }])), "one too many");
        assert!(granted(|table| table.chains.clear()), "a chain that is missing");
        assert!(sees_displaced(&truce, now + FIRST), "over");
    }

    #[test]
    fn sources_are_in_dispute_from_the_second_time_on_until_nobody_comes_any_more() {
        let (truce, start) = (Truce::default(), Instant::now());
        let (nat, other) = ([NAT].into(), [MANGLE].into());
        truce.moved(&nat, start);
        assert!(!truce.is_about_sources(start), "our first write");
        truce.moved(&other, start);
        assert!(!truce.is_about_sources(start), "another table");
        truce.moved(&nat, start);
        truce.moved(&other, start);
        assert!(truce.is_about_sources(start), "one that was in dispute before");
        assert!(truce.is_about_sources(start + 2 * FIRST * 4), "not forgotten yet");
        assert!(!truce.is_about_sources(start + 2 * FIRST * 4 + FORGOTTEN), "{:?}", truce.0);
    }
}
