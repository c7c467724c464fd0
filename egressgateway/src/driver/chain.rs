//! Several drivers do one work.

use std::{collections::BTreeMap, sync::Arc};

use async_trait::async_trait;

use crate::{Counter, CounterSource, Error, Outcome, PolicyMonitor, Reconcile};

/// Drivers that are given the same desired state, one after the other: a policy backend, and what
/// it needs beside it on some hosts.
///
/// A failure ends the round: what comes first is in force before the next is asked.
pub struct DriverChain<D>(Vec<Box<dyn Reconcile<D>>>);

impl<D> std::fmt::Debug for DriverChain<D> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("DriverChain").field(&self.0.len()).finish()
    }
}

impl<D> DriverChain<D> {
    /// These, in this order.
    #[must_use]
    pub fn new(drivers: Vec<Box<dyn Reconcile<D>>>) -> Self {
        Self(drivers)
    }
}

#[async_trait]
impl<D: Send + Sync> Reconcile<D> for DriverChain<D> {
    async fn reconcile(&mut self, desired: &D) -> Result<Outcome, Error> {
        let mut outcome = Outcome::Unchanged;
        for driver in &mut self.0 {
            if driver.reconcile(desired).await? == Outcome::Applied {
                outcome = Outcome::Applied;
            }
        }
        Ok(outcome)
    }

    async fn dry_run(&mut self, desired: &D) -> Result<String, Error> {
        let mut text = String::new();
        for driver in &mut self.0 {
            text.push_str(&driver.dry_run(desired).await?);
        }
        Ok(text)
    }

    fn invalidate(&mut self) {
        self.0.iter_mut().for_each(|driver| driver.invalidate());
    }
}

/// The counters of several drivers: what has the same name is one.
#[async_trait]
impl CounterSource for Vec<Arc<dyn CounterSource>> {
    async fn counters(&self) -> Result<BTreeMap<String, Counter>, Error> {
        let mut all: BTreeMap<String, Counter> = BTreeMap::new();
        for source in self {
            for (name, counter) in source.counters().await? {
                *all.entry(name).or_default() += counter;
            }
        }
        Ok(all)
    }
}

/// The monitors of several drivers: the first that notices something, or fails, speaks for all.
#[async_trait]
impl PolicyMonitor for Vec<Arc<dyn PolicyMonitor>> {
    async fn changed(&self) -> Result<(), Error> {
        if self.is_empty() {
            return std::future::pending().await;
        }
        futures::future::select_all(self.iter().map(|monitor| monitor.changed()))
            .await
            .0
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::ErrorKind;

    struct Fake(&'static str, Arc<Mutex<Vec<String>>>, Option<Outcome>);

    #[async_trait]
    impl Reconcile<u8> for Fake {
        async fn reconcile(&mut self, desired: &u8) -> Result<Outcome, Error> {
            self.1.lock().unwrap().push(format!("{} {desired}", self.0));
            self.2
                .ok_or_else(|| Error::new(ErrorKind::Transient, self.0))
        }

        async fn dry_run(&mut self, desired: &u8) -> Result<String, Error> {
            Ok(format!("{} {desired}\n", self.0))
        }

        fn invalidate(&mut self) {
            self.1
                .lock()
                .unwrap()
                .push(format!("invalidate {}", self.0));
        }
    }

    #[tokio::test]
    async fn all_are_asked_in_order_until_one_fails() {
        let journal = Arc::default();
        let fake = |name, outcome| -> Box<dyn Reconcile<u8>> {
            Box::new(Fake(name, Arc::clone(&journal), outcome))
        };
        let mut both = DriverChain::new(vec![
            fake("a", Some(Outcome::Applied)),
            fake("b", Some(Outcome::Unchanged)),
        ]);
        assert_eq!(both.reconcile(&1).await.unwrap(), Outcome::Applied);
        assert_eq!(both.dry_run(&2).await.unwrap(), "a 2\nb 2\n");
        both.invalidate();
        let mut failing =
            DriverChain::new(vec![fake("c", None), fake("d", Some(Outcome::Applied))]);
        failing.reconcile(&3).await.unwrap_err();
        assert_eq!(
            *journal.lock().unwrap(),
            ["a 1", "b 1", "invalidate a", "invalidate b", "c 3"]
        );
    }

    struct Told(tokio::sync::Notify);

    #[async_trait]
    impl PolicyMonitor for Told {
        async fn changed(&self) -> Result<(), Error> {
            self.0.notified().await;
            Ok(())
        }
    }

    #[tokio::test]
    async fn any_monitor_speaks_for_all() {
        let told: Vec<Arc<Told>> = (0..2)
            .map(|_| Arc::new(Told(tokio::sync::Notify::new())))
            .collect();
        let all: Vec<Arc<dyn PolicyMonitor>> =
            told.iter().map(|told| Arc::clone(told) as _).collect();
        for told in &told {
            told.0.notify_one();
            all.changed().await.unwrap();
        }
        assert!(futures::poll!(std::pin::pin!(all.changed())).is_pending());
    }
}
