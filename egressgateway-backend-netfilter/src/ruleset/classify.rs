//! The first packet of a connection: who, and where to.

use std::collections::BTreeMap;

use egressgateway::model::{Family, TargetId};

use crate::{
    names::{
        ARRIVE, CLASS, Common, DECIDE, HAS_PORTS, HELD, LEAVE, LOST, NO_CLASS, NO_GATEWAY, NO_PORT,
        PASS, POD, STEERED, TOWARDS_POD, UNCLASSIFIED, UNKNOWN_SOURCE, UNTRACKED, VERDICT,
        class_chain, verdicts_set,
    },
    ruleset::{
        number_trees::class_tree,
        render::{INVALID, INVALID_OR_UNTRACKED, NOT_TRACKED, Render},
        tree::Chains,
    },
    sets::content::PASS_BYTE,
};

impl Render<'_> {
    /// The exempt come first. What is for this host or for a group does not leave the cluster.
    pub(super) fn classify(&self) -> Vec<String> {
        let mut rules = self.each_device("-i", &format!("-g {ARRIVE}"));
        rules.push(format!(
            "{} -g {TOWARDS_POD}",
            self.set(Common::Exempt, "dst")
        ));
        rules.extend(self.to_host_or_group("-j RETURN"));
        rules.extend(self.judge());
        rules
    }

    /// What is for this host or a group. One rule looks both up for IPv4. For IPv6 the kernel would
    /// let a rule that names both match only what is a group's and this host's at once.
    pub(super) fn to_host_or_group(&self, rest: &str) -> Vec<String> {
        let kinds: &[_] = match self.family {
            Family::V4 => &["LOCAL,MULTICAST"],
            Family::V6 => &["LOCAL", "MULTICAST"],
        };
        kinds
            .iter()
            .map(|kind| format!("-m addrtype --dst-type {kind} {rest}"))
            .collect()
    }

    /// Through the overlay comes what leaves the cluster here, and what nodes ask each other:
    /// whether they are there. Others' rules would deliver anything else wherever it says, with the
    /// source that it says.
    pub(super) fn arrive(&self) -> Vec<String> {
        let icmp = if self.family == Family::V4 {
            "icmp"
        } else {
            "ipv6-icmp"
        };
        let mut rules = vec![format!(
            "-p {icmp} -m addrtype --dst-type LOCAL --limit-iface-in -j RETURN"
        )];
        rules.extend(self.to_host_or_group(&format!("--limit-iface-in -g {UNKNOWN_SOURCE}")));
        if !self.desired.relayed.is_empty() {
            // What pods' own nodes translate is not tracked where it exits, and belongs to a
            // connection where its answers arrive: here it is neither.
            rules
                .extend(["src", "dst"].map(|side| {
                    format!("{} -g {UNKNOWN_SOURCE}", self.set(Common::Relayed, side))
                }));
        }
        rules.extend([
            format!("{} -g {UNKNOWN_SOURCE}", self.set(Common::Exempt, "dst")),
            // This host's own addresses, and its own pods as far as they are known to be in no
            // policy, are nowhere else.
            format!("-m addrtype --src-type LOCAL -g {UNKNOWN_SOURCE}"),
            format!(
                "{} -g {UNKNOWN_SOURCE}",
                self.set(Common::Ungoverned, "src")
            ),
        ]);
        if self.family == Family::V6 {
            // How neighbours find each other; the kernel itself does not track it.
            rules.insert(
                0,
                format!("-p {icmp} {NOT_TRACKED} -m addrtype --dst-type MULTICAST -j RETURN"),
            );
        }
        rules.extend(self.judge());
        rules
    }

    /// Who, and where to. Most who have a class have it by their own address, so that is asked
    /// first. Others' packets keep all bits of their mark.
    fn judge(&self) -> Vec<String> {
        let own = format!("{} -g {POD}", self.set(Common::Pods, "src"));
        let nobody = format!("{} -g {NO_CLASS}", self.not_in(Common::Subnets, "src"));
        let mut rules = vec![own, nobody];
        rules.extend(self.class_of(Common::Subnets));
        rules
    }

    /// The class that a set gives to the source, and what follows from it. Where the entry went
    /// since it was seen, the packet is held.
    pub(super) fn class_of(&self, set: Common) -> [String; 3] {
        [
            Self::mark(0, self.layout.all()),
            self.map(set),
            format!("-g {DECIDE}"),
        ]
    }

    pub(super) fn decide(&self) -> Vec<String> {
        let mut rules = vec![format!("-j {CLASS}")];
        if self.desired.networks.is_empty() {
            rules.push(Self::mark(0, self.layout.scratch()));
        }
        // Held, or what should say where this class goes is not there.
        rules.push(format!(
            "-m mark --mark 0x0/{:#x} -g {HELD}",
            self.layout.mask()
        ));
        rules.push(format!("-g {VERDICT}"));
        rules
    }

    /// A pod of this node that neither has a class nor is known to have none waits: it is new, or
    /// somebody has flushed what says so. Where sources alone don't tell the node's pods, what did
    /// not come from a pod's device goes on before more is asked.
    pub(super) fn no_class(&self) -> Vec<String> {
        let mut rules = vec![self.gate(Common::Local)];
        rules.extend(self.each_device("-i", &format!("-g {UNCLASSIFIED}")));
        if let Some(outside) = self.outside() {
            rules.extend(
                outside
                    .iter()
                    .map(|device| format!("-i {device} -g {TOWARDS_POD}")),
            );
            rules.push(self.gate(Common::Wide));
        }
        rules.push(format!("-g {TOWARDS_POD}"));
        rules
    }

    /// Connection tracking forgets: an entry expires or is deleted here, and the gateway still has
    /// its own. What the server sends next comes to the pod as a new connection from outside, whose
    /// replies nobody would classify. Whoever sends a request begins a connection; anything else
    /// may be such a connection, and is pinned as one. What comes by a service's address still has
    /// that address here.
    pub(super) fn towards_pod(&self) -> Vec<String> {
        let icmp = if self.family == Family::V4 {
            "icmp"
        } else {
            "ipv6-icmp"
        };
        let pin = self.pin(self.layout.answer());
        vec![
            "-p tcp -m tcp --tcp-flags SYN,ACK SYN -j RETURN".into(),
            format!("-p {icmp} -j RETURN"),
            format!("{} -j RETURN", self.set(Common::Exempt, "src")),
            format!(
                "{} {} {pin}",
                self.set(Common::Local, "dst"),
                self.not_in(Common::Ungoverned, "dst")
            ),
            format!("{} {pin}", self.set(Common::Subnets, "dst")),
            format!("{} {pin}", self.set(Common::Pods, "dst")),
        ]
    }

    /// The class of a packet, and the lookup of its destination.
    pub(super) fn classes(&self, mangle: &mut Chains) {
        let numbers = &self.numbers.classes;
        let leaves = numbers
            .iter()
            .map(|(class, number)| (*number, format!("-g {}", class_chain(*class))))
            .collect();
        mangle.extend(class_tree(self.layout, &leaves));
        for class in numbers.keys() {
            let name = verdicts_set(*class, self.family);
            let rules = if self.sets.contains_key(&name) {
                vec![
                    Self::mark(0, self.layout.scratch()),
                    format!("-j SET --map-set {name} dst --map-mark"),
                ]
            } else {
                vec![Self::mark(self.layout.byte(PASS_BYTE), self.layout.all())]
            };
            mangle.insert(class_chain(*class), rules);
        }
    }

    /// What the byte in the packet mark says. One that no chain is for has no way.
    pub(super) fn verdicts(&self, mangle: &mut Chains) {
        let targets = self
            .desired
            .targets
            .iter()
            .chain(&self.desired.exits)
            .chain(&self.desired.accepts);
        let mut leaves = BTreeMap::from([(u16::from(PASS_BYTE), format!("-g {PASS}"))]);
        for target in targets {
            let name = format!("EGW-TO-{target}");
            leaves.insert(u16::from(target.byte()), format!("-g {name}"));
            mangle.insert(name, self.to(*target));
        }
        let otherwise = format!("-g {NO_GATEWAY}");
        self.bytes(VERDICT, &otherwise).grow(mangle, &leaves);
    }

    /// Pins a new connection to `target`, or to this node where it exits here. Of what somebody
    /// outside began, the answers keep the mark that they have and nothing is pinned: another of
    /// them may be on its way. They can't leave from here, where nothing would translate them.
    pub(super) fn to(&self, target: TargetId) -> Vec<String> {
        if self.desired.distributed.contains(&target) {
            return self.to_distributed(target);
        }
        let by_network = !self.desired.networks.is_empty();
        let exit = if by_network {
            format!("-j {LEAVE}")
        } else {
            self.pin(self.layout.exit())
        };
        let answers = self.pinned(self.layout.answer());
        let is_steered =
            self.desired.targets.contains(&target) && !self.desired.exits.contains(&target);
        let mut rules = vec![format!("{INVALID_OR_UNTRACKED} -g {LOST}")];
        // The number of the source is there for those that exit.
        rules.extend(
            (by_network && is_steered)
                .then(|| format!("{answers} {}", Self::mark(0, self.layout.scratch()))),
        );
        rules.extend([
            if is_steered {
                format!("{answers} -j RETURN")
            } else {
                format!("{answers} -g {NO_GATEWAY}")
            },
            Self::mark(0, self.layout.mask()),
        ]);
        if self.desired.accepts.contains(&target) {
            for device in self.devices() {
                rules.extend([
                    format!("-i {device} {exit}"),
                    format!("-i {device} -j RETURN"),
                ]);
            }
        } else {
            rules.extend(self.each_device("-i", &format!("-g {NO_GATEWAY}")));
        }
        if self.desired.exits.contains(&target) {
            rules.push(exit);
        } else if self.desired.targets.contains(&target) {
            rules.extend(by_network.then(|| Self::mark(0, self.layout.scratch())));
            let mark = self.layout.target(target);
            rules.extend([
                format!("-j {STEERED}"),
                self.pin(mark),
                Self::mark(mark, self.layout.mask()),
            ]);
        } else {
            rules.push(format!("-g {NO_GATEWAY}"));
        }
        rules
    }

    /// Pins a new connection to `target`, which this node translates itself, whether or not it
    /// exits here: where it exits may change while it lasts. An answer to somebody outside can't be
    /// translated any more, and nobody sends here what is translated before it is sent.
    fn to_distributed(&self, target: TargetId) -> Vec<String> {
        let mark = self.layout.target(target);
        let mut rules = vec![
            format!("{INVALID_OR_UNTRACKED} -g {LOST}"),
            format!("{} -g {NO_GATEWAY}", self.pinned(self.layout.answer())),
        ];
        rules.extend(self.each_device("-i", &format!("-g {UNKNOWN_SOURCE}")));
        rules.extend([format!("-j {HAS_PORTS}"), Self::mark(0, self.layout.mask())]);
        // The number of the source is there where some exit here.
        rules.extend(
            (!self.desired.networks.is_empty()).then(|| Self::mark(0, self.layout.scratch())),
        );
        if self.desired.exits.contains(&target) {
            rules.push(self.pin(mark));
        } else if self.desired.targets.contains(&target) {
            rules.extend([
                format!("-j {STEERED}"),
                self.pin(mark),
                Self::mark(mark, self.layout.mask()),
            ]);
        } else {
            rules.push(format!("-g {NO_GATEWAY}"));
        }
        rules
    }

    /// The nat table takes a range of ports for these protocols alone.
    pub(super) fn has_ports(&self) -> Vec<String> {
        self.protocols_with_ports()
            .iter()
            .map(|protocol| format!("-p {protocol} -j RETURN"))
            .chain([format!("-g {NO_PORT}")])
            .collect()
    }

    /// What comes through the overlay was governed for the node that sent it; here nothing says as
    /// whom it leaves.
    pub(super) fn unclassified(&self) -> Vec<String> {
        if self.desired.overlay.unknown_may_exit {
            vec![
                format!("{INVALID} -g {UNKNOWN_SOURCE}"),
                format!("{NOT_TRACKED} -g {UNTRACKED}"),
                self.pin(self.layout.exit()),
            ]
        } else {
            vec![format!("-g {UNKNOWN_SOURCE}")]
        }
    }
}
