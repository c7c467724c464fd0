//! Rules about the tunnel's own packets.

use egressgateway::{
    model::{Family, MarkMask},
    trace::ConnectionState,
};

use crate::ruleset::{
    ast::{
        Jump, Rule, Side,
        Statement::{self, Address, ForgetClass, Go},
    },
    names::{DROP_NOT_PEER, FIND_CLASS, OUTER, SetName, UNTRACK},
    rule::{FROM_OVERLAY, address, drop_if, go, jump},
};

/// Anybody on the underlay can send to the tunnel's port, and a node makes its own address the
/// source of what its pods send to other nodes. Peers send from one address to one address. What
/// else would be delivered to the tunnel, be it by another address of this host or as one of a
/// group, is dropped before anything else looks at the packet. The rest needs no connection
/// tracking; it would only fill the table.
pub(super) fn outer_in(port: u16, keeps: bool) -> Vec<Rule> {
    if port == 0 {
        return Vec::new();
    }
    let mut rules = vec![go([Statement::UdpPort(port)], jump(OUTER))];
    if keeps {
        rules.push(go([FROM_OVERLAY], jump(UNTRACK)));
    }
    rules
}

pub(super) fn outer() -> Vec<Rule> {
    let ends = |family| {
        [
            address(Side::Source, family, SetName::Peers),
            address(Side::Destination, family, SetName::Own),
        ]
    };
    let ours = Family::ALL.map(|family| {
        ends(family)
            .into_iter()
            .chain([Statement::Untrack, Go(Jump::Return)])
            .collect()
    });
    ours.into_iter()
        .chain([drop_if([Statement::Delivered], DROP_NOT_PEER)])
        .collect()
}

/// What leaves here as it is gets its answers past this node, at the node of its pod. Connection
/// tracking would see half of each connection and take the rest for invalid, which others drop.
/// What does not leave the cluster is tracked, so that it is looked at. A mark says, until
/// `invalid_untracked` has seen it, that it was us who said so.
pub(super) fn untrack(mask: MarkMask) -> Vec<Rule> {
    let leaves = |family| Address {
        side: Side::Destination,
        family,
        negated: true,
        set: SetName::Exempt,
    };
    let ours = Statement::Mark {
        keep: mask.keep(),
        value: mask.answer_mark(),
    };
    let kept = Family::ALL.map(|family| {
        vec![
            Statement::Keeps(family),
            leaves(family),
            Statement::Untrack,
            ours.clone(),
        ]
    });
    [go([], jump(FIND_CLASS))]
        .into_iter()
        .chain(kept)
        .chain([vec![ForgetClass]])
        .collect()
}

pub(super) fn outer_out(port: u16) -> Vec<Rule> {
    if port == 0 {
        Vec::new()
    } else {
        vec![vec![Statement::UdpPort(port), Statement::Untrack]]
    }
}

/// The tunnel's own packets are not tracked, so what is has another sender: a pod, which this
/// node's masquerade would turn into a peer. It reaches the tunnel by no address of any node, and
/// neither does what a service leads there.
pub(super) fn not_tunnel() -> Vec<Rule> {
    let stranger = |family| Address {
        side: Side::Source,
        family,
        negated: true,
        set: SetName::Peers,
    };
    let other = Family::ALL.map(|family| {
        [
            stranger(family),
            address(Side::Destination, family, SetName::Hosts),
        ]
    });
    let own = [Statement::State(ConnectionState::New), Statement::Delivered];
    other
        .into_iter()
        .chain([own])
        .map(|matches| drop_if(matches, DROP_NOT_PEER))
        .collect()
}
