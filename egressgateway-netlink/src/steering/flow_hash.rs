//! How the kernel assigns a flow to one of several next hops.

use std::fmt;

use egressgateway::{Error, model::Family};

use crate::sysctl;

/// What is hashed, and whose hash it is.
///
/// Both are a hash by addresses, protocol and ports. But with the kernel's own policy for that,
/// [`FlowHash::Sender`], a packet from a pod comes with a hash that the sender's socket gave it,
/// and TCP chooses another one each time that an acknowledgement is overdue, so that the connection
/// goes to another next hop (`sk_rethink_txhash`, and the short cut in `fib_multipath_hash`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FlowHash {
    /// Of the packet's own fields: `fib_multipath_hash_policy=3` with `fib_multipath_hash_fields`
    /// (Linux 5.14).
    Packet,
    /// Of the packet's own fields, unless its sender gave it one: `fib_multipath_hash_policy=1`.
    Sender,
}

const POLICY: &str = "fib_multipath_hash_policy";
const FIELDS: &str = "fib_multipath_hash_fields";

/// Source and destination address, protocol, source and destination port: 0x1, 0x2, 0x4, 0x10, 0x20
/// of the kernel's ip-sysctl.
const ADDRESSES_PROTOCOL_AND_PORTS: &str = "55";

impl FlowHash {
    /// Whether the kernel of this thread can hash the packet's own fields.
    pub(super) fn knows_packets() -> Result<bool, Error> {
        let families = Family::ALL
            .into_iter()
            .filter(|family| sysctl::has_family(*family));
        let mut fields = families.map(|family| sysctl::read(&[sysctl::directory(family), FIELDS]));
        fields.try_fold(true, |all, fields| Ok(all && fields?.is_some()))
    }

    /// What must be set, in the order in which it must be.
    fn values(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::Packet => &[(FIELDS, ADDRESSES_PROTOCOL_AND_PORTS), (POLICY, "3")],
            Self::Sender => &[(POLICY, "1")],
        }
    }

    pub(super) fn is_set(self, family: Family) -> Result<bool, Error> {
        self.values().iter().try_fold(true, |all, (name, value)| {
            let current = sysctl::read(&[sysctl::directory(family), name])?;
            Ok(all && current.as_deref() == Some(value))
        })
    }

    pub(super) fn set(self, family: Family) -> Result<(), Error> {
        self.values()
            .iter()
            .try_for_each(|(name, value)| sysctl::write(&[sysctl::directory(family), name], value))
    }

    /// As sysctl(8) takes it.
    pub(super) fn write(self, family: Family, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("sysctl -qw")?;
        for (name, value) in self.values() {
            write!(f, " net.{}.{name}={value}", sysctl::directory(family))?;
        }
        writeln!(f)
    }
}
