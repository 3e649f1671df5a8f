//! Pulls one image, and finds out whether the engine has one.

use bollard::errors::Error as EngineError;
use stagely_protocol::{DeployProblem, FailureReason};
use thiserror::Error;
use tokio_util::sync::CancellationToken;

use super::classify::registry_failure;
use super::command::DockerCommand;
use crate::process::{ProcessError, last_line};

/// Why an image was not pulled.
#[derive(Debug, Error)]
pub enum PullError {
    #[error("the Docker engine does not answer")]
    Engine(#[from] EngineError),
    #[error(transparent)]
    Process(#[from] ProcessError),
    #[error("cannot pull {image}: {detail}")]
    Failed {
        image: String,
        /// The last line of Docker's output.
        detail: String,
        reason: FailureReason,
    },
}

impl PullError {
    pub fn reason(&self) -> FailureReason {
        match self {
            Self::Engine(_) | Self::Process(_) => FailureReason::Engine,
            Self::Failed { reason, .. } => reason.clone(),
        }
    }
}

/// Whether the engine has `image`.
///
/// # Errors
/// [`PullError`]
pub async fn has_image(docker: &DockerCommand, image: &str) -> Result<bool, PullError> {
    match docker.endpoint.connect()?.inspect_image(image).await {
        Ok(_) => Ok(true),
        Err(EngineError::DockerResponseServerError { status_code: 404, .. }) => Ok(false),
        // The reference is not valid.
        Err(EngineError::DockerResponseServerError { status_code: 400, message }) => {
            let reason = FailureReason::Deploy { problem: DeployProblem::Compose };
            Err(PullError::Failed { image: image.to_owned(), detail: message, reason })
        }
        Err(error) => Err(error.into()),
    }
}

/// Pulls `image` for `platform`, or else for the engine's own.
///
/// # Errors
/// [`PullError`]
pub async fn pull(
    docker: &DockerCommand,
    image: &str,
    platform: Option<&str>,
    stop: &CancellationToken,
) -> Result<(), PullError> {
    let mut stderr = Vec::new();
    let mut command = docker.invocation().args(["pull", "--quiet"]);
    if let Some(platform) = platform {
        command = command.arg("--platform").arg(platform);
    }
    let status = command
        .args(["--", image])
        .run(docker.grace, stop, |_, bytes| stderr.extend_from_slice(bytes))
        .await?;
    if status.success() {
        return Ok(());
    }
    let reason = registry_failure(&String::from_utf8_lossy(&stderr));
    Err(PullError::Failed { image: image.to_owned(), detail: last_line(&stderr), reason })
}
