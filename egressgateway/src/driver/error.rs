//! The one error that crosses a contract.

use std::fmt;

use rustix::io::Errno;

/// Stable, low-cardinality category of an [`Error`]: metric label, event reason and retry rule in
/// one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The kernel or the API server is not as last seen: observe again, then try at once.
    Conflict,
    /// What is asked cannot be expressed: trying again helps only after the request changed.
    Invalid,
    /// The process lacks a capability or a right.
    Permission,
    /// Worth trying again, with backoff.
    Transient,
    /// The host lacks a feature; the context names it.
    Unsupported,
}

impl ErrorKind {
    /// The category as a metric label.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Conflict => "conflict",
            Self::Invalid => "invalid",
            Self::Permission => "permission",
            Self::Transient => "transient",
            Self::Unsupported => "unsupported",
        }
    }

    /// Whether trying again without any change elsewhere can help.
    #[must_use]
    pub fn is_retryable(self) -> bool {
        matches!(self, Self::Conflict | Self::Transient)
    }
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A failure with its category, what was being done, and the cause.
#[derive(Debug, thiserror::Error)]
#[error("{context}")]
pub struct Error {
    /// Category.
    pub kind: ErrorKind,
    /// What was being done, with the names involved.
    pub context: String,
    /// Cause.
    #[source]
    pub source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    /// An error without a further cause.
    pub fn new(kind: ErrorKind, context: impl Into<String>) -> Self {
        Self {
            kind,
            context: context.into(),
            source: None,
        }
    }

    /// Adds the cause.
    #[must_use]
    pub fn with_source(
        mut self,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        self.source = Some(source.into());
        self
    }

    /// Classifies an operating system error by its number and says what was being done.
    ///
    /// The numbers are those of errno(3). `ENOENT`, `EEXIST`, `ENODEV`, `ESRCH`, `EBUSY`,
    /// `EADDRNOTAVAIL` and their like tell that the kernel moved on since it was last read.
    #[must_use]
    pub fn from_errno(errno: i32, context: impl Into<String>) -> Self {
        Self::new(errno_kind(errno), context).with_source(std::io::Error::from_raw_os_error(errno))
    }

    /// Classifies an I/O error; one without a number counts as transient.
    #[must_use]
    pub fn from_io(error: std::io::Error, context: impl Into<String>) -> Self {
        let kind = error
            .raw_os_error()
            .map_or(ErrorKind::Transient, errno_kind);
        Self::new(kind, context).with_source(error)
    }

    /// The context and all causes in one line.
    #[must_use]
    pub fn chain(&self) -> String {
        let mut text = self.context.clone();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            text.push_str(": ");
            text.push_str(&error.to_string());
            cause = error.source();
        }
        text
    }
}

/// The process may not.
const PERMISSION: &[Errno] = &[Errno::PERM, Errno::ACCESS];
/// The kernel is not as it was last read.
const CONFLICT: &[Errno] = &[
    Errno::NOENT,
    Errno::SRCH,
    Errno::NXIO,
    Errno::BUSY,
    Errno::EXIST,
    Errno::NODEV,
    Errno::NOTEMPTY,
    Errno::ADDRNOTAVAIL,
];
/// The kernel was built without it.
const UNSUPPORTED: &[Errno] = &[
    Errno::NOSYS,
    Errno::NOPROTOOPT,
    Errno::PROTONOSUPPORT,
    Errno::OPNOTSUPP,
    Errno::AFNOSUPPORT,
];
/// Too little of something, or nobody answers: that passes.
const TRANSIENT: &[Errno] = &[
    Errno::INTR,
    Errno::IO,
    Errno::AGAIN,
    Errno::NOMEM,
    Errno::NFILE,
    Errno::MFILE,
    Errno::NOSPC,
    Errno::NETDOWN,
    Errno::NETUNREACH,
    Errno::CONNRESET,
    Errno::NOBUFS,
    Errno::TIMEDOUT,
    Errno::CONNREFUSED,
    Errno::HOSTDOWN,
    Errno::HOSTUNREACH,
];

/// errno(3) to category. Numbers come from the kernel and need not be any of these.
fn errno_kind(errno: i32) -> ErrorKind {
    let kinds = [
        (PERMISSION, ErrorKind::Permission),
        (CONFLICT, ErrorKind::Conflict),
        (UNSUPPORTED, ErrorKind::Unsupported),
        (TRANSIENT, ErrorKind::Transient),
    ];
    kinds
        .into_iter()
        .find(|(numbers, _)| numbers.iter().any(|known| known.raw_os_error() == errno))
        .map_or(ErrorKind::Invalid, |(_, kind)| kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errno_decides_the_kind_and_the_chain_names_the_cause() {
        assert_eq!(Error::from_errno(17, "add route").kind, ErrorKind::Conflict);
        assert_eq!(
            Error::from_errno(99, "delete address").kind,
            ErrorKind::Conflict
        );
        assert_eq!(
            Error::from_errno(1, "add route").kind,
            ErrorKind::Permission
        );
        assert_eq!(
            Error::from_errno(95, "add route").kind,
            ErrorKind::Unsupported
        );
        assert_eq!(Error::from_errno(22, "add route").kind, ErrorKind::Invalid);
        for strange in [0, -1, 4095, i32::MIN, i32::MAX] {
            assert_eq!(Error::from_errno(strange, "").kind, ErrorKind::Invalid);
        }
        for transient in [
            4, 5, 11, 12, 23, 24, 28, 100, 101, 104, 105, 110, 111, 112, 113,
        ] {
            assert_eq!(Error::from_errno(transient, "").kind, ErrorKind::Transient);
        }
        for conflict in [2, 3, 6, 16, 17, 19, 39, 99] {
            assert_eq!(Error::from_errno(conflict, "").kind, ErrorKind::Conflict);
        }
        for unsupported in [38, 92, 93, 95, 97] {
            assert_eq!(
                Error::from_errno(unsupported, "").kind,
                ErrorKind::Unsupported
            );
        }
        assert!(
            Error::from_errno(17, "add route")
                .chain()
                .starts_with("add route: File exists")
        );
    }
}
