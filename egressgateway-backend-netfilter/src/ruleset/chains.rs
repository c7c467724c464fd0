//! The chains: who, where, how and as whom, for any number of policies and pods.

use std::collections::BTreeMap;

use egressgateway::{PolicyDesired, model::Family};
use imbl::OrdMap;

use crate::{
    mark_layout::MarkLayout,
    names::{
        ANSWERS, ARRIVE, ARRIVE_UNPINNED, CLASSIFY, Common, DECIDE, ENDING, EXIT, EXIT_CLASS,
        FILTER, FIRST, FORWARD, GUARD, GUARD_ANSWERS, HAS_PORTS, HELD, HERE, INPUT,
        INVALID_UNTRACKED, LEAVE, LET_GO, LOST, MANGLE, NAT, NO_CLASS, NO_GATEWAY, NO_PORT,
        NO_VERDICT, NOT_PEER, OPENING, PASS, POD, POSTROUTING, PREROUTING, RAW, START_GATE,
        STEERED, TOWARDS_POD, TRANSLATED, TUNNELLED, UNCLASSIFIED, UNKNOWN_SOURCE, UNPINNED,
        UNTRACKED,
    },
    ruleset::{
        render::{NOT_TRACKED, Render, chains},
        tree::Chains,
    },
    sets::{numbers::Numbers, set::Set},
};

/// All our chains of one family, by table.
pub(crate) fn rules(
    desired: &PolicyDesired,
    family: Family,
    layout: MarkLayout,
    numbers: &Numbers,
    sets: &OrdMap<String, Set>,
    sources_in_dispute: bool,
) -> BTreeMap<String, Chains> {
    let render = Render {
        desired,
        family,
        layout,
        numbers,
        sets,
        sources_in_dispute,
    };
    [
        (RAW, render.raw()),
        (NAT, render.nat()),
        (FILTER, render.filter()),
        (MANGLE, render.mangle()),
    ]
    .map(|(table, chains)| (table.to_owned(), chains))
    .into()
}

impl Render<'_> {
    fn mangle(&self) -> Chains {
        let drop = || vec!["-j DROP".to_owned()];
        let mut mangle = chains([
            (PREROUTING, self.prerouting()),
            (INPUT, self.input()),
            (FORWARD, self.forward()),
            (FIRST, self.first()),
            (OPENING, self.opening()),
            (TRANSLATED, self.translated()),
            (GUARD, self.guard()),
            (GUARD_ANSWERS, self.guard_answers()),
            (ANSWERS, self.answers()),
            (INVALID_UNTRACKED, self.invalid_untracked()),
            (ARRIVE_UNPINNED, self.arrive_unpinned()),
            (UNPINNED, self.unpinned()),
            (
                ENDING,
                vec![
                    self.pin(self.layout.unknown()),
                    format!("-g {UNKNOWN_SOURCE}"),
                ],
            ),
            (TOWARDS_POD, self.towards_pod()),
            (
                LOST,
                vec![
                    format!("{NOT_TRACKED} -g {UNTRACKED}"),
                    format!("-g {NO_GATEWAY}"),
                ],
            ),
            (POSTROUTING, self.postrouting()),
            (CLASSIFY, self.classify()),
            (ARRIVE, self.arrive()),
            (NOT_PEER, drop()),
            (LET_GO, vec![self.pin(0), Self::mark(0, self.layout.mask())]),
            (POD, self.class_of(Common::Pods).into()),
            (DECIDE, self.decide()),
            (NO_CLASS, self.no_class()),
            (
                PASS,
                vec![
                    Self::mark(
                        0,
                        if self.desired.networks.is_empty() {
                            self.layout.mask()
                        } else {
                            self.layout.all()
                        },
                    ),
                    format!("-g {NO_VERDICT}"),
                ],
            ),
            (EXIT_CLASS, self.exit_class()),
            (
                NO_VERDICT,
                self.each_device("-i", &format!("-g {UNCLASSIFIED}")),
            ),
            (UNCLASSIFIED, self.unclassified()),
            (EXIT, self.exit()),
            (STEERED, vec!["-m comment --comment steered".into()]),
            (TUNNELLED, vec!["-m comment --comment tunnelled".into()]),
            (NO_GATEWAY, drop()),
            (HELD, drop()),
            (UNKNOWN_SOURCE, drop()),
            (START_GATE, drop()),
            (UNTRACKED, drop()),
            (NO_PORT, drop()),
        ]);
        if !self.desired.distributed.is_empty() {
            mangle.insert(HAS_PORTS.into(), self.has_ports());
            mangle.insert(HERE.into(), vec![Self::mark(0, self.layout.mask())]);
        }
        if !self.desired.networks.is_empty() {
            mangle.insert(LEAVE.into(), self.leave());
        }
        self.classes(&mut mangle);
        self.sources(&mut mangle);
        self.verdicts(&mut mangle);
        self.steer(&mut mangle);
        mangle
    }
}
