use std::net::IpAddr;

use egressgateway::{explain, explain::Offline, model::PodName};

use crate::arguments::Output;

/// What a new connection meets, as text or as JSON.
pub(crate) fn explain(
    cluster: &Offline,
    from: &PodName,
    to: IpAddr,
    output: Output,
) -> Result<String, String> {
    let explanation = explain::explain(cluster, from, to).map_err(|error| error.to_string())?;
    match output {
        Output::Text => Ok(explanation.to_string()),
        Output::Json => serde_json::to_string_pretty(&explanation)
            .map(|text| text + "\n")
            .map_err(|error| error.to_string()),
    }
}
