//! A MERGE job: log in, join.

use std::time::Instant;

use stagely_protocol::Merge;
use tokio_util::sync::CancellationToken;

use super::wait::{Retry, await_engine, log_in};
use super::{JobError, Outcome};
use crate::docker::{self, DockerCommand, MergeError};
use crate::job_log::JobLog;

impl From<MergeError> for JobError {
    fn from(error: MergeError) -> Self {
        Self::new(error.reason(), &error)
    }
}

pub(super) async fn perform(
    merge: &Merge,
    docker: &DockerCommand,
    log: &JobLog,
    stop: &CancellationToken,
) -> Result<Outcome, JobError> {
    await_engine(docker, log, stop).await?;
    let registry = merge.target_image.registry();
    log_in(docker, registry, merge.registry_auth.as_ref(), log, stop).await?;
    log.say(&format!("Joining {} images into {}", merge.source_images.len(), merge.target_image));
    let started = Instant::now();
    let mut retry = Retry::new(docker.registry_patience);
    loop {
        match docker::merge(docker, merge, stop).await {
            Ok(digest) => {
                let pushed = Some((merge.target_image.clone(), digest));
                return Ok(Outcome { pushed, duration: started.elapsed(), ..Outcome::default() });
            }
            Err(error) => retry.wait_after(error.into(), log, stop).await?,
        }
    }
}
