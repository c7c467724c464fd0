//! The three custom resources, group `egressgateway.spidernet.io/v1`, cluster scoped.

mod condition;
mod gateway;
mod node;
mod policy;
mod schema;

pub(crate) use condition::condition;
pub use gateway::{
    Draining, EgressGateway, EgressGatewaySpec, EgressGatewayStatus, EgressIps, ForwardMethod,
    GatewayNode, GatewayNodeStatus, IpUsage, NatMode, PoolUsage, Routers, SourceNatMode,
};
pub use node::{
    AddressConflict, AddressPorts, EgressNode, EgressNodePhase, EgressNodeSpec, EgressNodeStatus,
    PortsWanted, TunnelMtu,
};
pub use policy::{
    AppliedTo, EgressGatewayPolicy, EgressGatewayPolicySpec, EgressGatewayPolicyStatus, EgressIp,
};
pub use schema::crds;

pub use crate::model::Interface;
