//! The `docker compose` command of one preview.

use std::path::{Path, PathBuf};
use std::process::ExitStatus;

use serde_json::Value;
use stagely_protocol::{CORE_VARIABLE, FailureReason, Stream};
use thiserror::Error;
use tokio_util::sync::CancellationToken;

use super::classify::{is_compose_missing, machine_failure_of};
use super::command::DockerCommand;
use crate::job_log::{CommandLog, JobLog};
use crate::process::{Invocation, ProcessError, is_inherited, last_line};

/// Prefixes of variables that change what `docker compose` itself does.
const CLIENT_PREFIXES: [&str; 8] =
    ["BUILDKIT_", "BUILDX_", "COMPOSE_", "DOCKER_", "GIT_", "LD_", "OTEL_", "STAGELY_"];

/// The only variables that `docker compose` inherits: a compose file may put any variable into a container, and the others
/// may have passwords of proxies.
const INHERITED: [&str; 7] = [
    "PATH",
    "HOME",
    "TMPDIR",
    "DOCKER_TLS",
    "DOCKER_TLS_VERIFY",
    "DOCKER_CERT_PATH",
    CORE_VARIABLE,
];

/// The end of the error output that is kept.
const STDERR_BYTES_MAX: usize = 64 * 1024;

/// The most that a command prints whose output is read.
const STDOUT_BYTES_MAX: usize = 32 * 1024 * 1024;

/// The images are there already, and `--wait` would fail because of services that end.
const UP: [&str; 6] = ["up", "--detach", "--no-build", "--pull", "never", "--remove-orphans"];

/// Why `docker compose` failed.
#[derive(Debug, Error)]
pub enum ComposeError {
    #[error(transparent)]
    Process(#[from] ProcessError),
    #[error(
        "this machine has no `docker compose`: install Docker's plugin (the package docker-compose of Debian 13, \
         docker-compose-v2 of Ubuntu, or docker-compose-plugin of Docker)"
    )]
    Missing,
    #[error("{detail}")]
    Failed {
        /// The last line of its output.
        detail: String,
        exit_code: i32,
        /// If the machine is at fault.
        machine: Option<FailureReason>,
    },
    #[error("the compose file is too large")]
    TooLarge,
    #[error("`docker compose config` printed no compose file")]
    Unreadable(#[source] serde_json::Error),
}

/// A compose project, and the files that it is made from.
#[derive(Clone, Debug)]
pub struct ComposeProject {
    docker: DockerCommand,
    name: String,
    file: PathBuf,
    /// With further variables for the compose file.
    env_file: Option<PathBuf>,
    /// Variables for the compose file.
    variables: Vec<(String, String)>,
}

impl ComposeProject {
    /// The project `name` of the compose file `file`.
    pub fn new(docker: DockerCommand, name: String, file: PathBuf) -> Self {
        Self { docker, name, file, env_file: None, variables: Vec::new() }
    }

    /// Adds variables that the compose file may use, `variables` before those of `env_file`.
    #[must_use]
    pub fn with_variables(
        mut self,
        env_file: Option<PathBuf>,
        variables: impl IntoIterator<Item = (String, String)>,
    ) -> Self {
        let is_for_the_file = |name: &str| {
            !is_inherited(name) && !CLIENT_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
        };
        self.env_file = env_file;
        self.variables = variables.into_iter().filter(|(name, _)| is_for_the_file(name)).collect();
        self
    }

    fn command(&self) -> Invocation {
        let compose = self
            .docker
            .invocation()
            .inherit_only(&INHERITED)
            // Also where it is Docker's default: an `.env` of the commit must not choose another engine.
            .env("DOCKER_HOST", self.docker.endpoint.host())
            // No files from other servers, and no `git`, before the compose file is checked.
            .env("COMPOSE_EXPERIMENTAL_GIT_REMOTE", "false")
            .env("COMPOSE_EXPERIMENTAL_OCI_REMOTE", "false")
            .args(["compose", "--ansi", "never", "--progress", "plain", "--project-name"])
            .arg(&self.name)
            .arg("--file")
            .arg(&self.file)
            .arg("--env-file")
            // Without the argument compose takes the `.env` beside the file, and other files that a variable names.
            .arg(self.env_file.as_deref().unwrap_or(Path::new("/dev/null")));
        // Compose takes some paths as relative to the current directory, which is `/` for a service of systemd.
        let compose = match self.file.parent().filter(|folder| folder.is_absolute()) {
            Some(folder) => compose.current_directory(folder),
            None => compose,
        };
        let variables = self.variables.iter();
        variables.fold(compose, |compose, (name, value)| compose.env(name, value))
    }

