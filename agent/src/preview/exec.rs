//! Commands in the containers of services, for people.

use std::pin::Pin;

use anyhow::Context as _;
use bollard::Docker;
use bollard::container::LogOutput;
use bollard::errors::Error as EngineError;
use bollard::exec::{CreateExecOptions, ResizeExecOptions, StartExecOptions, StartExecResults};
use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;
use nix::errno::Errno;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use stagely_protocol::{ExecCommand, TerminalSize};
use thiserror::Error;
use tokio::io::AsyncWrite;

use super::{Previews, containers, project_name};

/// What commands with a terminal find in `TERM`.
const TERMINAL: &str = "TERM=xterm-256color";

/// The exit code of a command whose container is gone: that of a killed one.
const EXIT_KILLED: i64 = 137;

/// Why a command cannot be started. The messages are for people.
#[derive(Debug, Error)]
pub(crate) enum ExecError {
    #[error("the preview has no service `{service}`; it has {}", .services.join(", "))]
    NoSuchService { service: String, services: Vec<String> },
    #[error("the service `{0}` does not run")]
    NotRunning(String),
    #[error("the command cannot be started: {0}")]
    Engine(#[from] EngineError),
    #[error("the engine is not there: {0:#}")]
    NoEngine(anyhow::Error),
}

/// A command that runs.
pub(crate) struct RunningCommand {
    pub(crate) output: BoxStream<'static, Result<LogOutput, EngineError>>,
    pub(crate) input: Pin<Box<dyn AsyncWrite + Send>>,
    pub(crate) control: CommandControl,
}

/// The side of a command that is neither its input nor its output.
pub(crate) struct CommandControl {
    engine: Docker,
    id: String,
}

impl Previews {
    /// Starts a command in the container of a service.
    ///
    /// # Errors
    /// [`ExecError`]
    pub(crate) async fn exec(&self, command: ExecCommand) -> Result<RunningCommand, ExecError> {
        let engine = self.engine().map_err(ExecError::NoEngine)?;
        let found =
            containers::containers(&engine, &project_name(&self.machine, &command.preview_id))
                .await?;
        let of_service = || found.iter().filter(|found| found.service == command.service);
        if of_service().next().is_none() {
            let mut services: Vec<_> =
                found.iter().map(|container| format!("`{}`", container.service)).collect();
            services.dedup();
            return Err(ExecError::NoSuchService { service: command.service, services });
        }
        let Some(container) = of_service().find(|container| container.is_running()) else {
            return Err(ExecError::NotRunning(command.service));
        };
        let has_terminal = command.terminal.is_some();
        let options = CreateExecOptions {
            attach_stdin: Some(true),
            attach_stdout: Some(true),
            attach_stderr: Some(true),
            tty: Some(has_terminal),
            env: has_terminal.then(|| vec![TERMINAL.to_owned()]),
            cmd: Some(command.command),
            ..CreateExecOptions::default()
        };
        let id = engine.create_exec(&container.id, options).await?.id;
        let options = StartExecOptions { tty: has_terminal, ..StartExecOptions::default() };
        match engine.start_exec(&id, Some(options)).await? {
            StartExecResults::Attached { output, input } => {
                let control = CommandControl { engine, id };
                if let Some(size) = command.terminal {
                    control.resize(size).await;
                }
                Ok(RunningCommand { output: output.boxed(), input, control })
            }
            StartExecResults::Detached => Err(ExecError::NotRunning(command.service)),
        }
    }
}

impl CommandControl {
    /// Sets the size of the terminal, if the command has one.
    pub(crate) async fn resize(&self, TerminalSize { columns, rows }: TerminalSize) {
        let size = ResizeExecOptions { width: columns, height: rows };
        if let Err(error) = self.engine.resize_exec(&self.id, size).await {
            tracing::debug!(%error, "a terminal cannot be resized");
        }
    }

    /// Ends a command that nobody waits for any more. The engine lets it run on and drops its output.
    pub(crate) async fn hang_up(&self) {
        let inspected = self.engine.inspect_exec(&self.id).await;
        let Some(exec) = inspected.ok().filter(|exec| exec.running == Some(true)) else { return };
        let id = exec.pid.and_then(|id| i32::try_from(id).ok()).filter(|id| *id > 1);
        let (Some(id), Some(container)) = (id, exec.container_id) else { return };
        // The engine's process ids may not be those of this system.
        let groups = tokio::fs::read_to_string(format!("/proc/{id}/cgroup")).await;
        if !groups.is_ok_and(|groups| groups.contains(&container)) {
            return tracing::warn!(
                "a command that nobody waits for runs on: its process is not found"
            );
        }
        // The engine makes each command the leader of a process group.
        match killpg(Pid::from_raw(id), Signal::SIGHUP) {
            Ok(()) | Err(Errno::ESRCH) => {}
            // The agent need not be root, and commands of containers often are.
            Err(Errno::EPERM) => {
                if let Err(error) = self.hang_up_inside(&container, id).await {
                    tracing::warn!("a command that nobody waits for runs on: {error:#}");
                }
            }
            Err(error) => tracing::warn!(%error, "a command that nobody waits for runs on"),
        }
    }

    /// Sends SIGHUP to the process group of the command inside its container, as the same user.
    async fn hang_up_inside(&self, container: &str, id: i32) -> anyhow::Result<()> {
        let status = tokio::fs::read_to_string(format!("/proc/{id}/status")).await?;
        let ids = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
        let id = ids.and_then(|ids| ids.split_whitespace().next_back());
        let id = id.context("its process id in the container is not known")?;
        let options = CreateExecOptions {
            attach_stderr: Some(true),
            cmd: Some(["sh", "-c", &format!("kill -s HUP -- -{id}")].map(str::to_owned).into()),
            ..CreateExecOptions::default()
        };
        let exec = self.engine.create_exec(container, options).await?.id;
        let started = self.engine.start_exec(&exec, None::<StartExecOptions>).await?;
        let mut message = String::new();
        if let StartExecResults::Attached { mut output, .. } = started {
            while let Some(piece) = output.next().await {
                message.push_str(&piece?.to_string());
            }
        }
        let code = self.engine.inspect_exec(&exec).await?.exit_code;
        anyhow::ensure!(code == Some(0), "`kill` in the container: {}", message.trim());
        Ok(())
    }

    /// The exit code, once the output has ended.
    pub(crate) async fn exit_code(&self) -> i64 {
        let inspected = self.engine.inspect_exec(&self.id).await;
        inspected.ok().and_then(|exec| exec.exit_code).unwrap_or(EXIT_KILLED)
    }
}
