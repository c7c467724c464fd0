//! The configuration of the daemons: one YAML file, and each field also a flag and an environment
//! variable.
//!
//! One table says which fields there are; everything else follows from it. Every value takes the
//! same way, whatever it came from: [`Config::set`] parses it and names the field, the value and
//! the rule when it is refused. What only the whole configuration shows is told by
//! [`Config::problems`].

mod choices;
mod derived;
mod field;
mod invalid;
mod names;
mod parse;
mod reload;
mod rule;
mod table;
mod value;
mod yaml;

pub use self::{
    choices::{Iptables, ReplyPath},
    field::Field,
    invalid::InvalidConfig,
    reload::Changed,
    table::{ClusterCidrs, Config, FailoverConfig, MarkConfig, RoutingConfig, TunnelConfig},
};
