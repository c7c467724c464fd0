//! One suite that every driver passes, on a fake and on the kernel.
//!
//! A check that fails panics with what was being done: the suite is called from tests.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use async_trait::async_trait;

use crate::{Change, Driver, Error, ErrorKind, Plan, WriteHook};

/// A place where a driver can be tried: a fake, or a network namespace of its own.
#[async_trait]
pub trait Host<D: Driver>: Sync {
    /// A driver without memory, as after a restart; it asks `hook` before every write.
    async fn driver(&self, hook: Arc<dyn WriteHook>) -> D;

    /// Everything in reach of the driver that is not its own, as text: neighbouring tables, links,
    /// routes, rules.
    async fn foreign(&self) -> String;
}

/// Refuses one write, the n-th, and counts them all.
#[derive(Debug)]
pub struct RefuseOnce {
    at: usize,
    seen: AtomicUsize,
}

impl RefuseOnce {
    /// Refuses the write with this number, counted from 0.
    #[must_use]
    pub fn at(at: usize) -> Arc<Self> {
        Arc::new(Self {
            at,
            seen: AtomicUsize::new(0),
        })
    }

    /// How many writes were asked for.
    #[must_use]
    pub fn seen(&self) -> usize {
        self.seen.load(Ordering::SeqCst)
    }
}

impl WriteHook for RefuseOnce {
    fn before(&self, verb: &str) -> Result<(), Error> {
        if self.seen.fetch_add(1, Ordering::SeqCst) == self.at {
            return Err(Error::new(
                ErrorKind::Transient,
                format!("refused for the test: {verb}"),
            ));
        }
        Ok(())
    }
}

/// Holds a driver to every promise of [`Driver`], through all ordered pairs of `states` (give at
/// least two, the first may be rich).
///
/// # Panics
/// At the first promise that is broken.
pub async fn check<D: Driver>(host: &dyn Host<D>, states: &[D::Desired]) {
    let foreign = host.foreign().await;
    let empty = D::Desired::default();
    let mut fresh = Vec::new();
    for (index, state) in states.iter().enumerate() {
        fresh.push(reach(host, state, &format!("empty → {index}")).await);
        reach(host, &empty, &format!("{index} → empty")).await;
        assert_untouched(host, &foreign, &format!("{index} → empty")).await;
    }
    for (from, before) in states.iter().enumerate() {
        for (to, after) in states.iter().enumerate() {
            let what = format!("{from} → {to}");
            reach(host, before, &what).await;
            let state = reach(host, after, &what).await;
            assert_eq!(
                state, fresh[to],
                "{what}: the way must not show in the result"
            );
            assert_untouched(host, &foreign, &what).await;
            recover_from_each_refusal(host, before, after, &fresh[to], &what).await;
        }
    }
    let state = reach(host, &empty, "all → empty").await;
    assert_eq!(state, D::State::default(), "nothing that is ours stays");
    assert_untouched(host, &foreign, "at the end").await;
}

/// Walks through many states, such as generated ones: each must be what it is when it is reached
/// from nothing.
///
/// # Panics
/// At the first promise that is broken.
pub async fn walk<D: Driver>(host: &dyn Host<D>, states: &[D::Desired]) {
    let foreign = host.foreign().await;
    let empty = D::Desired::default();
    let mut fresh = Vec::new();
    for (index, state) in states.iter().enumerate() {
        fresh.push(reach(host, state, &format!("empty → {index}")).await);
        reach(host, &empty, &format!("{index} → empty")).await;
    }
    for (index, state) in states.iter().enumerate() {
        let what = index.checked_sub(1).map_or_else(
            || format!("empty → {index}"),
            |before| format!("{before} → {index}"),
        );
        assert_eq!(
            reach(host, state, &what).await,
            fresh[index],
            "{what}: the way must not show in the result"
        );
        assert_untouched(host, &foreign, &what).await;
    }
    assert_eq!(
        reach(host, &empty, "the last → empty").await,
        D::State::default(),
        "nothing that is ours stays"
    );
}

/// Observes, plans and applies as a restarted process does; checks that `observe` is `after` and
/// that a second plan is empty.
async fn reach<D: Driver>(host: &dyn Host<D>, desired: &D::Desired, what: &str) -> D::State {
    let driver = host.driver(Arc::new(())).await;
    let current = driver
        .observe()
        .await
        .unwrap_or_else(|error| panic!("{what}: observe: {}", error.chain()));
    let Change { plan, after } = driver
        .plan(desired, &current)
        .unwrap_or_else(|error| panic!("{what}: plan: {}", error.chain()));
    driver
        .apply(&plan)
        .await
        .unwrap_or_else(|error| panic!("{what}: apply: {}\n{plan}", error.chain()));
    let observed = driver
        .observe()
        .await
        .unwrap_or_else(|error| panic!("{what}: observe after apply: {}", error.chain()));
    assert_eq!(
        observed, after,
        "{what}: observe must return what the plan promised; the plan was\n{plan}"
    );
    let again = driver
        .plan(desired, &observed)
        .unwrap_or_else(|error| panic!("{what}: second plan: {}", error.chain()));
    assert!(
        again.plan.is_empty(),
        "{what}: the second plan must be empty, but is\n{}",
        again.plan
    );
    observed
}

async fn recover_from_each_refusal<D: Driver>(
    host: &dyn Host<D>,
    before: &D::Desired,
    after: &D::Desired,
    goal: &D::State,
    what: &str,
) {
    for at in 0.. {
        reach(host, before, what).await;
        let hook = RefuseOnce::at(at);
        let driver = host.driver(hook.clone()).await;
        let current = driver
            .observe()
            .await
            .unwrap_or_else(|error| panic!("{what}: observe: {}", error.chain()));
        let change = driver
            .plan(after, &current)
            .unwrap_or_else(|error| panic!("{what}: plan: {}", error.chain()));
        let result = driver.apply(&change.plan).await;
        if hook.seen() <= at {
            result.unwrap_or_else(|error| panic!("{what}: apply: {}", error.chain()));
            return;
        }
        assert!(
            result.is_err(),
            "{what}: write {at} was refused, and apply says that all is well"
        );
        let state = reach(
            host,
            after,
            &format!("{what} after a refusal of write {at}"),
        )
        .await;
        assert_eq!(state, *goal, "{what}: after a refusal of write {at}");
    }
}

async fn assert_untouched<D: Driver>(host: &dyn Host<D>, foreign: &str, what: &str) {
    assert_eq!(
        host.foreign().await,
        foreign,
        "{what}: what is not ours must stay as it was"
    );
}
