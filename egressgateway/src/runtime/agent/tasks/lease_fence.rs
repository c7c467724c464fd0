//! Fences the node's egress addresses by its Lease: whether the controller may have given them to
//! others, and who answers for them then. Pure; time comes in.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Duration,
};

use tokio::time::Instant;

use super::lease::Renewal;
use crate::{AddressesDesired, model::MacAddress};

/// What an agent knows of its right to the addresses that it holds.
///
/// The controller counts a Lease from when it saw the renewal; the agent from before it asked for
/// it, with a monotonic clock of its own. So as long as the agent is certain, the controller has
/// not missed a renewal, and nothing that anybody says on the wire counts. Once a renewal is
/// overdue, the controller may have decided otherwise without the agent knowing. The next renewal
/// does not end that: what was decided before it may still be on its way. A list of all policies
/// that was begun after it does.
#[derive(Debug)]
pub(crate) struct LeaseFence {
    /// How long a Lease that is not renewed counts as held.
    duration: Duration,
    /// When the last renewal that succeeded was sent.
    renewed: Instant,
    state: State,
    /// The held addresses that others answered for.
    conflicting: BTreeMap<IpAddr, MacAddress>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Certain,
    /// The Lease may be old.
    Overdue,
    /// It was renewed at this time.
    Renewed(Instant),
}

impl LeaseFence {
    /// An agent that starts has heard from the API server whatever it comes to hold, so its start
    /// counts as a renewal.
    pub(crate) fn new(duration: Duration, now: Instant) -> Self {
        Self {
            duration,
            renewed: now,
            state: State::Certain,
            conflicting: BTreeMap::new(),
        }
    }

    pub(crate) fn renewed(&mut self, renewal: Renewal) {
        if renewal.sent <= self.renewed {
            return;
        }
        self.advance(renewal.answered);
        self.renewed = renewal.sent;
        if self.state == State::Overdue && renewal.answered < self.expiry() {
            self.state = State::Renewed(renewal.answered);
        }
    }

    /// Advances the clock.
    pub(crate) fn advance(&mut self, now: Instant) {
        if now >= self.expiry() {
            self.state = State::Overdue;
        }
    }

    /// Updates the held addresses. With none held and none released there is nothing to fence after
    /// a renewal.
    pub(crate) fn follow(&mut self, held: &AddressesDesired) {
        if matches!(self.state, State::Renewed(_))
            && held.held.is_empty()
            && self.conflicting.is_empty()
        {
            self.state = State::Certain;
        }
    }

    /// All policies were listed by a request that was sent at `sent`, and what they say was taken
    /// over: from now on that is true.
    pub(crate) fn listed(&mut self, sent: Instant) {
        if self.wants_list().is_some_and(|since| sent >= since) {
            self.state = State::Certain;
            self.conflicting.clear();
        }
    }

    /// Somebody else says that an address of the node is its own. True: that is news, and the
    /// address is in conflict from now on.
    pub(crate) fn heard(
        &mut self,
        address: IpAddr,
        other: MacAddress,
        held: &AddressesDesired,
    ) -> bool {
        let counts = self.asks() && held.held.contains_key(&address);
        counts && self.conflicting.insert(address, other).is_none()
    }

    /// Whether it asks who else has its addresses.
    pub(crate) fn asks(&self) -> bool {
        self.state != State::Certain
    }

    /// Since when a list of all policies would make the node certain again; none: it would not, or
    /// the node is certain.
    pub(crate) fn wants_list(&self) -> Option<Instant> {
        if let State::Renewed(at) = self.state {
            Some(at)
        } else {
            None
        }
    }

    pub(crate) fn conflicting(&self) -> BTreeSet<IpAddr> {
        self.conflicting.keys().copied().collect()
    }

