//! The frames of announcements and questions, byte by byte.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use egressgateway::model::MacAddress;

use crate::echo::checksum;

/// Everybody on an Ethernet.
const BROADCAST: [u8; 6] = [0xff; 6];
/// All nodes on the link (RFC 4291, 2.7.1), and their Ethernet address (RFC 2464, 7).
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const ALL_NODES_MAC: [u8; 6] = [0x33, 0x33, 0, 0, 0, 1];

// Types of Ethernet frames.
pub(super) const ETHERTYPE_IPV4: u16 = 0x0800;
pub(super) const ETHERTYPE_ARP: u16 = 0x0806;
pub(super) const ETHERTYPE_IPV6: u16 = 0x86dd;

/// ARP over Ethernet, and its operations (RFC 826).
pub(super) const ARP_ETHERNET: u16 = 1;
pub(super) const ARP_REQUEST: u16 = 1;
pub(super) const ARP_REPLY: u16 = 2;

/// Protocol number of ICMPv6 (RFC 4443).
pub(super) const ICMPV6: u8 = 58;
/// Only what was never forwarded has it, and neighbours believe nothing else (RFC 4861, 7.1.2).
pub(super) const HOP_LIMIT: u8 = 255;
/// A neighbour solicitation (RFC 4861, 4.3).
const NEIGHBOUR_SOLICITATION: u8 = 135;
/// A neighbour advertisement (RFC 4861, 4.4) that overrides what neighbours know. Not solicited;
/// and no word of a router, because nobody's route leads to an egress address.
pub(super) const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
const OVERRIDE: u8 = 0x20;
/// Option "target link-layer address", in units of eight bytes (RFC 4861, 4.6.1).
pub(super) const TARGET_LINK_LAYER: [u8; 2] = [2, 1];

/// What all neighbours must hear so that they send packets for `address` to `mac` from now on.
pub(super) fn announcements(address: IpAddr, mac: MacAddress) -> Vec<Vec<u8>> {
    match address {
        // Sender and target are the same address: an announcement (RFC 5227, 1.1).
        IpAddr::V4(address) => [ARP_REQUEST, ARP_REPLY]
            .map(|operation| arp(operation, mac, address, address))
            .into(),
        IpAddr::V6(address) => vec![advertisement(address, mac)],
    }
}

/// Asks who else has `address`, and tells nobody that it is at `mac`: the sender has no address yet
/// (RFC 5227, 1.1, and RFC 4862, 5.4.2).
pub(super) fn question(address: IpAddr, mac: MacAddress) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => arp(ARP_REQUEST, mac, Ipv4Addr::UNSPECIFIED, address),
        IpAddr::V6(address) => solicitation(address, mac),
    }
}

fn arp(operation: u16, mac: MacAddress, sender: Ipv4Addr, address: Ipv4Addr) -> Vec<u8> {
    // Nobody is asked in a request; in an answer the target is whom it is sent to.
    let target = if operation == ARP_REQUEST {
        [0; 6]
    } else {
        BROADCAST
    };
    let mut frame = ethernet(BROADCAST, mac, ETHERTYPE_ARP);
    frame.extend(ARP_ETHERNET.to_be_bytes());
    frame.extend(ETHERTYPE_IPV4.to_be_bytes());
    frame.extend([6, 4]); // Lengths of the addresses.
    frame.extend(operation.to_be_bytes());
    frame.extend(mac.0);
    frame.extend(sender.octets());
    frame.extend(target);
    frame.extend(address.octets());
    frame
}

fn advertisement(address: Ipv6Addr, mac: MacAddress) -> Vec<u8> {
    let mut message = vec![NEIGHBOUR_ADVERTISEMENT, 0, 0, 0, OVERRIDE, 0, 0, 0];
    message.extend(address.octets());
    message.extend(TARGET_LINK_LAYER);
    message.extend(mac.0);
    icmpv6(
        ethernet(ALL_NODES_MAC, mac, ETHERTYPE_IPV6),
        address,
        ALL_NODES,
        message,
    )
}

/// No option says where the sender is: without an address it must not.
fn solicitation(address: Ipv6Addr, mac: MacAddress) -> Vec<u8> {
    let mut message = vec![NEIGHBOUR_SOLICITATION, 0, 0, 0, 0, 0, 0, 0];
    message.extend(address.octets());
    // The solicited-node group (RFC 4291, 2.7.1), and its Ethernet address (RFC 2464, 7).
    let [.., a, b, c] = address.octets();
    let group = Ipv6Addr::new(
        0xff02,
        0,
        0,
        0,
        0,
        1,
        0xff00 | u16::from(a),
        u16::from_be_bytes([b, c]),
    );
    icmpv6(
        ethernet([0x33, 0x33, 0xff, a, b, c], mac, ETHERTYPE_IPV6),
        Ipv6Addr::UNSPECIFIED,
        group,
        message,
    )
}

