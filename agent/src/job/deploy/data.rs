//! The data of a deployment: fresh, restored from an archive, or what is there.

use std::collections::BTreeMap;
use std::time::Instant;

use stagely_protocol::{Digest, FailureReason};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{Deploying, JobError, engine_error, folder_error, stopped};
use crate::preview::archive::{self, ArchiveError, Volumes};
use crate::preview::containers::{self, volume_name};
use crate::preview::model::Model;

impl Deploying<'_> {
    /// Removes the containers and the data of the deployment that serves.
    pub(super) async fn remove_data(&mut self) -> Result<(), JobError> {
        self.log.info("Removing the data of the preview");
        self.folder.forget_current().map_err(|error| folder_error(&error))?;
        self.former = None;
        self.remove_preview().await
    }

    /// Removes what the engine has of the preview.
    pub(super) async fn remove_preview(&self) -> Result<(), JobError> {
        let preview = &self.deploy.preview_id;
        containers::remove_preview(&self.engine, &self.settings.machine, preview)
            .await
            .map_err(|error| engine_error(&error))
    }

    /// The archive that this deployment begins with: the machine has nothing of the preview.
    pub(super) fn archive(&self) -> Option<Digest> {
        let archive = self.deploy.restore.as_ref();
        archive.filter(|_| self.former.is_none() && !self.deploy.fresh).cloned()
    }

    /// Puts the volumes of the archive `digest` into new volumes of the engine, and returns their names. `image` gets an image
    /// that the engine has.
    pub(super) async fn restore(
        &self,
        digest: &Digest,
        mut image: watch::Receiver<Option<String>>,
        stop: &CancellationToken,
    ) -> Result<Vec<String>, JobError> {
        let volumes = self.volumes().await?;
        if !volumes.is_empty() {
            // Of a restoration that was killed. The archive is the newest data.
            self.remove_preview().await?;
        }
        let found = stop.run_until_cancelled(image.wait_for(Option::is_some)).await;
        // Without it the deployment has failed.
        let Some(Ok(Some(image))) = found.map(|found| found.map(|image| image.clone())) else {
            return Err(stopped());
        };
        let started = Instant::now();
        self.log.info(&format!("Restoring the data of the preview from the archive {digest}"));
        let volumes = Volumes {
            engine: archive::patient(self.engine.clone()),
            machine: &self.settings.machine,
            preview: &self.deploy.preview_id,
            project: &self.project,
            image,
        };
        let failure = |error: &ArchiveError| JobError::new(FailureReason::Internal, error);
        let archives = self.settings.previews.archives();
        let archives = archives.ok_or_else(|| failure(&ArchiveError::NoCore))?;
        let restored = archives.restore(&volumes, digest, stop).await;
        let restored = restored.map_err(|error| failure(&error))?;
        self.log.info(&format!("Restored the data in {:.1}s", started.elapsed().as_secs_f64()));
        Ok(restored)
    }

    /// Removes the restored volumes that the compose file does not have.
    pub(super) async fn remove_unknown_volumes(
        &self,
        model: &Model,
        restored: &[String],
    ) -> Result<(), JobError> {
        for name in restored.iter().filter(|name| !model.volumes.contains(name)) {
            self.log.warn(&format!(
                "the volume `{name}` of the archive is not in the compose file any more"
            ));
            containers::remove_volume(&self.engine, &volume_name(&self.project, name))
                .await
                .map_err(|error| engine_error(&error))?;
        }
        Ok(())
    }

    /// Notes whether the data is fresh. Archived data is not, also if there was none.
    pub(super) async fn note_unseeded(&self) -> Result<(), JobError> {
        let is_first = self.folder.current().is_none() && self.archive().is_none();
        if is_first && self.volumes().await?.is_empty() {
            self.folder.set_unseeded(true).map_err(|error| folder_error(&error))?;
        }
        Ok(())
    }

    async fn volumes(&self) -> Result<BTreeMap<String, String>, JobError> {
        containers::volumes(&self.engine, &self.project).await.map_err(|error| engine_error(&error))
    }
}
