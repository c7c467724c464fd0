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
pub(crate) struct Recorder(Arc<Mutex<(Record, u32)>>);

impl Recorder {
    pub(crate) fn read(&self) -> Record {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .0
            .clone()
    }

    fn note(&self, result: &Result<Outcome, Error>) {
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
pub(crate) struct Recorders {
    pub(crate) tunnel: Recorder,
    pub(crate) steering: Recorder,
    pub(crate) addresses: Recorder,
    pub(crate) policy: Recorder,
}

/// The same drivers, with what becomes of their calls noted and measured. A call that does not end
/// is given up.
pub(crate) fn record(drivers: Drivers, recorders: &Recorders, metrics: &AgentMetrics) -> Drivers {
    Drivers {
        tunnel: Box::new(Recorded::new(
            "tunnel",
            drivers.tunnel,
            recorders.tunnel.clone(),
            metrics,
        )),
        steering: Box::new(Recorded::new(
            "steering",
            drivers.steering,
            recorders.steering.clone(),
            metrics,
        )),
        addresses: Box::new(Recorded::new(
            "addresses",
            drivers.addresses,
            recorders.addresses.clone(),
            metrics,
        )),
        policy: Box::new(Recorded::new(
            "policy",
            drivers.policy,
            recorders.policy.clone(),
            metrics,
        )),
    }
}

struct Recorded<D> {
    name: &'static str,
    driver: Box<dyn Reconcile<D>>,
    recorder: Recorder,
    metrics: AgentMetrics,
    /// How long a call may take. Longer each time that one was given up: a host may be slower than
    /// anybody thought.
    limit: Duration,
}

impl<D> Recorded<D> {
    fn new(
        name: &'static str,
        driver: Box<dyn Reconcile<D>>,
        recorder: Recorder,
        metrics: &AgentMetrics,
    ) -> Self {
        Self {
            name,
            driver,
            recorder,
            metrics: metrics.clone(),
            limit: LIMIT,
        }
    }
}

#[async_trait]
impl<D: Sync> Reconcile<D> for Recorded<D> {
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
        self.recorder.note(&result);
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
        let recorder = Recorder::default();
        let mut driver = Recorded::new(
            "steering",
            Box::new(Stuck::default()),
            recorder.clone(),
            &AgentMetrics::default(),
        );
        let error = driver.reconcile(&()).await.unwrap_err();
        assert_eq!(
            (error.kind, driver.limit),
            (ErrorKind::Transient, 2 * LIMIT)
        );
        assert_eq!(driver.reconcile(&()).await.unwrap(), Outcome::Applied);
        assert_eq!((recorder.read(), driver.limit), (Record::Good, LIMIT));
    }

    #[test]
    fn a_failure_in_passing_is_told_only_once_it_repeats() {
        let recorder = Recorder::default();
        recorder.note(&Ok(Outcome::Applied));
        let passing = || Err(Error::new(ErrorKind::Transient, "busy"));
        recorder.note(&passing());
        recorder.note(&passing());
        assert_eq!(recorder.read(), Record::Good);
        recorder.note(&passing());
        assert_eq!(
            recorder.read(),
            Record::Failed {
                kind: ErrorKind::Transient,
                message: "busy".to_owned()
            }
        );
        recorder.note(&Ok(Outcome::Unchanged));
        assert_eq!(recorder.read(), Record::Good);
        recorder.note(&Err(Error::new(ErrorKind::Unsupported, "no vxlan")));
        assert_eq!(
            recorder.read(),
            Record::Failed {
                kind: ErrorKind::Unsupported,
                message: "no vxlan".to_owned()
            }
        );
    }
}
