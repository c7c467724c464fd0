//! What the controller decides, as a function of the cluster: [`plan`] is pure, and what it decided
//! before comes back to it in the objects' statuses. A new leader continues where the last one
//! stopped.

mod assignment;
mod cluster;
mod cluster_plan;
mod conditions;
mod egress_ips;
mod elected;
pub mod events;
mod families;
mod gateways;
mod health;
mod marks;
mod nodes;
mod overlaps;
mod owners;
mod planner;
mod policies;
mod port_blocks;
mod resolution;
mod settings;

pub use self::{
    cluster::Cluster, cluster_plan::ClusterPlan, events::Event, planner::plan,
    settings::ControllerSettings,
};
pub(crate) use self::{conditions::join, overlaps::list};
