use ipnet::IpNet;
use serde_json::{Value, json};
use std::net::IpAddr;

use crate::spec::{DEFAULT_PRIORITY, Problem};

/// A spec in its canonical form.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Canonical {
    /// The spec: CIDRs with zeroed host bits and addresses in canonical text, defaults explicit.
    pub spec: Value,
    /// What was written that may have been meant differently: CIDRs with host bits.
    pub warnings: Vec<Problem>,
}

/// The canonical form of the spec of a `kind`, as a mutating webhook completes it.
///
/// What can't be parsed stays as it is: refusing is not its business. A gateway without
/// `forwardMethod` stays without, for the configuration decides then.
#[must_use]
pub fn canonical(kind: &str, spec: &Value) -> Canonical {
    let mut form = Canonical {
        spec: spec.clone(),
        warnings: Vec::new(),
    };
    match kind {
        "EgressGateway" => {
            form.rewrite("/egressIPs/ipv4", pool_entry);
            form.rewrite("/egressIPs/ipv6", pool_entry);
            form.default("sourceNAT", json!("NodeAddress"));
        }
        "EgressGatewayPolicy" => {
            for path in [
                "/destCIDR",
                "/exceptCIDR",
                "/appliedTo/ipv4PodSubnet",
                "/appliedTo/ipv6PodSubnet",
            ] {
                form.rewrite(path, cidr);
            }
            form.rewrite("/egressIP/ipv4", address);
            form.rewrite("/egressIP/ipv6", address);
            form.default("priority", json!(DEFAULT_PRIORITY));
        }
        _ => {}
    }
    form
}

impl Canonical {
    /// Rewrites a text, or every text of a list.
    fn rewrite(&mut self, path: &str, rewrite: fn(&str) -> Option<String>) {
        let field = format!("spec{}", path.replace('/', "."));
        let Self { spec, warnings } = self;
        let mut one = |field: String, value: &mut Value| {
            let Some((text, canonical)) =
                value.as_str().and_then(|text| Some((text, rewrite(text)?)))
            else {
                return;
            };
            if has_host_bits(text) {
                warnings.push(Problem::new(
                    field,
                    text,
                    format!("has host bits: it is taken as {canonical}"),
                ));
            }
            *value = canonical.into();
        };
        match spec.pointer_mut(path) {
            Some(Value::Array(items)) => items
                .iter_mut()
                .enumerate()
                .for_each(|(index, item)| one(format!("{field}[{index}]"), item)),
            Some(value) => one(field, value),
            None => {}
        }
    }

    fn default(&mut self, field: &str, value: Value) {
        if let Some(spec) = self
            .spec
            .as_object_mut()
            .filter(|spec| spec.get(field).is_none_or(Value::is_null))
        {
            spec.insert(field.to_owned(), value);
        }
    }
}

fn has_host_bits(text: &str) -> bool {
    text.parse::<IpNet>().is_ok_and(|net| net.trunc() != net)
}

fn cidr(text: &str) -> Option<String> {
    text.trim()
        .parse::<IpNet>()
        .ok()
        .map(|net| net.trunc().to_string())
}

fn address(text: &str) -> Option<String> {
    text.trim()
        .parse::<IpAddr>()
        .ok()
        .map(|address| address.to_string())
}

fn pool_entry(text: &str) -> Option<String> {
    match text.split_once('-') {
        Some((first, last)) => Some(format!("{}-{}", address(first)?, address(last)?)),
        None if text.contains('/') => cidr(text),
        None => address(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn form(kind: &str, spec: &Value) -> (Value, Vec<String>) {
        let Canonical { spec, warnings } = canonical(kind, spec);
        assert_eq!(
            canonical(kind, &spec),
            Canonical {
                spec: spec.clone(),
                warnings: Vec::new()
            },
            "a canonical form is its own"
        );
        (spec, warnings.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn a_policy_has_canonical_addresses_and_its_priority() {
        let written = json!({"appliedTo": {"ipv4PodSubnet": "10.0.3.0/16"}, "destCIDR": ["FD00:6:0:0::/64", "10.6.1.0/24", "nonsense"],
            "egressIP": {"ipv6": "fd00:0::A"}, "unknown": 1});
        let (spec, warnings) = form("EgressGatewayPolicy", &written);
        assert_eq!(
            spec,
            json!({"appliedTo": {"ipv4PodSubnet": "10.0.0.0/16"}, "destCIDR": ["fd00:6::/64", "10.6.1.0/24", "nonsense"],
                "egressIP": {"ipv6": "fd00::a"}, "priority": 1000, "unknown": 1})
        );
        assert_eq!(
            warnings,
            [
                "spec.appliedTo.ipv4PodSubnet: \"10.0.3.0/16\": has host bits: it is taken as 10.0.0.0/16"
            ]
        );
    }

    #[test]
    fn a_gateway_has_a_canonical_pool_and_its_source_address_but_no_method_of_its_own() {
        let written = json!({"nodeSelector": {}, "egressIPs": {"ipv4": ["10.6.1.9 - 10.6.1.12", "10.6.2.7/30"], "ipv6": ["FD00::1", "a-b-c"]}});
        let (spec, warnings) = form("EgressGateway", &written);
        let pool =
            json!({"ipv4": ["10.6.1.9-10.6.1.12", "10.6.2.4/30"], "ipv6": ["fd00::1", "a-b-c"]});
        assert_eq!(
            spec,
            json!({"nodeSelector": {}, "egressIPs": pool, "sourceNAT": "NodeAddress"})
        );
        assert_eq!(warnings.len(), 1, "{warnings:?}");
    }

    #[test]
    fn what_is_stated_stays() {
        let stated = json!({"sourceNAT": "None", "forwardMethod": "ecmp"});
        assert_eq!(form("EgressGateway", &stated), (stated, Vec::new()));
        assert_eq!(
            form("EgressGatewayPolicy", &json!({"priority": 0})).0,
            json!({"priority": 0})
        );
        assert_eq!(form("EgressNode", &json!({})).0, json!({}));
        assert_eq!(form("EgressGateway", &json!("text")).0, json!("text"));
    }
}
