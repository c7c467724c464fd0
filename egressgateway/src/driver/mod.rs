//! Observe, plan, apply: what a driver is, and how several work together.

mod chain;
mod contract;
mod error;
mod handover;

pub use self::{
    chain::DriverChain,
    contract::{Change, Driver, Outcome, Plan, Reconcile, Reconciler, Unmanaged, WriteHook},
    error::{Error, ErrorKind},
    handover::Handover,
};
