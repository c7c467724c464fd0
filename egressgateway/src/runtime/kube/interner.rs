//! Texts and labels that many objects have, kept once.
//!
//! An agent may follow a hundred thousand pods. Names of namespaces and nodes are the same for
//! hundreds of them, and labels for all pods of a Deployment, while each object that is read brings
//! a copy of its own.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, PoisonError},
};

use crate::{
    model::{NodeName, PodName},
    world::{Labels, Pod},
};

/// What nobody uses any more is thrown out when this much is held, or twice as much as was in use
/// the last time.
const SWEEP: usize = 1024;

/// What was seen already; clones share it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Interner(Arc<Mutex<Interned>>);

#[derive(Debug, Default)]
struct Interned {
    texts: HashSet<Arc<str>>,
    labels: HashSet<Labels>,
    /// How much was in use when it was looked at last.
    used: usize,
}

impl Interner {
    /// A pod's name, or that of an object without a namespace, which is the empty one.
    pub(crate) fn key(&self, namespace: &str, name: &str) -> PodName {
        PodName::new(self.locked().text(namespace), name)
    }

    /// The same pod, with what others have too.
    pub(crate) fn pod(&self, pod: Pod) -> Pod {
        let mut held = self.locked();
        let Pod {
            labels,
            node,
            addresses,
        } = pod;
        Pod {
            labels: held.labels(&labels),
            node: node.map(|node| NodeName::from(held.text(node.as_str()))),
            addresses,
        }
    }

    fn locked(&self) -> std::sync::MutexGuard<'_, Interned> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Interned {
    fn text(&mut self, text: &str) -> Arc<str> {
        if let Some(held) = self.texts.get(text) {
            return held.clone();
        }
        self.sweep();
        let text: Arc<str> = text.into();
        self.texts.insert(text.clone());
        text
    }

    fn labels(&mut self, labels: &Labels) -> Labels {
        if let Some(held) = self.labels.get(labels) {
            return held.clone();
        }
        self.sweep();
        let labels = labels.with_texts(|text| self.text(text));
        self.labels.insert(labels.clone());
        labels
    }

    /// Throws out what nobody else has, but so seldom that this costs next to nothing.
    fn sweep(&mut self) {
        if self.texts.len() + self.labels.len() < SWEEP.max(2 * self.used) {
            return;
        }
        self.labels.retain(|labels| !labels.is_alone());
        self.texts.retain(|text| Arc::strong_count(text) > 1);
        self.labels.shrink_to_fit();
        self.texts.shrink_to_fit();
        self.used = self.texts.len() + self.labels.len();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(app: &str, node: &str) -> Pod {
        Pod {
            labels: [("app", app), ("tier", "web")].into_iter().collect(),
            node: Some(node.into()),
            ..Pod::default()
        }
    }

    fn is_same(one: &str, other: &str) -> bool {
        std::ptr::eq(one, other)
    }

    #[test]
    fn equal_pods_share_what_they_have_in_common() {
        let interner = Interner::default();
        let [a, b, c] =
            [("a", "n"), ("a", "n"), ("c", "n")].map(|(app, node)| interner.pod(pod(app, node)));
        assert_eq!((&a, &c), (&pod("a", "n"), &pod("c", "n")));
        assert!(is_same(
            a.labels.get("app").unwrap(),
            b.labels.get("app").unwrap()
        ));
        assert!(
            is_same(a.labels.get("tier").unwrap(), c.labels.get("tier").unwrap()),
            "a text of other labels"
        );
        assert!(is_same(
            a.node.as_ref().unwrap().as_str(),
            c.node.as_ref().unwrap().as_str()
        ));
        let [first, second] = ["x", "y"].map(|name| interner.key("team", name));
        assert!(is_same(&first.namespace, &second.namespace));
    }

    #[test]
    fn what_nobody_uses_any_more_is_not_held_for_ever() {
        let interner = Interner::default();
        let stays = interner.pod(pod("stays", "n"));
        for number in 0..100 * SWEEP {
            interner.pod(pod(&format!("app-{number}"), &format!("node-{number}")));
        }
        let held = interner.locked();
        assert!(
            held.texts.len() + held.labels.len() <= SWEEP,
            "{} and {}",
            held.texts.len(),
            held.labels.len()
        );
        drop(held);
        assert!(is_same(
            stays.labels.get("app").unwrap(),
            interner.pod(pod("stays", "n")).labels.get("app").unwrap()
        ));
    }
}
