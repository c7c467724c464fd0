//! What an agent has to do, and when. Pure; time comes in.

use std::time::Duration;

use tokio::time::Instant;

use super::settings::AgentSettings;

/// What is due when.
#[derive(Debug)]
pub(crate) struct Deadlines {
    /// How long the host must be quiet before it is read again.
    quiet: Duration,
    /// How far apart reads because of changes are, at least.
    spacing: Duration,
    /// How often everything is read again.
    resync_interval: Duration,
    /// The desired state may have changed.
    converge: bool,
    /// Do not converge before: the last attempt failed.
    retry: Option<Instant>,
    /// The host changed and is read again then.
    host: Option<Instant>,
    /// The host was read last.
    host_read: Option<Instant>,
    /// Somebody else changed the packet filter, which is read again then.
    policy: Option<Instant>,
    /// The packet filter was read last because of such a change.
    policy_read: Option<Instant>,
    /// Before the initial sync: when to check again that the boot-time block rules are in the
    /// kernel.
    hold: Option<Instant>,
    /// Everything is read again then.
    resync: Instant,
}

impl Deadlines {
    /// At the start everything is due but the resync.
    pub(crate) fn new(settings: &AgentSettings, now: Instant) -> Self {
        Self {
            quiet: settings.quiet,
            spacing: settings.spacing,
            resync_interval: settings.resync,
            converge: true,
            retry: None,
            host: Some(now),
            host_read: None,
            policy: None,
            policy_read: None,
            hold: Some(now),
            resync: now + settings.resync,
        }
    }

    /// When the next thing is due. `holds`: whether boot-time block rules may have to be checked.
    pub(crate) fn next(&self, holds: bool) -> Option<Instant> {
        let retry = self.retry.filter(|_| self.converge);
        let hold = self.hold.filter(|_| holds);
        [retry, self.host, self.policy, hold, Some(self.resync)]
            .into_iter()
            .flatten()
            .min()
    }

    /// The desired state may have changed.
    pub(crate) fn converge_soon(&mut self) {
        self.converge = true;
    }

    /// The desired state changed so that no failure may delay it.
    pub(crate) fn converge_now(&mut self) {
        self.converge = true;
        self.retry = None;
    }

    pub(crate) fn must_converge(&self, now: Instant) -> bool {
        self.converge && self.retry.is_none_or(|at| at <= now)
    }

    /// The agent converges.
    pub(crate) fn converging(&mut self) {
        self.converge = false;
    }

    /// It is not tried again before something changes.
    pub(crate) fn converged(&mut self) {
        self.retry = None;
    }

    /// It is tried again, but not before a delay.
    pub(crate) fn retry_after(&mut self, delay: Duration, now: Instant) {
        self.converge = true;
        self.retry = Some(now + delay);
    }

    /// Several changes of the host become one read soon after the first, and reads keep `spacing`
    /// apart.
    pub(crate) fn host_changed(&mut self, now: Instant) {
        self.host = Some(after(self.host_read, self.spacing, now + self.quiet));
    }

    /// Whether a change of the host would be news.
    pub(crate) fn awaits_host(&self) -> bool {
        self.host.is_none()
    }

    pub(crate) fn must_read_host(&self, now: Instant) -> bool {
        self.host.is_some_and(|at| at <= now)
    }

    /// The host is read.
    pub(crate) fn reading_host(&mut self, now: Instant) {
        self.host_read = Some(now);
        self.host = None;
    }

    /// The host could not be read.
    pub(crate) fn host_failed(&mut self, now: Instant) {
        self.host = Some(now + self.spacing.max(self.quiet));
    }

    /// The first change is answered at once: until then governed traffic may be without its rules.
    /// More of them keep `spacing` apart.
    pub(crate) fn policy_changed(&mut self, now: Instant) {
        self.policy = Some(after(self.policy_read, self.spacing, now));
    }

    /// Whether a change of the packet filter would be news.
    pub(crate) fn awaits_policy(&self) -> bool {
        self.policy.is_none()
    }

    pub(crate) fn must_restore_policy(&self, now: Instant) -> bool {
        self.policy.is_some_and(|at| at <= now)
    }

    /// The packet filter is read, and restored.
    pub(crate) fn restoring_policy(&mut self, now: Instant) {
        self.policy = None;
        self.policy_read = Some(now);
    }

    /// The boot-time block rules must be checked at once.
    pub(crate) fn check_hold(&mut self, now: Instant) {
        self.hold = Some(now);
    }

