//! The chains: who, where, how and as whom, for any number of policies and pods.

use std::{collections::BTreeMap, net::IpAddr};

use egressgateway::{
    ExitNetwork, PolicyDesired,
    model::{ClassId, Family, TargetId},
};
use imbl::{OrdMap, OrdSet};

use crate::{
    content::PASS_BYTE,
    mark_layout::MarkLayout,
    names::{
        ANSWERS, ARRIVE, ARRIVE_UNPINNED, CLASS, CLASSIFY, Common, DECIDE, ENDING, EXIT,
        EXIT_CLASS, EXITED, FILTER, FIRST, FORWARD, GUARD, GUARD_ANSWERS, HELD, INPUT,
        INVALID_UNTRACKED, KEEP, LEAVE, LET_GO, LOST, MANGLE, NAT, NO_CLASS, NO_GATEWAY,
        NO_VERDICT, NOT_PEER, OPENING, OUTER, OUTPUT, PASS, POD, POSTROUTING, PREROUTING, RAW,
        SNAT_KEEP, SNAT_NODE, SNAT_PREFIX, SOURCE, START_GATE, STEER, STEERED, TOWARDS_POD,
        TRANSLATED, TUNNELLED, UNCLASSIFIED, UNKNOWN_SOURCE, UNPINNED, UNTRACK, UNTRACKED, VERDICT,
        class_chain, is_device, keep_pods_set, keep_source_set, verdicts_set,
    },
    numbers::{AS_NODE, AS_SELF, Numbers},
    set::Set,
    tree::{Chains, Tree},
};

