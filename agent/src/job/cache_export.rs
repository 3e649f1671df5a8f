//! Exports the layer cache of an image that is pushed.

use std::path::Path;
use std::pin::pin;
use std::time::{Duration, Instant};

use stagely_protocol::BuildConfig;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::docker::{self, BuildFiles, BuildRequest, DockerCommand};
use crate::job_log::JobLog;

/// Exporting a cache may take this long. The next build need not make the layers that it pushes.
const EXPORT_LIMIT: Duration = Duration::from_mins(10);

/// The export of a layer cache, still to be done.
#[derive(Debug)]
pub(super) struct CacheExporter {
    pub(super) config: BuildConfig,
    pub(super) files: BuildFiles,
}

impl CacheExporter {
    /// Exports the cache and logs the result. Returns whether the registry has the cache.
    pub(super) async fn export(
        &self,
        docker: &DockerCommand,
        folder: &Path,
        log: &JobLog,
        stop: &CancellationToken,
    ) -> bool {
        let (config, files) = (&self.config, &self.files);
        let request = BuildRequest { docker, config, files, containerd_store: true, folder, log };
        let Some(cache) = request.cache_to() else { return false };
        log.info(&format!("Exporting the cache to {cache}"));
        let (started, export_stop) = (Instant::now(), stop.child_token());
        let stop_at_limit = async {
            sleep(EXPORT_LIMIT).await;
            export_stop.cancel();
        };
        let mut export = pin!(docker::export_cache(&request, &export_stop));
        let result = tokio::select! {
            result = &mut export => result,
            () = stop_at_limit => export.await,
        };
        let seconds = started.elapsed().as_secs_f64();
        let is_exported = result.is_ok();
        log.info(&match result {
            Ok(()) => format!("Cache exported to {cache} in {seconds:.1}s"),
            Err(_) if stop.is_cancelled() => "The export of the cache was stopped".to_owned(),
            Err(_) if export_stop.is_cancelled() => {
                format!("The cache was not exported: not done after {EXPORT_LIMIT:?}")
            }
            Err(error) => format!("The cache was not exported: {error}"),
        });
        is_exported
    }
}
