//! Why there is no agent.

use egressgateway::{Error, spec::Problem};

/// Why an agent can't be made, or what an agent left can't be removed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// The configuration is wrong: every field with its value and the rule.
    #[error("{}", lines(.0))]
    Config(Vec<Problem>),
    /// The host can't do what is asked of it, or can't be read.
    #[error("{}", .0.chain())]
    Host(#[from] Error),
}

fn lines(problems: &[Problem]) -> String {
    problems
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join("\n")
}
