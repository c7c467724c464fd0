//! As whom what exits here leaves, and what this node translates wherever it exits.

use std::{collections::BTreeMap, net::IpAddr};

use egressgateway::model::{Family, PortBlock};
use imbl::OrdSet;

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
        let first = "-m conntrack --ctstate NEW ! --ctstatus CONFIRMED";
        let mut rules: Vec<String> = self
            .distributed()
            .map(|pinned| format!("{first} {pinned} -j {EXIT}"))
            .collect();
        rules.extend(self.each_device("-o", &Self::mark(0, self.layout.mask())));
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

    /// One of this node's blocks by chance, each as often as any other: of what is left when the
    /// first ones did not take it, the next one takes its share. What has no ports was dropped
    /// before.
    fn ports_of(&self, address: IpAddr, blocks: &OrdSet<PortBlock>) -> Vec<String> {
        let to = match address {
            IpAddr::V4(address) => address.to_string(),
            IpAddr::V6(address) => format!("[{address}]"),
        };
        let mut rules = vec![Self::mark(0, self.layout.scratch())];
        for (block, left) in blocks.iter().zip((1..=blocks.len()).rev()) {
            let share = one_of(left);
            rules.extend(
                self.protocols_with_ports().iter().map(|protocol| {
                    format!("-p {protocol}{share} -j SNAT --to-source {to}:{block}")
                }),
            );
        }
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
        // What this node translates itself, whether it enters the tunnel or exits here.
        let into_tunnel = self
            .distributed()
            .flat_map(|pinned| self.each_device("-o", &format!("{pinned} -j {SOURCE}")));
        let here = self.distributed_here().flat_map(|target| {
            let pinned = self.pinned(self.layout.target(target));
            [EXITED, SOURCE].map(|chain| format!("{pinned} -j {chain}"))
        });
        let mut post: Vec<String> = into_tunnel.chain(here).collect();
        post.extend(self.each_device("-o", &itself));
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
            let rules = match self.desired.blocks.get(&address) {
                Some(blocks) => self.ports_of(address, blocks),
                None => own(&format!("-j SNAT --to-source {address}")),
            };
            nat.insert(name, rules);
        }
        nat.extend(translation_tree(self.layout, &leaves));
        nat
    }
}

/// A match of one packet of so many, by chance; nothing for every one. As `iptables-save` prints
/// the number that the kernel keeps: in parts of 2³¹, rounded.
fn one_of(several: usize) -> String {
    const WHOLE: u64 = 1 << 31;
    const DIGITS: u128 = 100_000_000_000;
    let Some(several) = u64::try_from(several).ok().filter(|several| *several > 1) else {
        return String::new();
    };
    let kept = (WHOLE + several / 2) / several;
    let digits = (u128::from(kept) * DIGITS + u128::from(WHOLE / 2)) / u128::from(WHOLE);
    format!(" -m statistic --mode random --probability 0.{digits:011}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_written_as_the_kernel_gives_it_back() {
        assert_eq!(one_of(1), "");
        for (several, text) in [
            (2, "0.50000000000"),
            (3, "0.33333333349"),
            (4, "0.25000000000"),
        ] {
            assert_eq!(
                one_of(several),
                format!(" -m statistic --mode random --probability {text}")
            );
        }
    }
}
