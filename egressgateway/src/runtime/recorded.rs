use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use async_trait::async_trait;

use super::metrics::AgentMetrics;
use crate::{Drivers, Error, ErrorKind, Outcome, Reconcile};

/// How often a driver may fail in passing before it is said to have failed: the first repair is not news.
const PASSING_FAILURES: u32 = 3;

/// What a driver's last calls came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum Record {
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
pub(super) struct Recorder(Arc<Mutex<(Record, u32)>>);

impl Recorder {
    pub(super) fn read(&self) -> Record {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).0.clone()
    }

    fn note(&self, result: &Result<Outcome, Error>) {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match result {
            Ok(_) => *held = (Record::Good, 0),
            Err(error) => {
                held.1 += 1;
                let passing = error.kind.is_retryable() && held.1 < PASSING_FAILURES && held.0 == Record::Good;
                if !passing {
                    held.0 = Record::Failed { kind: error.kind, message: error.chain() };
                }
            }
        }
    }
}

/// The records of the drivers.
#[derive(Clone, Debug, Default)]
pub(super) struct Recorders {
    pub(super) tunnel: Recorder,
    pub(super) steering: Recorder,
    pub(super) addresses: Recorder,
    pub(super) policy: Recorder,
}

/// The same drivers, with what becomes of their calls noted and measured.
pub(super) fn record(drivers: Drivers, recorders: &Recorders, metrics: &AgentMetrics) -> Drivers {
    Drivers {
        tunnel: Box::new(Recorded::new("tunnel", drivers.tunnel, recorders.tunnel.clone(), metrics)),
        steering: Box::new(Recorded::new("steering", drivers.steering, recorders.steering.clone(), metrics)),
        addresses: Box::new(Recorded::new("addresses", drivers.addresses, recorders.addresses.clone(), metrics)),
        policy: Box::new(Recorded::new("policy", drivers.policy, recorders.policy.clone(), metrics)),
    }
}

struct Recorded<D> {
    name: &'static str,
    driver: Box<dyn Reconcile<D>>,
    recorder: Recorder,
    metrics: AgentMetrics,
}

impl<D> Recorded<D> {
    fn new(name: &'static str, driver: Box<dyn Reconcile<D>>, recorder: Recorder, metrics: &AgentMetrics) -> Self {
        Self { name, driver, recorder, metrics: metrics.clone() }
    }
}

#[async_trait]
impl<D: Sync> Reconcile<D> for Recorded<D> {
    async fn reconcile(&mut self, desired: &D) -> Result<Outcome, Error> {
        let began = Instant::now();
        let result = self.driver.reconcile(desired).await;
        self.metrics.reconciled(self.name, began.elapsed(), result.as_ref().err().map(|error| error.kind));
        self.recorder.note(&result);
        result
    }

    async fn dry_run(&mut self, desired: &D) -> Result<String, Error> {
        self.driver.dry_run(desired).await
    }

    fn invalidate(&mut self) {
        self.driver.invalidate();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_in_passing_is_told_only_once_it_repeats() {
        let recorder = Recorder::default();
        recorder.note(&Ok(Outcome::Applied));
        let passing = || Err(Error::new(ErrorKind::Transient, "busy"));
        recorder.note(&passing());
        recorder.note(&passing());
        assert_eq!(recorder.read(), Record::Good);
        recorder.note(&passing());
        assert_eq!(recorder.read(), Record::Failed { kind: ErrorKind::Transient, message: "busy".to_owned() });
        recorder.note(&Ok(Outcome::Unchanged));
        assert_eq!(recorder.read(), Record::Good);
        recorder.note(&Err(Error::new(ErrorKind::Unsupported, "no vxlan")));
        assert_eq!(recorder.read(), Record::Failed { kind: ErrorKind::Unsupported, message: "no vxlan".to_owned() });
    }
}
