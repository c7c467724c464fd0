//! Which gateway nodes answer: from probes sent and answered to a set of nodes. Pure; time comes in
//! from outside.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::{Duration, Instant},
};

use crate::model::{Family, NodeName};

/// How fast a silent node is noticed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LivenessSettings {
    /// Time between two probes of a node that answers.
    pub interval: Duration,
    /// A node is silent once nothing was heard for so many intervals, and so many probes found no
    /// answer.
    pub multiplier: u32,
}

impl Default for LivenessSettings {
    /// Three times 150 milliseconds.
    fn default() -> Self {
        Self {
            interval: Duration::from_millis(150),
            multiplier: 3,
        }
    }
}

impl LivenessSettings {
    /// A probe each `interval`, and a node is silent after `multiplier` of them.
    #[must_use]
    pub const fn new(interval: Duration, multiplier: u32) -> Self {
        Self {
            interval,
            multiplier,
        }
    }

    /// After so long without an answer a node is silent.
    #[must_use]
    pub fn patience(&self) -> Duration {
        self.interval * self.multiplier
    }

    /// What an answer takes at most, before the next probe is sent early.
    fn grace(&self) -> Duration {
        self.interval / 3
    }

    /// How long a node that was silent must answer before it counts again, at first.
    fn hold(&self) -> Duration {
        self.patience() * 2
    }
}

/// The longest hold-down.
const HOLD_LIMIT: Duration = Duration::from_secs(60);
/// A node that stays up so many times longer than its hold-down has no history any more.
const FORGIVEN: u32 = 20;
/// Probes of a node that are remembered while nothing answers.
const REMEMBERED: usize = 16;

/// One address family of a node: what is probed.
pub type End = (NodeName, Family);

/// What is known of every probed node.
///
/// A node that answers is probed once per interval; one that lets a third of an interval pass,
/// three times as often, so that a few lost packets are no failure. Only probes that were really
/// sent count, and answers count from when their probe was sent: a process that was stalled, or
/// can't send, declares nobody dead.
///
/// A node is down when it is silent in a family in which another node answers, or in all its
/// families. One that was never heard is believed to be up as long as no other node answers in that
/// family: somebody's firewall may refuse probes.
#[derive(Clone, Debug)]
pub struct Liveness {
    settings: LivenessSettings,
    ends: BTreeMap<End, Watched>,
    number: u16,
}

#[derive(Clone, Debug)]
struct Watched {
    began: Instant,
    /// When the last probe was sent that found an answer.
    heard: Option<Instant>,
    /// Probes since then, with their numbers.
    unanswered: VecDeque<(u16, Instant)>,
    /// When the last try to send was made.
    tried: Option<Instant>,
    silent: bool,
    /// In a silent one: since when it answers again.
    answering: Option<Instant>,
    up_since: Instant,
    hold: Duration,
}

impl Liveness {
    /// Knows no node yet.
    #[must_use]
    pub fn new(settings: LivenessSettings) -> Self {
        Self {
            settings,
            ends: BTreeMap::new(),
            number: 0,
        }
    }

    /// From now on these settings count; what is known stays.
    pub fn configure(&mut self, settings: LivenessSettings) {
        self.settings = settings;
    }

    /// From now on these are probed, and no others. What is known of those that stay is kept.
    pub fn watch(&mut self, ends: &BTreeSet<End>, now: Instant) {
        self.ends.retain(|end, _| ends.contains(end));
        let hold = self.settings.hold();
        for end in ends {
            self.ends
                .entry(end.clone())
                .or_insert_with(|| Watched::new(now, hold));
        }
    }

    /// The probes to send now, each with a number; [`Self::sent`] says that one really was.
    pub fn due(&mut self, now: Instant) -> Vec<(End, u16)> {
        let mut due = Vec::new();
        for (end, watched) in &mut self.ends {
            if watched
                .next_probe(&self.settings)
                .is_none_or(|at| at <= now)
            {
                watched.tried = Some(now);
                self.number = self.number.wrapping_add(1);
                due.push((end.clone(), self.number));
            }
        }
        due
    }

    /// A probe left this host.
    pub fn sent(&mut self, end: &End, number: u16, now: Instant) {
        if let Some(watched) = self.ends.get_mut(end) {
            watched.unanswered.push_back((number, now));
            while watched.unanswered.len() > REMEMBERED {
                watched.unanswered.pop_front();
            }
        }
    }

