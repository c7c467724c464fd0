//! Rules about the tunnel's own packets, and what is not tracked.

use egressgateway::model::ClassId;

use crate::{
    names::{
        Common, KEEP, NOT_PEER, OUTER, OUTPUT, PREROUTING, UNTRACK, keep_pods_set, keep_source_set,
    },
    ruleset::{
        render::{Render, chains},
        tree::Chains,
    },
};

impl Render<'_> {
    /// Anybody on the underlay can send to the tunnel's port, and a node makes its own address the
    /// source of what its pods send to other nodes. Peers send from one address to one address:
    /// what else is for this host is dropped before anything else looks at the packet. The rest
    /// needs no connection tracking.
    pub(super) fn raw(&self) -> Chains {
        let port = self.desired.overlay.port;
        let mut raw = chains([(NOT_PEER, vec!["-j DROP".into()])]);
        let (mut arriving, mut leaving) = (Vec::new(), Vec::new());
        if port > 0 {
            let outer = format!("-p udp -m udp --dport {port}");
            arriving.push(format!("{outer} -m addrtype --dst-type LOCAL -g {OUTER}"));
            raw.insert(
                OUTER.into(),
                vec![
                    format!("{} -g {NOT_PEER}", self.not_in(Common::Peers, "src")),
                    format!("{} -g {NOT_PEER}", self.not_in(Common::Own, "dst")),
                    "-j CT --notrack".into(),
                ],
            );
            leaving.push(format!("{outer} -j CT --notrack"));
            let untrack = self.untrack();
            if !untrack.is_empty() {
                arriving.extend(self.each_device("-i", &format!("-j {UNTRACK}")));
                raw.insert(UNTRACK.into(), untrack);
                // The mark says, until it is seen in mangle, that it was us who said so.
                raw.insert(
                    KEEP.into(),
                    vec![
                        "-j CT --notrack".into(),
                        Self::mark(self.layout.answer(), self.layout.mask()),
                    ],
                );
            }
        }
        raw.extend(chains([(PREROUTING, arriving), (OUTPUT, leaving)]));
        raw
    }

    /// What leaves here as it is gets its answers past this node, at the node of its pod.
    /// Connection tracking would see half of each connection and take the rest for invalid, which
    /// others drop. The class is not known yet: only the mangle table maps marks.
    pub(super) fn untrack(&self) -> Vec<String> {
        let keeping = |class: &&ClassId| {
            self.sets
                .contains_key(&keep_source_set(**class, self.family))
        };
        let rule = |class: &ClassId| {
            let (who, to) = (
                keep_pods_set(*class, self.family),
                keep_source_set(*class, self.family),
            );
            // What does not leave the cluster is tracked, so that it is looked at.
            let leaves = self.not_in(Common::Exempt, "dst");
            format!("-m set --match-set {who} src -m set --match-set {to} dst {leaves} -g {KEEP}")
        };
        self.numbers
            .classes
            .keys()
            .filter(keeping)
            .map(rule)
            .collect()
    }

    /// What is delivered to a group, such as a broadcast, reaches a tunnel too; the raw table can't
    /// tell it for both families. And a service may lead to the tunnel of this node. The tunnel's
    /// own packets were translated by nobody.
    pub(super) fn input(&self) -> Vec<String> {
        self.not_tunnel(&[
            self.not_in(Common::Own, "dst"),
            "-m conntrack --ctstate DNAT".into(),
        ])
    }

    pub(super) fn not_tunnel(&self, which: &[String]) -> Vec<String> {
        let port = self.desired.overlay.port;
        let rule = |which| format!("-p udp -m udp --dport {port} {which} -g {NOT_PEER}");
        which.iter().filter(|_| port > 0).map(rule).collect()
    }
}
