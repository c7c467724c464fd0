//! The tasks that make up a daemon.

use tokio::task::JoinError;

use crate::{Error, ErrorKind};

/// The error of a daemon one of whose tasks ended before shutdown.
pub(super) fn ended_alone(ended: Result<(), JoinError>) -> Error {
    let error = Error::new(ErrorKind::Invalid, "a part of the daemon ended on its own");
    match ended {
        Err(cause) => error.with_source(cause),
        Ok(()) => error,
    }
}
