//! The engine's side of archives: reads and writes volumes through a container that mounts one and is never started. It may
//! be of any image.

use std::time::Duration;

use bollard::Docker;
use bollard::errors::Error as EngineError;
use bollard::models::{Mount, MountType, MountVolumeOptions, VolumeCreateRequest};
use bollard::query_parameters::{
    DownloadFromContainerOptionsBuilder, UploadToContainerOptionsBuilder,
};
use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use stagely_protocol::WireId;
use tokio::sync::mpsc;

use super::ArchiveError;
use super::format::{Frame, send};
use crate::preview::containers::{self, MACHINE_LABEL, PREVIEW_LABEL, volume_labels, volume_name};

/// The folder in which a helper container mounts a volume, and the folder around it. The engine refuses an upload with a
/// relative link that leads out of the folder to which it is uploaded, and nothing leads out of the root.
const PARENT: &str = "/";
const MOUNT: &str = "/volume";

/// The request of an upload or a download may last as long as it makes progress.
const ENGINE_LIMIT: Duration = Duration::from_hours(2);

/// The part of the engine that moves the volumes of one preview.
pub(crate) struct Volumes<'a> {
    pub(crate) engine: Docker,
    pub(crate) machine: &'a WireId,
    pub(crate) preview: &'a WireId,
    pub(crate) project: &'a str,
    /// An image that the engine has.
    pub(crate) image: String,
}

impl Volumes<'_> {
    /// Creates a container that mounts the volume `name` and is never started.
    async fn helper(&self, name: &str) -> Result<String, EngineError> {
        let mount = Mount {
            target: Some(MOUNT.to_owned()),
            source: Some(name.to_owned()),
            typ: Some(MountType::VOLUME),
            // Files of the image do not belong to the archive.
            volume_options: Some(MountVolumeOptions {
                no_copy: Some(true),
                ..MountVolumeOptions::default()
            }),
            ..Mount::default()
        };
        let (machine, preview, image) = (self.machine, self.preview, self.image.clone());
        containers::create_helper(&self.engine, machine, preview, image, name, mount).await
    }

    /// Sends the pieces of the volume `name`.
    pub(super) async fn read(
        &self,
        name: &str,
        frames: &mpsc::Sender<Frame>,
        bytes_left: &mut Budget,
    ) -> Result<(), ArchiveError> {
        let helper = self.helper(name).await?;
        let read = async {
            let options = DownloadFromContainerOptionsBuilder::new().path(MOUNT).build();
            let mut pieces = Box::pin(self.engine.download_from_container(&helper, Some(options)));
            while let Some(piece) = pieces.next().await {
                let piece = piece?;
                // An empty frame would end the volume.
                if piece.is_empty() {
                    continue;
                }
                bytes_left.spend(piece.len())?;
                send(frames, Frame::Bytes(piece)).await?;
            }
            Ok(())
        };
        let result = read.await;
        containers::remove_helper(&self.engine, &helper).await?;
        result
    }

    /// Writes a tar archive into the new volume `name` of the compose file.
    pub(super) async fn write(
        &self,
        name: &str,
        pieces: mpsc::Receiver<Bytes>,
    ) -> Result<(), ArchiveError> {
        let volume = volume_name(self.project, name);
        let mut labels = volume_labels(self.project, name);
        labels.insert(PREVIEW_LABEL.to_owned(), self.preview.to_string());
        labels.insert(MACHINE_LABEL.to_owned(), self.machine.to_string());
        let request = VolumeCreateRequest {
            name: Some(volume.clone()),
            labels: Some(labels),
            ..VolumeCreateRequest::default()
        };
        self.engine.create_volume(request).await?;
        let helper = self.helper(&volume).await?;
        let mut options = UploadToContainerOptionsBuilder::new().path(PARENT).build();
        options.copy_uidgid = Some("true".to_owned());
        let pieces = stream::unfold(pieces, |mut pieces| async move {
            let piece = pieces.recv().await?;
            Some((piece, pieces))
        });
        let body = bollard::body_stream(pieces);
        let upload = self.engine.upload_to_container(&helper, Some(options), body).await;
        containers::remove_helper(&self.engine, &helper).await?;
        Ok(upload?)
    }
}

/// The bytes that an archive may still have.
pub(super) struct Budget {
    max: u64,
    left: u64,
}

impl Budget {
    pub(super) const fn new(max: u64) -> Self {
        Self { max, left: max }
    }

    fn spend(&mut self, bytes: usize) -> Result<(), ArchiveError> {
        let left = self.left.checked_sub(bytes as u64);
        self.left = left.ok_or(ArchiveError::TooLarge { max: self.max })?;
        Ok(())
    }
}

/// An engine whose requests may take long.
pub(crate) fn patient(engine: Docker) -> Docker {
    engine.with_timeout(ENGINE_LIMIT)
}
