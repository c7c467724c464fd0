//! A lock that a panicking thread does not poison.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks; what a panicking thread left is still good, as every change here is one assignment.
pub(super) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