    /// The compose file with all variables, defaults and files in it, and with the services of all profiles.
    ///
    /// # Errors
    /// [`ComposeError`]
    pub async fn config(&self, stop: &CancellationToken) -> Result<Value, ComposeError> {
        let command = self.command().args(["--profile", "*", "config", "--format", "json"]);
        let output = self.output(command, stop).await?;
        serde_json::from_slice(&output).map_err(ComposeError::Unreadable)
    }

    /// The services that start without further profiles.
    ///
    /// # Errors
    /// [`ComposeError`]
    pub async fn services(&self, stop: &CancellationToken) -> Result<Vec<String>, ComposeError> {
        let output = self.output(self.command().args(["config", "--services"]), stop).await?;
        Ok(String::from_utf8_lossy(&output).lines().map(str::to_owned).collect())
    }

    /// Starts the services, and replaces those that have changed.
    ///
    /// # Errors
    /// [`ComposeError`]
    pub async fn up(&self, log: &JobLog, stop: &CancellationToken) -> Result<(), ComposeError> {
        self.logged(self.command().args(UP), log, stop).await
    }

    /// As [`up`](Self::up), without a log.
    ///
    /// # Errors
    /// [`ComposeError`]
    pub async fn restart(&self, stop: &CancellationToken) -> Result<(), ComposeError> {
        self.output(self.command().args(UP), stop).await.map(drop)
    }

    /// Runs `arguments` in a new container of `service`, after the services that it depends on have started. The container
    /// stays: its exit code is that of the command, and the error is also one of Docker Compose.
    ///
    /// # Errors
    /// [`ComposeError`]
    pub async fn run(
        &self,
        service: &str,
        arguments: &[String],
        log: &JobLog,
        stop: &CancellationToken,
    ) -> Result<(), ComposeError> {
        let command = self
            .command()
            .args(["run", "--no-TTY", "--interactive=false", "--quiet-pull", "--", service])
            .args(arguments);
        self.logged(command, log, stop).await
    }

    /// Stops the services in the order of their dependencies.
    ///
    /// # Errors
    /// [`ComposeError`]
    pub async fn stop(&self, stop: &CancellationToken) -> Result<(), ComposeError> {
        self.output(self.command().arg("stop"), stop).await.map(drop)
    }

    async fn output(
        &self,
        command: Invocation,
        stop: &CancellationToken,
    ) -> Result<Vec<u8>, ComposeError> {
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        let (stop, mut is_too_large) = (stop.child_token(), false);
        let result = command
            .run(self.docker.grace, &stop, |stream, bytes| match stream {
                Stream::Stdout if stdout.len() + bytes.len() > STDOUT_BYTES_MAX => {
                    is_too_large = true;
                    stop.cancel();
                }
                Stream::Stdout => stdout.extend_from_slice(bytes),
                Stream::Stderr => push_end(&mut stderr, bytes),
            })
            .await;
        if is_too_large {
            return Err(ComposeError::TooLarge);
        }
        checked(result?, &stderr).map(|()| stdout)
    }

    async fn logged(
        &self,
        command: Invocation,
        log: &JobLog,
        stop: &CancellationToken,
    ) -> Result<(), ComposeError> {
        let (mut lines, mut stderr) = (CommandLog::new(log), Vec::new());
        let result = command
            .run(self.docker.grace, stop, |stream, bytes| {
                lines.push(stream, bytes);
                if stream == Stream::Stderr {
                    push_end(&mut stderr, bytes);
                }
            })
            .await;
        lines.finish();
        checked(result?, &stderr)
    }
}

/// Keeps the end of an error output.
fn push_end(stderr: &mut Vec<u8>, bytes: &[u8]) {
    stderr.extend_from_slice(bytes);
    let excess = stderr.len().saturating_sub(STDERR_BYTES_MAX);
    stderr.drain(..excess);
}

fn checked(status: ExitStatus, stderr: &[u8]) -> Result<(), ComposeError> {
    if status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(stderr);
    if is_compose_missing(&text) {
        return Err(ComposeError::Missing);
    }
    let machine = machine_failure_of(&text);
    Err(ComposeError::Failed {
        detail: last_line(stderr),
        exit_code: status.code().unwrap_or(1),
        machine,
    })
}
