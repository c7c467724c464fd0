use std::net::{IpAddr, Ipv6Addr, SocketAddr};

/// Where probes and metrics are served unless the arguments say otherwise.
pub(crate) const LISTEN: SocketAddr = SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), 5810);
