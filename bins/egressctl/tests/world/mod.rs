//! A small random cluster: plain values, and the manifest that says the same.

mod dice;
mod manifest;
mod model;
mod random;

pub(crate) use dice::Dice;
pub(crate) use model::{Cidr, Gateway, Member, Nat, Node, Pod, Policy, Subject, Tier, World};
