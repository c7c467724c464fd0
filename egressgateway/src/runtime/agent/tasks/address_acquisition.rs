//! Which egress addresses the node may take: it asks the network first (RFC 5227, RFC 4862). Pure;
//! time comes in.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Duration,
};

use tokio::time::Instant;

use crate::{AddressesDesired, Questions, model::MacAddress};

/// So many questions without an answer, and nobody has the address.
const PROBES: u32 = 3;
/// Time between two of them, and after the last. Three of them are short enough for a move on
/// purpose; a neighbour answers within a millisecond, and a busy one within one of these times.
const SPACING: Duration = Duration::from_millis(80);
/// When a node that is about to let go is asked again.
const AGAIN: Duration = Duration::from_millis(30);
/// How long another node may take to let go before the address is its own still.
const PATIENCE: Duration = Duration::from_millis(1500);
/// How soon what somebody answers for is asked for again; twice as long each time.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// Up to this where a node has it, whose kernel answers without an agent until it dies.
const LONGEST_PAUSE_OF_A_NODE: Duration = Duration::from_secs(2);
/// And up to this where a stranger has it.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// How often a node that is to take an address over makes sure that nobody answers.
const CONFIRM: Duration = Duration::from_secs(1);
/// How long somebody's answer is remembered until the API server has it.
const MEMORY: Duration = Duration::from_secs(10);

/// What the questions came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Findings {
    /// The node's own addresses that it may hold.
    pub(crate) granted: BTreeSet<IpAddr>,
    /// What somebody else has.
    pub(crate) conflicts: BTreeMap<IpAddr, MacAddress>,
    /// What the node may take over.
    pub(crate) silent: BTreeSet<IpAddr>,
}

/// Why an address is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Own,
    Candidate,
    Known,
}

#[derive(Debug)]
struct Inquiry {
    role: Role,
    device: String,
    /// Questions since the last answer.
    asked: u32,
    /// Nobody answered them.
    silent: bool,
    /// Who has it.
    other: Option<MacAddress>,
    /// Since when another node answers that is to let go.
    letting_go: Option<Instant>,
    pause: Duration,
    /// The next step.
    at: Instant,
    /// Until then it is remembered without being asked for.
    until: Instant,
}

/// The addresses that are asked for.
#[derive(Debug, Default)]
pub(crate) struct AddressAcquisition {
    inquiries: BTreeMap<IpAddr, Inquiry>,
    peers: BTreeSet<MacAddress>,
    began: bool,
}

impl AddressAcquisition {
    /// These are asked for from now on. What the kernel holds at the first time is not: the node
    /// had it before its agent started.
    pub(crate) fn follow(&mut self, questions: &Questions, now: Instant) {
        self.peers.clone_from(&questions.peers);
        let held = |address: &IpAddr| !self.began && questions.held.contains(address);
        let roles = [
            (Role::Known, &questions.known),
            (Role::Candidate, &questions.candidate),
            (Role::Own, &questions.own),
        ];
        let wanted: BTreeMap<IpAddr, (Role, &String)> = roles
            .into_iter()
            .flat_map(|(role, addresses)| {
                addresses
                    .held
                    .iter()
                    .map(move |(address, device)| (*address, (role, device)))
            })
            .collect();
        for (address, (role, device)) in &wanted {
            let silent = *role == Role::Own && held(address);
            let inquiry = self.inquiries.entry(*address).or_insert_with(|| Inquiry {
                role: *role,
                device: (*device).clone(),
                asked: 0,
                silent,
                other: None,
                letting_go: None,
                pause: FIRST_PAUSE,
                at: now,
                until: now,
            });
            if (inquiry.role, &inquiry.device) != (*role, *device) {
                inquiry.at = inquiry.at.min(now);
                inquiry.role = *role;
                inquiry.device.clone_from(device);
            }
            inquiry.until = now + MEMORY;
        }
        self.began = true;
        self.inquiries.retain(|address, inquiry| {
            wanted.contains_key(address) || (inquiry.other.is_some() && now < inquiry.until)
        });
    }

    /// All that is listened to.
    pub(crate) fn listened(&self) -> AddressesDesired {
        let open = self
            .inquiries
            .iter()
            .filter(|(_, inquiry)| !inquiry.is_granted());
        AddressesDesired {
            held: open
                .map(|(address, inquiry)| (*address, inquiry.device.clone()))
                .collect(),
        }
    }

