//! The answer to a request.

use super::{Decision, Request, gateway, policy};
use crate::controller::{Cluster, ControllerSettings};

/// Judges a request by the cluster.
///
/// An update is held to what it changes: a problem that the old spec has as well, word for word,
/// refuses nothing, so that mistakes can be mended one by one. Objects may come in any order: what
/// is not there yet refuses nothing.
#[must_use]
pub fn review(cluster: &Cluster, settings: &ControllerSettings, request: &Request) -> Decision {
    match request {
        Request::Gateway(asked) => Decision {
            problems: gateway::problems(cluster, settings, asked),
            warnings: gateway::warning(cluster, settings, asked)
                .into_iter()
                .collect(),
        },
        Request::Policy(asked) => Decision {
            problems: policy::problems(cluster, settings, asked),
            warnings: asked
                .new
                .iter()
                .filter_map(|spec| policy::warning(cluster, settings, spec))
                .collect(),
        },
    }
}
