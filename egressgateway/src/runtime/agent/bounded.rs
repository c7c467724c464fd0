//! No question to the kernel may keep an agent from its work for good.
//!
//! A message of netlink can be lost, and a program that was called can hang. Then the work is given
//! up, what is believed of the kernel is forgotten, and it is tried again.

use std::{future::Future, time::Duration};

use crate::{Error, ErrorKind};

/// How long a driver may be at work before it is given up, at first: more than ten times what the
/// largest known states take.
pub(crate) const LIMIT: Duration = Duration::from_secs(120);
/// When the log says that it takes long.
const LONG: Duration = Duration::from_secs(10);

/// The result of `work`, or an error once it took longer than `limit`.
///
/// # Errors
/// Those of `work`, and [`ErrorKind::Transient`] when it is given up.
pub(crate) async fn bounded<T>(
    what: &'static str,
    limit: Duration,
    work: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    let mut work = std::pin::pin!(work);
    if let Ok(result) = tokio::time::timeout(LONG.min(limit), &mut work).await {
        return result;
    }
    tracing::warn!(
        what,
        after = LONG.as_secs_f64(),
        limit = limit.as_secs_f64(),
        "kernel call is slow"
    );
    match tokio::time::timeout(limit.saturating_sub(LONG), work).await {
        Ok(result) => result,
        Err(_) => Err(Error::new(
            ErrorKind::Transient,
            format!(
                "{what}: given up after {} s without an end",
                limit.as_secs()
            ),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_never_ends_is_given_up_and_what_takes_long_is_not() {
        let error = bounded(
            "steering",
            LIMIT,
            std::future::pending::<Result<(), Error>>(),
        )
        .await
        .unwrap_err();
        assert_eq!(
            (error.kind, error.chain().as_str()),
            (
                ErrorKind::Transient,
                "steering: given up after 120 s without an end"
            )
        );
        for seconds in [1, 11, 119] {
            let slow = async {
                tokio::time::sleep(Duration::from_secs(seconds)).await;
                Ok(seconds)
            };
            assert_eq!(bounded("steering", LIMIT, slow).await.unwrap(), seconds);
        }
    }
}
