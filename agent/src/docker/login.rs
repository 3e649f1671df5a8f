//! Logs in to a registry, in a Docker configuration that only one job uses.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, symlink};
use std::path::Path;

use stagely_protocol::{FailureReason, RegistryAuth, RegistryProblem};
use thiserror::Error;
use tokio_util::sync::CancellationToken;

use super::classify::registry_failure;
use super::command::{DockerCommand, last_line};
use super::user_config;
use crate::process::ProcessError;

/// Creates a private `DOCKER_CONFIG` at `path` that only its owner can read. So no job sees the login of another job,
/// and no login stays on the machine.
///
/// # Errors
/// If the folder cannot be created.
pub fn create_config(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)?;
    // Docker looks for the user's plugins only in its configuration folder.
    if let Some(plugins) = user_config::folder()
        .map(|folder| folder.join("cli-plugins"))
        .filter(|plugins| plugins.is_dir())
    {
        symlink(fs::canonicalize(plugins)?, path.join("cli-plugins"))?;
    }
    Ok(())
}

/// Why a login failed.
#[derive(Debug, Error)]
pub enum LoginError {
    #[error(transparent)]
    Process(#[from] ProcessError),
    #[error("cannot log in to {registry}: {detail}")]
    Failed {
        /// The registry's host and port.
        registry: String,
        /// The last line of Docker's output.
        detail: String,
        reason: FailureReason,
    },
}

impl LoginError {
    pub fn reason(&self) -> FailureReason {
        match self {
            Self::Process(_) => FailureReason::Engine,
            Self::Failed { reason, .. } => reason.clone(),
        }
    }
}

/// Logs in to `registry`. The password goes through standard input.
///
/// # Errors
/// [`LoginError`]
pub async fn login(
    docker: &DockerCommand,
    registry: &str,
    auth: &RegistryAuth,
    stop: &CancellationToken,
) -> Result<(), LoginError> {
    let mut output = Vec::new();
    let status = docker
        .invocation()
        .args(["login", "--username", &auth.username, "--password-stdin", "--", registry])
        .stdin(auth.password.clone())
        .run(docker.grace, stop, |_, bytes| output.extend_from_slice(bytes))
        .await?;
    if status.success() {
        return Ok(());
    }
    let reason = match registry_failure(&String::from_utf8_lossy(&output)) {
        // Docker itself works, so the registry is the cause.
        FailureReason::Internal => {
            FailureReason::Registry { problem: RegistryProblem::Unavailable }
        }
        reason => reason,
    };
    let (registry, detail) = (registry.to_owned(), last_line(&output));
    Err(LoginError::Failed { registry, detail, reason })
}