    /// What is to be asked for now; time has passed for the rest. `jitter` shortens pauses.
    pub(crate) fn due(
        &mut self,
        now: Instant,
        jitter: impl Fn(Duration) -> Duration,
    ) -> BTreeSet<IpAddr> {
        let mut due = BTreeSet::new();
        for (address, inquiry) in self
            .inquiries
            .iter_mut()
            .filter(|(_, inquiry)| !inquiry.is_granted() && inquiry.at <= now)
        {
            if inquiry.asked >= PROBES && !inquiry.silent {
                (
                    inquiry.silent,
                    inquiry.other,
                    inquiry.letting_go,
                    inquiry.pause,
                ) = (true, None, None, FIRST_PAUSE);
                inquiry.at = now + CONFIRM;
                continue;
            }
            due.insert(*address);
            inquiry.asked += 1;
            inquiry.at = now
                + if inquiry.silent {
                    jitter(CONFIRM)
                } else {
                    SPACING
                };
        }
        due
    }

    /// When something is due; none: nothing is asked for.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.inquiries
            .values()
            .filter(|inquiry| !inquiry.is_granted())
            .map(|inquiry| inquiry.at)
            .min()
    }

    /// Somebody else says that it has an address. True: that is news.
    pub(crate) fn heard(
        &mut self,
        address: IpAddr,
        other: MacAddress,
        now: Instant,
        jitter: impl Fn(Duration) -> Duration,
    ) -> bool {
        let peer = self.peers.contains(&other);
        let Some(inquiry) = self
            .inquiries
            .get_mut(&address)
            .filter(|inquiry| !inquiry.is_granted())
        else {
            return false;
        };
        inquiry.asked = 0;
        inquiry.silent = false;
        let since = *inquiry.letting_go.get_or_insert(now);
        if peer && inquiry.role == Role::Own && inquiry.other.is_none() && now < since + PATIENCE {
            inquiry.at = now + AGAIN;
            return false;
        }
        let longest = if peer {
            LONGEST_PAUSE_OF_A_NODE
        } else {
            LONGEST_PAUSE
        };
        inquiry.at = now + jitter(inquiry.pause);
        inquiry.pause = inquiry.pause.saturating_mul(2).min(longest);
        inquiry.other.replace(other) != Some(other)
    }

    /// An address could not be asked for and, where that is `passing`, will be.
    pub(crate) fn failed(&mut self, address: IpAddr, passing: bool) {
        if let Some(inquiry) = self.inquiries.get_mut(&address).filter(|_| passing) {
            inquiry.asked = inquiry.asked.saturating_sub(1);
        }
    }

    pub(crate) fn findings(&self) -> Findings {
        let mut findings = Findings::default();
        for (address, inquiry) in &self.inquiries {
            match (inquiry.role, inquiry.silent, inquiry.other) {
                (Role::Own, true, _) => _ = findings.granted.insert(*address),
                (Role::Candidate, true, _) => _ = findings.silent.insert(*address),
                (_, false, Some(other)) => _ = findings.conflicts.insert(*address, other),
                _ => {}
            }
        }
        findings
    }
}

