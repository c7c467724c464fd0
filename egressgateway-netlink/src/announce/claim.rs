//! What a frame says about who has an address. Frames come from anybody: nothing in them is
//! believed before it was checked.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use egressgateway::model::MacAddress;

use super::frames::{
    ARP_ETHERNET, ARP_REPLY, ARP_REQUEST, ETHERTYPE_ARP, ETHERTYPE_IPV4, ETHERTYPE_IPV6, HOP_LIMIT,
    ICMPV6, NEIGHBOUR_ADVERTISEMENT, TARGET_LINK_LAYER, pseudo_header,
};
use crate::echo::checksum;

/// Bit of the flags of a neighbour advertisement that was asked for (RFC 4861, 4.4).
const SOLICITED: u8 = 0x40;
/// Header of a neighbour advertisement, with the target.
const ADVERTISEMENT: usize = 24;

/// Somebody has an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Claim {
    pub(super) address: IpAddr,
    /// Where it says that it is.
    pub(super) mac: MacAddress,
    /// Who sent the frame.
    pub(super) sender: MacAddress,
}

/// Reads an Ethernet frame. What says of no address that somebody has it, or is not as it must be,
/// claims nothing: a probe without a sender's address is a question.
pub(super) fn claim(frame: &[u8]) -> Option<Claim> {
    let (head, packet) = frame.split_at_checked(14)?;
    let sender = MacAddress(head[6..12].try_into().ok()?);
    let (address, mac) = match word(head, 12)? {
        ETHERTYPE_ARP => arp(packet)?,
        ETHERTYPE_IPV6 => advertisement(packet, sender)?,
        _ => return None,
    };
    // A group, everybody, or nobody is no host's hardware address (RFC 1812, 3.3.2).
    let host = |mac: MacAddress| mac.0[0] & 1 == 0 && mac.0 != [0; 6];
    (host(mac) && host(sender)).then_some(Claim {
        address,
        mac,
        sender,
    })
}

/// Whoever sends an ARP packet with an address has it (RFC 5227, 2.4).
fn arp(packet: &[u8]) -> Option<(IpAddr, MacAddress)> {
    let packet: &[u8; 28] = packet.first_chunk()?;
    let kind = word(packet, 0)? == ARP_ETHERNET
        && word(packet, 2)? == ETHERTYPE_IPV4
        && packet[4..6] == [6, 4];
    let said = [ARP_REQUEST, ARP_REPLY].contains(&word(packet, 6)?);
    let address = Ipv4Addr::from(*packet[14..].first_chunk::<4>()?);
    (kind && said && !address.is_unspecified())
        .then_some((address.into(), MacAddress(*packet[8..].first_chunk()?)))
}

/// Checked as RFC 4861, 7.1.2 says. In a packet with further headers there is no valid one (RFC
/// 6980).
fn advertisement(packet: &[u8], sender: MacAddress) -> Option<(IpAddr, MacAddress)> {
    let (head, rest) = packet.split_at_checked(40)?;
    let length = word(head, 4)?;
    let message = rest.get(..usize::from(length))?;
    let [source, destination] = [8, 24].map(|at| {
        head[at..]
            .first_chunk::<16>()
            .map(|octets| Ipv6Addr::from(*octets))
    });
    let (source, destination) = (source?, destination?);
    if head[0] >> 4 != 6 || head[6..8] != [ICMPV6, HOP_LIMIT] || message.len() < ADVERTISEMENT {
        return None;
    }
    let whole = checksum(&[&pseudo_header(source, destination, length), message].concat()) == 0;
    let unasked = message[4] & SOLICITED == 0;
    if !whole
        || message[..2] != [NEIGHBOUR_ADVERTISEMENT, 0]
        || (destination.is_multicast() && !unasked)
    {
        return None;
    }
    let target = Ipv6Addr::from(*message[8..].first_chunk::<16>()?);
    let mac = target_link_layer(&message[ADVERTISEMENT..], sender)?;
    (!target.is_multicast() && !target.is_unspecified()).then_some((target.into(), mac))
}

/// What the option says that the advertisement may have, and without one the sender; none where the
/// options are none.
fn target_link_layer(mut options: &[u8], sender: MacAddress) -> Option<MacAddress> {
    let mut mac = sender;
    while !options.is_empty() {
        // In units of eight bytes; nothing is shorter than its own length.
        let length = usize::from(*options.get(1)?) * 8;
        let (option, rest) = options
            .split_at_checked(length)
            .filter(|(option, _)| !option.is_empty())?;
        if option[..2] == TARGET_LINK_LAYER {
            mac = MacAddress(*option[2..].first_chunk()?);
        }
        options = rest;
    }
    Some(mac)
}

