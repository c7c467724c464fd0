//! Drivers whose calls are bounded, measured and noted.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use tokio::time::Instant;

use super::bounded::{LIMIT, bounded};
use crate::{Drivers, Error, ErrorKind, Outcome, Reconcile, runtime::metrics::AgentMetrics};

/// How often a driver may fail in passing before it is said to have failed: the first repair is not
/// news.
const PASSING_FAILURES: u32 = 3;

/// What a driver's last calls came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum Record {
    /// It was not called yet.
    #[default]
    Unknown,
    /// The kernel is as desired.
    Good,
    /// It keeps failing, or can't succeed.
    Failed {
        /// Category of the last failure.
        kind: ErrorKind,
        /// The last failure in one line.
        message: String,
    },
}

/// One driver's record, shared between the driver and the status.
#[derive(Clone, Debug, Default)]
pub(crate) struct DriverHealth(Arc<Mutex<(Record, u32)>>);

impl DriverHealth {
    pub(crate) fn read(&self) -> Record {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .0
            .clone()
    }

    fn record(&self, result: &Result<Outcome, Error>) {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match result {
            Ok(_) => *held = (Record::Good, 0),
            Err(error) => {
                held.1 += 1;
                let passing = error.kind.is_retryable()
                    && held.1 < PASSING_FAILURES
                    && held.0 == Record::Good;
                if !passing {
                    held.0 = Record::Failed {
                        kind: error.kind,
                        message: error.chain(),
                    };
                }
            }
        }
    }
}

/// The records of the drivers.
#[derive(Clone, Debug, Default)]
pub(crate) struct DriversHealth {
    pub(crate) tunnel: DriverHealth,
    pub(crate) steering: DriverHealth,
    pub(crate) addresses: DriverHealth,
    pub(crate) relay: DriverHealth,
    pub(crate) policy: DriverHealth,
}

/// The same drivers, with what becomes of their calls noted and measured. A call that does not end
/// is given up.
pub(crate) fn instrument(
    drivers: Drivers,
    health: &DriversHealth,
    metrics: &AgentMetrics,
) -> Drivers {
    Drivers {
        tunnel: Box::new(Instrumented::new(
            "tunnel",
            drivers.tunnel,
            health.tunnel.clone(),
            metrics,
        )),
        steering: Box::new(Instrumented::new(
            "steering",
            drivers.steering,
            health.steering.clone(),
            metrics,
        )),
        addresses: Box::new(Instrumented::new(
            "addresses",
            drivers.addresses,
            health.addresses.clone(),
            metrics,
        )),
        relay: Box::new(Instrumented::new(
            "relay",
            drivers.relay,
            health.relay.clone(),
            metrics,
        )),
        policy: Box::new(Instrumented::new(
            "policy",
            drivers.policy,
            health.policy.clone(),
            metrics,
        )),
    }
}

struct Instrumented<D> {
    name: &'static str,
    driver: Box<dyn Reconcile<D>>,
    health: DriverHealth,
    metrics: AgentMetrics,
    /// How long a call may take. Longer each time that one was given up: a host may be slower than
    /// anybody thought.
    limit: Duration,
}

impl<D> Instrumented<D> {
    fn new(
        name: &'static str,
        driver: Box<dyn Reconcile<D>>,
        health: DriverHealth,
        metrics: &AgentMetrics,
    ) -> Self {
        Self {
            name,
            driver,
            health,
            metrics: metrics.clone(),
            limit: LIMIT,
        }
    }
}

#[async_trait]
impl<D: Sync> Reconcile<D> for Instrumented<D> {
    async fn reconcile(&mut self, desired: &D) -> Result<Outcome, Error> {
        let began = Instant::now();
        let result = bounded(self.name, self.limit, self.driver.reconcile(desired)).await;
        if began.elapsed() >= self.limit {
            self.driver.invalidate();
            self.limit *= 2;
        } else if result.is_ok() {
            self.limit = LIMIT;
        }
        self.metrics.reconciled(
            self.name,
            began.elapsed(),
            result.as_ref().err().map(|error| error.kind),
        );
        self.health.record(&result);
        result
    }

    async fn dry_run(&mut self, desired: &D) -> Result<String, Error> {
        bounded(self.name, self.limit, self.driver.dry_run(desired)).await
    }

    fn invalidate(&mut self) {
        self.driver.invalidate();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Never ends a call until it was told to forget what it believes.
    #[derive(Default)]
    struct Stuck(bool);

    #[async_trait]
    impl Reconcile<()> for Stuck {
        async fn reconcile(&mut self, (): &()) -> Result<Outcome, Error> {
            if self.0 {
                Ok(Outcome::Applied)
            } else {
                std::future::pending().await
            }
        }

        async fn dry_run(&mut self, (): &()) -> Result<String, Error> {
            Ok(String::new())
        }

        fn invalidate(&mut self) {
            self.0 = true;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_driver_that_is_stuck_is_given_up_and_reads_the_kernel_again() {
        let health = DriverHealth::default();
        let mut driver = Instrumented::new(
            "steering",
            Box::new(Stuck::default()),
            health.clone(),
            &AgentMetrics::default(),
        );
        let error = driver.reconcile(&()).await.unwrap_err();
        assert_eq!(
            (error.kind, driver.limit),
            (ErrorKind::Transient, 2 * LIMIT)
        );
        assert_eq!(driver.reconcile(&()).await.unwrap(), Outcome::Applied);
        assert_eq!((health.read(), driver.limit), (Record::Good, LIMIT));
    }

    #[test]
    fn a_failure_in_passing_is_told_only_once_it_repeats() {
        let health = DriverHealth::default();
        health.record(&Ok(Outcome::Applied));
        let passing = || Err(Error::new(ErrorKind::Transient, "busy"));
        health.record(&passing());
        health.record(&passing());
        assert_eq!(health.read(), Record::Good);
        health.record(&passing());
        assert_eq!(
            health.read(),
            Record::Failed {
                kind: ErrorKind::Transient,
                message: "busy".to_owned()
            }
        );
        health.record(&Ok(Outcome::Unchanged));
        assert_eq!(health.read(), Record::Good);
        health.record(&Err(Error::new(ErrorKind::Unsupported, "no vxlan")));
        assert_eq!(
            health.read(),
            Record::Failed {
                kind: ErrorKind::Unsupported,
                message: "no vxlan".to_owned()
            }
        );
    }
}
