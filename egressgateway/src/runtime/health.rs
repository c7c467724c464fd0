use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

/// What a daemon says of itself to probes; clones share it.
#[derive(Clone, Debug, Default)]
pub struct Health {
    ready: Arc<AtomicBool>,
    ended: Arc<AtomicBool>,
}

impl Health {
    /// Everything was listed once and the last work succeeded.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Relaxed)
    }

    /// The daemon's loop has not ended.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        !self.ended.load(Ordering::Relaxed)
    }

    /// Says so, or that it is not so any more.
    pub fn set_ready(&self, ready: bool) {
        self.ready.store(ready, Ordering::Relaxed);
    }

    pub(super) fn end(&self) {
        self.ended.store(true, Ordering::Relaxed);
    }
}
