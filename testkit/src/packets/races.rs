//! Packets that come while the rules change.

use egressgateway::{
    model::SourceNat,
    testing::worlds::{class, client, egress, gateway, ip, range},
};

use super::lab::{Backend, Host, Lab};
use crate::netns::in_namespace;

/// A packet that comes while the rules change meets the old ones or the new ones, or is dropped;
/// never half of each.
///
/// # Panics
/// When a packet goes elsewhere.
pub fn a_class_that_comes_changes_and_goes_lets_nothing_out_in_between<D: Backend>(host: Host<D>) {
    /// How often all of it happens.
    const ROUNDS: usize = 40;
    in_namespace(move || async move {
        let lab = Lab::new(&host);
        // Who leads nowhere is held by the start gate; the others are steered. Nobody is let go.
        let mut unknown = client();
        for pod in ["10.244.1.10", "fd10:244:1::10"] {
            unknown.pods.remove(&ip(pod));
            unknown
                .start_gate
                .get_or_insert_default()
                .known
                .remove(&ip(pod));
        }
        unknown.destinations = unknown
            .destinations
            .into_iter()
            .filter(|((of, _), _)| *of != class(1))
            .collect();
        unknown.subnets = unknown
            .subnets
            .into_iter()
            .filter(|(_, of)| *of != class(1))
            .collect();
        let mut split = client();
        for (whole, parts) in [
            (
                "10.6.1.78-10.6.1.255",
                ["10.6.1.78-10.6.1.99", "10.6.1.100-10.6.1.255"],
            ),
            ("fd00::1:0/112", ["fd00::1:0/113", "fd00::1:8000/113"]),
        ] {
            split.destinations.remove(&(class(1), range(whole)));
            split.destinations.extend(parts.map(|part| {
                (
                    (class(1), range(part)),
                    egress(0x11, SourceNat::NodeAddress),
                )
            }));
        }
        let mut other = unknown.clone();
        for (pod, net) in [
            ("10.244.1.10", "10.6.0.0/16"),
            ("fd10:244:1::10", "fd00::/64"),
        ] {
            other.pods.insert(ip(pod), class(7));
            other
                .start_gate
                .get_or_insert_default()
                .known
                .insert(ip(pod));
            other
                .destinations
                .insert((class(7), range(net)), egress(0x11, SourceNat::NodeAddress));
        }
        lab.race(
            &lab.pod,
            &["10.6.1.92", "fd00::1:92"],
            ROUNDS,
            &[unknown, client(), split, other, client()],
        )
        .await;
        let counted = lab.counted().await;
        let [held, tunnelled] = ["drop_start_gate", "tunnelled"].map(|counter| counted[counter]);
        assert!(held > 0 && tunnelled > 0, "{counted:?}");
        assert_eq!(
            lab.server.seen_at_all(),
            "",
            "of {held} held and {tunnelled} steered"
        );
    });
}

/// The same at the exit.
///
/// # Panics
/// When a packet goes elsewhere.
pub fn an_exit_that_changes_uses_the_old_source_or_the_new_one<D: Backend>(host: Host<D>) {
    /// How often all of it happens.
    const ROUNDS: usize = 40;
    in_namespace(move || async move {
        let lab = Lab::new(&host);
        let mut unknown = gateway();
        unknown.destinations = unknown
            .destinations
            .into_iter()
            .filter(|((of, _), _)| *of != class(2))
            .collect();
        unknown.subnets = unknown
            .subnets
            .into_iter()
            .filter(|(_, of)| *of != class(2))
            .collect();
        let [one, other] = ["10.6.0.201", "10.6.0.202"].map(|source| {
            let mut desired = gateway();
            desired.destinations.remove(&(class(2), range("0.0.0.0/0")));
            desired.destinations.insert(
                (class(2), range("10.6.1.0/24")),
                egress(0x11, SourceNat::Address(ip(source))),
            );
            desired
        });
        lab.race(
            &lab.far,
            &["10.6.1.92"],
            ROUNDS,
            &[unknown, one.clone(), other, one],
        )
        .await;
        let counted = lab.counted().await;
        assert!(counted["drop_unknown_source"] > 0, "{counted:?}");
        let seen = ["10.6.0.201", "10.6.0.202"].map(|source| lab.server.seen(source));
        assert!(seen.iter().all(|seen| *seen > 0), "{seen:?}");
        assert_eq!(
            lab.server
                .run("nft list set inet seen from4 | grep -o ' counter packets' | wc -l"),
            "2\n",
            "no other source than these"
        );
    });
}