    /// When the Lease is old unless it is renewed before.
    pub(crate) fn expiry(&self) -> Instant {
        self.renewed + self.duration
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OTHER: MacAddress = MacAddress([2, 0, 0, 0, 0, 0x0c]);

    /// An agent with a Lease of 40 seconds and two addresses, and a clock.
    struct Case {
        start: Instant,
        fence: LeaseFence,
        held: AddressesDesired,
    }

    impl Case {
        fn new() -> Self {
            let start = Instant::now();
            let address = |text: &str| (text.parse::<IpAddr>().unwrap(), "eth0".to_owned());
            let held = AddressesDesired {
                held: [address("10.6.0.60"), address("fd00:6::60")]
                    .into_iter()
                    .collect(),
            };
            Self {
                start,
                fence: LeaseFence::new(Duration::from_secs(40), start),
                held,
            }
        }

        fn at(&self, second: u64) -> Instant {
            self.start + Duration::from_secs(second)
        }

        fn renewed(&mut self, sent: u64, answered: u64) {
            self.fence.renewed(Renewal {
                sent: self.at(sent),
                answered: self.at(answered),
            });
        }

        fn asks(&mut self, second: u64) -> bool {
            self.fence.advance(self.at(second));
            self.fence.follow(&self.held);
            self.fence.asks()
        }

        fn hears(&mut self, address: &str) -> bool {
            self.fence
                .heard(address.parse().unwrap(), OTHER, &self.held)
        }
    }

    #[test]
    fn an_agent_that_renews_in_time_never_asks_and_nothing_that_it_hears_counts() {
        let mut case = Case::new();
        for second in (10..1000).step_by(10) {
            case.renewed(second, second + 9);
            assert!(!case.asks(second + 9));
            assert!(!case.hears("10.6.0.60"));
        }
        assert!(!case.asks(990 + 39), "not before its Lease may be old");
        assert_eq!(case.fence.conflicting(), BTreeSet::new());
    }

    #[test]
    fn a_renewal_counts_from_when_it_was_sent() {
        let mut case = Case::new();
        case.renewed(10, 29);
        assert!(!case.asks(49));
        assert!(case.asks(50));
    }

    #[test]
    fn a_renewal_that_is_answered_when_the_lease_was_old_ends_no_doubt_and_one_that_is_old_itself_counts_for_nothing()
     {
        let mut case = Case::new();
        case.renewed(35, 41);
        assert!(
            case.asks(41),
            "nobody knows whether it came before the controller's decision"
        );
        let mut case = Case::new();
        case.renewed(35, 90);
        assert!(case.asks(90));
        assert_eq!(case.fence.wants_list(), None, "it has run out since then");
    }

    #[test]
    fn an_agent_that_was_paused_doubts_even_if_its_renewal_is_the_first_that_it_hears_of() {
        let mut case = Case::new();
        case.renewed(300, 301);
        assert!(case.asks(301));
    }

    #[test]
    fn in_doubt_an_address_is_contested_once_another_has_it_and_none_that_is_not_held() {
        let mut case = Case::new();
        assert!(case.asks(40));
        assert!(case.hears("10.6.0.60"));
        assert!(!case.hears("10.6.0.60"), "that is no news");
        assert!(!case.hears("10.6.0.61"));
        assert_eq!(
            case.fence.conflicting(),
            BTreeSet::from(["10.6.0.60".parse().unwrap()])
        );
    }

    #[test]
    fn where_nobody_else_answers_nothing_is_ever_contested() {
        let mut case = Case::new();
        assert!((40..100_000).step_by(100).all(|second| case.asks(second)));
        assert_eq!(case.fence.conflicting(), BTreeSet::new());
    }

    #[test]
    fn what_is_contested_stays_so_until_the_lease_is_renewed_and_all_policies_were_listed_after_it()
    {
        let mut case = Case::new();
        assert!(case.asks(40));
        case.hears("fd00:6::60");
        case.fence.listed(case.at(50));
        assert!(
            case.asks(50),
            "without a Lease the controller may decide otherwise at any time"
        );
        case.renewed(60, 61);
        assert!(case.asks(61));
        assert!(
            case.hears("10.6.0.60"),
            "what was decided before may still be on its way"
        );
        case.fence.listed(case.at(60));
        assert_eq!(
            (case.asks(62), case.fence.conflicting().len()),
            (true, 2),
            "that list was sent before the renewal"
        );
        case.fence.listed(case.at(61));
        assert_eq!((case.asks(62), case.fence.conflicting().len()), (false, 0));
        assert!(!case.hears("10.6.0.60"));
    }

    #[test]
    fn a_lease_that_runs_out_again_before_the_list_leaves_the_doubt() {
        let mut case = Case::new();
        assert!(case.asks(40));
        case.renewed(60, 61);
        assert!(case.asks(100));
        case.fence.listed(case.at(61));
        assert!(case.asks(101));
        case.renewed(110, 111);
        case.fence.listed(case.at(61));
        assert!(case.asks(112), "a list from before that");
    }

    #[test]
    fn a_node_without_an_address_is_certain_with_its_renewal_so_that_a_new_address_is_not_taken_from_it()
     {
        let mut case = Case::new();
        case.held = AddressesDesired::default();
        assert!(case.asks(40));
        case.renewed(60, 61);
        assert!(!case.asks(61));
        case.held = Case::new().held;
        assert!(!case.asks(62));
        assert!(!case.hears("10.6.0.60"));
    }

    #[test]
    fn a_node_that_let_go_of_all_addresses_waits_for_the_list() {
        let mut case = Case::new();
        assert!(case.asks(40));
        case.hears("10.6.0.60");
        case.held = AddressesDesired::default();
        case.renewed(60, 61);
        assert!(case.asks(61));
        assert_eq!(case.fence.conflicting().len(), 1);
    }
}
