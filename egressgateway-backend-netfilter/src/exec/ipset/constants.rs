//! Numbers of the kernel's ipset interface: `linux/netfilter/nfnetlink.h`,
//! `linux/netfilter/ipset/ip_set.h`, `linux/netlink.h`.

/// `NFNL_SUBSYS_IPSET`
pub(super) const SUBSYSTEM: u8 = 6;
/// `IPSET_PROTOCOL`, spoken since Linux 4.20.
pub(super) const PROTOCOL: u8 = 7;

pub(super) const NLM_F_REQUEST: u16 = 0x1;
pub(super) const NLM_F_ACK: u16 = 0x4;
pub(super) const NLM_F_DUMP: u16 = 0x300;
/// Refuse what is there already, or not there any more.
pub(super) const NLM_F_EXCL: u16 = 0x200;
pub(super) const NLM_F_CREATE: u16 = 0x400;
pub(super) const NLMSG_ERROR: u16 = 2;
pub(super) const NLMSG_DONE: u16 = 3;
pub(super) const NLA_F_NESTED: u16 = 0x8000;
pub(super) const NLA_F_NET_BYTEORDER: u16 = 0x4000;
pub(super) const NLA_TYPE_MASK: u16 = 0x3fff;

pub(super) const CMD_CREATE: u8 = 2;
pub(super) const CMD_DESTROY: u8 = 3;
pub(super) const CMD_SWAP: u8 = 6;
pub(super) const CMD_LIST: u8 = 7;
pub(super) const CMD_ADD: u8 = 9;
pub(super) const CMD_DEL: u8 = 10;
pub(super) const CMD_TYPE: u8 = 13;

pub(super) const ATTR_PROTOCOL: u16 = 1;
pub(super) const ATTR_SETNAME: u16 = 2;
pub(super) const ATTR_TYPENAME: u16 = 3;
/// `IPSET_ATTR_SETNAME2`, which has the number of the type's name.
pub(super) const ATTR_SETNAME2: u16 = ATTR_TYPENAME;
pub(super) const ATTR_REVISION: u16 = 4;
pub(super) const ATTR_FAMILY: u16 = 5;
pub(super) const ATTR_DATA: u16 = 7;
pub(super) const ATTR_ADT: u16 = 8;
pub(super) const ATTR_LINENO: u16 = 9;

pub(super) const ATTR_IP: u16 = 1;
pub(super) const ATTR_CIDR: u16 = 3;
pub(super) const ATTR_TIMEOUT: u16 = 6;
pub(super) const ATTR_CADT_FLAGS: u16 = 8;
pub(super) const ATTR_MAXELEM: u16 = 19;
pub(super) const ATTR_SKBMARK: u16 = 27;
pub(super) const ATTR_IPADDR_IPV4: u16 = 1;
pub(super) const ATTR_IPADDR_IPV6: u16 = 2;

/// `IPSET_FLAG_NOMATCH`
pub(super) const FLAG_NOMATCH: u32 = 1 << 2;
/// `IPSET_FLAG_WITH_SKBINFO`
pub(super) const FLAG_SKBINFO: u32 = 1 << 6;

pub(super) const AF_INET: u8 = 2;
pub(super) const AF_INET6: u8 = 10;

/// Entries in one message: well below the 64 KiB that an attribute can hold.
pub(super) const ENTRIES_PER_MESSAGE: usize = 500;

/// `EINVAL`: what netfilter says where no subsystem answers to a number.
pub(super) const NO_SUBSYSTEM: i32 = 22;

/// From here on errors are ipset's own.
pub(super) const ERR_PRIVATE: i32 = 4096;
/// `IPSET_ERR_BUSY`
pub(super) const ERR_BUSY: i32 = 4100;
/// ipset's own errors in its words, with the errno that has the same meaning.
pub(super) const ERRORS: [(i32, i32, &str); 11] = [
    (4097, 93, "the kernel speaks another ipset protocol"),
    (4098, 93, "the kernel has no such set type"),
    (4099, 28, "there are too many sets"),
    (ERR_BUSY, 16, "the set is in use"),
    (4101, 17, "there is a set of the second name"),
    (4102, 17, "the set is of another type"),
    (
        4103,
        17,
        "the entry is there already, or not there any more",
    ),
    (4104, 22, "the prefix length is not valid"),
    (4106, 22, "the address is of another family"),
    (4109, 16, "the set is referred to"),
    (4352, 28, "the set is full"),
];
