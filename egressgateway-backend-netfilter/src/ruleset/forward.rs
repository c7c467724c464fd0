//! What is forwarded leaves by the way that its pin says, or not at all.

use egressgateway::PolicyDesired;

use crate::{
    mark_layout::MarkLayout,
    names::{
        CLASS, CLASSIFY, Common, ENDING, FIRST, FORWARD, GUARD, GUARD_ANSWERS, LET_GO, NO_GATEWAY,
        OPENING, TRANSLATED, TUNNELLED, UNPINNED,
    },
    ruleset::{
        render::{Render, chains},
        tree::Chains,
    },
    sets::content::PASS_BYTE,
};

/// A host that drops forwarded packets by default lets pass what exits here for other nodes, and
/// the answers. Only what leaves the cluster: what goes to a pod is for network policies to decide,
/// and on the pod's own node nothing is accepted. What comes from the tunnel and is not tracked
/// leaves as it is.
pub(crate) fn forwarding(desired: &PolicyDesired, layout: MarkLayout) -> Vec<String> {
    let marks = std::iter::once(layout.exit()).chain(
        desired
            .networks
            .keys()
            .map(|network| layout.network(*network)),
    );
    let exits: Vec<String> = marks
        .map(|mark| format!("-m connmark --mark {mark:#x}/{:#x}", layout.mask()))
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

impl Render<'_> {
    /// What this host translates to an address of the cluster, such as from a load balancer's that
    /// this node holds, stays inside.
    pub(super) fn unpinned(&self) -> Vec<String> {
        let outside = self.not_in(Common::Exempt, "dst");
        self.each_device(
            "-i",
            &format!("-m conntrack --ctstate DNAT --ctdir ORIGINAL {outside} -g {ENDING}"),
        )
    }

    /// What is ours leaves through the overlay or, with the exit's byte, from here; lost rules,
    /// routes and devices change nothing about that. What came through the overlay does not enter
    /// it again.
    pub(super) fn forward(&self) -> Vec<String> {
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
        rules.push(format!(
            "{} -j {GUARD}",
            self.not_pinned(self.layout.exit())
        ));
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
    pub(super) fn opening(&self) -> Vec<String> {
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
    pub(super) fn first(&self) -> Vec<String> {
        let mut rules = self.not_tunnel(&[format!(
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
    pub(super) fn translated(&self) -> Vec<String> {
        let (mask, scratch) = (self.layout.mask(), self.layout.scratch());
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
                self.layout.byte(PASS_BYTE)
            ),
            Self::mark(0, mask),
        ]);
        rules
    }

    /// What is pinned to a target enters the overlay, or is a reply, or does not pass. What leaves
    /// by another network passes.
    pub(super) fn guard(&self) -> Vec<String> {
        let reply = format!(
            "-m conntrack --ctdir REPLY {} -j RETURN",
            self.not_pinned(self.layout.answer())
        );
        let last = [
            format!("{} -g {GUARD_ANSWERS}", self.pinned(self.layout.answer())),
            format!("-g {NO_GATEWAY}"),
        ];
        let networks = self
            .networks()
            .map(|(mark, _)| format!("{} -j RETURN", self.pinned(mark)));
        // What this node translated itself for a target that exits here leaves by any device. Its
        // source is the egress address: a connection that began before that is not let out.
        let here = self.distributed_here().flat_map(|target| {
            let pinned = self.pinned(self.layout.target(target));
            [
                format!("{pinned} -m conntrack --ctstate SNAT -j RETURN"),
                format!("{pinned} -m conntrack ! --ctstatus CONFIRMED -j RETURN"),
            ]
        });
        [reply]
            .into_iter()
            .chain(self.each_device("-o", "-j RETURN"))
            .chain(networks)
            .chain(here)
            .chain(last)
            .collect()
    }

    /// An answer that a target is meant for does not leave by another device, even where somebody
    /// took its mark away. Such answers are rare, so they are classified once more.
    pub(super) fn guard_answers(&self) -> Vec<String> {
        vec![
            "-m conntrack --ctdir ORIGINAL -j RETURN".into(),
            format!("-j {CLASSIFY}"),
            format!(
                "-m mark ! --mark 0x0/{:#x} -g {NO_GATEWAY}",
                self.layout.mask()
            ),
        ]
    }

    pub(super) fn filter(&self) -> Chains {
        chains([(FORWARD, forwarding(self.desired, self.layout))])
    }
}
