//! Logs in to a registry, in a Docker configuration that only one job uses.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, symlink};
use std::path::Path;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bollard::auth::DockerCredentials;
use serde_json::{Map, Value, json};
use stagely_protocol::{FailureReason, RegistryAuth, RegistryProblem, Stream};
use thiserror::Error;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::classify::registry_failure;
use super::command::DockerCommand;
use super::user_config::{self, ConfigFile, is_same_registry};
use crate::process::{Invocation, ProcessError, last_line};

/// How long a credential helper may take to answer.
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
    let output = helper_output(docker, store, "list", None, stop).await.unwrap_or_default();
    let registries: Map<String, Value> = serde_json::from_slice(&output).unwrap_or_default();
    registries.into_iter().map(|(registry, _)| registry).collect()
}

/// What a credential helper answers to `command` about `registry`. `None`: it fails, or does not answer in time.
async fn helper_output(
    docker: &DockerCommand,
    helper: &str,
    command: &str,
    registry: Option<&str>,
    stop: &CancellationToken,
) -> Option<Vec<u8>> {
    let mut output = Vec::new();
    let mut helper =
        Invocation::new(format!("docker-credential-{helper}"), &docker.machine).arg(command);
    if let Some(registry) = registry {
        helper = helper.stdin(registry.into());
    }
    let answered = helper.run(docker.grace, stop, |stream, bytes| {
        if stream == Stream::Stdout {
            output.extend_from_slice(bytes);
        }
    });
    let answered = timeout(HELPER_LIMIT, answered).await;
    let is_done = answered.is_ok_and(|answer| answer.is_ok_and(|status| status.success()));
    is_done.then_some(output)
}

/// The login that the job's Docker configuration has for the registry at `host`.
pub(super) async fn user_login(
    docker: &DockerCommand,
    host: &str,
    stop: &CancellationToken,
) -> Option<DockerCredentials> {
    let ConfigFile { auths, cred_helpers, .. } = ConfigFile::read(&docker.config);
    let helper = cred_helpers.iter().find(|(registry, _)| is_same_registry(registry, host));
    if let Some((registry, Value::String(helper))) = helper {
        return stored_login(docker, helper, registry, stop).await;
    }
    let (_, login) = auths.iter().find(|(registry, _)| is_same_registry(registry, host))?;
    login_of_entry(login)
}

/// The login in an entry of `auths`: `{"auth": "dXNlcjpwYXNz"}`.
fn login_of_entry(entry: &Value) -> Option<DockerCredentials> {
    let text = |name: &str| entry.get(name)?.as_str().map(str::to_owned);
    let pair = text("auth").and_then(|auth| STANDARD.decode(auth).ok());
    let pair = pair.and_then(|pair| String::from_utf8(pair).ok()).unwrap_or_default();
    let (username, password) = pair.trim_end_matches('\0').split_once(':').unwrap_or_default();
    let identitytoken = text("identitytoken").filter(|token| !token.is_empty());
    if identitytoken.is_none() && username.is_empty() {
        return None;
    }
    Some(DockerCredentials {
        username: Some(username.to_owned()),
        password: Some(password.to_owned()),
        identitytoken,
        ..DockerCredentials::default()
    })
}

/// The login that the credential helper `helper` has for `registry`.
async fn stored_login(
    docker: &DockerCommand,
    helper: &str,
    registry: &str,
    stop: &CancellationToken,
) -> Option<DockerCredentials> {
    let output = helper_output(docker, helper, "get", Some(registry), stop).await?;
    let login: Map<String, Value> = serde_json::from_slice(&output).ok()?;
    let text = |name: &str| login.get(name)?.as_str().map(str::to_owned);
    let (username, secret) = (text("Username")?, text("Secret")?);
    Some(if username == "<token>" {
        DockerCredentials { identitytoken: Some(secret), ..DockerCredentials::default() }
    } else {
        DockerCredentials {
            username: Some(username),
            password: Some(secret),
            ..DockerCredentials::default()
        }
    })
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
    let reason = failure_of(&String::from_utf8_lossy(&output));
    let (registry, detail) = (registry.to_owned(), last_line(&output));
    Err(LoginError::Failed { registry, detail, reason })
}

/// Why a login failed, of which Docker said `error`.
fn failure_of(error: &str) -> FailureReason {
    match registry_failure(error) {
        // Docker itself works, so the registry is the cause.
        FailureReason::Internal => FailureReason::Registry { problem: RegistryProblem::Refused },
        reason => reason,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_login_that_fails_for_a_reason_that_is_not_known_is_refused() {
        let of = |problem| FailureReason::Registry { problem };
        for (error, problem) in [
            (
                "Error response from daemon: Get \"https://r/v2/\": parse error",
                RegistryProblem::Refused,
            ),
            (
                "login attempt to https://r/v2/ failed with status: 418 I'm a teapot",
                RegistryProblem::Refused,
            ),
            ("dial tcp: lookup r.example: no such host", RegistryProblem::Refused),
            (
                "login attempt to https://r/v2/ failed with status: 425 Too Early",
                RegistryProblem::Unavailable,
            ),
            (
                "login attempt to https://r/v2/ failed with status: 507 x",
                RegistryProblem::Unavailable,
            ),
            ("dial tcp 127.0.0.1:1: connect: connection refused", RegistryProblem::Unavailable),
            (
                "login attempt to https://r/v2/ failed with status: 401 Unauthorized",
                RegistryProblem::Authentication,
            ),
        ] {
            assert_eq!(failure_of(error), of(problem), "{error}");
        }
    }

    #[test]
    fn the_login_of_an_entry_is_a_password_or_a_token() {
        let login = login_of_entry(&json!({ "auth": STANDARD.encode("me:a:b") })).unwrap();
        assert_eq!(
            (login.username.as_deref(), login.password.as_deref()),
            (Some("me"), Some("a:b"))
        );
        let login = login_of_entry(&json!({ "identitytoken": "t" })).unwrap();
        assert_eq!(login.identitytoken.as_deref(), Some("t"));
        assert!(login_of_entry(&json!({})).is_none());
    }
}
