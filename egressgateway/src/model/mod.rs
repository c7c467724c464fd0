//! Names, addresses, ranges, classes and targets: the words of the domain, free of Kubernetes and
//! kernel types.

mod class;
mod family;
mod interface;
mod labels;
mod mac;
mod mark;
mod name;
mod port_block;
mod range;
mod verdict;

pub use class::{ClassId, ClassIds, ClassKey, fnv1a64};
pub use family::Family;
pub use interface::Interface;
pub use labels::Labels;
pub use mac::{MacAddress, ParseMacAddressError};
pub use mark::{InvalidMarkMask, MarkMask, NetworkId, TargetId};
pub use name::{GatewayName, NodeName, PodName, PolicyName};
pub use port_block::{InvalidPortBlock, PortBlock};
pub use range::IpRange;
pub(crate) use range::{
    find as find_range, predecessor as range_predecessor, successor as range_successor,
};
pub use verdict::{SourceNat, Verdict};