    /// An answer came. Take in all that wait before [`Self::settle`] is called.
    pub fn answered(&mut self, end: &End, number: u16) {
        if let Some(watched) = self.ends.get_mut(end) {
            watched.answered(number);
        }
    }

    /// Draws the conclusions at this time; returns whether a node was found silent, or answers
    /// again.
    pub fn settle(&mut self, now: Instant) -> bool {
        let settings = self.settings;
        self.ends
            .values_mut()
            .map(|watched| watched.settle(now, &settings))
            .fold(false, |any, changed| any | changed)
    }

    /// The nodes that traffic must not be sent to.
    #[must_use]
    pub fn down(&self) -> BTreeSet<NodeName> {
        let answers_in = |family: Family, except: &NodeName| {
            self.ends.iter().any(|((node, of), watched)| {
                *of == family && node != except && !watched.silent && watched.heard.is_some()
            })
        };
        let nodes: BTreeSet<&NodeName> = self.ends.keys().map(|(node, _)| node).collect();
        let down = nodes.into_iter().filter(|node| {
            let ends = Family::ALL
                .into_iter()
                .filter_map(|family| Some((family, self.ends.get(&((*node).clone(), family))?)));
            let ends: Vec<_> = ends.collect();
            let heard_of = |watched: &Watched| watched.heard.is_some();
            ends.iter()
                .any(|(family, watched)| watched.silent && answers_in(*family, node))
                || (ends.iter().all(|(_, watched)| watched.silent)
                    && ends.iter().any(|(_, watched)| heard_of(watched)))
        });
        down.cloned().collect()
    }

    /// The nodes that have never answered in any family.
    #[must_use]
    pub fn unheard(&self) -> BTreeSet<NodeName> {
        let heard: BTreeSet<_> = self
            .ends
            .iter()
            .filter(|(_, watched)| watched.heard.is_some())
            .map(|((node, _), _)| node)
            .collect();
        self.ends
            .keys()
            .map(|(node, _)| node)
            .filter(|node| !heard.contains(node))
            .cloned()
            .collect()
    }

    /// When there is something to do again: call [`Self::settle`] and [`Self::due`] then.
    #[must_use]
    pub fn next(&self) -> Option<Instant> {
        let times = self.ends.values().map(|watched| {
            let probe = watched.next_probe(&self.settings).unwrap_or(watched.began);
            watched
                .next_verdict(&self.settings)
                .map_or(probe, |verdict| verdict.min(probe))
        });
        times.min()
    }
}

impl Watched {
    fn new(now: Instant, hold: Duration) -> Self {
        Self {
            began: now,
            heard: None,
            unanswered: VecDeque::new(),
            tried: None,
            silent: false,
            answering: None,
            up_since: now,
            hold,
        }
    }

    /// None: at once.
    fn next_probe(&self, settings: &LivenessSettings) -> Option<Instant> {
        let hurry = !self.silent && !self.unanswered.is_empty();
        Some(
            self.tried?
                + if hurry {
                    settings.grace()
                } else {
                    settings.interval
                },
        )
    }

    /// When the node is found silent if nothing is heard until then; or, in a silent one, believed
    /// again.
    fn next_verdict(&self, settings: &LivenessSettings) -> Option<Instant> {
        if self.silent {
            return Some(self.answering? + self.hold);
        }
        let enough = usize::try_from(settings.multiplier)
            .unwrap_or(REMEMBERED)
            .clamp(1, REMEMBERED);
        let (_, sent) = self.unanswered.get(enough - 1)?;
        Some((self.heard.unwrap_or(self.began) + settings.patience()).max(*sent + settings.grace()))
    }

    fn answered(&mut self, number: u16) {
        let Some(at) = self.unanswered.iter().position(|(sent, _)| *sent == number) else {
            return;
        };
        let sent = self
            .unanswered
            .drain(..=at)
            .next_back()
            .map(|(_, sent)| sent);
        self.heard = sent;
        if self.silent {
            self.answering = self.answering.or(sent);
        }
    }

