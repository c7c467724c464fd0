//! Looks whether somebody else changed what is ours.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use egressgateway::{Driver, Error, PolicyMonitor};
use tokio::{sync::Mutex, time::Instant};

use crate::backend::Netfilter;

/// How often the host is read.
const PERIOD: Duration = Duration::from_secs(5);
/// Reading takes at most this part of the time: a host with ten thousand policies is read less often.
const SHARE: u32 = 20;

/// How often a backend and its clones began or ended to write.
#[derive(Clone, Debug, Default)]
pub(crate) struct Writes(Arc<AtomicU64>);

/// While it lives, the backend writes.
pub(crate) struct Writing<'a>(&'a Writes);

impl Writes {
    pub(crate) fn begin(&self) -> Writing<'_> {
        self.0.fetch_add(1, Ordering::SeqCst);
        Writing(self)
    }

    fn number(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }
}

impl Drop for Writing<'_> {
    fn drop(&mut self) {
        self.0.0.fetch_add(1, Ordering::SeqCst);
    }
}

/// Is told when somebody other than the driver that it came from changes what is the driver's, and once after the driver itself wrote. Made by
/// [`Netfilter::monitor`] and [`Transit::monitor`](crate::Transit::monitor).
#[derive(Debug)]
pub struct NetfilterMonitor<D: Driver = Netfilter> {
    driver: D,
    writes: Writes,
    /// What was read last, and the number of writes before it.
    seen: Mutex<Option<(u64, D::State)>>,
    differ: fn(&D::State, &D::State) -> bool,
}

impl<D: Driver> NetfilterMonitor<D> {
    pub(crate) fn new(driver: D, writes: Writes, differ: fn(&D::State, &D::State) -> bool) -> Self {
        Self { driver, writes, seen: Mutex::new(None), differ }
    }
}

#[async_trait]
impl<D: Driver> PolicyMonitor for NetfilterMonitor<D> {
    async fn changed(&self) -> Result<(), Error> {
        let mut pause = PERIOD;
        loop {
            tokio::time::sleep(pause).await;
            let mut seen = self.seen.lock().await;
            let (number, began) = (self.writes.number(), Instant::now());
            let now = self.driver.observe().await?;
            pause = PERIOD.max(began.elapsed() * SHARE);
            // The backend wrote meanwhile: nothing can be said about what was read.
            if number % 2 == 1 || number != self.writes.number() {
                continue;
            }
            // Whether the first state after a write is what was written, only the reader who planned it can say.
            let changed = seen.as_ref().is_none_or(|(before, state)| *before != number || (self.differ)(state, &now));
            *seen = Some((number, now));
            if changed {
                return Ok(());
            }
        }
    }
}
