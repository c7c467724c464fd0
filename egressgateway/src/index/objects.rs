//! Objects by their names.

use std::{collections::BTreeMap, sync::Arc};

use crate::world::Namespace;

pub(super) type NamespaceName = Arc<str>;
pub(super) type Namespaces = BTreeMap<NamespaceName, Namespace>;

/// False where it was so before: most of what an API server tells of is heartbeats and others'
/// fields.
pub(super) fn set<K: Ord, V: PartialEq>(
    map: &mut BTreeMap<K, V>,
    key: K,
    value: Option<V>,
) -> bool {
    if map.get(&key) == value.as_ref() {
        return false;
    }
    match value {
        Some(value) => drop(map.insert(key, value)),
        None => drop(map.remove(&key)),
    }
    true
}
