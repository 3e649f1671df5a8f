//! Repeats what failed for the moment: which failures, how soon, and for how long.

use std::error::Error;
use std::fmt::Display;
use std::time::Duration;

use backon::{BackoffBuilder as _, ExponentialBackoff, ExponentialBuilder};
use stagely_protocol::ErrorChain;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tracing::warn;

tokio::task_local! {
    /// Gets the error of each failed attempt within the task, and the wait until the next one.
    static OBSERVER: Observer;
}

type Observer = Box<dyn Fn(String, Duration) + Send + Sync>;

/// Resolves like `work`. `observer` gets the error of each attempt that fails in it, and the wait until the next one.
pub(crate) async fn observed<T>(
    observer: impl Fn(String, Duration) + Send + Sync + 'static,
    work: impl Future<Output = T>,
) -> T {
    OBSERVER.scope(Box::new(observer), work).await
}

/// How long to wait between two attempts, and when to give up.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RetryPolicy {
    waits: ExponentialBuilder,
    time_limit: Option<Duration>,
}

impl RetryPolicy {
    /// Waits `first` after the first failure, and twice as long after each further one, up to `longest`.
    /// Never gives up, unless a limit is set.
    pub(crate) const fn new(first: Duration, longest: Duration) -> Self {
        let waits = ExponentialBuilder::new().with_min_delay(first).with_max_delay(longest);
        Self { waits: waits.without_max_times(), time_limit: None }
    }

    /// Makes each wait `factor` times as long as the one before.
    pub(crate) const fn factor(mut self, factor: f32) -> Self {
        self.waits = self.waits.with_factor(factor);
        self
    }

    /// Makes each wait longer by a random part of it, up to twice as long, so that clients that failed
    /// together do not come back together.
    pub(crate) const fn jitter(mut self) -> Self {
        self.waits = self.waits.with_jitter();
        self
    }

    /// Gives up after the first attempt and `retries_max` further ones.
    pub(crate) const fn retries_max(mut self, retries_max: usize) -> Self {
        self.waits = self.waits.with_max_times(retries_max);
        self
    }

    /// Begins no attempt later than `limit` after the first one.
    pub(crate) const fn time_limit(mut self, limit: Duration) -> Self {
        self.time_limit = Some(limit);
        self
    }

    /// Starts counting waits and time: for a loop that does more than repeat one call.
    pub(crate) fn start(&self) -> Backoff {
        let (waits, time_limit) = (self.waits.build(), self.time_limit);
        Backoff { waits, time_limit, started_at: Instant::now() }
    }

    /// Calls `attempt` until it succeeds, `retry` says that a further attempt is of no use, or a limit is
    /// reached. `what` names the operation in the log.
    ///
    /// # Errors
    /// The error of the last attempt.
    pub(crate) async fn run<T, E: Error + 'static, F: Future<Output = Result<T, E>>>(
        &self,
        what: impl Display,
        retry: impl FnMut(&E) -> Retry,
        attempt: impl FnMut() -> F,
    ) -> Result<T, E> {
        self.run_until(&CancellationToken::new(), what, retry, attempt).await
    }

    /// As [`run`](Self::run). Also ends, with the last error, when `cancelled` fires during a wait; an attempt
    /// that is under way is not dropped.
    ///
    /// # Errors
    /// The error of the last attempt.
    pub(crate) async fn run_until<T, E: Error + 'static, F: Future<Output = Result<T, E>>>(
        &self,
        cancelled: &CancellationToken,
        what: impl Display,
        mut retry: impl FnMut(&E) -> Retry,
        mut attempt: impl FnMut() -> F,
    ) -> Result<T, E> {
        let mut backoff = self.start();
        loop {
            let error = match attempt().await {
                Ok(value) => return Ok(value),
                Err(error) => error,
            };
            let Some(wait) = backoff.next_wait(retry(&error)) else { return Err(error) };
            let reason = ErrorChain(&error).to_string();
            warn!(error = reason, "{what} failed; trying again in {wait:?}");
            // Most work has no observer.
            let _ = OBSERVER.try_with(|observer| observer(reason, wait));
            if cancelled.run_until_cancelled(sleep(wait)).await.is_none() {
                return Err(error);
            }
        }
    }
}

