use std::time::Duration;

use futures::{Stream, StreamExt, stream};
use kube::runtime::watcher::{self, Event};
use tokio::time::{Instant, sleep};

use crate::runtime::time::jitter;

/// Upper limit while the server is unreachable: retries cost it nothing, and recovery should be
/// noticed soon.
const UNREACHABLE: Duration = Duration::from_secs(5);

/// Delays that double up to a limit, each shortened at random by up to a half, so that daemons
/// which failed together do not come back together.
#[derive(Clone, Debug)]
pub struct Backoff {
    first: Duration,
    limit: Duration,
    next: Duration,
}

impl Backoff {
    /// Delays from `first` up to `limit`.
    #[must_use]
    pub fn new(first: Duration, limit: Duration) -> Self {
        Self {
            first,
            limit,
            next: first,
        }
    }

    /// The next delay.
    pub fn delay(&mut self) -> Duration {
        let full = self.next.min(self.limit);
        self.next = full.saturating_mul(2);
        jitter(full)
    }

    /// Starts over: something worked.
    pub fn succeeded(&mut self) {
        self.next = self.first;
    }
}

impl Default for Backoff {
    /// From 200 milliseconds up to 30 seconds.
    fn default() -> Self {
        Self::new(Duration::from_millis(200), Duration::from_secs(30))
    }
}

impl Backoff {
    /// A watch that waits after each failure, at most five seconds where nobody answered. It starts
    /// over once an object or the end of a list came, or nothing failed for longer than the limit.
    ///
    /// [`Event::Init`] means only that a list is about to be asked for. `StreamBackoff` of
    /// kube-runtime (5.0) takes it for success, and a list that is refused is asked for again
    /// several times a second, for ever.
    pub fn pace<K>(
        self,
        watch: impl Stream<Item = watcher::Result<Event<K>>>,
    ) -> impl Stream<Item = watcher::Result<Event<K>>> {
        let start = Paced {
            watch: Box::pin(watch),
            backoff: self,
            wait: Duration::ZERO,
        };
        stream::unfold(start, |mut paced| async move {
            sleep(paced.wait).await;
            let asked = Instant::now();
            let event = paced.watch.next().await?;
            if matches!(&event, Ok(event) if !matches!(event, Event::Init))
                || asked.elapsed() > paced.backoff.limit
            {
                paced.backoff.succeeded();
            }
            paced.wait = match &event {
                Err(error) if was_answered(error) => paced.backoff.delay(),
                Err(_) => paced.backoff.delay().min(jitter(UNREACHABLE)),
                Ok(_) => Duration::ZERO,
            };
            Some((event, paced))
        })
    }
}

struct Paced<S> {
    watch: std::pin::Pin<Box<S>>,
    backoff: Backoff,
    /// Before the next event.
    wait: Duration,
}

/// True if the API server answered with an error; false for transport errors.
fn was_answered(error: &watcher::Error) -> bool {
    match error {
        watcher::Error::InitialListFailed(error)
        | watcher::Error::WatchStartFailed(error)
        | watcher::Error::WatchFailed(error) => {
            matches!(error, kube::Error::Api(_) | kube::Error::SerdeError(_))
        }
        watcher::Error::WatchError(_) | watcher::Error::NoResourceVersion => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_the_limit_and_start_over_after_success() {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_millis(400));
        let within = |delay: Duration, full: u64| {
            delay <= Duration::from_millis(full) && delay >= Duration::from_millis(full / 2)
        };
        assert!(within(backoff.delay(), 100));
        assert!(within(backoff.delay(), 200));
        assert!(within(backoff.delay(), 400));
        assert!(within(backoff.delay(), 400));
        backoff.succeeded();
        assert!(within(backoff.delay(), 100));
    }

    /// When each of these was seen, in milliseconds.
    async fn seen(events: Vec<fn() -> watcher::Result<Event<()>>>) -> Vec<u128> {
        let (start, backoff) = (
            Instant::now(),
            Backoff::new(Duration::from_secs(1), Duration::from_secs(60)),
        );
        let events = backoff.pace(stream::iter(events).map(|event| event()));
        events.map(|_| start.elapsed().as_millis()).collect().await
    }

    fn refused() -> watcher::Result<Event<()>> {
        Err(watcher::Error::WatchError(Box::default()))
    }

    fn unreachable() -> watcher::Result<Event<()>> {
        Err(watcher::Error::WatchFailed(
            kube::Error::LinesCodecMaxLineLengthExceeded,
        ))
    }

    #[tokio::test(start_paused = true)]
    async fn a_list_that_is_refused_again_and_again_is_asked_for_more_and_more_rarely() {
        let list = || Ok(Event::Init);
        let seen = seen(vec![
            list, refused, list, refused, list, refused, list, refused, list,
        ])
        .await;
        assert!(seen[1] == 0 && (500..=1000).contains(&seen[3]), "{seen:?}");
        assert!(
            (1000..=2000).contains(&(seen[5] - seen[3]))
                && (2000..=4000).contains(&(seen[7] - seen[5])),
            "{seen:?}"
        );
        assert!((4000..=8000).contains(&(seen[8] - seen[7])), "{seen:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn what_comes_starts_over_and_a_way_that_is_lost_is_tried_every_few_seconds() {
        let object = || Ok(Event::Apply(()));
        let mut events: Vec<fn() -> watcher::Result<Event<()>>> = vec![refused; 6];
        events.extend([object, refused, object]);
        events.extend(vec![unreachable as fn() -> _; 8]);
        let seen = seen(events).await;
        assert!((16_000..=32_000).contains(&(seen[6] - seen[5])), "{seen:?}");
        assert!((500..=1000).contains(&(seen[8] - seen[7])), "{seen:?}");
        assert!((2500..=5000).contains(&(seen[16] - seen[15])), "{seen:?}");
    }
}
