//! The configuration of the daemons: one YAML file, and each field also a flag and an environment
//! variable.
//!
//! Every value takes the same way, whatever it came from: [`Config::set`] parses it and names the
//! field, the value and the rule when it is refused. What only the whole configuration shows is
//! told by [`Config::problems`].

mod field;
mod parse;
mod reload;
mod schema;
mod value;
mod yaml;

pub use self::{
    field::Field,
    reload::Changed,
    schema::{
        ClusterCidrs, Config, FailoverConfig, Iptables, MarkConfig, ReplyPath, RoutingConfig,
        TunnelConfig,
    },
};
