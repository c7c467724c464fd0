//! Watches one kind of object. A relist replaces what was known, so deletions missed while
//! disconnected are found.

use std::{collections::BTreeSet, fmt::Debug, time::Duration};

use futures::{StreamExt, TryStreamExt, stream::BoxStream};
use kube::{
    Api, Resource,
    core::{DeserializeGuard, error_boundary::InvalidObject},
    runtime::watcher::{self, Event},
};
use serde::de::DeserializeOwned;
use tokio::sync::{mpsc, watch};

use super::{backoff::Backoff, interner::Interner};
use crate::{
    model::PodName,
    runtime::{metrics::WatchMetrics, time::jitter},
};

/// A watch is asked to end and is resumed after less than five minutes, the read timeout of the
/// client.
const SHORTEST: Duration = Duration::from_secs(190);
/// How much longer it lasts, at least and at most twice, so that agents started together spread
/// out.
const SPREAD: Duration = Duration::from_secs(50);

/// Namespace and name; the namespace of cluster-scoped objects is empty.
pub(crate) type Key = PodName;

/// Which objects of a kind are followed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Scope {
    /// Field selector.
    pub(crate) fields: Option<String>,
    /// Label selector.
    pub(crate) labels: Option<String>,
    /// The same scope in another round is listed again.
    pub(crate) round: u64,
}

impl Scope {
    fn config(&self) -> watcher::Config {
        let mut config = watcher::Config::default();
        let timeout = SHORTEST + jitter(SPREAD * 2);
        config.timeout = u32::try_from(timeout.as_secs()).ok();
        config.field_selector.clone_from(&self.fields);
        config.label_selector.clone_from(&self.labels);
        config
    }
}

