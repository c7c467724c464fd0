use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::controller::Cluster;

/// The cluster as it was last seen, for who plans and who answers admission reviews; clones share
/// it. It is never held across an await.
#[derive(Clone, Debug, Default)]
pub(crate) struct SharedCluster(Arc<RwLock<Cluster>>);

impl SharedCluster {
    pub(crate) fn read(&self) -> RwLockReadGuard<'_, Cluster> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn write(&self) -> RwLockWriteGuard<'_, Cluster> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}
