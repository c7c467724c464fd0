//! What this process writes itself, so that it is not taken for somebody else's.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

/// How many of our own processes are remembered: the kernel tells of what they wrote soon after.
const REMEMBERED: usize = 16;

/// What a backend and its clones wrote themselves.
#[derive(Clone, Debug, Default)]
pub(crate) struct Writes {
    /// How often they began or ended.
    number: Arc<AtomicU64>,
    /// The processes that wrote last, by the numbers that the kernel knows their netlink sockets
    /// by.
    processes: Arc<Mutex<VecDeque<u32>>>,
}

/// While it lives, the backend writes.
pub(crate) struct Writing<'a>(&'a Writes);

impl Writes {
    pub(crate) fn begin(&self) -> Writing<'_> {
        self.number.fetch_add(1, Ordering::SeqCst);
        Writing(self)
    }

    pub(crate) fn number(&self) -> u64 {
        self.number.load(Ordering::SeqCst)
    }

    /// A process writes for us.
    pub(crate) fn remember(&self, process: u32) {
        let mut processes = self
            .processes
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        processes.truncate(REMEMBERED - 1);
        processes.push_front(process);
    }

    pub(crate) fn are_of(&self, process: u32) -> bool {
        self.processes
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .contains(&process)
    }
}

impl Drop for Writing<'_> {
    fn drop(&mut self) {
        self.0.number.fetch_add(1, Ordering::SeqCst);
    }
}