/// A whole frame from its head and a message whose checksum is not filled in.
fn icmpv6(
    mut frame: Vec<u8>,
    source: Ipv6Addr,
    destination: Ipv6Addr,
    mut message: Vec<u8>,
) -> Vec<u8> {
    let length = u16::try_from(message.len()).unwrap_or_default();
    let sum = checksum(
        &[
            &pseudo_header(source, destination, length),
            message.as_slice(),
        ]
        .concat(),
    );
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    frame.extend([0x60, 0, 0, 0]); // Version 6, no class, no flow.
    frame.extend(length.to_be_bytes());
    frame.extend([ICMPV6, HOP_LIMIT]);
    frame.extend(source.octets());
    frame.extend(destination.octets());
    frame.extend(message);
    frame
}

/// What the checksum covers besides the message (RFC 8200, 8.1).
pub(super) fn pseudo_header(source: Ipv6Addr, destination: Ipv6Addr, length: u16) -> Vec<u8> {
    let [high, low] = length.to_be_bytes();
    [
        source.octets().as_slice(),
        &destination.octets(),
        &[0, 0, high, low, 0, 0, 0, ICMPV6],
    ]
    .concat()
}

fn ethernet(destination: [u8; 6], source: MacAddress, kind: u16) -> Vec<u8> {
    [destination.as_slice(), &source.0, &kind.to_be_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: MacAddress = MacAddress([2, 0, 0, 0, 0, 0x0b]);

    fn bytes(text: &str) -> Vec<u8> {
        text.split_whitespace()
            .map(|byte| u8::from_str_radix(byte, 16).unwrap())
            .collect()
    }

    #[test]
    fn gratuitous_arp_is_a_request_and_an_answer_to_everybody() {
        let head = "ff ff ff ff ff ff 02 00 00 00 00 0b 08 06 00 01 08 00 06 04";
        let sender = "02 00 00 00 00 0b 0a 06 00 3c";
        let request = format!("{head} 00 01 {sender} 00 00 00 00 00 00 0a 06 00 3c");
        let answer = format!("{head} 00 02 {sender} ff ff ff ff ff ff 0a 06 00 3c");
        assert_eq!(
            announcements([10, 6, 0, 60].into(), MAC),
            [bytes(&request), bytes(&answer)]
        );
    }

    #[test]
    fn an_unsolicited_advertisement_overrides_and_goes_to_all_nodes() {
        let address: Ipv6Addr = "fd00:6::60".parse().unwrap();
        let [frame] = announcements(address.into(), MAC).try_into().unwrap();
        let source = "fd 00 00 06 00 00 00 00 00 00 00 00 00 00 00 60";
        let head = format!(
            "33 33 00 00 00 01 02 00 00 00 00 0b 86 dd 60 00 00 00 00 20 3a ff {source} ff 02 00 00 00 00 00 00 00 00 00 00 00 00 00 01"
        );
        let message = format!("88 00 00 00 20 00 00 00 {source} 02 01 02 00 00 00 00 0b");
        let (expected_head, mut expected) = (bytes(&head), bytes(&message));
        assert_eq!(frame[..54], expected_head);
        expected[2..4].copy_from_slice(&frame[56..58]);
        assert_eq!(frame[54..], expected);
        assert_eq!(
            checksum(&[pseudo_header(address, ALL_NODES, 32), frame[54..].to_vec()].concat()),
            0,
            "the sum of all words"
        );
    }

    #[test]
    fn a_question_has_no_senders_address() {
        let head = "ff ff ff ff ff ff 02 00 00 00 00 0b 08 06 00 01 08 00 06 04 00 01";
        let probe = format!("{head} 02 00 00 00 00 0b 00 00 00 00 00 00 00 00 00 00 0a 06 00 3c");
        assert_eq!(question([10, 6, 0, 60].into(), MAC), bytes(&probe));

        let address: Ipv6Addr = "fd00:6::ab12:3460".parse().unwrap();
        let group: Ipv6Addr = "ff02::1:ff12:3460".parse().unwrap();
        let frame = question(address.into(), MAC);
        let head = format!(
            "33 33 ff 12 34 60 02 00 00 00 00 0b 86 dd 60 00 00 00 00 18 3a ff {} ff 02 00 00 00 00 00 00 00 00 00 01 ff 12 34 60",
            "00 ".repeat(16)
        );
        let message = "87 00 00 00 00 00 00 00 fd 00 00 06 00 00 00 00 00 00 00 00 ab 12 34 60";
        let (expected_head, mut expected) = (bytes(&head), bytes(message));
        assert_eq!(frame[..54], expected_head);
        expected[2..4].copy_from_slice(&frame[56..58]);
        assert_eq!(frame[54..], expected);
        assert_eq!(
            checksum(
                &[
                    pseudo_header(Ipv6Addr::UNSPECIFIED, group, 24),
                    frame[54..].to_vec()
                ]
                .concat()
            ),
            0
        );
    }
}
