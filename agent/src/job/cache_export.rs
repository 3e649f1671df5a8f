//! Waits for the export of the layer cache of an image that is pushed.

use std::time::{Duration, Instant};

use stagely_protocol::ImageRef;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::docker::RunningBuild;
use crate::job_log::JobLog;

/// Exporting a cache may take this long. The next build need not make the layers that it pushes.
const EXPORT_LIMIT: Duration = Duration::from_mins(10);

/// The export of a layer cache that is going on.
pub(super) struct CacheExporter {
    pub(super) cache: ImageRef,
    /// The command, which has pushed the image.
    pub(super) running: RunningBuild,
    pub(super) stop: CancellationToken,
}

impl CacheExporter {
    /// Waits for the end of the export and logs the result. `stop` is that of the job. Returns whether the registry
    /// has the cache.
    pub(super) async fn finish(mut self, log: &JobLog, stop: &CancellationToken) -> bool {
        let cache = &self.cache;
        log.info(&format!("Exporting the cache to {cache}"));
        let started = Instant::now();
        let in_time = timeout(EXPORT_LIMIT, self.running.exported()).await.ok();
        let timed_out = in_time.is_none();
        let result = if let Some(result) = in_time {
            result
        } else {
            self.stop.cancel();
            self.running.exported().await
        };
        let seconds = started.elapsed().as_secs_f64();
        let is_exported = result.is_ok();
        log.info(&match result {
            Ok(()) => format!("Cache exported to {cache} in {seconds:.1}s"),
            Err(_) if stop.is_cancelled() => "The export of the cache was stopped".to_owned(),
            Err(_) if timed_out => {
                format!("The cache was not exported: not done after {EXPORT_LIMIT:?}")
            }
            Err(error) => format!("The cache was not exported: {error}"),
        });
        is_exported
    }
}
