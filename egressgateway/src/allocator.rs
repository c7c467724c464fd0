//! Giving out addresses: what is held comes in, an address or a typed refusal goes out.

use std::{collections::BTreeMap, net::IpAddr};

use crate::model::{IpRange, range_successor};

/// Why no address was given.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AllocationError {
    /// Every address of the pool is held or reserved.
    #[error("pool {pool} is exhausted: {held} addresses are held")]
    Exhausted {
        /// The pool, as text.
        pool: String,
        /// How many of its addresses are held.
        held: usize,
    },
    /// The address that was asked for does not belong to the pool.
    #[error("address {address} is not in pool {pool}")]
    OutsidePool {
        /// The address.
        address: IpAddr,
        /// The pool, as text.
        pool: String,
    },
    /// Somebody else holds the address that was asked for.
    #[error("address {address} is held by {holder}")]
    Taken {
        /// The address.
        address: IpAddr,
        /// Its holder.
        holder: String,
    },
}

/// One question to an [`Allocator`].
#[derive(Clone, Debug)]
pub struct AllocationRequest<'a> {
    /// Who asks: a name that stays the same.
    pub holder: &'a str,
    /// The address that the holder wants; any free one without it.
    pub wanted: Option<IpAddr>,
    /// Where addresses may come from, ascending and disjoint.
    pub pool: &'a [IpRange],
    /// Addresses of the pool that are held, and by whom.
    pub held: &'a BTreeMap<IpAddr, String>,
}

/// Chooses addresses; pure: the same question has the same answer.
pub trait Allocator: Send + Sync {
    /// An address of the pool that nobody else holds. What the holder holds already is kept.
    ///
    /// # Errors
    /// An [`AllocationError`]; never an address of somebody else.
    fn allocate(&self, request: &AllocationRequest<'_>) -> Result<IpAddr, AllocationError>;
}

/// The default: an address stays where it is, and a new holder gets the lowest free one.
#[derive(Clone, Copy, Debug, Default)]
pub struct LowestFree;

impl Allocator for LowestFree {
    fn allocate(&self, request: &AllocationRequest<'_>) -> Result<IpAddr, AllocationError> {
        let pool = || {
            request
                .pool
                .iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>()
                .join(",")
        };
        let inside = |address: IpAddr| request.pool.iter().any(|range| range.contains(address));
        if let Some(address) = request.wanted {
            return match request.held.get(&address) {
                _ if !inside(address) => Err(AllocationError::OutsidePool {
                    address,
                    pool: pool(),
                }),
                Some(holder) if holder != request.holder => Err(AllocationError::Taken {
                    address,
                    holder: holder.clone(),
                }),
                _ => Ok(address),
            };
        }
        let kept = request
            .held
            .iter()
            .find(|(address, holder)| *holder == request.holder && inside(**address));
        if let Some((address, _)) = kept {
            return Ok(*address);
        }
        request
            .pool
            .iter()
            .find_map(|range| lowest_free(*range, request.held))
            .ok_or_else(|| AllocationError::Exhausted {
                pool: pool(),
                held: request
                    .held
                    .keys()
                    .filter(|address| inside(**address))
                    .count(),
            })
    }
}

fn lowest_free(range: IpRange, held: &BTreeMap<IpAddr, String>) -> Option<IpAddr> {
    let mut candidate = range.first();
    for taken in held
        .range(range.first()..=range.last())
        .map(|(address, _)| *address)
    {
        if taken != candidate {
            break;
        }
        candidate = range_successor(candidate)?;
    }
    range.contains(candidate).then_some(candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(
        held: &[(&str, &str)],
        holder: &str,
        wanted: Option<&str>,
    ) -> Result<String, AllocationError> {
        let held = held
            .iter()
            .map(|(address, holder)| (address.parse().unwrap(), (*holder).to_owned()))
            .collect();
        let pool = [
            IpRange::new("10.0.0.1".parse().unwrap(), "10.0.0.3".parse().unwrap()).unwrap(),
            IpRange::single("10.0.0.9".parse().unwrap()),
        ];
        let wanted = wanted.map(|address| address.parse().unwrap());
        LowestFree
            .allocate(&AllocationRequest {
                holder,
                wanted,
                pool: &pool,
                held: &held,
            })
            .map(|address| address.to_string())
    }

    #[test]
    fn keeps_what_is_held_and_else_gives_the_lowest_free_address() {
        assert_eq!(ask(&[], "a", None).unwrap(), "10.0.0.1");
        assert_eq!(ask(&[("10.0.0.2", "a")], "a", None).unwrap(), "10.0.0.2");
        assert_eq!(
            ask(&[("10.0.0.1", "a"), ("10.0.0.3", "c")], "b", None).unwrap(),
            "10.0.0.2"
        );
        assert_eq!(
            ask(
                &[("10.0.0.1", "a"), ("10.0.0.2", "b"), ("10.0.0.3", "c")],
                "d",
                None
            )
            .unwrap(),
            "10.0.0.9"
        );
        assert_eq!(ask(&[("10.0.0.77", "a")], "a", None).unwrap(), "10.0.0.1");
    }

    #[test]
    fn refuses_with_the_reason() {
        let full = [
            ("10.0.0.1", "a"),
            ("10.0.0.2", "b"),
            ("10.0.0.3", "c"),
            ("10.0.0.9", "d"),
        ];
        assert!(matches!(
            ask(&full, "e", None),
            Err(AllocationError::Exhausted { held: 4, .. })
        ));
        assert!(matches!(
            ask(&full, "e", Some("10.0.0.2")),
            Err(AllocationError::Taken { .. })
        ));
        assert!(matches!(
            ask(&full, "e", Some("10.0.0.4")),
            Err(AllocationError::OutsidePool { .. })
        ));
        assert_eq!(ask(&full, "b", Some("10.0.0.2")).unwrap(), "10.0.0.2");
    }
}
