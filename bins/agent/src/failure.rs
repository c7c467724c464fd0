//! How the agent says why it can't work.

use egressgateway::{Error, ErrorKind};
use egressgateway_daemon::Failure;
use egressgateway_linux::BuildError;

/// Whose port it probably is.
pub(crate) fn taken(error: Error) -> Error {
    let cause =
        std::error::Error::source(&error).and_then(|cause| cause.downcast_ref::<std::io::Error>());
    if cause.is_some_and(|cause| cause.kind() == std::io::ErrorKind::AddrInUse) {
        return Error::new(error.kind, "another agent of this node may be running")
            .with_source(error);
    }
    error
}

/// A wrong configuration ends the process as wrong arguments do.
pub(crate) fn failure(error: BuildError) -> Failure {
    match error {
        BuildError::Config(problems) => problems.into(),
        BuildError::Host(error) => error.into(),
        other => Error::new(ErrorKind::Invalid, other.to_string()).into(),
    }
}