    pub(crate) fn must_check_hold(&self, now: Instant) -> bool {
        self.hold.is_some_and(|at| at <= now)
    }

    /// The boot-time block rules are as they must be.
    pub(crate) fn holds(&mut self) {
        self.hold = None;
    }

    /// The boot-time block rules could not be checked.
    pub(crate) fn hold_failed(&mut self, delay: Duration, now: Instant) {
        self.hold = Some(now + delay);
    }

    pub(crate) fn must_resync(&self, now: Instant) -> bool {
        self.resync <= now
    }

    /// Everything is read again, the boot-time block rules too.
    pub(crate) fn resyncing(&mut self, now: Instant) {
        self.resync = now + self.resync_interval;
        self.converge = true;
        self.hold = Some(now);
    }
}

/// A time, or as much later as keeps `spacing` from what was done last.
fn after(last: Option<Instant>, spacing: Duration, at: Instant) -> Instant {
    last.map_or(at, |last| at.max(last + spacing))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::IndexSettings;

    fn millis(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    /// Nothing is due any more, and the host was read at the start.
    fn idle(start: Instant) -> Deadlines {
        let settings = AgentSettings {
            quiet: millis(100),
            spacing: millis(1000),
            resync: millis(60_000),
            ..AgentSettings::new(IndexSettings::of_node("node1".into()))
        };
        let mut deadlines = Deadlines::new(&settings, start);
        assert!(deadlines.must_converge(start) && deadlines.must_read_host(start));
        assert!(deadlines.must_check_hold(start) && !deadlines.must_resync(start));
        deadlines.reading_host(start);
        deadlines.converging();
        deadlines.converged();
        deadlines.holds();
        deadlines
    }

    #[test]
    fn what_is_idle_waits_for_the_resync_only() {
        let start = Instant::now();
        let mut deadlines = idle(start);
        assert_eq!(deadlines.next(true), Some(start + millis(60_000)));
        assert!(!deadlines.must_converge(start + millis(59_999)));
        let resync = start + millis(60_000);
        assert!(deadlines.must_resync(resync));
        deadlines.resyncing(resync);
        assert!(deadlines.must_converge(resync) && deadlines.must_check_hold(resync));
        assert!(!deadlines.must_resync(resync));
    }

    #[test]
    fn changes_of_the_host_become_one_read_and_reads_keep_apart() {
        let start = Instant::now();
        let mut deadlines = idle(start);
        assert!(deadlines.awaits_host());
        deadlines.host_changed(start + millis(5000));
        assert!(!deadlines.awaits_host(), "one read is enough");
        assert!(!deadlines.must_read_host(start + millis(5099)));
        assert!(deadlines.must_read_host(start + millis(5100)));
        deadlines.reading_host(start + millis(5100));
        deadlines.host_changed(start + millis(5200));
        assert_eq!(deadlines.next(false), Some(start + millis(6100)));
        deadlines.reading_host(start + millis(6100));
        deadlines.host_failed(start + millis(6200));
        assert_eq!(deadlines.next(false), Some(start + millis(7200)));
    }

    #[test]
    fn the_first_change_of_the_packet_filter_is_answered_at_once_and_more_keep_apart() {
        let start = Instant::now();
        let mut deadlines = idle(start);
        deadlines.policy_changed(start + millis(10));
        assert!(deadlines.must_restore_policy(start + millis(10)) && !deadlines.awaits_policy());
        deadlines.restoring_policy(start + millis(10));
        deadlines.policy_changed(start + millis(20));
        assert!(!deadlines.must_restore_policy(start + millis(1009)));
        assert!(deadlines.must_restore_policy(start + millis(1010)));
    }

    #[test]
    fn a_failure_delays_the_next_attempt_unless_nothing_may() {
        let start = Instant::now();
        let mut deadlines = idle(start);
        deadlines.retry_after(millis(500), start);
        deadlines.converge_soon();
        assert!(!deadlines.must_converge(start + millis(499)));
        assert_eq!(deadlines.next(false), Some(start + millis(500)));
        deadlines.converge_now();
        assert!(deadlines.must_converge(start));
    }

    #[test]
    fn a_check_of_block_rules_counts_only_as_long_as_there_are_any() {
        let start = Instant::now();
        let mut deadlines = idle(start);
        deadlines.hold_failed(millis(300), start);
        assert_eq!(deadlines.next(true), Some(start + millis(300)));
        assert_eq!(deadlines.next(false), Some(start + millis(60_000)));
        deadlines.check_hold(start + millis(10));
        assert!(deadlines.must_check_hold(start + millis(10)));
    }
}
