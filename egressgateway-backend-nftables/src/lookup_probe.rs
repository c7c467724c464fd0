//! Whether the kernel finds IPv6 addresses in ranges as it should, asked with packets.
//!
//! Some kernels do not: with AVX2, sets of concatenated ranges (`nft_set_pipapo`) do not look at
//! the sixth byte of an address there, so that `fd00:6:2::92` is in `fd00:6:1::/64` (Linux 5.7 to
//! 6.14 without commit e042ed950d4e). Distributions' releases don't tell which fixes they have, and
//! `nft get element` asks other code of the kernel, so only a packet can tell.
//!
//! The packets are frames on the loopback device that end in its ingress hook, before anybody
//! else's rules, routing or addresses.

use std::{net::Ipv6Addr, os::fd::AsRawFd as _, time::Duration};

use egressgateway::{Error, ErrorKind};
use nix::{
    ifaddrs::getifaddrs,
    net::if_::InterfaceFlags,
    sys::socket::{AddressFamily, LinkAddr, MsgFlags, SockFlag, SockType, sendto, socket},
};
use serde_json::Value;

use crate::{
    apply::command::{nft, nft_json},
    ruleset::names::{LOOKUP_TABLE, LOOKUP_TABLE_FAMILY, LOOKUP_TABLE_PATH, PRIORITY_INGRESS},
};

/// Who sends: of the prefix whose packets are to be discarded (RFC 6666). Only its frames are
/// looked at.
const SENDER: Ipv6Addr = Ipv6Addr::new(0x100, 0, 0, 0, 0, 0, 0, 1);
/// The address in the set, with no byte zero: of documentation (RFC 3849).
const MEMBER: Ipv6Addr = Ipv6Addr::new(
    0x2001, 0xdb8, 0x1122, 0x3344, 0x5566, 0x7788, 0x99aa, 0xbbcc,
);
/// Frames are looked at in the sender's own context, or a moment later.
const PATIENCE: Duration = Duration::from_secs(2);
const GLANCE: Duration = Duration::from_millis(10);

const FOUND: &str = "found";
const NOT_FOUND: &str = "not_found";

/// Asks the kernel, with a table of its own that is gone afterwards.
///
/// # Errors
/// [`ErrorKind::Unsupported`] when it finds what it should not, or the other way round, or can't be
/// asked: then with what is missing. [`ErrorKind::Transient`] when the host was too busy to look at
/// every frame in time.
pub(crate) async fn lookups_are_right() -> Result<(), Error> {
    ask(&format!("0x0 . {MEMBER}")).await
}

/// Removes the table that an agent left behind which ended while it asked.
pub(crate) async fn remove() -> Result<(), Error> {
    // Adding it first makes deleting right in both cases.
    let script = format!("add table {LOOKUP_TABLE_PATH}\ndelete table {LOOKUP_TABLE_PATH}\n");
    nft(
        &["-f", "-"],
        &script,
        &format!("delete table {LOOKUP_TABLE_PATH}"),
    )
    .await
    .map(drop)
}

/// As [`lookups_are_right`], of a set with this element instead of [`MEMBER`] alone.
async fn ask(element: &str) -> Result<(), Error> {
    let loopback = loopback()?;
    let made = nft(
        &["-f", "-"],
        &table(element),
        "make a small table to test lookups of IPv6 addresses",
    )
    .await;
    made.map_err(|error| match error.kind {
        ErrorKind::Permission | ErrorKind::Transient => error,
        _ => Error::new(
            ErrorKind::Unsupported,
            "whether this kernel looks up IPv6 addresses rightly can't be tested: CONFIG_NF_TABLES_NETDEV and CONFIG_NETFILTER_INGRESS are needed",
        )
        .with_source(error.chain()),
    })?;
    let answer = answer(&loopback).await;
    remove().await?;
    judge(answer?)
}

fn table(element: &str) -> String {
    let path = LOOKUP_TABLE_PATH;
    let sender = format!("add rule {path} ingress ip6 saddr {SENDER}");
    format!(
        "add table {path}\ndelete table {path}\nadd table {path}\nadd counter {path} {FOUND}\nadd counter {path} {NOT_FOUND}\n\
         add set {path} ranges {{ type mark . ipv6_addr; flags interval; }}\nadd element {path} ranges {{ {element} }}\n\
         add chain {path} ingress {{ type filter hook ingress device lo priority {PRIORITY_INGRESS}; policy accept; }}\n\
         {sender} meta mark . ip6 daddr @ranges counter name {FOUND} drop\n{sender} counter name {NOT_FOUND} drop\n"
    )
}

/// What became of the frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Answer {
    found: u64,
    not_found: u64,
}

/// What should become of them: the member is found, and those that differ from it in one byte are
/// not.
const RIGHT: Answer = Answer {
    found: 1,
    not_found: 16,
};

fn judge(answer: Answer) -> Result<(), Error> {
    let Answer { found, not_found } = answer;
    let (seen, sent) = (found + not_found, RIGHT.found + RIGHT.not_found);
    if seen < sent {
        // Of a host that was too busy, this says nothing of its kernel.
        return Err(Error::new(
            ErrorKind::Transient,
            format!("{seen} of {sent} frames on the loopback device were seen in time"),
        ));
    }
    let said = match found {
        1 => return Ok(()),
        0 => "does not find an IPv6 address in a range that it is in".to_owned(),
        _ => format!(
            "finds {found} IPv6 addresses in a range that only one of them is in: other traffic would be governed too"
        ),
    };
    Err(Error::new(
        ErrorKind::Unsupported,
        format!("this kernel {said}"),
    ))
}

