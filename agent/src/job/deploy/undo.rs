//! The way back after a failure: to what served before, or to nothing.

use std::time::Duration;

use stagely_protocol::FailureReason;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::{Deploying, JobError, compose_error, engine_error, folder_error};
use crate::docker::ComposeProject;
use crate::preview::folder::Deployment;
use crate::preview::{self, RETURN_LIMIT, containers};

impl Deploying<'_> {
    /// Goes back to what served before. Without that, nothing of the preview is left.
    pub(super) async fn undo(&mut self, error: JobError) -> JobError {
        let preview = &self.deploy.preview_id;
        let former = self.former.take();
        let Some((folder, record)) = former.as_ref().filter(|_| self.has_changed_containers) else {
            let removed = self.remove(former.is_none()).await;
            if let Err(error) = removed {
                self.log.warn(&format!("not everything was removed: {}", error.message));
            }
            return error;
        };
        let generation = record.generation;
        self.log.info(&format!("Going back to generation {generation}"));
        let compose = preview::compose_project(self.docker, &self.project, folder, record);
        let result = self.go_back(&compose).await;
        if let Ok(found) = self.containers().await {
            self.settings.previews.set_addresses(preview, record, &found);
        }
        let end = match result {
            Ok(()) => match self.wait_for_return(record).await {
                Ok(end) => format!("generation {generation} {end}"),
                Err(error) => format!(
                    "generation {generation} was started again and is not ready: {}",
                    error.message
                ),
            },
            Err(error) => {
                format!("generation {generation} could not be started again: {}", error.message)
            }
        };
        self.log.info(&end);
        JobError { message: format!("{}; {end}", error.message), ..error }
    }

    /// Removes what this deployment has made. `is_first`: nothing of the preview stays.
    async fn remove(&self, is_first: bool) -> Result<(), JobError> {
        if is_first && self.has_changed_containers {
            self.remove_preview().await?;
        }
        let (previews, preview) = (&self.settings.previews, &self.deploy.preview_id);
        if is_first {
            previews.remove_folder(preview, &self.folder).await;
            return Ok(());
        }
        let remove = || self.target.remove();
        let removed = previews.remove_files(preview, self.target.path(), remove).await;
        removed.map_err(|error| folder_error(&error))
    }

    async fn go_back(&self, former: &ComposeProject) -> Result<(), JobError> {
        containers::remove_one_off_containers(&self.engine, &self.project)
            .await
            .map_err(|error| engine_error(&error))?;
        // The job's own token may have fired.
        let stop = CancellationToken::new();
        let Ok(result) = timeout(RETURN_LIMIT, former.up(self.log, &stop)).await else {
            let message = format!("not done within {} s", RETURN_LIMIT.as_secs());
            return Err(JobError::with_message(FailureReason::Engine, message));
        };
        result.map_err(|error| compose_error(&error))?;
        self.folder.set_updating(false).map_err(|error| folder_error(&error))?;
        self.remove(false).await
    }

    /// Waits until the former deployment is ready, and returns words for that. If it is not, the preview is reported as
    /// degraded until it is.
    async fn wait_for_return(&self, former: &Deployment) -> Result<&'static str, JobError> {
        let previews = &self.settings.previews;
        previews.expect_return(&self.deploy.preview_id, RETURN_LIMIT);
        // A job that was stopped does not wait any longer.
        let ready = timeout(RETURN_LIMIT, self.wait_until_ready(&former.endpoints)).await;
        if self.stop.is_cancelled() {
            return Ok("was started again");
        }
        let ready = ready.unwrap_or_else(|_| {
            let message = format!("not within {} s", RETURN_LIMIT.as_secs());
            Err(JobError::with_message(FailureReason::Engine, message))
        });
        if ready.is_err() {
            previews.expect_return(&self.deploy.preview_id, Duration::ZERO);
        }
        ready.map(|_| "serves again")
    }
}
