//! SLEEP: archives a preview, or ends it.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use stagely_protocol::{Preview, PreviewState, Sleep, WireId};
use tokio::time::timeout;

use super::archive::{self, ArchiveError, Volumes};
use super::containers::{self, project_name};
use super::folder::{Deployment, DeploymentFolder, PreviewFolder};
use super::{Previews, compose_project};
use crate::retry::Backoff;

/// Stopping the containers of a preview may take this long. A service can ask for any time before it is killed.
const STOP_LIMIT: Duration = Duration::from_mins(10);

/// How long the removal of a preview is tried again: as long as an engine may take to restart.
const REMOVAL_LIMIT: Duration = Duration::from_mins(10);

const REMOVAL_DELAY_MIN: Duration = Duration::from_secs(1);
const REMOVAL_DELAY_MAX: Duration = Duration::from_secs(30);

fn removal_backoff() -> Backoff {
    Backoff::exponential(REMOVAL_DELAY_MIN, REMOVAL_DELAY_MAX, REMOVAL_LIMIT)
}

impl Previews {
    /// Begins to archive a preview, or to remove it if nothing may be archived. `false`: there is no such preview.
    pub(crate) fn sleep(self: &Arc<Self>, request: Sleep) -> bool {
        let preview = request.preview_id.clone();
        let folder = self.preview_folder(&preview);
        if request.archive_bytes_max == 0 {
            // A deploy job that core sends afterwards must find nothing.
            let (previews, lock) = (Arc::clone(self), self.try_lock(&preview));
            self.tasks.spawn(async move {
                let _lock = match lock {
                    Some(lock) => lock,
                    None => previews.lock(&preview).await,
                };
                previews.end(&preview).await;
            });
            return true;
        }
        if let Some(report) = folder.archived() {
            self.forget_report(&preview);
            self.report(report);
            return true;
        }
        if folder.current().is_none() {
            return false;
        }
        if self.shared().falling_asleep.insert(preview.clone()) {
            let previews = Arc::clone(self);
            self.tasks.spawn(async move {
                previews.archive(request).await;
                previews.shared().falling_asleep.remove(&preview);
            });
        }
        true
    }

    /// Removes a preview that nobody needs any more, also one that has no folder. Its lock is held.
    async fn end(&self, preview: &WireId) {
        let folder = self.preview_folder(preview);
        tracing::info!(%preview, "removing a preview");
        let generation = folder.current().map_or(0, |(_, record)| record.generation);
        self.endpoints.remove(preview);
        let mut backoff = removal_backoff();
        loop {
            let removed = async {
                // Before its folder: the next HELLO names a preview that is not removed.
                self.remove_from_engine(preview).await?;
                folder.forget_current()?;
                anyhow::Ok(())
            };
            let Err(error) = removed.await else { break };
            tracing::error!(%preview, "cannot remove a preview: {error:#}");
            if !backoff.wait(&self.stop, |_| {}).await {
                return;
            }
        }
        self.remove_folder(preview, &folder).await;
        self.logs.remove(preview);
        self.forget_report(preview);
        self.report(Preview::new(preview.clone(), generation, PreviewState::Archived));
    }

    /// Archives a preview and removes it. If that is not possible, it serves again.
    async fn archive(&self, request: Sleep) {
        let preview = &request.preview_id;
        let _lock = self.lock(preview).await;
        let folder = self.preview_folder(preview);
        let Some((deployment, record)) = folder.current() else { return };
        tracing::info!(%preview, "archiving a preview");
        let archived = async {
            let report = self.store(&request, &deployment, &record).await?;
            // First on disk: core has the archive, and this agent may end before the rest is done.
            folder.set_archived(&report)?;
            anyhow::Ok(report)
        };
        match archived.await {
            Ok(report) => self.remove_archived(preview, &folder, report).await,
            Err(_) if self.stop.is_cancelled() => {}
            Err(error) => {
                tracing::error!(%preview, "cannot archive a preview: {error:#}");
                let mut messages = vec![format!("the preview cannot be archived: {error:#}")];
                if let Err(error) = self.start(preview, &deployment, &record).await {
                    messages.push(format!("it cannot be started again: {error:#}"));
                }
                self.report(Preview {
                    archive_failed: true,
                    disk_free_bytes: self.free_disk_space(),
                    messages,
                    ..Preview::new(preview.clone(), record.generation, PreviewState::Degraded)
                });
            }
        }
    }

    /// Removes what is left of an archived preview. Failures change nothing about the archive: the preview stays archived, and
    /// the removal is tried again.
    async fn remove_archived(&self, preview: &WireId, folder: &PreviewFolder, report: Preview) {
        let mut backoff = removal_backoff();
        let mut report = Some(report);
        loop {
            let removed = self.remove_from_engine(preview).await;
            self.remove_archived_files(preview, folder).await;
            if let Some(report) = report.take() {
                self.logs.remove(preview);
                self.forget_report(preview);
                self.report(report);
            }
            let Err(error) = removed else { return };
            tracing::warn!(%preview, "cannot remove the containers of an archived preview: {error:#}");
            if !backoff.wait(&self.stop, |_| {}).await {
                // The next deployment removes them first.
                self.shared().unrecovered.insert(preview.clone());
                return;
            }
        }
    }

    /// Removes the files of an archived preview but for its report. They are in nobody's way.
    pub(super) async fn remove_archived_files(&self, preview: &WireId, folder: &PreviewFolder) {
        let removed = self.remove_files(preview, folder.path(), || folder.remove_archived()).await;
        if let Err(error) = removed {
            tracing::warn!(%preview, %error, "cannot remove all files of an archived preview");
        }
    }

    /// Removes the folder of a preview. What is left of it is in nobody's way.
    pub(crate) async fn remove_folder(&self, preview: &WireId, folder: &PreviewFolder) {
        let removed = self.remove_files(preview, folder.path(), || folder.remove()).await;
        if let Err(error) = removed {
            tracing::warn!(%preview, %error, "cannot remove all files of a preview");
        }
    }

    /// Stops the containers and stores their volumes.
    async fn store(
        &self,
        request: &Sleep,
        folder: &DeploymentFolder,
        deployment: &Deployment,
    ) -> anyhow::Result<Preview> {
        let preview = &request.preview_id;
        let project = project_name(&self.machine, preview);
        let compose = compose_project(&self.docker()?, &project, folder, deployment);
        self.endpoints.remove(preview);
        let stopped = timeout(STOP_LIMIT, compose.stop(&self.stop)).await;
        stopped.context("its containers do not stop")??;
        let engine = archive::patient(self.engine()?);
        let names: Vec<_> = containers::volumes(&engine, &project).await?.into_iter().collect();
        let found = containers::containers(&engine, &project).await?;
        let mut report =
            Preview::new(preview.clone(), deployment.generation, PreviewState::Archived);
        let Some(image) = found.first().map(|container| container.image.clone()) else {
            anyhow::ensure!(names.is_empty(), "its containers are gone");
            return Ok(report);
        };
        if names.is_empty() {
            return Ok(report);
        }
        let volumes = Volumes { engine, machine: &self.machine, preview, project: &project, image };
        let archives = self.archives().ok_or(ArchiveError::NoCore)?;
        match archives.store(&volumes, &names, request.archive_bytes_max, &self.stop).await {
            Ok(stored) => {
                report.archive = Some(stored.digest);
                report.archive_bytes = Some(stored.bytes);
            }
            Err(error @ ArchiveError::TooLarge { .. }) => {
                report.messages.push(format!("the data was not archived: {error}"));
            }
            Err(error) => return Err(error.into()),
        }
        Ok(report)
    }
}