impl Inquiry {
    /// It is the node's own, and nothing that anybody says takes it away.
    fn is_granted(&self) -> bool {
        self.role == Role::Own && self.silent
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STRANGER: MacAddress = MacAddress([2, 0, 0, 0, 0, 0x0c]);
    const NODE: MacAddress = MacAddress([2, 0, 0, 0, 0, 0x0d]);

    fn address() -> IpAddr {
        IpAddr::from([10, 6, 0, 60])
    }

    fn one() -> AddressesDesired {
        AddressesDesired {
            held: [(address(), "eth0".to_owned())].into_iter().collect(),
        }
    }

    fn questions(own: bool, candidate: bool, known: bool) -> Questions {
        let of = |wanted| {
            if wanted {
                one()
            } else {
                AddressesDesired::default()
            }
        };
        Questions {
            own: of(own),
            candidate: of(candidate),
            known: of(known),
            peers: [NODE].into(),
            held: BTreeSet::new(),
        }
    }

    /// A node that asks, and a clock.
    struct Case {
        acquisition: AddressAcquisition,
        start: Instant,
        now: Instant,
    }

    impl Case {
        fn new(questions: &Questions) -> Self {
            let start = Instant::now();
            let mut acquisition = AddressAcquisition::default();
            acquisition.follow(questions, start);
            Self {
                acquisition,
                start,
                now: start,
            }
        }

        fn follow(&mut self, questions: &Questions) {
            self.acquisition.follow(questions, self.now);
        }

        /// Asks until this time; somebody answers each question at once.
        fn until(&mut self, milliseconds: u64, answers: Option<MacAddress>) -> u32 {
            let (end, mut asked) = (self.start + Duration::from_millis(milliseconds), 0);
            while let Some(next) = self.acquisition.next().filter(|next| *next <= end) {
                self.now = next.max(self.now);
                if !self.acquisition.due(self.now, |pause| pause).is_empty() {
                    asked += 1;
                    if let Some(other) = answers {
                        self.acquisition
                            .heard(address(), other, self.now, |pause| pause);
                    }
                }
            }
            self.now = end;
            asked
        }

        fn granted(&self) -> bool {
            self.acquisition.findings().granted.contains(&address())
        }

        fn conflict(&self) -> Option<MacAddress> {
            self.acquisition
                .findings()
                .conflicts
                .get(&address())
                .copied()
        }
    }

    #[test]
    fn an_address_is_taken_after_three_questions_within_300_milliseconds_and_not_before() {
        let mut case = Case::new(&questions(true, false, false));
        assert_eq!((case.until(239, None), case.granted()), (3, false));
        assert_eq!((case.until(240, None), case.granted()), (0, true));
        assert_eq!(
            case.until(3_600_000, None),
            0,
            "nobody is asked for what the node has"
        );
        assert!(
            !case
                .acquisition
                .heard(address(), STRANGER, case.now, |pause| pause)
                && case.granted()
        );
    }

    #[test]
    fn what_the_kernel_holds_when_the_agent_starts_is_not_asked_for_and_what_is_given_again_later_is()
     {
        let held = Questions {
            held: [address()].into(),
            ..questions(true, false, false)
        };
        let mut case = Case::new(&held);
        assert_eq!((case.until(1000, None), case.granted()), (0, true));
        case.follow(&Questions {
            held: [address()].into(),
            ..Questions::default()
        });
        assert!(!case.granted());
        case.follow(&held);
        assert!(!case.granted(), "another node may have had it meanwhile");
        assert_eq!((case.until(1400, None), case.granted()), (3, true));
    }

    #[test]
    fn a_stranger_is_a_conflict_at_once_and_is_asked_again_more_and_more_rarely_until_it_is_gone() {
        let mut case = Case::new(&questions(true, false, false));
        assert_eq!(case.until(0, Some(STRANGER)), 1);
        assert_eq!(case.conflict(), Some(STRANGER));
        // After 1, 2, 4, … 32 seconds, and then once a minute.
        assert_eq!(case.until(63_000, Some(STRANGER)), 6);
        assert_eq!(case.until(363_000, Some(STRANGER)), 5);
        assert_eq!(case.conflict(), Some(STRANGER));
        case.until(424_000, None);
        assert_eq!((case.conflict(), case.granted()), (None, true));
    }

    #[test]
    fn a_node_that_lets_go_is_waited_for_and_one_that_does_not_is_a_conflict() {
        let mut case = Case::new(&questions(true, false, false));
        case.until(200, Some(NODE));
        assert_eq!((case.conflict(), case.granted()), (None, false));
        case.until(500, None);
        assert!(
            case.granted(),
            "300 milliseconds after the other one let go"
        );
        let mut case = Case::new(&questions(true, false, false));
        case.until(1600, Some(NODE));
        assert_eq!(case.conflict(), Some(NODE));
        case.until(60_000, Some(NODE));
        case.until(62_300, None);
        assert!(case.granted());
    }

    #[test]
    fn a_candidate_says_who_answers_and_when_nobody_does_and_has_the_address_at_once_when_it_is_given()
     {
        let mut case = Case::new(&questions(false, true, false));
        case.until(10, Some(NODE));
        assert_eq!(
            case.conflict(),
            Some(NODE),
            "its agent is gone: there is nothing to wait for"
        );
        case.until(10_000, Some(NODE));
        case.until(12_300, None);
        assert_eq!(
            (case.conflict(), case.acquisition.findings().silent),
            (None, [address()].into())
        );
        case.until(13_600, Some(NODE));
        assert_eq!(
            case.conflict(),
            Some(NODE),
            "it makes sure, as long as nobody decides"
        );
        case.until(17_000, None);
        case.follow(&questions(true, false, false));
        assert!(case.granted());
    }

    #[test]
    fn what_a_stranger_has_is_asked_for_when_no_policy_has_it_any_more() {
        let mut case = Case::new(&questions(true, false, false));
        case.until(0, Some(STRANGER));
        case.follow(&Questions::default());
        assert_eq!(
            case.conflict(),
            Some(STRANGER),
            "the API server does not know yet"
        );
        case.follow(&questions(false, false, true));
        case.until(50_000, Some(STRANGER));
        assert_eq!(case.conflict(), Some(STRANGER));
        case.until(120_000, None);
        assert_eq!(case.acquisition.findings(), Findings::default());
        case.follow(&Questions::default());
        assert_eq!(case.acquisition.next(), None);
    }

    #[test]
    fn what_could_not_be_asked_for_a_moment_was_not_asked() {
        let mut case = Case::new(&questions(true, false, false));
        for _ in 0..100 {
            case.now = case.acquisition.next().unwrap();
            case.acquisition.due(case.now, |pause| pause);
            case.acquisition.failed(address(), true);
        }
        assert!(!case.granted());
        case.start = case.now;
        case.until(320, None);
        assert!(case.granted());
    }
}
