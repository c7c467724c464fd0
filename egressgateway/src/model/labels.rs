use std::{collections::BTreeMap, sync::Arc};

/// Labels of an object, or annotations, by key; clones share them.
///
/// An agent may keep those of a hundred thousand pods, so they take no more than their texts and
/// two pointers for each.
///
/// ```
/// use egressgateway::model::Labels;
///
/// let labels = Labels::from([("app".into(), "shop".into()), ("tier".into(), "web".into())]);
/// assert_eq!(labels.get("tier"), Some("web"));
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Labels(Arc<[(Arc<str>, Arc<str>)]>);

impl Labels {
    /// The value of a key.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0
            .binary_search_by(|(other, _)| (**other).cmp(key))
            .ok()
            .map(|index| &*self.0[index].1)
    }

    /// Whether there is such a key, with whatever value.
    #[must_use]
    pub fn contains_key(&self, key: &str) -> bool {
        self.get(key).is_some()
    }

    /// Keys and values, ascending by key.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(key, value)| (&**key, &**value))
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The same with every text replaced by an equal one, such as one that others have too.
    #[cfg(feature = "runtime")]
    pub(crate) fn with_texts(&self, mut same: impl FnMut(&Arc<str>) -> Arc<str>) -> Self {
        Self(
            self.0
                .iter()
                .map(|(key, value)| (same(key), same(value)))
                .collect(),
        )
    }

    /// Whether nobody else has a clone of it.
    #[cfg(feature = "runtime")]
    pub(crate) fn is_alone(&self) -> bool {
        Arc::strong_count(&self.0) == 1
    }
}

/// Of a key that comes more than once, the last value counts.
impl<K: Into<Arc<str>>, V: Into<Arc<str>>> FromIterator<(K, V)> for Labels {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(labels: I) -> Self {
        let labels: BTreeMap<Arc<str>, Arc<str>> = labels
            .into_iter()
            .map(|(key, value)| (key.into(), value.into()))
            .collect();
        Self(labels.into_iter().collect())
    }
}

impl<const N: usize> From<[(String, String); N]> for Labels {
    fn from(labels: [(String, String); N]) -> Self {
        labels.into_iter().collect()
    }
}

impl From<&BTreeMap<String, String>> for Labels {
    fn from(labels: &BTreeMap<String, String>) -> Self {
        labels
            .iter()
            .map(|(key, value)| (key.as_str(), value.as_str()))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_found_by_key_and_equal_whatever_order_they_came_in() {
        let labels: Labels = [
            ("tier", "web"),
            ("app", "shop"),
            ("zone", "a"),
            ("app", "bank"),
        ]
        .into_iter()
        .collect();
        assert_eq!(
            labels.iter().collect::<Vec<_>>(),
            [("app", "bank"), ("tier", "web"), ("zone", "a")]
        );
        assert_eq!(
            (
                labels.get("app"),
                labels.get("tier"),
                labels.get("zone"),
                labels.get("b")
            ),
            (Some("bank"), Some("web"), Some("a"), None)
        );
        assert!(labels.contains_key("zone") && !labels.contains_key("zones"));
        assert_eq!(
            labels,
            [("zone", "a"), ("tier", "web"), ("app", "bank")]
                .into_iter()
                .collect()
        );
        assert!(Labels::default().is_empty() && !labels.is_empty());
    }
}
