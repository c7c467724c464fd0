//! What each packet that arrives is asked, and what becomes of later ones of a connection.

use egressgateway::model::TargetId;

use crate::{
    names::{
        ANSWERS, ARRIVE_UNPINNED, CLASSIFY, Common, ENDING, HERE, INVALID_UNTRACKED, LET_GO,
        NO_GATEWAY, STEER, is_device,
    },
    ruleset::{
        render::{INVALID_OR_UNTRACKED, Render},
        tree::Chains,
    },
};

impl Render<'_> {
    /// What has an egress address of another network leaves by that one: the number of the source
    /// says so.
    pub(super) fn leave(&self) -> Vec<String> {
        let scratch = self.layout.scratch();
        let by_network = self.networks().flat_map(|(mark, network)| {
            let numbers = network
                .addresses
                .iter()
                .filter_map(|address| self.numbers.addresses.get(address));
            numbers.map(move |number| {
                format!(
                    "-m mark --mark {:#x}/{scratch:#x} {}",
                    self.layout.number(*number),
                    self.pin(mark)
                )
            })
        });
        let marks = self.networks().map(|(mark, _)| {
            format!(
                "{} {}",
                self.pinned(mark),
                Self::mark(mark, self.layout.mask())
            )
        });
        std::iter::once(self.pin(self.layout.exit()))
            .chain(by_network)
            .chain([Self::mark(0, scratch)])
            .chain(marks)
            .collect()
    }

    /// Replies go back as they came. A packet that belongs to no connection can be neither pinned
    /// nor translated, so it is classified to be dropped if it is governed. Who pins a connection
    /// marks its first packet as well.
    pub(super) fn prerouting(&self) -> Vec<String> {
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
                format!("{from} {}", Self::mark(mark, self.layout.mask()))
            });
        answers.chain(self.prerouting_without_networks()).collect()
    }

    /// What most packets meet comes first: they follow their connection's pin. Nothing of this
    /// matches a packet that nobody tracks but the rule for those.
    pub(super) fn prerouting_without_networks(&self) -> Vec<String> {
        let mut rules = vec![
            format!(
                "-m conntrack --ctdir REPLY {} -j RETURN",
                self.not_pinned(self.layout.answer())
            ),
            format!("{} -j RETURN", self.pinned(self.layout.exit())),
            format!("{} -g {STEER}", self.not_pinned(0)),
            // A connection that was translated when it began was classified by the address that it
            // goes to.
            format!("-m conntrack --ctstate NEW -m conntrack ! --ctstate DNAT -g {CLASSIFY}"),
            format!("{INVALID_OR_UNTRACKED} -g {INVALID_UNTRACKED}"),
        ];
        rules.extend(self.each_device("-i", &format!("-g {ARRIVE_UNPINNED}")));
        rules
    }

    /// What we do not track ourselves goes on: the tunnel's own packets, which are many, and with a
    /// mark that has done its work what keeps its source. The rest is classified.
    pub(super) fn invalid_untracked(&self) -> Vec<String> {
        let (mask, kept) = (self.layout.mask(), self.layout.answer());
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
    /// Where somebody translated it, `EGW-UNPINNED` sees where that leads.
    pub(super) fn arrive_unpinned(&self) -> Vec<String> {
        vec![
            format!(
                "-m conntrack --ctstate DNAT {} -j RETURN",
                self.not_in(Common::Exempt, "dst")
            ),
            "-m addrtype --dst-type LOCAL --limit-iface-in -j RETURN".into(),
            format!("-g {ENDING}"),
        ]
    }

    /// Where somebody outside began, towards a pod, each answer is classified like a first packet:
    /// the pod may have begun it before that, and only a gateway still knows.
    pub(super) fn answers(&self) -> Vec<String> {
        vec![
            Self::mark(0, self.layout.mask()),
            "-m conntrack --ctdir ORIGINAL -j RETURN".into(),
            format!("-g {CLASSIFY}"),
        ]
    }

    /// Later packets follow the pin; a target that is gone has no way.
    pub(super) fn steer(&self, mangle: &mut Chains) {
        let networks = self.desired.networks.keys().map(|network| network.byte());
        let known = self
            .desired
            .targets
            .iter()
            .map(|target| target.byte())
            .chain(networks);
        let known = known.map(|byte| (u16::from(byte), "-j RETURN".to_owned()));
        let here = self
            .distributed_here()
            .map(|target| (u16::from(target.byte()), format!("-g {HERE}")));
        let leaves = known
            .chain([(u16::from(TargetId::ANSWER_BYTE), format!("-g {ANSWERS}"))])
            .chain(here)
            .collect();
        let mut tree = Chains::new();
        let otherwise = format!("-g {NO_GATEWAY}");
        self.bytes(STEER, &otherwise).grow(&mut tree, &leaves);
        let mask = self.layout.mask();
        if let Some(root) = tree.get_mut(STEER) {
            root.insert(
                0,
                format!("-j CONNMARK --restore-mark --nfmask {mask:#x} --ctmask {mask:#x}"),
            );
        }
        mangle.extend(tree);
    }
}