/// All our chains of one family, by table.
pub(crate) fn rules(
    desired: &PolicyDesired,
    family: Family,
    bits: MarkLayout,
    numbers: &Numbers,
    sets: &OrdMap<String, Set>,
    sources_in_dispute: bool,
) -> BTreeMap<String, Chains> {
    let render = Render {
        desired,
        family,
        bits,
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

struct Render<'a> {
    desired: &'a PolicyDesired,
    family: Family,
    bits: MarkLayout,
    numbers: &'a Numbers,
    sets: &'a OrdMap<String, Set>,
    sources_in_dispute: bool,
}

/// A packet that belongs to no connection.
const INVALID: &str = "-m conntrack --ctstate INVALID";
/// One that connection tracking was told not to look at.
const NOT_TRACKED: &str = "-m conntrack --ctstate UNTRACKED";
/// One of the two.
const IS_STRAY: &str = "-m conntrack --ctstate INVALID,UNTRACKED";

fn chains<const N: usize>(chains: [(&str, Vec<String>); N]) -> Chains {
    chains.map(|(name, rules)| (name.to_owned(), rules)).into()
}

impl Render<'_> {
    fn devices(&self) -> impl Iterator<Item = &String> {
        self.desired.overlay.devices.iter()
    }

    /// One rule for each of the overlay's devices.
    fn each_device(&self, way: &str, rest: &str) -> Vec<String> {
        self.devices()
            .map(|device| format!("{way} {device} {rest}"))
            .collect()
    }

    fn set(&self, set: Common, side: &str) -> String {
        format!("-m set --match-set {} {side}", set.name(self.family))
    }

    fn not_in(&self, set: Common, side: &str) -> String {
        format!("-m set ! --match-set {} {side}", set.name(self.family))
    }

    /// Connection mark byte is `value`.
    fn pinned(&self, value: u32) -> String {
        format!("-m connmark --mark {value:#x}/{:#x}", self.bits.mask())
    }

    fn not_pinned(&self, value: u32) -> String {
        format!("-m connmark ! --mark {value:#x}/{:#x}", self.bits.mask())
    }

    fn pin(&self, value: u32) -> String {
        format!("-j CONNMARK --set-xmark {value:#x}/{:#x}", self.bits.mask())
    }

    /// Packet mark bits of `mask` become `value`.
    fn mark(value: u32, mask: u32) -> String {
        format!("-j MARK --set-xmark {value:#x}/{mask:#x}")
    }

    /// Anybody on the underlay can send to the tunnel's port, and a node makes its own address the
    /// source of what its pods send to other nodes. Peers send from one address to one address:
    /// what else is for this host is dropped before anything else looks at the packet. The rest
    /// needs no connection tracking.
    fn raw(&self) -> Chains {
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
                        Self::mark(self.bits.answer(), self.bits.mask()),
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
    fn untrack(&self) -> Vec<String> {
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
                    self.pin(self.bits.unknown()),
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
            (LET_GO, vec![self.pin(0), Self::mark(0, self.bits.mask())]),
            (POD, self.class_of(Common::Pods).into()),
            (DECIDE, self.decide()),
            (NO_CLASS, self.no_class()),
            (
                PASS,
                vec![
                    Self::mark(
                        0,
                        if self.desired.networks.is_empty() {
                            self.bits.mask()
                        } else {
                            self.bits.all()
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
        ]);
        if !self.desired.networks.is_empty() {
            mangle.insert(LEAVE.into(), self.leave());
        }
        self.classes(&mut mangle);
        self.sources(&mut mangle);
        self.verdicts(&mut mangle);
        self.steer(&mut mangle);
        mangle
    }

    /// The marks of this node's other networks.
    fn networks(&self) -> impl Iterator<Item = (u32, &ExitNetwork)> {
        self.desired
            .networks
            .iter()
            .map(|(id, network)| (self.bits.network(*id), network))
    }

    /// One rule for each mark of what exits here.
    fn each_exit(&self, before: &str, rest: &str) -> Vec<String> {
        let marks = std::iter::once(self.bits.exit()).chain(self.networks().map(|(mark, _)| mark));
        marks
            .map(|mark| format!("{before}{} {rest}", self.pinned(mark)))
            .collect()
    }

    /// What has an egress address of another network leaves by that one: the number of the source
    /// says so.
    fn leave(&self) -> Vec<String> {
        let scratch = self.bits.scratch();
        let by_network = self.networks().flat_map(|(mark, network)| {
            let numbers = network
                .addresses
                .iter()
                .filter_map(|address| self.numbers.addresses.get(address));
            numbers.map(move |number| {
                format!(
                    "-m mark --mark {:#x}/{scratch:#x} {}",
                    self.bits.number(*number),
                    self.pin(mark)
                )
            })
        });
        let marks = self.networks().map(|(mark, _)| {
            format!(
                "{} {}",
                self.pinned(mark),
                Self::mark(mark, self.bits.mask())
            )
        });
        std::iter::once(self.pin(self.bits.exit()))
            .chain(by_network)
            .chain([Self::mark(0, scratch)])
            .chain(marks)
            .collect()
    }

    /// Replies go back as they came. A packet that belongs to no connection can be neither pinned
    /// nor translated, so it is classified to be dropped if it is governed. Who pins a connection
    /// marks its first packet as well.
    fn prerouting(&self) -> Vec<String> {
        // A strict reverse-path filter looks for the way back to the sender by the mark.
        let answers = self
            .networks()
            .filter(|(_, network)| is_device(&network.device))
            .map(|(mark, network)| {
                let from = format!(
                    "-i {} -m conntrack --ctdir REPLY {}",
                    network.device,
                    self.pinned(mark)
                );
                format!("{from} {}", Self::mark(mark, self.bits.mask()))
            });
        answers.chain(self.prerouting_without_networks()).collect()
    }

    /// What most packets meet comes first: they follow their connection's pin. Nothing of this
    /// matches a packet that nobody tracks but the rule for those.
    fn prerouting_without_networks(&self) -> Vec<String> {
        let mut rules = vec![
            format!(
                "-m conntrack --ctdir REPLY {} -j RETURN",
                self.not_pinned(self.bits.answer())
            ),
            format!("{} -j RETURN", self.pinned(self.bits.exit())),
            format!("{} -g {STEER}", self.not_pinned(0)),
            // A connection that was translated when it began was classified by the address that it
            // goes to.
            format!("-m conntrack --ctstate NEW -m conntrack ! --ctstate DNAT -g {CLASSIFY}"),
            format!("{IS_STRAY} -g {INVALID_UNTRACKED}"),
        ];
        rules.extend(self.each_device("-i", &format!("-g {ARRIVE_UNPINNED}")));
        rules
    }

    /// What we do not track ourselves goes on: the tunnel's own packets, which are many, and with a
    /// mark that has done its work what keeps its source. The rest is classified.
    fn invalid_untracked(&self) -> Vec<String> {
        let (mask, kept) = (self.bits.mask(), self.bits.answer());
        let mut rules = vec![format!("-m mark --mark {kept:#x}/{mask:#x} -g {LET_GO}")];
        rules.extend(self.each_device("-i", &format!("-g {CLASSIFY}")));
        rules.push(format!("{} -j RETURN", self.set(Common::Own, "dst")));
        rules.push(format!("-g {CLASSIFY}"));
        rules
    }

    /// A connection through the overlay that nothing has pinned began while these rules were
    /// missing. What it leaves as was somebody else's choice, and the nat table does not choose
    /// again. So nothing of it leaves any more, and the pin tells the agent to end it.
    ///
    /// Where somebody translated it, [`UNPINNED`] sees where that leads.
    fn arrive_unpinned(&self) -> Vec<String> {
        vec![
            format!(
                "-m conntrack --ctstate DNAT {} -j RETURN",
                self.not_in(Common::Exempt, "dst")
            ),
            "-m addrtype --dst-type LOCAL --limit-iface-in -j RETURN".into(),
            format!("-g {ENDING}"),
        ]
    }

    /// What this host translates to an address of the cluster, such as from a load balancer's that
    /// this node holds, stays inside.
    fn unpinned(&self) -> Vec<String> {
        let outside = self.not_in(Common::Exempt, "dst");
        self.each_device(
            "-i",
            &format!("-m conntrack --ctstate DNAT --ctdir ORIGINAL {outside} -g {ENDING}"),
        )
    }

    /// Where somebody outside began, towards a pod, each answer is classified like a first packet:
    /// the pod may have begun it before that, and only a gateway still knows.
    fn answers(&self) -> Vec<String> {
        vec![
            Self::mark(0, self.bits.mask()),
            "-m conntrack --ctdir ORIGINAL -j RETURN".into(),
            format!("-g {CLASSIFY}"),
        ]
    }

    /// Later packets follow the pin; a target that is gone has no way.
    fn steer(&self, mangle: &mut Chains) {
        let networks = self.desired.networks.keys().map(|network| network.byte());
        let known = self
            .desired
            .targets
            .iter()
            .map(|target| target.byte())
            .chain(networks);
        let known = known.map(|byte| (u16::from(byte), "-j RETURN".to_owned()));
        let leaves = known
            .chain([(u16::from(TargetId::ANSWER_BYTE), format!("-g {ANSWERS}"))])
            .collect();
        let mut tree = Chains::new();
        let otherwise = format!("-g {NO_GATEWAY}");
        self.bytes(STEER, &otherwise).grow(&mut tree, &leaves);
        let mask = self.bits.mask();
        if let Some(root) = tree.get_mut(STEER) {
            root.insert(
                0,
                format!("-j CONNMARK --restore-mark --nfmask {mask:#x} --ctmask {mask:#x}"),
            );
        }
        mangle.extend(tree);
    }

    /// What is ours leaves through the overlay or, with the exit's byte, from here; lost rules,
    /// routes and devices change nothing about that. What came through the overlay does not enter
    /// it again.
    fn forward(&self) -> Vec<String> {
        let mut rules = vec![
            format!("-m conntrack --ctstate NEW -j {FIRST}"),
            format!("{} -g {UNPINNED}", self.pinned(0)),
        ];
        for from in self.devices() {
            rules.extend(
                self.devices()
                    .map(|into| format!("-i {from} -o {into} -g {NO_GATEWAY}")),
            );
        }
        rules.push(format!("{} -j {GUARD}", self.not_pinned(self.bits.exit())));
        rules.extend(self.each_device("-o", &format!("-m conntrack --ctstate NEW -j {TUNNELLED}")));
        rules.push(format!("-p tcp -m tcp --tcp-flags SYN,RST SYN -m conntrack --ctstatus EXPECTED --ctdir ORIGINAL -j {OPENING}"));
        if let Some(bytes) = self.desired.overlay.mss.get(&self.family) {
            // Both directions: the answer's size limits what the pod sends. The kernel only ever
            // lowers the value.
            rules.push(format!(
                "-p tcp -m tcp --tcp-flags SYN,RST SYN -j TCPMSS --set-mss {bytes}"
            ));
        }
        rules
    }

    /// A helper of connection tracking lets a server open a connection to a pod, such as for data
    /// of FTP. The pod's node knows nothing of the translation that the helper agreed here, so the
    /// pod's answers would leave there with the pod's own address. Such a connection ends here, but
    /// for a pod of this node.
    fn opening(&self) -> Vec<String> {
        let mut rules = self.each_device("-i", "-j RETURN");
        rules.extend(self.each_device("-o", "-j RETURN"));
        rules.extend(
            [
                self.set(Common::Exempt, "src"),
                self.set(Common::Local, "dst"),
            ]
            .map(|known| format!("{known} -j RETURN")),
        );
        rules.push(format!("-g {NO_GATEWAY}"));
        rules
    }

    /// The tunnel's own packets are none of this host's forwarded ones: who sends to a node's
    /// tunnel from here is a pod, which this node's masquerade would turn into a peer.
    fn first(&self) -> Vec<String> {
        let mut rules = self.stray_outer(&[format!(
            "{} {}",
            self.set(Common::Hosts, "dst"),
            self.not_in(Common::Peers, "src")
        )]);
        rules.push(format!("-m conntrack --ctstate DNAT -j {TRANSLATED}"));
        rules
    }

    /// Classification saw the address that a connection was sent to, such as a service's. Here the
    /// real destination is seen: the cluster's own is let go, whatever was said of the other, and
    /// what is governed can't be given its way any more, because the route is chosen. It is
    /// dropped, unless somebody who looks between translation and routing has pinned it.
    ///
    /// Others' marks are in the packet by now, and stay: the bits that are borrowed wait in the
    /// connection mark.
    fn translated(&self) -> Vec<String> {
        let (mask, scratch) = (self.bits.mask(), self.bits.scratch());
        let nobody = format!(
            "{} {}",
            self.not_in(Common::Subnets, "src"),
            self.not_in(Common::Pods, "src")
        );
        let mut rules = vec![
            format!("{} -g {LET_GO}", self.set(Common::Exempt, "dst")),
            format!("{} -j RETURN", self.not_pinned(0)),
        ];
        let gate = |pods| format!("{nobody} {}", self.gate(pods));
        rules.push(gate(Common::Local));
        if let Some(outside) = self.outside() {
            rules.extend(
                self.devices()
                    .chain(outside)
                    .map(|device| format!("-i {device} {nobody} -j RETURN")),
            );
            rules.push(gate(Common::Wide));
        }
        rules.extend([
            format!("{nobody} -j RETURN"),
            // Where somebody else keeps something there, nothing can be looked up without loss.
            format!("-m connmark ! --mark 0x0/{scratch:#x} -g {NO_GATEWAY}"),
            format!("-j CONNMARK --save-mark --nfmask {scratch:#x} --ctmask {scratch:#x}"),
        ]);
        rules.extend(self.find_class());
        rules.extend([
            format!("-j {CLASS}"),
            format!("-j CONNMARK --restore-mark --nfmask {scratch:#x} --ctmask {scratch:#x}"),
            format!("-j CONNMARK --set-xmark 0x0/{scratch:#x}"),
            format!(
                "-m mark ! --mark {:#x}/{mask:#x} -g {NO_GATEWAY}",
                self.bits.byte(PASS_BYTE)
            ),
            Self::mark(0, mask),
        ]);
        rules
    }

    /// What is delivered to a group, such as a broadcast, reaches a tunnel too; the raw table can't
    /// tell it for both families. And a service may lead to the tunnel of this node. The tunnel's
    /// own packets were translated by nobody.
    fn input(&self) -> Vec<String> {
        self.stray_outer(&[
            self.not_in(Common::Own, "dst"),
            "-m conntrack --ctstate DNAT".into(),
        ])
    }

    fn stray_outer(&self, which: &[String]) -> Vec<String> {
        let port = self.desired.overlay.port;
        let rule = |which| format!("-p udp -m udp --dport {port} {which} -g {NOT_PEER}");
        which.iter().filter(|_| port > 0).map(rule).collect()
    }

    /// What is pinned to a target enters the overlay, or is a reply, or does not pass. What leaves
    /// by another network passes.
    fn guard(&self) -> Vec<String> {
        let reply = format!(
            "-m conntrack --ctdir REPLY {} -j RETURN",
            self.not_pinned(self.bits.answer())
        );
        let last = [
            format!("{} -g {GUARD_ANSWERS}", self.pinned(self.bits.answer())),
            format!("-g {NO_GATEWAY}"),
        ];
        let networks = self
            .networks()
            .map(|(mark, _)| format!("{} -j RETURN", self.pinned(mark)));
        [reply]
            .into_iter()
            .chain(self.each_device("-o", "-j RETURN"))
            .chain(networks)
            .chain(last)
            .collect()
    }

    /// An answer that a target is meant for does not leave by another device, even where somebody
    /// took its mark away. Such answers are rare, so they are classified once more.
    fn guard_answers(&self) -> Vec<String> {
        vec![
            "-m conntrack --ctdir ORIGINAL -j RETURN".into(),
            format!("-j {CLASSIFY}"),
            format!(
                "-m mark ! --mark 0x0/{:#x} -g {NO_GATEWAY}",
                self.bits.mask()
            ),
        ]
    }

    /// Our byte does not travel into the underlay. What exits gets the number of its source, for
    /// the nat table, which can't look it up: before the connection is confirmed, because nobody
    /// translates later packets.
    fn postrouting(&self) -> Vec<String> {
        let mut rules = self.each_device("-o", &Self::mark(0, self.bits.mask()));
        rules.extend(self.each_device("-o", "-j RETURN"));
        rules.extend(self.each_exit(
            "-m conntrack --ctstate NEW ! --ctstatus CONFIRMED ",
            &format!("-j {EXIT}"),
        ));
        rules
    }

    fn exit(&self) -> Vec<String> {
        let found = format!(
            "-m mark ! --mark 0x0/{:#x} -g {EXIT_CLASS}",
            self.bits.scratch()
        );
        vec![
            Self::mark(0, self.bits.all()),
            self.map(Common::Pods),
            found.clone(),
            self.map(Common::Subnets),
            found,
            self.exit_of_unknown(),
        ]
    }

    fn exit_of_unknown(&self) -> String {
        if self.desired.overlay.unknown_may_exit {
            Self::mark(self.bits.number(AS_NODE), self.bits.scratch())
        } else {
            format!("-g {UNKNOWN_SOURCE}")
        }
    }

    /// What nothing was found for does not leave, and neither does what has a verdict without a
    /// source: that is from before this node became the exit.
    fn exit_class(&self) -> Vec<String> {
        let (mask, scratch) = (self.bits.mask(), self.bits.scratch());
        vec![
            format!("-j {CLASS}"),
            format!("-m mark --mark 0x0/{mask:#x} -g {UNKNOWN_SOURCE}"),
            format!(
                "-m mark ! --mark {:#x}/{:#x} -m mark --mark 0x0/{scratch:#x} -g {UNKNOWN_SOURCE}",
                self.bits.byte(PASS_BYTE),
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
    fn sources(&self, mangle: &mut Chains) {
        let others = self
            .addresses()
            .map(|(_, number)| number)
            .chain([AS_SELF])
            .filter(|_| !self.sources_in_dispute);
        let leaves = others
            .chain([AS_NODE])
            .map(|number| (number, "-j RETURN".to_owned()))
            .collect();
        mangle.extend(source_tree(self.bits, &leaves));
    }

    /// Egress addresses of this family, with their numbers.
    fn addresses(&self) -> impl Iterator<Item = (IpAddr, u16)> {
        let own = |(address, _): &(&IpAddr, &u16)| Family::of(**address) == self.family;
        self.numbers
            .addresses
            .iter()
            .filter(own)
            .map(|(address, number)| (*address, *number))
    }

    /// The exempt come first. What is for this host or for a group does not leave the cluster.
    fn classify(&self) -> Vec<String> {
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
    fn to_host_or_group(&self, rest: &str) -> Vec<String> {
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
    fn arrive(&self) -> Vec<String> {
        let icmp = if self.family == Family::V4 {
            "icmp"
        } else {
            "ipv6-icmp"
        };
        let mut rules = vec![format!(
            "-p {icmp} -m addrtype --dst-type LOCAL --limit-iface-in -j RETURN"
        )];
        rules.extend(self.to_host_or_group(&format!("--limit-iface-in -g {UNKNOWN_SOURCE}")));
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
    fn class_of(&self, set: Common) -> [String; 3] {
        [
            Self::mark(0, self.bits.all()),
            self.map(set),
            format!("-g {DECIDE}"),
        ]
    }

    fn decide(&self) -> Vec<String> {
        let mut rules = vec![format!("-j {CLASS}")];
        if self.desired.networks.is_empty() {
            rules.push(Self::mark(0, self.bits.scratch()));
        }
        // Held, or what should say where this class goes is not there.
        rules.push(format!(
            "-m mark --mark 0x0/{:#x} -g {HELD}",
            self.bits.mask()
        ));
        rules.push(format!("-g {VERDICT}"));
        rules
    }

    /// A pod of this node that neither has a class nor is known to have none waits: it is new, or
    /// somebody has flushed what says so. Where sources alone don't tell the node's pods, what did
    /// not come from a pod's device goes on before more is asked.
    fn no_class(&self) -> Vec<String> {
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

    fn gate(&self, pods: Common) -> String {
        let (pod, unknown) = (
            self.set(pods, "src"),
            self.not_in(Common::Ungoverned, "src"),
        );
        format!(
            "{pod} {unknown} {} -g {START_GATE}",
            self.set(Common::Governed, "dst")
        )
    }

    /// Where devices tell together with sources who is a pod of this node: the devices that are
    /// none of a pod's.
    fn outside(&self) -> Option<&OrdSet<String>> {
        self.desired
            .start_gate
            .as_ref()
            .filter(|gate| !gate.wide.is_empty())
            .map(|gate| &gate.outside)
    }

    /// Connection tracking forgets: an entry expires or is deleted here, and the gateway still has
    /// its own. What the server sends next comes to the pod as a new connection from outside, whose
    /// replies nobody would classify. Whoever sends a request begins a connection; anything else
    /// may be such a connection, and is pinned as one. What comes by a service's address still has
    /// that address here.
    fn towards_pod(&self) -> Vec<String> {
        let icmp = if self.family == Family::V4 {
            "icmp"
        } else {
            "ipv6-icmp"
        };
        let pin = self.pin(self.bits.answer());
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

    /// An exact address overwrites what its subnet said.
    fn find_class(&self) -> Vec<String> {
        vec![
            Self::mark(0, self.bits.all()),
            self.map(Common::Subnets),
            self.map(Common::Pods),
        ]
    }

    /// A set's class of the source, where it has one, goes into the mark.
    fn map(&self, set: Common) -> String {
        format!("-j SET --map-set {} src --map-mark", set.name(self.family))
    }

    /// The class of a packet, and the lookup of its destination.
    fn classes(&self, mangle: &mut Chains) {
        let numbers = &self.numbers.classes;
        let leaves = numbers
            .iter()
            .map(|(class, number)| (*number, format!("-g {}", class_chain(*class))))
            .collect();
        mangle.extend(class_tree(self.bits, &leaves));
        for class in numbers.keys() {
            let name = verdicts_set(*class, self.family);
            let rules = if self.sets.contains_key(&name) {
                vec![
                    Self::mark(0, self.bits.scratch()),
                    format!("-j SET --map-set {name} dst --map-mark"),
                ]
            } else {
                vec![Self::mark(self.bits.byte(PASS_BYTE), self.bits.all())]
            };
            mangle.insert(class_chain(*class), rules);
        }
    }

    /// What the byte in the packet mark says. One that no chain is for has no way.
    fn verdicts(&self, mangle: &mut Chains) {
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

    fn bytes<'a>(&'a self, root: &'a str, otherwise: &'a str) -> Bytes<'a> {
        Bytes {
            root,
            otherwise,
            bits: self.bits,
        }
    }

    /// Pins a new connection to `target`, or to this node where it exits here. Of what somebody
    /// outside began, the answers keep the mark that they have and nothing is pinned: another of
    /// them may be on its way. They can't leave from here, where nothing would translate them.
    fn to(&self, target: TargetId) -> Vec<String> {
        let by_network = !self.desired.networks.is_empty();
        let exit = if by_network {
            format!("-j {LEAVE}")
        } else {
            self.pin(self.bits.exit())
        };
        let answers = self.pinned(self.bits.answer());
        let is_steered =
            self.desired.targets.contains(&target) && !self.desired.exits.contains(&target);
        let mut rules = vec![format!("{IS_STRAY} -g {LOST}")];
        // The number of the source is there for those that exit.
        rules.extend(
            (by_network && is_steered)
                .then(|| format!("{answers} {}", Self::mark(0, self.bits.scratch()))),
        );
        rules.extend([
            if is_steered {
                format!("{answers} -j RETURN")
            } else {
                format!("{answers} -g {NO_GATEWAY}")
            },
            Self::mark(0, self.bits.mask()),
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
            rules.extend(by_network.then(|| Self::mark(0, self.bits.scratch())));
            let mark = self.bits.target(target);
            rules.extend([
                format!("-j {STEERED}"),
                self.pin(mark),
                Self::mark(mark, self.bits.mask()),
            ]);
        } else {
            rules.push(format!("-g {NO_GATEWAY}"));
        }
        rules
    }

    /// What comes through the overlay was governed for the node that sent it; here nothing says as
    /// whom it leaves.
    fn unclassified(&self) -> Vec<String> {
        if self.desired.overlay.unknown_may_exit {
            vec![
                format!("{INVALID} -g {UNKNOWN_SOURCE}"),
                format!("{NOT_TRACKED} -g {UNTRACKED}"),
                self.pin(self.bits.exit()),
            ]
        } else {
            vec![format!("-g {UNKNOWN_SOURCE}")]
        }
    }

    /// Where the kernel chooses the source, it takes whatever the device was given first or last,
    /// such as somebody's virtual address. It does so only on a device that nothing is known of, by
    /// the last of `rules`.
    fn snat_node(&self, mut rules: Vec<String>) -> Vec<String> {
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

    fn filter(&self) -> Chains {
        chains([(FORWARD, forwarding(self.desired, self.bits))])
    }

    /// What enters the tunnel keeps its source: it is translated to itself, which keeps every later
    /// masquerade away. What exits has the number of its source in the packet mark. The nat table
    /// can't drop: whatever has no source was dropped before.
    fn nat(&self) -> Chains {
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
                Self::mark(0, self.bits.scratch()),
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
        nat.extend(translation_tree(self.bits, &leaves));
        nat
    }
}

/// A host that drops forwarded packets by default lets pass what exits here for other nodes, and
/// the answers. Only what leaves the cluster: what goes to a pod is for network policies to decide,
/// and on the pod's own node nothing is accepted. What comes from the tunnel and is not tracked
/// leaves as it is.
pub(crate) fn forwarding(desired: &PolicyDesired, bits: MarkLayout) -> Vec<String> {
    let marks = std::iter::once(bits.exit()).chain(
        desired
            .networks
            .keys()
            .map(|network| bits.network(*network)),
    );
    let exits: Vec<String> = marks
        .map(|mark| format!("-m connmark --mark {mark:#x}/{:#x}", bits.mask()))
        .collect();
    let ways = desired.overlay.devices.iter().flat_map(|from| {
        desired
            .ways_out
            .iter()
            .map(move |by| format!("-i {from} -o {by}"))
    });
    let what: Vec<&str> = exits
        .iter()
        .map(String::as_str)
        .chain(["-m conntrack --ctstate UNTRACKED"])
        .collect();
    let accepted = ways.flat_map(|way| {
        what.iter()
            .map(move |what| format!("{way} {what} -j ACCEPT"))
            .collect::<Vec<_>>()
    });
    accepted
        .chain(
            exits
                .iter()
                .map(|exit| format!("{exit} -m conntrack --ctdir REPLY -j ACCEPT")),
        )
        .collect()
}

/// Class to what its destination says. A class that no chain is for (yet) is held: its pods are in
/// the sets, so they are governed.
pub(crate) fn class_tree(bits: MarkLayout, leaves: &BTreeMap<u16, String>) -> Chains {
    numbers(CLASS, bits, leaves, &format!("-g {HELD}"))
}

/// Sources that the nat table knows; others do not leave.
pub(crate) fn source_tree(bits: MarkLayout, leaves: &BTreeMap<u16, String>) -> Chains {
    numbers(SOURCE, bits, leaves, &format!("-g {UNKNOWN_SOURCE}"))
}

/// Source to its translation.
pub(crate) fn translation_tree(bits: MarkLayout, leaves: &BTreeMap<u16, String>) -> Chains {
    numbers(SOURCE, bits, leaves, &format!("-g {SNAT_NODE}"))
}

fn numbers(
    root: &str,
    bits: MarkLayout,
    leaves: &BTreeMap<u16, String>,
    otherwise: &str,
) -> Chains {
    let mut tree = Chains::new();
    Tree {
        root,
        width: 16,
        place: &|number| bits.number(number),
        otherwise: Some(otherwise),
    }
    .grow(&mut tree, leaves);
    tree
}

/// A tree over our byte.
struct Bytes<'a> {
    root: &'a str,
    otherwise: &'a str,
    bits: MarkLayout,
}

impl Bytes<'_> {
    fn grow(&self, chains: &mut Chains, leaves: &BTreeMap<u16, String>) {
        let place = |byte: u16| self.bits.byte(u8::try_from(byte).unwrap_or(u8::MAX));
        Tree {
            root: self.root,
            width: 8,
            place: &place,
            otherwise: Some(self.otherwise),
        }
        .grow(chains, leaves);
    }
}
