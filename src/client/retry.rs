//! Repeats requests of the command line: while core is away, or while a program starts.

use std::fmt;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use backon::{BackoffBuilder as _, ConstantBuilder, ExponentialBuilder, Retryable as _};
use tokio::time::{Instant, sleep, timeout};
use url::Url;

use super::error::ClientError;

const RESTART_BACKOFF: ExponentialBuilder = ExponentialBuilder::new()
    .with_min_delay(Duration::from_millis(250))
    .with_max_delay(Duration::from_secs(10))
    .without_max_times()
    .with_jitter();

/// A restart of core takes less.
const AWAY_MAX: Duration = Duration::from_secs(90);

/// Whoever waits for longer learns what for.
const SHOWN_AFTER: Duration = Duration::from_millis(1_500);

/// 15 s in all.
const START_BACKOFF: ConstantBuilder =
    ConstantBuilder::new().with_delay(Duration::from_millis(100)).with_max_times(150);

/// Says what a command waits for. Clones, which wait for the same core at the same time, say so once.
#[derive(Clone)]
pub(super) struct Waits {
    server: Url,
    pub(super) print: fn(&str),
    is_shown: Arc<AtomicBool>,
}

impl fmt::Debug for Waits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Waits").field("server", &self.server).finish_non_exhaustive()
    }
}

impl Waits {
    /// `print` gets a line about a wait.
    pub(super) fn new(server: Url, print: fn(&str)) -> Self {
        Self { server, print, is_shown: Arc::default() }
    }

    /// Resolves like `work`, which waits for core for `limit` at most, and shows that if it takes long.
    pub(super) async fn shown<T>(
        &self,
        limit: Option<Duration>,
        work: impl Future<Output = T>,
    ) -> T {
        let mut work = pin!(work);
        if let Ok(done) = timeout(SHOWN_AFTER, &mut work).await {
            return done;
        }
        let is_first = !self.is_shown.swap(true, Ordering::Relaxed);
        if is_first {
            let limit =
                limit.map(|limit| format!(", for {} at most", humantime::format_duration(limit)));
            (self.print)(&format!(
                "Waiting for core at {}{}",
                self.server,
                limit.unwrap_or_default()
            ));
        }
        let done = work.await;
        if is_first {
            self.is_shown.store(false, Ordering::Relaxed);
        }
        done
    }

    /// Repeats `request` while core cannot be reached, for [`AWAY_MAX`].
    ///
    /// # Errors
    /// The last error of `request`.
    pub(super) async fn retry<T, F: Future<Output = Result<T, ClientError>>>(
        &self,
        mut request: impl FnMut() -> F,
    ) -> Result<T, ClientError> {
        let give_up_at = Instant::now() + AWAY_MAX;
        let mut delays = RESTART_BACKOFF.build();
        let attempts = async {
            loop {
                let error = match request().await {
                    Err(error) if error.is_transient() => error,
                    result => return result,
                };
                match delays.next() {
                    Some(delay) if Instant::now() + delay < give_up_at => sleep(delay).await,
                    _ => return Err(error),
                }
            }
        };
        self.shown(Some(AWAY_MAX), attempts).await
    }
}

/// Repeats `request` until a program that was just started responds.
///
/// # Errors
/// The last error of `request`.
pub(crate) async fn retry_until_started<T, E, F: Future<Output = Result<T, E>>>(
    request: impl FnMut() -> F,
) -> Result<T, E> {
    request.retry(START_BACKOFF).await
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::io;
    use std::sync::Mutex;

    use super::*;

    static SHOWN: Mutex<Vec<String>> = Mutex::new(Vec::new());

    fn print(line: &str) {
        SHOWN.lock().unwrap().push(line.to_owned());
    }

    #[tokio::test(start_paused = true)]
    async fn a_core_that_is_away_is_waited_for_with_a_word_and_a_limit() {
        let server: Url = "https://core.example/".parse().unwrap();
        let waits = Waits::new(server.clone(), print);
        let away = || ClientError::Unreachable {
            server: server.clone(),
            source: Box::new(io::Error::other("refused")),
        };
        let begun = Instant::now();
        let attempts = Cell::new(0);
        let for_a_moment = waits.retry(async || {
            attempts.set(attempts.get() + 1);
            if attempts.get() < 3 { Err(away()) } else { Ok(()) }
        });
        for_a_moment.await.unwrap();
        assert!(SHOWN.lock().unwrap().is_empty(), "{:?}", begun.elapsed());

        let begun = Instant::now();
        let never = async || Err::<(), _>(away());
        let (one, other, ()) = tokio::join!(waits.retry(never), waits.retry(never), async {
            sleep(Duration::from_secs(2)).await;
            let line = "Waiting for core at https://core.example/, for 1m 30s at most";
            assert_eq!(*SHOWN.lock().unwrap(), [line]);
        });
        assert!(one.is_err() && other.is_err());
        assert!((60..=90).contains(&begun.elapsed().as_secs()), "{:?}", begun.elapsed());

        // A core that accepts and does not answer.
        let silent = waits.shown(None, sleep(Duration::from_secs(5)));
        silent.await;
        assert_eq!(
            SHOWN.lock().unwrap().last().unwrap(),
            "Waiting for core at https://core.example/"
        );
    }
}
