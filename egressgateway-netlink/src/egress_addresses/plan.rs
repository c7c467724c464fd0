//! The steps from one state to another.

use std::fmt;

use egressgateway::{Plan, model::Family};
use ipnet::IpNet;

use super::AddressesState;
use crate::constants::ADDRESS_METRIC;

/// One write to the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum AddressStep {
    /// Takes an address off a device.
    Release(String, IpNet),
    /// Puts an address on a device.
    Take(String, IpNet),
}

impl AddressStep {
    /// What it is, for a [`WriteHook`](egressgateway::WriteHook).
    #[must_use]
    pub fn verb(&self) -> &'static str {
        match self {
            Self::Release(..) => "release address",
            Self::Take(..) => "take address",
        }
    }

    /// Device and address.
    #[must_use]
    pub fn place(&self) -> (&str, IpNet) {
        match self {
            Self::Release(device, network) | Self::Take(device, network) => (device, *network),
        }
    }
}

/// Steps in the order in which they are taken: what goes comes first, because another node may
/// answer for it by now.
///
/// Its text is a shell script that does the same: the lines between `ip -batch - <<END` and `END`
/// are what `ip -batch` takes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct AddressesPlan {
    /// The steps.
    pub steps: Vec<AddressStep>,
}

impl AddressesPlan {
    /// From `current` to `after`. An address that is not as it must be goes, and comes back: the
    /// kernel puts it behind the others then.
    pub(super) fn between(current: &AddressesState, after: &AddressesState) -> Self {
        let places = |state: &AddressesState, other: &AddressesState| {
            let differing = state
                .held
                .iter()
                .filter(|(place, sound)| other.held.get(*place) != Some(*sound));
            differing
                .map(|(place, _)| place.clone())
                .collect::<Vec<_>>()
        };
        let gone = places(current, after)
            .into_iter()
            .map(|(device, network)| AddressStep::Release(device, network));
        let new = places(after, current)
            .into_iter()
            .map(|(device, network)| AddressStep::Take(device, network));
        Self {
            steps: gone.chain(new).collect(),
        }
    }
}

impl Plan for AddressesPlan {
    fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }
}

impl fmt::Display for AddressesPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.steps.is_empty() {
            return Ok(());
        }
        writeln!(f, "ip -batch - <<END")?;
        for step in &self.steps {
            let (device, network) = step.place();
            match step {
                AddressStep::Release(..) => writeln!(f, "address del {network} dev {device}")?,
                AddressStep::Take(..) => {
                    let silent = if Family::of(network.addr()) == Family::V6 {
                        " nodad preferred_lft 0"
                    } else {
                        ""
                    };
                    writeln!(
                        f,
                        "address add {network} dev {device} metric {ADDRESS_METRIC} noprefixroute{silent}"
                    )?;
                }
            }
        }
        writeln!(f, "END")
    }
}

#[cfg(test)]
mod tests {
    use egressgateway::{AddressesDesired, Driver};

    use super::*;
    use crate::EgressAddresses;

    fn state(held: &[(&str, &str, bool)]) -> AddressesState {
        let held = held.iter().map(|(device, network, sound)| {
            (((*device).to_owned(), network.parse().unwrap()), *sound)
        });
        AddressesState {
            held: held.collect(),
        }
    }

    fn plan(held: &[(&str, &str)], current: &AddressesState) -> String {
        let held = held.iter().map(|(address, device)| {
            (
                address.parse::<std::net::IpAddr>().unwrap(),
                (*device).to_owned(),
            )
        });
        EgressAddresses::offline()
            .plan(
                &AddressesDesired {
                    held: held.collect(),
                },
                current,
            )
            .unwrap()
            .plan
            .to_string()
    }

    #[test]
    fn what_goes_is_released_before_anything_is_taken() {
        let current = state(&[
            ("eth0", "10.6.0.60/32", true),
            ("eth0", "fd00:6::60/128", true),
        ]);
        let text = plan(
            &[
                ("10.6.0.60", "eth0"),
                ("10.6.0.61", "eth1"),
                ("fd00:6::61", "eth0"),
            ],
            &current,
        );
        let expected = "ip -batch - <<END
address del fd00:6::60/128 dev eth0
address add fd00:6::61/128 dev eth0 metric 1701279609 noprefixroute nodad preferred_lft 0
address add 10.6.0.61/32 dev eth1 metric 1701279609 noprefixroute
END
";
        assert_eq!(text, expected);
        assert_eq!(
            plan(&[("10.6.0.60", "eth0"), ("fd00:6::60", "eth0")], &current),
            ""
        );
    }

    #[test]
    fn an_address_out_of_place_on_another_device_or_with_another_length_is_put_right() {
        for wrong in [
            ("eth0", "10.6.0.60/32", false),
            ("eth1", "10.6.0.60/32", true),
            ("eth0", "10.6.0.60/16", true),
        ] {
            let text = plan(&[("10.6.0.60", "eth0")], &state(&[wrong]));
            let lines: Vec<_> = text.lines().collect();
            assert!(
                lines[1].starts_with("address del 10.6.0.60/")
                    && lines[2].starts_with("address add 10.6.0.60/32 dev eth0"),
                "{text}"
            );
        }
    }
}
