//! Repeats requests of the command line: while core is away, or while a program starts.

use std::time::Duration;

use backon::{ConstantBuilder, ExponentialBuilder, Retryable as _};

use super::error::ClientError;

/// About 90 s in all, longer than a restart of core takes.
const RESTART_BACKOFF: ExponentialBuilder = ExponentialBuilder::new()
    .with_min_delay(Duration::from_millis(250))
    .with_max_delay(Duration::from_secs(10))
    .with_max_times(14)
    .with_jitter();

/// 15 s in all.
const START_BACKOFF: ConstantBuilder =
    ConstantBuilder::new().with_delay(Duration::from_millis(100)).with_max_times(150);

/// Repeats `request` while core cannot be reached.
///
/// # Errors
/// The last error of `request`.
pub(super) async fn retry<T, F: Future<Output = Result<T, ClientError>>>(
    request: impl FnMut() -> F,
) -> Result<T, ClientError> {
    request.retry(RESTART_BACKOFF).when(ClientError::is_transient).await
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
