//! For fuzz targets.

use std::net::Ipv6Addr;

use super::{
    claim::{Claim, claim},
    frames::{ETHERTYPE_IPV6, announcements, pseudo_header},
};
use crate::echo::checksum;

/// Reads a frame as it is, and with a checksum that is right. What it claims is claimed by the
/// announcement of the same address too.
pub(crate) fn frame(bytes: &[u8]) {
    for claimed in [claim(bytes), summed(bytes).and_then(|frame| claim(&frame))] {
        let Some(Claim { address, mac, .. }) = claimed else {
            continue;
        };
        for frame in announcements(address, mac) {
            let again = Claim {
                address,
                mac,
                sender: mac,
            };
            assert_eq!(claim(&frame), Some(again), "read, written and read again");
        }
    }
}

/// With a right checksum, where it could be a neighbour advertisement.
fn summed(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut frame = bytes.to_vec();
    let ethertype = frame.get(12..14)?;
    let length = u16::from_be_bytes([*frame.get(18)?, *frame.get(19)?]);
    let end = 54 + usize::from(length);
    if ethertype != ETHERTYPE_IPV6.to_be_bytes() || length < 4 || frame.len() < end {
        return None;
    }
    let address = |at: usize| frame[at..].first_chunk::<16>().copied().map(Ipv6Addr::from);
    let header = pseudo_header(address(22)?, address(38)?, length);
    frame[56..58].fill(0);
    let sum = checksum(&[&header, &frame[54..end]].concat());
    frame[56..58].copy_from_slice(&sum.to_be_bytes());
    Some(frame)
}
