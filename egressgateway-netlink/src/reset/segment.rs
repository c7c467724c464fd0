//! Segments of TCP without options or data, byte by byte (RFC 9293, 3.1).

use std::net::{IpAddr, SocketAddr};

use crate::echo::checksum;

pub(super) const RST: u8 = 0x04;
pub(super) const ACK: u8 = 0x10;

/// Protocol number of TCP, and the length of its header without options.
const TCP: u8 = 6;
const HEADER: usize = 20;
/// Length of the IPv6 header.
const HEADER_V6: usize = 40;
const TTL: u8 = 64;
/// Where a fragment belongs in an IPv4 packet, which is 0 of the first.
const FRAGMENT: u16 = 0x1fff;

/// What a segment says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Segment {
    pub(super) from: SocketAddr,
    pub(super) to: SocketAddr,
    pub(super) sequence: u32,
    pub(super) acknowledges: u32,
    pub(super) flags: u8,
}

impl Segment {
    /// The packet; none where the ends are of two families.
    pub(super) fn packet(&self) -> Option<Vec<u8>> {
        let mut segment = [self.from.port().to_be_bytes(), self.to.port().to_be_bytes()].concat();
        segment.extend(self.sequence.to_be_bytes());
        segment.extend(self.acknowledges.to_be_bytes());
        segment.extend([0x50, self.flags]); // The header has five words.
        segment.extend([0; 6]); // Window, checksum, urgent pointer.
        let [high, low] = u16::try_from(HEADER).unwrap_or_default().to_be_bytes();
        let (mut packet, pseudo) = match (self.from.ip(), self.to.ip()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                let ends = [from.octets(), to.octets()].concat();
                let mut header = [
                    &[0x45, 0, 0, 40, 0, 0, 0, 0, TTL, TCP, 0, 0],
                    ends.as_slice(),
                ]
                .concat();
                let sum = checksum(&header);
                header[10..12].copy_from_slice(&sum.to_be_bytes());
                (header, [ends.as_slice(), &[0, TCP, high, low]].concat())
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                let ends = [from.octets(), to.octets()].concat();
                let header = [&[0x60, 0, 0, 0, high, low, TCP, TTL], ends.as_slice()].concat();
                (
                    header,
                    [ends.as_slice(), &[0, 0, high, low, 0, 0, 0, TCP]].concat(),
                )
            }
            _ => return None,
        };
        let sum = checksum(&[pseudo, segment.clone()].concat());
        segment[16..18].copy_from_slice(&sum.to_be_bytes());
        packet.extend(segment);
        Some(packet)
    }

    /// Reads a packet; none where it is no whole segment of TCP.
    pub(super) fn read(packet: &[u8]) -> Option<Self> {
        let (from, to, segment) = match packet.first()? >> 4 {
            4 => {
                let header = packet.get(..20).filter(|header| {
                    header[9] == TCP && u16::from_be_bytes([header[6], header[7]]) & FRAGMENT == 0
                })?;
                let ends = [&header[12..16], &header[16..20]]
                    .map(|end| <[u8; 4]>::try_from(end).map(IpAddr::from));
                let [from, to] = ends;
                (
                    from.ok()?,
                    to.ok()?,
                    packet.get(usize::from(header[0] & 0xf) * 4..)?,
                )
            }
            6 => {
                let header = packet.get(..HEADER_V6).filter(|header| header[6] == TCP)?;
                let ends = [&header[8..24], &header[24..40]]
                    .map(|end| <[u8; 16]>::try_from(end).map(IpAddr::from));
                let [from, to] = ends;
                (from.ok()?, to.ok()?, &packet[HEADER_V6..])
            }
            _ => return None,
        };
        let segment = segment.get(..HEADER)?;
        let word = |at: usize| {
            u32::from_be_bytes([
                segment[at],
                segment[at + 1],
                segment[at + 2],
                segment[at + 3],
            ])
        };
        let port = |at: usize| u16::from_be_bytes([segment[at], segment[at + 1]]);
        let (from, to) = (SocketAddr::new(from, port(0)), SocketAddr::new(to, port(2)));
        Some(Self {
            from,
            to,
            sequence: word(4),
            acknowledges: word(8),
            flags: segment[13],
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segment(from: &str, to: &str) -> Segment {
        Segment {
            from: from.parse().unwrap(),
            to: to.parse().unwrap(),
            sequence: 0x0102_0304,
            acknowledges: 0xfffe_fdfc,
            flags: ACK,
        }
    }

    #[test]
    fn what_is_written_is_read_and_the_checksums_are_right() {
        for (from, to, header) in [
            ("10.6.1.10:443", "10.244.0.5:40000", 20),
            ("[fd00:6:1::10]:443", "[fd00:244::5]:40000", 40),
        ] {
            let segment = segment(from, to);
            let packet = segment.packet().unwrap();
            assert_eq!(packet.len(), header + 20);
            assert_eq!(Segment::read(&packet), Some(segment));
            if header == 20 {
                assert_eq!(checksum(&packet[..20]), 0);
                let pseudo = [&packet[12..20], &[0, TCP, 0, 20], &packet[20..]].concat();
                assert_eq!(checksum(&pseudo), 0);
            } else {
                let pseudo = [&packet[8..40], &[0, 0, 0, 20, 0, 0, 0, TCP], &packet[40..]].concat();
                assert_eq!(checksum(&pseudo), 0);
            }
            for end in 0..packet.len() {
                assert_eq!(Segment::read(&packet[..end]), None, "cut at {end}");
            }
        }
        assert_eq!(
            segment("10.6.1.10:443", "[fd00:244::5]:40000").packet(),
            None
        );
    }

    #[test]
    fn what_is_no_first_piece_of_tcp_is_not_read() {
        let packet = segment("10.6.1.10:443", "10.244.0.5:40000")
            .packet()
            .unwrap();
        let with = |at: usize, byte: u8| {
            let mut packet = packet.clone();
            packet[at] = byte;
            Segment::read(&packet)
        };
        assert_eq!(
            [with(9, 17), with(7, 1), with(6, 1), with(0, 0x55)],
            [None; 4],
            "UDP, later fragments, another version"
        );
        assert!(with(6, 0x40).is_some(), "not to be fragmented");
    }
}
