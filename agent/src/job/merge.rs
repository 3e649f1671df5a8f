//! A MERGE job: logs in, and joins images.

use std::time::Instant;

use stagely_protocol::Merge;
use tokio_util::sync::CancellationToken;

use super::error::JobError;
use super::prerequisites::{RegistryBackoff, log_in, wait_for_engine};
use super::report::JobOutput;
use crate::docker::{self, DockerCommand};
use crate::job_log::JobLog;

pub(super) async fn perform(
    merge: &Merge,
    docker: &DockerCommand,
    log: &JobLog,
    stop: &CancellationToken,
) -> Result<JobOutput, JobError> {
    wait_for_engine(docker, log, stop).await?;
    let registry = merge.target_image.registry();
    log_in(docker, registry, merge.registry_auth.as_ref(), log, stop).await?;
    log.info(&format!("Joining {} images into {}", merge.source_images.len(), merge.target_image));
    let started = Instant::now();
    let mut backoff = RegistryBackoff::new(docker);
    let digest = loop {
        match docker::merge(docker, merge, stop).await {
            Ok(digest) => break digest,
            Err(error) => backoff.wait_after(error.into(), log, stop).await?,
        }
    };
    let pushed = Some((merge.target_image.clone(), digest));
    Ok(JobOutput { pushed, duration: started.elapsed(), ..JobOutput::default() })
}
