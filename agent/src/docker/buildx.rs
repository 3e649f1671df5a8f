//! Builds and pushes one image with `docker buildx build`, and exports its layer cache, in one command.
//!
//! A second command for the cache would repeat the build from the engine's own cache, and `BuildKit` before 0.25 then
//! loses results at random: each step is found twice, in the engine and in the imported cache, and the export keeps
//! either record (`normalizeItem` in `cache/remotecache/v1/utils.go`; <https://github.com/moby/buildkit/pull/6129>).
//! `BuildKit` exports the image before the cache and reports the pushed digest at once, so nobody waits for the cache.

mod arguments;
mod output;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;
use stagely_protocol::{BuildConfig, Digest, FailureReason, ImageRef, RegistryProblem, Step};
use thiserror::Error;
use tokio::sync::oneshot;
use tokio::task::JoinError;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use self::output::BuildOutput;
use super::build_files::BuildFiles;
use super::classify::may_lack_layers;
use super::command::DockerCommand;
use super::vertex::BaseImage;
use crate::job_log::JobLog;
use crate::process::ProcessError;

#[derive(Clone)]
pub struct BuildRequest {
    pub docker: DockerCommand,
    /// The build, as core sent it.
    pub config: BuildConfig,
    pub files: BuildFiles,
    /// Whether the engine has the containerd image store, without which it exports no cache.
    pub containerd_store: bool,
    /// The job's private folder.
    pub folder: PathBuf,
    pub log: Arc<JobLog>,
}

impl BuildRequest {
    /// The reference that the layer cache is exported to, if the engine can export it.
    pub fn cache_to(&self) -> Option<&ImageRef> {
        self.config.cache_to.as_ref().filter(|_| self.containerd_store)
    }
}

/// The result of a build that succeeded.
#[derive(Clone, Debug)]
pub struct BuildOutcome {
    /// The image's digest, if it was to be pushed.
    pub digest: Option<Digest>,
    /// The steps, in `BuildKit`'s order.
    pub steps: Vec<Step>,
    pub base_images: Vec<BaseImage>,
    pub has_imported_cache: bool,
}

/// Why a build made no image.
#[derive(Debug, Error)]
pub enum BuildError {
    #[error(transparent)]
    Process(#[from] ProcessError),
    #[error("{message}")]
    Failed {
        reason: FailureReason,
        /// The error, after the last lines of the failing step. Masked.
        message: String,
        steps: Vec<Step>,
    },
    /// A registry serves a base image only with a login, and there is none.
    #[error("{message}")]
    LoginMissing { registry: String, message: String, steps: Vec<Step> },
    /// The engine has built the image, but its report did not arrive in time, so the digest and the end of the log
    /// are missing. A further build comes from the engine's own cache.
    #[error("the engine's report did not arrive in time")]
    ReportLost { steps: Vec<Step> },
    #[error("buildx did not report the digest of the image that it pushed")]
    NoDigest,
}

impl BuildError {
    /// Whether the same build, which then comes from the engine's cache, may send a layer that the registry lacks.
    pub fn may_lack_layers(&self) -> bool {
        matches!(self, Self::Failed { reason, message, .. } if may_lack_layers(reason, message))
    }

    pub fn reason(&self) -> FailureReason {
        match self {
            Self::Process(ProcessError::Spawn { .. }) => FailureReason::Engine,
            Self::Process(_) | Self::ReportLost { .. } | Self::NoDigest => FailureReason::Internal,
            Self::Failed { reason, .. } => reason.clone(),
            Self::LoginMissing { .. } => {
                FailureReason::Registry { problem: RegistryProblem::Authentication }
            }
        }
    }
}

/// A build whose command runs. Dropping it ends the command.
pub struct RunningBuild {
    pushed: oneshot::Receiver<BuildOutcome>,
    command: AbortOnDropHandle<Result<Finished, BuildError>>,
    /// The result of the export, if it is known before somebody asks for it.
    export: Option<Result<(), BuildError>>,
}

/// A command that has ended.
struct Finished {
    outcome: BuildOutcome,
    export: Result<(), BuildError>,
}

impl RunningBuild {
    /// Starts the command. When `stop` fires it is stopped, also while it exports the cache.
    pub fn start(request: BuildRequest, stop: CancellationToken) -> Self {
        let (sender, pushed) = oneshot::channel();
        let command = tokio::spawn(async move { run(&request, sender, &stop).await });
        Self { pushed, command: AbortOnDropHandle::new(command), export: None }
    }

    /// Waits until the image is pushed; without an image to push, until the cache is exported.
    ///
    /// # Errors
    /// [`BuildError`]
    pub async fn pushed(&mut self) -> Result<BuildOutcome, BuildError> {
        if let Ok(outcome) = (&mut self.pushed).await {
            return Ok(outcome);
        }
        let Finished { outcome, export } = ended((&mut self.command).await)?;
        // A warm-up is for the cache alone.
        if outcome.digest.is_none() {
            export?;
        } else {
            self.export = Some(export);
        }
        Ok(outcome)
    }

    /// Waits for the end of the cache's export, after [`Self::pushed`].
    ///
    /// # Errors
    /// [`BuildError`]
    pub async fn exported(&mut self) -> Result<(), BuildError> {
        match self.export.take() {
            Some(export) => export,
            None => ended((&mut self.command).await)?.export,
        }
    }
}

/// The result of the command's task.
fn ended(task: Result<Result<Finished, BuildError>, JoinError>) -> Result<Finished, BuildError> {
    task.unwrap_or_else(|error| match error.try_into_panic() {
        Ok(panic) => std::panic::resume_unwind(panic),
        Err(_) => unreachable!("only dropping the build aborts its task"),
    })
}

/// Runs the command to its end. `pushed` gets the outcome as soon as the image is pushed, if the cache is still to be
/// exported then.
async fn run(
    request: &BuildRequest,
    pushed: oneshot::Sender<BuildOutcome>,
    stop: &CancellationToken,
) -> Result<Finished, BuildError> {
    let metadata = request.folder.join("metadata.json");
    let pushed = Some(pushed).filter(|_| request.config.push && request.cache_to().is_some());
    let mut output = BuildOutput::new(&request.log, pushed);
    let result = output.run(request, &metadata, stop).await;
    let status = result?;
    if !status.success() {
        return Err(output.into_error(status.code(), &request.config.target_image));
    }
    let digest = if request.config.push {
        Some(read_digest(&metadata).ok_or(BuildError::NoDigest)?)
    } else {
        None
    };
    // The command succeeds even if the export failed.
    let export = output.export_error().map_or(Ok(()), Err);
    Ok(Finished { outcome: output.outcome(digest), export })
}

#[derive(Deserialize)]
struct Metadata {
    #[serde(rename = "containerimage.digest")]
    digest: Digest,
}

fn read_digest(path: &Path) -> Option<Digest> {
    let text = fs::read(path).ok()?;
    serde_json::from_slice::<Metadata>(&text).ok().map(|metadata| metadata.digest)
}
