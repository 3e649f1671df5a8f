//! Repeats requests while core is away, for instance while it restarts.

use std::time::Duration;

use backon::{ExponentialBuilder, Retryable as _};

use super::error::ClientError;

/// About 90 s in all, longer than a restart of core takes.
const BACKOFF: ExponentialBuilder = ExponentialBuilder::new()
    .with_min_delay(Duration::from_millis(250))
    .with_max_delay(Duration::from_secs(10))
    .with_max_times(14)
    .with_jitter();

/// Repeats `request` while core cannot be reached.
///
/// # Errors
/// The last error of `request`.
pub(super) async fn retry<T, F: Future<Output = Result<T, ClientError>>>(
    request: impl FnMut() -> F,
) -> Result<T, ClientError> {
    request.retry(BACKOFF).when(ClientError::is_transient).await
}