    fn settle(&mut self, now: Instant, settings: &LivenessSettings) -> bool {
        if self.silent
            && self
                .heard
                .is_none_or(|heard| now.saturating_duration_since(heard) >= settings.patience())
        {
            self.answering = None;
        }
        if self.next_verdict(settings).is_none_or(|at| at > now) {
            return false;
        }
        if self.silent {
            (self.silent, self.answering, self.up_since) = (false, None, now);
            return true;
        }
        let stood = now.saturating_duration_since(self.up_since);
        let again =
            self.heard.is_some() && self.up_since > self.began && stood < self.hold * FORGIVEN;
        self.hold = if again {
            (self.hold * 2).min(HOLD_LIMIT)
        } else {
            settings.hold()
        };
        (self.silent, self.answering) = (true, None);
        true
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// A machine, its probes on their way, and what the nodes do.
    struct World {
        liveness: Liveness,
        began: Instant,
        now: Instant,
        ends: BTreeSet<End>,
        sent: usize,
    }

    impl World {
        fn new(ends: &[(&str, Family)]) -> Self {
            let began = Instant::now();
            let ends: BTreeSet<End> = ends
                .iter()
                .map(|(node, family)| (NodeName::from(*node), *family))
                .collect();
            let mut liveness = Liveness::new(LivenessSettings::default());
            liveness.watch(&ends, began);
            Self {
                liveness,
                began,
                now: began,
                ends,
                sent: 0,
            }
        }

        /// Lets time pass, a millisecond at a time; `answers` says which probes find an answer,
        /// which is there at once. Returns when the set of nodes changed, in milliseconds from the
        /// beginning, and to what.
        fn pass(
            &mut self,
            time: Duration,
            mut answers: impl FnMut(&str, Family) -> bool,
        ) -> Vec<(u128, String)> {
            let (end, mut changes) = (self.now + time, Vec::new());
            let mut before = self.down();
            while self.now < end {
                self.liveness.settle(self.now);
                for (end, number) in self.liveness.due(self.now) {
                    self.liveness.sent(&end, number, self.now);
                    self.sent += 1;
                    if answers(end.0.as_str(), end.1) {
                        self.liveness.answered(&end, number);
                    }
                }
                if self.down() != before {
                    before = self.down();
                    changes.push(((self.now - self.began).as_millis(), before.clone()));
                }
                self.now += MS;
            }
            changes
        }

        fn down(&self) -> String {
            self.liveness
                .down()
                .iter()
                .map(NodeName::as_str)
                .collect::<Vec<_>>()
                .join("+")
        }
    }

    const TWO: [(&str, Family); 2] = [("a", Family::V4), ("b", Family::V4)];

    #[test]
    fn a_node_that_stops_answering_is_down_three_intervals_after_its_last_answer() {
        let mut world = World::new(&TWO);
        assert_eq!(world.pass(1000 * MS, |_, _| true), []);
        assert_eq!(world.sent, 2 * 7, "one probe each 150 ms");
        // The last answered probe was sent at 900 ms.
        assert_eq!(
            world.pass(2000 * MS, |node, _| node != "a"),
            [(1350, "a".to_owned())]
        );
    }

    #[test]
    fn a_node_that_comes_back_is_held_down_and_longer_each_time() {
        let mut world = World::new(&TWO);
        world.pass(1000 * MS, |_, _| true);
        world.pass(1000 * MS, |node, _| node != "a");
        let back = world.pass(3000 * MS, |_, _| true);
        let first = back[0].0 - 2000;
        assert!((900..=1100).contains(&first), "{back:?}");
        world.pass(1000 * MS, |node, _| node != "a");
        let began = (world.now - world.began).as_millis();
        let again = world.pass(5000 * MS, |_, _| true);
        let second = again[0].0 - began;
        assert!((1800..=2000).contains(&second), "{again:?}");
        // After a long time of peace it begins anew.
        world.pass(Duration::from_secs(60), |_, _| true);
        world.pass(1000 * MS, |node, _| node != "a");
        let began = (world.now - world.began).as_millis();
        let later = world.pass(3000 * MS, |_, _| true);
        assert!((900..=1100).contains(&(later[0].0 - began)), "{later:?}");
    }

    #[test]
    fn answers_now_and_then_do_not_bring_a_silent_node_back() {
        let mut world = World::new(&TWO);
        world.pass(1000 * MS, |_, _| true);
        world.pass(1000 * MS, |node, _| node != "a");
        let mut probes = 0;
        let changes = world.pass(20_000 * MS, |node, _| {
            probes += usize::from(node == "a");
            node != "a" || probes % 4 == 0
        });
        assert_eq!(changes, [], "one answer in four is not enough");
    }

    #[test]
    fn all_may_be_down_and_one_that_answers_again_is_used_again() {
        let mut world = World::new(&TWO);
        world.pass(1000 * MS, |_, _| true);
        world.pass(1000 * MS, |_, _| false);
        assert_eq!(world.down(), "a+b");
        world.pass(2000 * MS, |node, _| node == "b");
        assert_eq!(world.down(), "a");
    }

    #[test]
    fn nodes_that_were_never_heard_are_believed_until_another_answers() {
        let mut world = World::new(&TWO);
        assert_eq!(
            world.pass(5000 * MS, |_, _| false),
            [],
            "a firewall may refuse probes everywhere"
        );
        assert_eq!(world.liveness.unheard().len(), 2);
        world.pass(1000 * MS, |node, _| node == "b");
        world.pass(2000 * MS, |node, _| node == "b");
        assert_eq!(world.down(), "a");
    }

    #[test]
    fn a_family_that_is_silent_everywhere_says_nothing_about_a_node() {
        let both = [
            ("a", Family::V4),
            ("a", Family::V6),
            ("b", Family::V4),
            ("b", Family::V6),
        ];
        let mut world = World::new(&both);
        world.pass(1000 * MS, |_, _| true);
        assert_eq!(
            world.pass(5000 * MS, |_, family| family == Family::V4),
            [],
            "the underlay of IPv6 is gone"
        );
        world.pass(5000 * MS, |_, _| true);
        world.pass(1000 * MS, |node, family| {
            node == "b" || family == Family::V4
        });
        assert_eq!(world.down(), "a", "the other one answers in IPv6");
        world.pass(1000 * MS, |_, _| false);
        assert_eq!(world.down(), "a+b");
    }

    #[test]
    fn what_can_not_be_sent_declares_nobody_dead() {
        let mut world = World::new(&TWO);
        world.pass(1000 * MS, |_, _| true);
        for _ in 0..5000 {
            world.now += MS;
            world.liveness.settle(world.now);
            world.liveness.due(world.now);
        }
        assert_eq!(world.down(), "");
    }

    #[test]
    fn a_node_that_is_no_longer_probed_is_forgotten() {
        let mut world = World::new(&TWO);
        world.pass(1000 * MS, |_, _| true);
        world.pass(1000 * MS, |node, _| node != "a");
        let rest = world
            .ends
            .iter()
            .filter(|(node, _)| node.as_str() == "b")
            .cloned()
            .collect();
        world.liveness.watch(&rest, world.now);
        assert_eq!(world.down(), "");
        assert!(world.liveness.next().is_some());
        world.liveness.watch(&BTreeSet::new(), world.now);
        assert_eq!(world.liveness.next(), None);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        /// The process may be stalled for as long as it likes.
        #[test]
        fn a_node_that_answers_everything_is_never_down(stalls in proptest::collection::vec((0_u64..400, 0_u64..3000), 1..20)) {
            let mut world = World::new(&TWO);
            for (run, stall) in stalls {
                prop_assert_eq!(world.pass(Duration::from_millis(run), |_, _| true), []);
                world.now += Duration::from_millis(stall);
            }
        }

        #[test]
        fn a_stalled_process_gives_a_silent_node_the_chance_to_answer(stall in 0_u64..5000) {
            let mut world = World::new(&TWO);
            world.pass(1000 * MS, |_, _| true);
            world.pass(60 * MS, |node, _| node != "a");
            world.now += Duration::from_millis(stall);
            let before = world.sent;
            prop_assert_eq!(world.pass(30 * MS, |node, _| node != "a"), [], "no conclusion at once");
            prop_assert!(stall < 200 || world.sent > before, "but a question");
        }

        #[test]
        fn a_dead_node_is_noticed_in_time_whenever_it_dies(life in 1000_u64..2000) {
            let mut world = World::new(&TWO);
            world.pass(Duration::from_millis(life), |_, _| true);
            let changes = world.pass(2000 * MS, |node, _| node != "a");
            prop_assert_eq!(changes.len(), 1);
            let took = changes[0].0 - u128::from(life);
            prop_assert!((300..=451).contains(&took), "{took} ms after its death");
        }

        #[test]
        fn lost_probes_are_no_failure_unless_many_follow_each_other(lost in proptest::collection::vec(any::<u8>(), 400)) {
            let mut world = World::new(&TWO);
            world.pass(200 * MS, |_, _| true);
            let (mut fates, mut row, mut longest) = (lost.into_iter().cycle(), 0, 0);
            let changes = world.pass(20_000 * MS, |node, _| {
                if node == "a" {
                    // One in three is lost.
                    row = if fates.next().unwrap() < 85 { row + 1 } else { 0 };
                    longest = longest.max(row);
                }
                row == 0 || node == "b"
            });
            prop_assert!(changes.is_empty() || longest > 5, "{changes:?} after {longest} in a row");
        }
    }
}
