//! The delays between attempts at an operation that failed for the moment, and when to give up.

use std::time::Duration;

use backon::{BackoffBuilder as _, ExponentialBackoff, ExponentialBuilder};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

/// The delays of one series of attempts.
#[derive(Debug)]
pub(crate) struct Backoff {
    delays: ExponentialBackoff,
    /// No attempt starts later.
    deadline: Option<Instant>,
}

impl Backoff {
    /// Waits `first` after the first failure and twice as long after each further one, up to `longest`. No
    /// attempt starts later than `time_limit` from now.
    pub(crate) fn exponential(first: Duration, longest: Duration, time_limit: Duration) -> Self {
        let delays = ExponentialBuilder::new().with_min_delay(first).with_max_delay(longest);
        let delays = delays.with_factor(2.0).without_max_times().build();
        Self { delays, deadline: Some(Instant::now() + time_limit) }
    }

    /// Waits `first` to twice `first` after the first failure and twice as long after each further one, up to
    /// `longest` to twice `longest`. The delays are random, so that clients that failed together do not all come back
    /// together. There is no time limit.
    pub(crate) fn jittered(first: Duration, longest: Duration) -> Self {
        let delays = ExponentialBuilder::new().with_min_delay(first).with_max_delay(longest);
        let delays = delays.with_factor(2.0).without_max_times().with_jitter().build();
        Self { delays, deadline: None }
    }

    /// Waits `delay` after each failure. No attempt starts later than `time_limit` from now.
    pub(crate) fn constant(delay: Duration, time_limit: Duration) -> Self {
        Self::exponential(delay, delay, time_limit)
    }

    /// How long further attempts follow at most. `None`: without an end.
    pub(crate) fn time_left(&self) -> Option<Duration> {
        self.deadline.map(|deadline| deadline.duration_since(Instant::now()))
    }

    /// The delay before the next attempt. `None`: there is no time for another one.
    pub(crate) fn delay(&mut self) -> Option<Duration> {
        let is_in_time = |delay: &Duration| {
            self.deadline.is_none_or(|deadline| Instant::now() + *delay <= deadline)
        };
        self.delays.next().filter(is_in_time)
    }

    /// Calls `before_delay` and waits for the next attempt. `false`: there is no time for another attempt, or
    /// `stop` has fired.
    pub(crate) async fn wait(
        &mut self,
        stop: &CancellationToken,
        before_delay: impl FnOnce(Duration),
    ) -> bool {
        let Some(delay) = self.delay().filter(|_| !stop.is_cancelled()) else { return false };
        before_delay(delay);
        stop.run_until_cancelled(sleep(delay)).await.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// The delays of a series whose attempts all fail, each after `attempt_duration`.
    async fn delays(mut backoff: Backoff, attempt_duration: Duration) -> Vec<u64> {
        let (stop, mut delays) = (CancellationToken::new(), Vec::new());
        sleep(attempt_duration).await;
        while backoff.wait(&stop, |delay| delays.push(delay.as_secs())).await {
            sleep(attempt_duration).await;
        }
        delays
    }

    #[tokio::test(start_paused = true)]
    async fn delays_grow_to_the_longest_until_the_time_limit() {
        let backoff = || Backoff::exponential(SECOND, 4 * SECOND, 20 * SECOND);
        assert_eq!(delays(backoff(), Duration::ZERO).await, [1, 2, 4, 4, 4, 4]);
        assert_eq!(delays(backoff(), 6 * SECOND).await, [1, 2]);
        let constant = Backoff::constant(SECOND, 3 * SECOND);
        assert_eq!(delays(constant, SECOND / 10).await, [1, 1]);
        let without_time = Backoff::constant(SECOND, Duration::ZERO);
        assert_eq!(delays(without_time, Duration::ZERO).await, [0; 0]);
    }

    #[tokio::test(start_paused = true)]
    async fn jittered_delays_grow_to_twice_the_longest_without_an_end() {
        let mut backoff = Backoff::jittered(SECOND, 30 * SECOND);
        let stop = CancellationToken::new();
        for shortest in [1, 2, 4, 8, 16, 30, 30, 30].map(Duration::from_secs) {
            let mut waited = Duration::ZERO;
            assert!(backoff.wait(&stop, |delay| waited = delay).await);
            assert!(waited >= shortest && waited <= 2 * shortest, "{waited:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_stop_ends_the_delay() {
        let (stop, started) = (CancellationToken::new(), Instant::now());
        let mut backoff = Backoff::constant(60 * SECOND, 600 * SECOND);
        let stop_later = async {
            sleep(30 * SECOND).await;
            stop.cancel();
        };
        let (may_retry, ()) = tokio::join!(backoff.wait(&stop, |_| {}), stop_later);
        assert!(!may_retry && started.elapsed() == 30 * SECOND);
        assert!(!backoff.wait(&stop, |_| panic!("no delay after a stop")).await);
    }
}
