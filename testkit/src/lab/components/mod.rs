//! Rules as cluster components write them, in the order and with the marks that they are known for.
//!
//! What a component adds for the sake of one pod or service it adds when the lab makes that;
//! nothing is taken away again.

pub(super) mod calico;
mod iptables;
pub(super) mod kube_proxy;

pub(super) use iptables::Iptables;