fn word(bytes: &[u8], at: usize) -> Option<u16> {
    bytes
        .get(at..)?
        .first_chunk()
        .copied()
        .map(u16::from_be_bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{super::frames, *};

    const MAC: MacAddress = MacAddress([2, 0, 0, 0, 0, 0x0b]);

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    /// The frame with these bytes from a place on, and with a checksum that covers them.
    fn with(frame: &[u8], at: usize, bytes: &[u8]) -> Vec<u8> {
        let mut frame = frame.to_vec();
        frame[at..at + bytes.len()].copy_from_slice(bytes);
        if frame[12..14] == ETHERTYPE_IPV6.to_be_bytes() {
            let [source, destination] =
                [22, 38].map(|at| Ipv6Addr::from(*frame[at..].first_chunk::<16>().unwrap()));
            frame[56..58].fill(0);
            let length = u16::from_be_bytes([frame[18], frame[19]]);
            let sum =
                checksum(&[&pseudo_header(source, destination, length), &frame[54..]].concat());
            frame[56..58].copy_from_slice(&sum.to_be_bytes());
        }
        frame
    }

    fn advertised() -> Vec<u8> {
        frames::announcements(address("fd00:6::60"), MAC).remove(0)
    }

    fn arps() -> Vec<Vec<u8>> {
        frames::announcements(address("10.6.0.60"), MAC)
    }

    #[test]
    fn announcements_are_claims_and_questions_are_none() {
        for text in ["10.6.0.60", "fd00:6::60"] {
            let said = Some(Claim {
                address: address(text),
                mac: MAC,
                sender: MAC,
            });
            for frame in frames::announcements(address(text), MAC) {
                assert_eq!(claim(&frame), said, "{text}");
                let padded = [frame.as_slice(), &[0; 18]].concat();
                assert_eq!(claim(&padded), said, "{text}, padded to the shortest frame");
            }
            assert_eq!(claim(&frames::question(address(text), MAC)), None, "{text}");
        }
    }

    #[test]
    fn every_packet_that_has_the_address_as_its_sender_is_a_claim() {
        // A request for somebody else's address.
        let asks = with(&arps()[0], 38, &[10, 6, 0, 9]);
        assert_eq!(
            claim(&asks).map(|claim| claim.address),
            Some(address("10.6.0.60"))
        );
    }

    #[test]
    fn the_hardware_address_is_the_one_that_is_stated_and_without_one_the_senders() {
        let other = [2, 0, 0, 0, 0, 0x0c];
        let stated = claim(&with(&advertised(), 80, &other)).unwrap();
        assert_eq!((stated.mac, stated.sender), (MacAddress(other), MAC));
        assert_eq!(
            claim(&with(&advertised(), 78, &[1])).unwrap().mac,
            MAC,
            "the option is another one"
        );
        let bare = with(&advertised()[..78], 18, &[0, 24]);
        assert_eq!(claim(&bare).unwrap().mac, MAC);
    }

    #[test]
    fn what_is_not_as_it_must_be_claims_nothing() {
        let frame = &arps()[1];
        for (at, bytes, why) in [
            (12, [0x08, 0x00].as_slice(), "no ARP"),
            (14, &[0, 6], "no Ethernet"),
            (16, &[0x86, 0xdd], "no IPv4"),
            (18, &[8], "another length of hardware addresses"),
            (19, &[16], "another length of addresses"),
            (20, &[0, 3], "another operation"),
            (22, &[0; 6], "nobody's hardware address"),
            (22, &[0xff; 6], "everybody's"),
            (6, &[1, 0, 0x5e], "sent by a group"),
            (28, &[0; 4], "no address"),
        ] {
            assert_eq!(claim(&with(frame, at, bytes)), None, "{why}");
        }
        let frame = advertised();
        for (at, bytes, why) in [
            (14, [0x40].as_slice(), "another version"),
            (19, &[0], "no message"),
            (19, &[23], "a message that is too short"),
            (19, &[31], "an option that ends after the message"),
            (20, &[17], "no ICMPv6"),
            (20, &[44], "a fragment"),
            (21, &[254], "forwarded"),
            (54, &[135], "a solicitation"),
            (55, &[1], "another code"),
            (58, &[SOLICITED], "asked for, and to a group"),
            (62, &[0xff, 2], "a group"),
            (62, &[0; 16], "no address"),
            (79, &[0], "an option that is nothing"),
            (79, &[2], "an option that is too long"),
            (80, &[0x33, 0x33], "a group's hardware address"),
        ] {
            assert_eq!(claim(&with(&frame, at, bytes)), None, "{why}");
        }
        let mut damaged = frame;
        damaged[57] ^= 1;
        assert_eq!(claim(&damaged), None, "the checksum");
    }

    #[test]
    fn a_frame_that_is_cut_off_claims_nothing() {
        for frame in arps().into_iter().chain([advertised()]) {
            for end in 0..frame.len() {
                assert_eq!(claim(&frame[..end]), None, "at {end}");
            }
        }
    }

    proptest! {
        /// Neither is read past its end.
        #[test]
        fn any_frame_can_be_read(noise in proptest::collection::vec(any::<u8>(), 0..200), v6: bool, keep in 12_usize..86) {
            let known = if v6 { advertised() } else { arps().remove(0) };
            let _ = claim(&noise);
            let keep = keep.min(known.len());
            let _ = claim(&[&known[..keep], noise.as_slice()].concat());
        }
    }
}
