use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::Arc,
};

use super::PolicyName;

/// One distinct combination of policies, as a number that a packet filter can look up. Never 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClassId(u32);

impl ClassId {
    /// The class with this number; none for 0, which says "no class" in the kernel.
    #[must_use]
    pub const fn new(id: u32) -> Option<Self> {
        if id == 0 { None } else { Some(Self(id)) }
    }

    /// The number.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0
    }
}

/// As tc and nftables write a class id: `major:minor`, hexadecimal.
impl fmt::Display for ClassId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}:{:x}", self.0 >> 16, self.0 & 0xffff)
    }
}

/// The policies that make up a class, sorted by name; never empty.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClassKey(Arc<[PolicyName]>);

impl ClassKey {
    /// The class of exactly these policies; none when there are none.
    pub fn new(policies: impl IntoIterator<Item = PolicyName>) -> Option<Self> {
        let sorted: BTreeSet<PolicyName> = policies.into_iter().collect();
        (!sorted.is_empty()).then(|| Self(sorted.into_iter().collect()))
    }

    /// Its policies, sorted by name.
    #[must_use]
    pub fn policies(&self) -> &[PolicyName] {
        &self.0
    }

    /// The number that the class has unless another class claims it too.
    fn preferred(&self) -> u32 {
        let mut text = String::new();
        for policy in self.0.iter() {
            text.push_str(policy.as_str());
            text.push('\n');
        }
        let hash = fnv1a64(text.as_bytes());
        let folded = u32::try_from((hash >> 32) ^ (hash & 0xffff_ffff)).unwrap_or(1);
        folded.max(1)
    }
}

/// Numbers of the classes that exist now, a function of that set alone.
///
/// A class has the hash of its policies' names. On a collision all ids are reassigned in (hash, key)
/// order by linear probing, so the result depends on the set alone: the same classes have the same
/// ids on every node, in whatever order they came.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClassIds {
    by_hash: BTreeMap<u32, BTreeSet<ClassKey>>,
    crowded: usize,
    dealt: BTreeMap<ClassKey, ClassId>,
}

impl ClassIds {
    /// Adds a class; true when numbers of other classes may have changed with it.
    pub fn insert(&mut self, key: ClassKey) -> bool {
        self.insert_hashed(key.preferred(), key)
    }

    fn insert_hashed(&mut self, hash: u32, key: ClassKey) -> bool {
        let bucket = self.by_hash.entry(hash).or_default();
        if !bucket.insert(key) {
            return false;
        }
        if bucket.len() == 2 {
            self.crowded += 1;
        }
        self.deal(self.crowded > 0)
    }

    /// Removes a class; true when numbers of other classes may have changed with it.
    pub fn remove(&mut self, key: &ClassKey) -> bool {
        self.remove_hashed(key.preferred(), key)
    }

    fn remove_hashed(&mut self, hash: u32, key: &ClassKey) -> bool {
        let was_crowded = self.crowded > 0;
        let Some(bucket) = self.by_hash.get_mut(&hash) else {
            return false;
        };
        if !bucket.remove(key) {
            return false;
        }
        match bucket.len() {
            0 => {
                self.by_hash.remove(&hash);
            }
            1 => self.crowded -= 1,
            _ => {}
        }
        self.deal(was_crowded)
    }

    /// The number of a class that was inserted.
    #[must_use]
    pub fn id(&self, key: &ClassKey) -> Option<ClassId> {
        self.id_hashed(key.preferred(), key)
    }

    fn id_hashed(&self, hash: u32, key: &ClassKey) -> Option<ClassId> {
        if self.crowded > 0 {
            return self.dealt.get(key).copied();
        }
        self.by_hash
            .get(&hash)
            .filter(|bucket| bucket.contains(key))
            .and_then(|_| ClassId::new(hash))
    }

    fn deal(&mut self, needed: bool) -> bool {
        self.dealt.clear();
        if self.crowded > 0 {
            let mut taken = BTreeSet::new();
            for (hash, keys) in &self.by_hash {
                for key in keys {
                    let mut id = *hash;
                    while id == 0 || !taken.insert(id) {
                        id = id.wrapping_add(1);
                    }
                    self.dealt.insert(key.clone(), ClassId(id));
                }
            }
        }
        needed
    }
}

/// FNV-1a, 64 bits: small, stable over versions and platforms, which the standard library's hashers
/// do not promise.
/// <https://www.rfc-editor.org/rfc/rfc9923>
#[must_use]
pub fn fnv1a64(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(names: &[&str]) -> ClassKey {
        ClassKey::new(names.iter().map(|name| PolicyName::from(*name))).unwrap()
    }

    #[test]
    fn the_number_depends_on_the_names_only() {
        let (mut a, mut b) = (ClassIds::default(), ClassIds::default());
        let keys = [key(&["x"]), key(&["x", "y"]), key(&["z"])];
        for key in &keys {
            a.insert(key.clone());
        }
        for key in keys.iter().rev() {
            b.insert(key.clone());
        }
        for key in &keys {
            assert_eq!(a.id(key), b.id(key));
            assert!(a.id(key).is_some());
        }
        assert_eq!(key(&["y", "x"]), key(&["x", "y"]));
        assert_eq!(fnv1a64(b"a"), 0xaf63_dc4c_8601_ec8c);
    }

    #[test]
    fn collisions_are_settled_by_the_present_set_whatever_the_order() {
        let keys = [
            (7, key(&["a"])),
            (7, key(&["b"])),
            (8, key(&["c"])),
            (u32::MAX, key(&["d"])),
            (u32::MAX, key(&["e"])),
        ];
        let mut reference = None;
        for rotation in 0..keys.len() {
            let mut ids = ClassIds::default();
            ids.insert_hashed(7, key(&["gone"]));
            for (hash, key) in keys.iter().cycle().skip(rotation).take(keys.len()) {
                ids.insert_hashed(*hash, key.clone());
            }
            ids.remove_hashed(7, &key(&["gone"]));
            let numbers: Vec<ClassId> = keys
                .iter()
                .filter_map(|(hash, key)| ids.id_hashed(*hash, key))
                .collect();
            assert_eq!(
                numbers.iter().collect::<BTreeSet<_>>().len(),
                keys.len(),
                "distinct"
            );
            assert_eq!(*reference.get_or_insert(numbers.clone()), numbers);
        }
    }

    #[test]
    fn without_a_collision_left_everybody_has_the_own_hash_again() {
        let mut ids = ClassIds::default();
        assert!(!ids.insert_hashed(7, key(&["a"])));
        assert!(ids.insert_hashed(7, key(&["b"])));
        assert_eq!(ids.id_hashed(7, &key(&["b"])), ClassId::new(8));
        assert!(ids.remove_hashed(7, &key(&["a"])));
        assert_eq!(ids.id_hashed(7, &key(&["b"])), ClassId::new(7));
    }
}