/// Whether to repeat what failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Retry {
    /// A further attempt would fail as well.
    Never,
    /// After the policy's own wait.
    Soon,
    /// After the policy's own wait and not before this: the other side asked for it.
    After(Duration),
}

impl Retry {
    /// [`Soon`](Self::Soon) for a transient error.
    pub(crate) const fn if_transient(is_transient: bool) -> Self {
        if is_transient { Self::Soon } else { Self::Never }
    }
}

/// The waits and the time that one series of attempts has used up.
#[derive(Debug)]
pub(crate) struct Backoff {
    waits: ExponentialBackoff,
    time_limit: Option<Duration>,
    started_at: Instant,
}

impl Backoff {
    /// How long to wait before the next attempt; `None` to give up.
    pub(crate) fn next_wait(&mut self, retry: Retry) -> Option<Duration> {
        let least = match retry {
            Retry::Never => return None,
            Retry::Soon => Duration::ZERO,
            Retry::After(least) => least,
        };
        let wait = self.waits.next()?.max(least);
        let is_in_time =
            self.time_limit.is_none_or(|limit| self.started_at.elapsed() + wait <= limit);
        is_in_time.then_some(wait)
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use thiserror::Error;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[derive(Debug, Error)]
    #[error("attempt {0} failed")]
    struct AttemptError(u32);

    /// Fails until `policy` gives up; returns when the attempts began, in seconds.
    async fn attempts(
        policy: RetryPolicy,
        cancelled: &CancellationToken,
        retry: impl FnMut(&AttemptError) -> Retry,
    ) -> (u32, Vec<u64>) {
        let (start, began_at) = (Instant::now(), RefCell::new(Vec::new()));
        let attempt = async || {
            began_at.borrow_mut().push(start.elapsed().as_secs());
            Err::<(), _>(AttemptError(u32::try_from(began_at.borrow().len()).unwrap()))
        };
        let AttemptError(number) =
            policy.run_until(cancelled, "a test", retry, attempt).await.unwrap_err();
        (number, began_at.into_inner())
    }

    #[tokio::test(start_paused = true)]
    async fn waits_grow_up_to_the_longest_and_end_with_the_last_error() {
        let never = CancellationToken::new();
        let policy = RetryPolicy::new(SECOND, 10 * SECOND).factor(4.0).retries_max(4);
        let (error, began_at) = attempts(policy, &never, |_| Retry::Soon).await;
        assert_eq!((error, began_at), (5, vec![0, 1, 5, 15, 25]));

        let policy = RetryPolicy::new(SECOND, 10 * SECOND).time_limit(12 * SECOND);
        let (_, began_at) = attempts(policy, &never, |_| Retry::Soon).await;
        assert_eq!(began_at, [0, 1, 3, 7], "8 seconds more would be too late");
    }

    #[tokio::test(start_paused = true)]
    async fn the_other_side_may_ask_for_a_longer_wait_and_for_no_shorter_one() {
        let never = CancellationToken::new();
        let policy = RetryPolicy::new(2 * SECOND, 2 * SECOND);
        let retry = |error: &AttemptError| match error.0 {
            1 => Retry::After(5 * SECOND),
            2 => Retry::After(SECOND),
            _ => Retry::Never,
        };
        let (_, began_at) = attempts(policy, &never, retry).await;
        assert_eq!(began_at, [0, 5, 7]);
    }

    #[tokio::test(start_paused = true)]
    async fn cancellation_ends_the_wait() {
        let cancelled = CancellationToken::new();
        let policy = RetryPolicy::new(SECOND, SECOND);
        let retry = |_: &AttemptError| {
            cancelled.cancel();
            Retry::Soon
        };
        let (error, began_at) = attempts(policy, &cancelled, retry).await;
        assert_eq!((error, began_at), (1, vec![0]));
    }
}
