use crate::{Error, ErrorKind};

/// Classifies a failed request to the API server and says what was being done.
///
/// An object that is gone (404) counts as a conflict, as one that changed (409) does: what was last
/// seen of it is not so any more.
pub fn from_api(error: kube::Error, context: impl Into<String>) -> Error {
    let failure = Error::new(kind(&error), context);
    match error {
        // The client's own words for an answer repeat it several times.
        kube::Error::Api(status) => failure.with_source(format!(
            "{} ({} {})",
            status.message, status.code, status.reason
        )),
        error => failure.with_source(error),
    }
}

fn kind(error: &kube::Error) -> ErrorKind {
    match error {
        kube::Error::Api(status) => match status.code {
            401 | 403 => ErrorKind::Permission,
            404 | 409 | 410 | 412 => ErrorKind::Conflict,
            408 | 429 | 500.. => ErrorKind::Transient,
            _ => ErrorKind::Invalid,
        },
        kube::Error::SerdeError(_) | kube::Error::BuildRequest(_) => ErrorKind::Invalid,
        _ => ErrorKind::Transient,
    }
}

/// The HTTP status code of an answer; none where there was no answer.
pub(crate) fn code(error: &kube::Error) -> Option<u16> {
    match error {
        kube::Error::Api(status) => Some(status.code),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answered(code: u16) -> ErrorKind {
        let status = kube::core::Status {
            code,
            ..kube::core::Status::success()
        };
        from_api(kube::Error::Api(Box::new(status)), "write the status").kind
    }

    #[test]
    fn the_status_code_decides_the_kind() {
        assert_eq!(answered(409), ErrorKind::Conflict);
        assert_eq!(answered(404), ErrorKind::Conflict);
        assert_eq!(answered(403), ErrorKind::Permission);
        assert_eq!(answered(422), ErrorKind::Invalid);
        assert_eq!(answered(503), ErrorKind::Transient);
        assert_eq!(answered(429), ErrorKind::Transient);
    }
}
