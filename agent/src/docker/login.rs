//! Logs in to a registry, in a Docker configuration that only one job uses.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, symlink};
use std::path::Path;
use std::time::Duration;

use serde_json::{Map, Value, json};
use stagely_protocol::{FailureReason, RegistryAuth, RegistryProblem, Stream};
use thiserror::Error;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::classify::registry_failure;
use super::command::DockerCommand;
use super::user_config::{self, ConfigFile, is_same_registry};
use crate::process::{Invocation, ProcessError, last_line};

/// How long a credential helper may take to list its registries.
const HELPER_LIMIT: Duration = Duration::from_secs(5);

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

/// Lets the job's `docker` commands use the logins of this user's Docker, except for the registry `own`, whose login is
/// core's. Logins that a helper stores stay there; those that stand in the user's `config.json` are in the job's folder as
/// long as the job runs.
///
/// # Errors
/// If the job's configuration cannot be written.
pub async fn add_user_logins(
    docker: &DockerCommand,
    own: Option<&str>,
    stop: &CancellationToken,
) -> io::Result<()> {
    let Some(folder) = user_config::folder() else { return Ok(()) };
    let ConfigFile { auths, creds_store, cred_helpers, proxies, .. } = ConfigFile::read(&folder);
    let mut helpers = Map::new();
    let store = creds_store.filter(|store| !store.is_empty());
    if let Some(store) = &store {
        let listed = stored_registries(docker, store, stop).await;
        let known = listed.into_iter().chain(auths.keys().cloned());
        helpers.extend(known.map(|registry| (registry, store.clone().into())));
    }
    helpers.extend(cred_helpers);
    helpers.retain(|registry, _| !own.is_some_and(|own| is_same_registry(registry, own)));
    // A registry with a helper may have an empty entry here.
    let auths: Map<String, Value> = auths
        .into_iter()
        .filter(|(registry, _)| !helpers.contains_key(registry))
        .filter(|(registry, _)| !own.is_some_and(|own| is_same_registry(registry, own)))
        .collect();
    let mut config = json!({ "auths": auths, "credHelpers": helpers });
    if proxies.is_object() {
        config["proxies"] = proxies;
    }
    let path = docker.config.join("config.json");
    let mut file = OpenOptions::new().create_new(true).write(true).mode(0o600).open(path)?;
    file.write_all(config.to_string().as_bytes())
}

/// The registries whose logins the helper `store` has; none if it does not answer.
async fn stored_registries(
    docker: &DockerCommand,
    store: &str,
    stop: &CancellationToken,
) -> Vec<String> {
    let mut output = Vec::new();
    let helper = Invocation::new(format!("docker-credential-{store}"), &docker.machine);
    let listed = helper.arg("list").run(docker.grace, stop, |stream, bytes| {
        if stream == Stream::Stdout {
            output.extend_from_slice(bytes);
        }
    });
    let is_done = timeout(HELPER_LIMIT, listed)
        .await
        .is_ok_and(|listed| listed.is_ok_and(|status| status.success()));
    let registries: Map<String, Value> =
        if is_done { serde_json::from_slice(&output).unwrap_or_default() } else { Map::new() };
    registries.into_iter().map(|(registry, _)| registry).collect()
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
