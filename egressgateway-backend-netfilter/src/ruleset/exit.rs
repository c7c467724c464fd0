//! As whom what exits here leaves.

use std::collections::BTreeMap;

use egressgateway::model::Family;

use crate::{
    names::{
        CLASS, Common, EXIT, EXIT_CLASS, EXITED, POSTROUTING, SNAT_KEEP, SNAT_NODE, SNAT_PREFIX,
        SOURCE, UNKNOWN_SOURCE, is_device,
    },
    ruleset::{
        number_trees::{source_tree, translation_tree},
        render::{Render, chains},
        tree::Chains,
    },
    sets::{
        content::PASS_BYTE,
        numbers::{AS_NODE, AS_SELF},
    },
};

impl Render<'_> {
    /// Our byte does not travel into the underlay. What exits gets the number of its source, for
    /// the nat table, which can't look it up: before the connection is confirmed, because nobody
    /// translates later packets.
    pub(super) fn postrouting(&self) -> Vec<String> {
        let mut rules = self.each_device("-o", &Self::mark(0, self.layout.mask()));
        rules.extend(self.each_device("-o", "-j RETURN"));
        rules.extend(self.each_exit(
            "-m conntrack --ctstate NEW ! --ctstatus CONFIRMED ",
            &format!("-j {EXIT}"),
        ));
        rules
    }

    pub(super) fn exit(&self) -> Vec<String> {
        let found = format!(
            "-m mark ! --mark 0x0/{:#x} -g {EXIT_CLASS}",
            self.layout.scratch()
        );
        vec![
            Self::mark(0, self.layout.all()),
            self.map(Common::Pods),
            found.clone(),
            self.map(Common::Subnets),
            found,
            self.exit_of_unknown(),
        ]
    }

    pub(super) fn exit_of_unknown(&self) -> String {
        if self.desired.overlay.unknown_may_exit {
            Self::mark(self.layout.number(AS_NODE), self.layout.scratch())
        } else {
            format!("-g {UNKNOWN_SOURCE}")
        }
    }

    /// What nothing was found for does not leave, and neither does what has a verdict without a
    /// source: that is from before this node became the exit.
    pub(super) fn exit_class(&self) -> Vec<String> {
        let (mask, scratch) = (self.layout.mask(), self.layout.scratch());
        vec![
            format!("-j {CLASS}"),
            format!("-m mark --mark 0x0/{mask:#x} -g {UNKNOWN_SOURCE}"),
            format!(
                "-m mark ! --mark {:#x}/{:#x} -m mark --mark 0x0/{scratch:#x} -g {UNKNOWN_SOURCE}",
                self.layout.byte(PASS_BYTE),
                mask
            ),
            Self::mark(0, mask),
            format!("-m mark ! --mark 0x0/{scratch:#x} -g {SOURCE}"),
            self.exit_of_unknown(),
        ]
    }

    /// Sources that the nat table knows. It can't drop what it does not know, and changes at
    /// another moment than the sets. Where others translate before it does, that is the node's
    /// address alone, which their masquerade gives too.
    pub(super) fn sources(&self, mangle: &mut Chains) {
        let others = self
            .addresses()
            .map(|(_, number)| number)
            .chain([AS_SELF])
            .filter(|_| !self.sources_in_dispute);
        let leaves = others
            .chain([AS_NODE])
            .map(|number| (number, "-j RETURN".to_owned()))
            .collect();
        mangle.extend(source_tree(self.layout, &leaves));
    }

    /// Where the kernel chooses the source, it takes whatever the device was given first or last,
    /// such as somebody's virtual address. It does so only on a device that nothing is known of, by
    /// the last of `rules`.
    pub(super) fn snat_node(&self, mut rules: Vec<String>) -> Vec<String> {
        let known = self
            .desired
            .node_addresses
            .iter()
            .filter(|((device, family), _)| *family == self.family && is_device(device));
        let known = known
            .map(|((device, _), address)| format!("-o {device} -j SNAT --to-source {address}"));
        rules.splice(rules.len() - 1..rules.len() - 1, known);
        rules
    }

    /// What enters the tunnel keeps its source: it is translated to itself, which keeps every later
    /// masquerade away. What exits has the number of its source in the packet mark. The nat table
    /// can't drop: whatever has no source was dropped before.
    pub(super) fn nat(&self) -> Chains {
        let itself = format!(
            "-j NETMAP --to {}/0",
            if self.family == Family::V4 {
                "0.0.0.0"
            } else {
                "::"
            }
        );
        let mut post = self.each_device("-o", &itself);
        post.extend(self.each_exit("", &format!("-j {SOURCE}")));
        let own = |last: &str| {
            vec![
                format!("-j {EXITED}"),
                Self::mark(0, self.layout.scratch()),
                last.to_owned(),
            ]
        };
        let mut nat = chains([
            (POSTROUTING, post),
            (EXITED, vec!["-m comment --comment exited".into()]),
            (SNAT_NODE, self.snat_node(own("-j MASQUERADE"))),
            (SNAT_KEEP, own(&itself)),
        ]);
        let mut leaves = BTreeMap::from([(AS_SELF, format!("-g {SNAT_KEEP}"))]);
        for (address, number) in self.addresses() {
            let name = format!("{SNAT_PREFIX}{number:04x}");
            leaves.insert(number, format!("-g {name}"));
            nat.insert(name, own(&format!("-j SNAT --to-source {address}")));
        }
        nat.extend(translation_tree(self.layout, &leaves));
        nat
    }
}