/// What a watch reports.
#[derive(Debug)]
pub(crate) enum Message<M> {
    /// Objects were added, changed or deleted.
    Updates(Vec<M>),
    /// Everything in this scope was reported.
    Synced(&'static str, Scope),
    /// A list or watch failed; it starts again by itself.
    Interrupted(&'static str, watcher::Error),
}

/// An object as an API server handed it out: it may not be what its type says.
pub(crate) type Received<K> = Result<K, InvalidObject>;

/// Reduces an object to what is needed of it; `None` where the object says nothing, so that what is
/// known of it stays. A deleted object comes as `None`.
pub(crate) type MapFn<K, M> = Box<dyn Fn(&Key, Option<&Received<K>>) -> Option<M> + Send + Sync>;

/// The watch of one kind of object.
pub(crate) struct Watch<K, M> {
    /// Names the watch in metrics and logs, such as "pods".
    pub(crate) kind: &'static str,
    /// Where the objects are.
    pub(crate) api: Api<DeserializeGuard<K>>,
    /// Which of them; a change of scope takes effect once the new scope was listed.
    pub(crate) scope: watch::Receiver<Scope>,
    /// Reduces them to what is needed.
    pub(crate) map: MapFn<K, M>,
    /// Between failed attempts.
    pub(crate) backoff: Backoff,
    /// Counts events.
    pub(crate) metrics: WatchMetrics,
    /// Holds what objects have in common once.
    pub(crate) interner: Interner,
    /// Where it reports.
    pub(crate) out: mpsc::Sender<Message<M>>,
}

/// One list and the watch that continues it.
struct Feed<K, M> {
    scope: Scope,
    stream: BoxStream<'static, watcher::Result<Event<DeserializeGuard<K>>>>,
    /// What the list brought up to now, and of which objects.
    listed: (BTreeSet<Key>, Vec<M>),
}

/// The listener has gone.
struct Closed;

impl<K, M> Watch<K, M>
where
    K: Resource + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
    M: Send + 'static,
{
    /// Follows until the listener has gone.
    pub(crate) async fn run(mut self) {
        let mut known = BTreeSet::new();
        let mut current = self.feed();
        let mut next: Option<Feed<K, M>> = None;
        let mut fixed = false;
        loop {
            let told = tokio::select! {
                changed = self.scope.changed(), if !fixed => {
                    fixed = changed.is_err();
                    let wanted = self.scope.borrow_and_update().clone();
                    if wanted.round == current.scope.round {
                        next = (wanted != current.scope).then(|| self.feed());
                    } else {
                        // What the watch told is older than the new list; nothing of it may come
                        // after that.
                        (current, next) = (self.feed(), None);
                    }
                    Ok(())
                }
                event = current.stream.next() => self.take(&mut current, event, &mut known).await.map(|_| ()),
                event = step(next.as_mut()) => match &mut next {
                    Some(feed) => match self.take_next(feed, event, &mut known).await {
                        Ok(true) => {
                            if let Some(feed) = next.take() {
                                current = feed;
                            }
                            Ok(())
                        }
                        other => other.map(|_| ()),
                    },
                    None => Ok(()),
                },
                () = self.out.closed() => Err(Closed),
            };
            if told.is_err() {
                return;
            }
        }
    }

    fn feed(&mut self) -> Feed<K, M> {
        let scope = self.scope.borrow_and_update().clone();
        let told = self.metrics.events(self.kind);
        let stream = self
            .backoff
            .clone()
            .pace(watcher::watcher(self.api.clone(), scope.config()));
        let stream = stream.inspect_ok(move |event| {
            if matches!(
                event,
                Event::InitApply(_) | Event::Apply(_) | Event::Delete(_)
            ) {
                told.inc();
            }
        });
        Feed {
            scope,
            stream: stream.boxed(),
            listed: <_>::default(),
        }
    }

    /// One event of the scope in force.
    async fn take(
        &self,
        feed: &mut Feed<K, M>,
        event: Option<watcher::Result<Event<DeserializeGuard<K>>>>,
        known: &mut BTreeSet<Key>,
    ) -> Result<bool, Closed> {
        match event {
            Some(Ok(Event::Apply(object))) => {
                let (key, seen) = self.receive(&object);
                known.insert(key);
                self.tell(seen.into_iter().collect()).await?;
            }
            Some(Ok(Event::Delete(object))) => {
                let key = self.key(&object);
                known.remove(&key);
                self.tell((self.map)(&key, None).into_iter().collect())
                    .await?;
            }
            other => return self.take_next(feed, other, known).await,
        }
        Ok(false)
    }

    /// One event of a scope that is being listed; true once it was listed and is in force. Until
    /// then it says nothing.
    async fn take_next(
        &self,
        feed: &mut Feed<K, M>,
        event: Option<watcher::Result<Event<DeserializeGuard<K>>>>,
        known: &mut BTreeSet<Key>,
    ) -> Result<bool, Closed> {
        match event {
            Some(Ok(Event::Init)) => feed.listed = <_>::default(),
            Some(Ok(Event::InitApply(object))) => {
                let (key, seen) = self.receive(&object);
                feed.listed.0.insert(key);
                feed.listed.1.extend(seen);
            }
            Some(Ok(Event::InitDone)) => {
                let (now, mut seen) = std::mem::take(&mut feed.listed);
                seen.extend(
                    known
                        .difference(&now)
                        .filter_map(|key| (self.map)(key, None)),
                );
                *known = now;
                self.tell(seen).await?;
                self.send(Message::Synced(self.kind, feed.scope.clone()))
                    .await?;
                return Ok(true);
            }
            Some(Ok(Event::Apply(_) | Event::Delete(_))) | None => {}
            Some(Err(error)) => self.send(Message::Interrupted(self.kind, error)).await?,
        }
        Ok(false)
    }

    fn receive(&self, object: &DeserializeGuard<K>) -> (Key, Option<M>) {
        let key = self.key(object);
        if let Err(invalid) = &object.0 {
            tracing::warn!(kind = self.kind, object = %key, error = %invalid.error, "cannot decode object");
        }
        let seen = (self.map)(&key, Some(&object.0));
        (key, seen)
    }

    fn key(&self, object: &DeserializeGuard<K>) -> Key {
        let meta = object.meta();
        self.interner.key(
            meta.namespace.as_deref().unwrap_or_default(),
            meta.name.as_deref().unwrap_or_default(),
        )
    }

    async fn tell(&self, seen: Vec<M>) -> Result<(), Closed> {
        if seen.is_empty() {
            Ok(())
        } else {
            self.send(Message::Updates(seen)).await
        }
    }

    async fn send(&self, message: Message<M>) -> Result<(), Closed> {
        self.out.send(message).await.map_err(|_| Closed)
    }
}

/// The next event of a feed that may not be; never without one.
async fn step<K, M>(
    feed: Option<&mut Feed<K, M>>,
) -> Option<watcher::Result<Event<DeserializeGuard<K>>>> {
    match feed {
        Some(feed) => feed.stream.next().await,
        None => std::future::pending().await,
    }
}

pub(crate) fn key<K: Resource>(object: &K) -> Key {
    let meta = object.meta();
    Key::new(
        meta.namespace.as_deref().unwrap_or_default(),
        meta.name.as_deref().unwrap_or_default(),
    )
}
