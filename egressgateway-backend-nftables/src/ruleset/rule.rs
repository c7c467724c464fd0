//! The parts that rules are put together from.

use egressgateway::{
    PolicyDesired,
    model::{Family, MarkMask, TargetId},
};

use crate::ruleset::{
    ast::{
        Chain, Hook, Jump, Rule, Side,
        Statement::{self, Address, Count, Go, Overlay, Pinned},
        Way,
    },
    names::SetName,
};

pub(super) const FROM_OVERLAY: Statement = Overlay {
    way: Way::In,
    negated: false,
};
pub(super) const INTO_OVERLAY: Statement = Overlay {
    way: Way::Out,
    negated: false,
};

pub(super) fn base(kind: &str, hook: &str, priority: i32, rules: Vec<Rule>) -> Chain {
    Chain {
        hook: Some(Hook {
            kind: kind.into(),
            point: hook.into(),
            priority,
            policy: "accept".into(),
        }),
        rules,
    }
}

pub(super) fn plain(rules: Vec<Rule>) -> Chain {
    Chain { hook: None, rules }
}

pub(super) fn dropped(counter: &'static str) -> Rule {
    vec![Count(counter), Go(Jump::Drop)]
}

/// A rule that drops and counts what the matches let through.
pub(super) fn drop_if(matches: impl IntoIterator<Item = Statement>, counter: &'static str) -> Rule {
    matches.into_iter().chain(dropped(counter)).collect()
}

pub(super) fn go(matches: impl IntoIterator<Item = Statement>, jump: Jump) -> Rule {
    matches.into_iter().chain([Go(jump)]).collect()
}

pub(super) fn jump(chain: &str) -> Jump {
    Jump::Call(chain.into())
}

pub(super) fn goto(chain: &str) -> Jump {
    Jump::Goto(chain.into())
}

pub(super) fn address(side: Side, family: Family, set: SetName) -> Statement {
    Address {
        side,
        family,
        negated: false,
        set,
    }
}

/// The connection is pinned to this target.
pub(super) fn pinned_to(target: TargetId, mask: MarkMask) -> Statement {
    Pinned {
        mask: mask.bits(),
        negated: false,
        value: mask.mark(target),
    }
}

/// What this host translates to an address of the cluster was sent to one that the cluster does not
/// know as its own, such as a load balancer's that this node holds.
pub(super) fn led_inside(family: Family) -> Rule {
    let outside = Statement::SentOutside {
        family,
        set: SetName::Exempt,
    };
    go(
        [
            Statement::Translated,
            outside,
            address(Side::Destination, family, SetName::Exempt),
        ],
        Jump::Return,
    )
}

/// Whether something exits here; only the node's other networks take a lookup.
pub(super) fn exits(desired: &PolicyDesired, mask: MarkMask, negated: bool) -> Statement {
    if desired.networks.is_empty() {
        Pinned {
            mask: mask.bits(),
            negated,
            value: mask.exit_mark(),
        }
    } else {
        Statement::Exits {
            mask: mask.bits(),
            negated,
        }
    }
}
