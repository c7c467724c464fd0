//! Objects by their names.

use std::collections::BTreeMap;

/// Puts an object in its place, or takes it away where there is none any more.
///
/// False where it was so before: most of what an API server tells of is heartbeats and others'
/// fields.
pub(crate) fn set_object<K: Ord, V: PartialEq>(
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
