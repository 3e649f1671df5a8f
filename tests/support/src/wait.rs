//! Waits for a condition, with a time limit.

use std::time::Duration;

use tokio::runtime;
use tokio::time::{Instant, sleep};

/// The time limit of each wait. Even on a busy machine no event takes this long.
pub const LIMIT: Duration = Duration::from_mins(3);

/// The longest time between two checks.
pub const POLL: Duration = Duration::from_millis(50);

/// The time between the first check and the second; it doubles up to [`POLL`].
const FIRST_POLL: Duration = Duration::from_millis(5);

/// Repeats `check` until it returns a value. `what` names the condition in the panic.
///
/// # Panics
/// After [`LIMIT`].
pub async fn eventually<T>(what: &str, check: impl AsyncFnMut() -> Option<T>) -> T {
    eventually_within(LIMIT, what, check).await
}

/// As [`eventually`], with another time limit.
///
/// # Panics
/// After `limit`.
pub async fn eventually_within<T>(
    limit: Duration,
    what: &str,
    check: impl AsyncFnMut() -> Option<T>,
) -> T {
    wait_for(limit, check).await.unwrap_or_else(|| panic!("not within {limit:?}: {what}"))
}

/// As [`eventually`], in tests that have no runtime.
///
/// # Panics
/// After [`LIMIT`].
pub fn eventually_blocking<T>(what: &str, mut check: impl FnMut() -> Option<T>) -> T {
    let runtime = runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(eventually(what, async || check()))
}

/// The value of `check`, or nothing after `limit`.
pub async fn wait_for<T>(limit: Duration, mut check: impl AsyncFnMut() -> Option<T>) -> Option<T> {
    let started = Instant::now();
    let mut poll = FIRST_POLL;
    loop {
        let value = check().await;
        if value.is_some() || started.elapsed() >= limit {
            return value;
        }
        sleep(poll).await;
        poll = POLL.min(poll * 2);
    }
}