async fn answer(loopback: &LinkAddr) -> Result<Answer, Error> {
    let failed =
        |error: nix::Error| Error::from_io(error.into(), "send frames on the loopback device");
    // With no protocol it hears nothing.
    let socket = socket(
        AddressFamily::Packet,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
        None,
    )
    .map_err(failed)?;
    for destination in destinations() {
        sendto(
            socket.as_raw_fd(),
            &frame(destination),
            loopback,
            MsgFlags::empty(),
        )
        .map_err(failed)?;
    }
    let end = tokio::time::Instant::now() + PATIENCE;
    loop {
        let answer = counted().await?;
        if answer.found + answer.not_found >= RIGHT.found + RIGHT.not_found
            || tokio::time::Instant::now() > end
        {
            return Ok(answer);
        }
        tokio::time::sleep(GLANCE).await;
    }
}

async fn counted() -> Result<Answer, Error> {
    let listed = nft_json(
        &[
            "list",
            "counters",
            "table",
            LOOKUP_TABLE_FAMILY,
            LOOKUP_TABLE,
        ],
        "count the frames on the loopback device",
    )
    .await?;
    let packets = |name: &str| {
        let counters = listed.iter().map(|object| &object["counter"]);
        counters
            .filter(|counter| counter["name"] == name)
            .find_map(|counter: &Value| counter["packets"].as_u64())
            .unwrap_or_default()
    };
    Ok(Answer {
        found: packets(FOUND),
        not_found: packets(NOT_FOUND),
    })
}

/// The member, and each address that differs from it in one byte.
fn destinations() -> impl Iterator<Item = Ipv6Addr> {
    let others = (0..16).map(|index| {
        let mut octets = MEMBER.octets();
        octets[index] ^= 0x0f;
        Ipv6Addr::from(octets)
    });
    std::iter::once(MEMBER).chain(others)
}

/// A frame of the loopback device: hardware addresses of zeros, and an IPv6 header after which
/// nothing follows (RFC 8200, next header 59).
fn frame(destination: Ipv6Addr) -> Vec<u8> {
    let mut frame = vec![0; 12];
    frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 0, 59, 1]);
    frame.extend(SENDER.octets());
    frame.extend(destination.octets());
    frame
}

fn loopback() -> Result<LinkAddr, Error> {
    let devices = getifaddrs()
        .map_err(|error| Error::from_io(error.into(), "look for the loopback device"))?;
    let up = InterfaceFlags::IFF_LOOPBACK | InterfaceFlags::IFF_UP;
    let mut found =
        devices.filter(|device| device.interface_name == "lo" && device.flags.contains(up));
    found.find_map(|device| device.address?.as_link_addr().copied()).ok_or_else(|| {
        Error::new(ErrorKind::Unsupported, "whether this kernel looks up IPv6 addresses rightly can't be tested: the device lo must be up")
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use egressgateway_testkit::{netns::in_namespace, shell::run};

    use super::*;

    /// As a kernel does that does not look at the byte in question.
    #[test]
    fn what_is_found_beside_the_member_is_noticed_whatever_byte_it_differs_in() {
        in_namespace(|| async {
            run("ip link set lo up");
            ask(&format!("0x0 . {MEMBER}")).await.unwrap();
            for other in destinations().skip(1) {
                let error = ask(&format!("0x0 . {MEMBER}, 0x0 . {other}"))
                    .await
                    .unwrap_err();
                assert_eq!(error.kind, ErrorKind::Unsupported);
                assert!(
                    error.chain().contains("finds 2 IPv6 addresses"),
                    "{}",
                    error.chain()
                );
            }
            let error = ask("0x0 . 2001:db8::/64").await.unwrap_err();
            assert!(error.chain().contains("does not find"), "{}", error.chain());
            assert_eq!(run("nft list ruleset"), "");
        });
    }

    #[test]
    fn it_can_not_be_asked_where_the_loopback_is_down_and_says_so() {
        in_namespace(|| async {
            let error = lookups_are_right().await.unwrap_err();
            assert_eq!(error.kind, ErrorKind::Unsupported);
            assert!(
                error.chain().contains("the device lo must be up"),
                "{}",
                error.chain()
            );
        });
    }

    #[test]
    fn what_was_left_behind_is_no_hindrance_and_goes() {
        in_namespace(|| async {
            run("ip link set lo up");
            run(&format!("nft add table {LOOKUP_TABLE_PATH}"));
            lookups_are_right().await.unwrap();
            assert_eq!(run("nft list ruleset"), "");
            run(&format!("nft add table {LOOKUP_TABLE_PATH}"));
            remove().await.unwrap();
            assert_eq!(run("nft list ruleset"), "");
        });
    }

    #[test]
    fn frames_that_nobody_saw_are_no_answer() {
        for (found, not_found) in [(0, 0), (1, 12), (0, 16), (2, 14)] {
            assert_eq!(
                judge(Answer { found, not_found }).unwrap_err().kind,
                ErrorKind::Transient
            );
        }
        for (found, not_found) in [(0, 17), (2, 15)] {
            assert_eq!(
                judge(Answer { found, not_found }).unwrap_err().kind,
                ErrorKind::Unsupported
            );
        }
        assert!(judge(RIGHT).is_ok());
    }
}
