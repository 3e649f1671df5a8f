//! Makes an engine able to run programs of another arch, under QEMU.
//!
//! `buildx inspect` tells what the engine can run: it starts a program of each platform. A missing arch is
//! registered in the `binfmt_misc` of the engine's kernel: from this machine's `qemu-user-static` if the
//! engine runs on this machine and the agent is root, otherwise by the image that Docker documents.
//!
//! Source: Docker, "Multi-platform builds".

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use stagely_protocol::{Arch, Stream};
use thiserror::Error;
use tokio::task::spawn_blocking;
use tokio_util::sync::CancellationToken;

use super::binfmt::{BinfmtFolders, disabled_handler, register};
use super::command::DockerCommand;
use super::container::run_privileged;
use crate::process::ProcessError;

/// Registers QEMU's handlers with the kernel of the engine that runs it.
const BINFMT_IMAGE: &str = "tonistiigi/binfmt";

/// Pulling the image (30 MB) may take this long, and so may running it.
const IMAGE_LIMIT: Duration = Duration::from_mins(2);

/// Why an engine does not run programs of an arch.
#[derive(Debug, Error)]
pub enum EmulationError {
    #[error(transparent)]
    Process(#[from] ProcessError),
    #[error("cannot ask the Docker engine which platforms it runs: {0}")]
    Inspect(String),
    /// The kernel has a handler that an administrator disabled. Stagely leaves it so.
    #[error(
        "this {own} machine does not emulate {wanted}: its handler is disabled; as root, `echo 1 > {}` \
         enables it",
        .handler.display()
    )]
    Disabled {
        own: Arch,
        wanted: Arch,
        /// The kernel's file of the handler.
        handler: PathBuf,
    },
    #[error(
        "this {own} machine does not emulate {wanted}: `apt-get install qemu-user-static` on it, or \
         `docker run --privileged --rm {BINFMT_IMAGE} --install {wanted}` ({attempts})"
    )]
    Impossible {
        own: Arch,
        wanted: Arch,
        /// Each attempt, and why it failed.
        attempts: String,
    },
}

/// Registers QEMU unless the engine, which is of arch `own`, runs programs of arch `wanted` already.
/// `log_line` is called with a line for people before QEMU is registered.
///
/// # Errors
/// [`EmulationError`]
pub async fn ensure_emulation(
    docker: &DockerCommand,
    own: Arch,
    wanted: Arch,
    log_line: impl Fn(&str),
    stop: &CancellationToken,
) -> Result<(), EmulationError> {
    if emulates(docker, wanted, stop).await? {
        return Ok(());
    }
    let is_local = docker.endpoint.is_on_this_machine();
    let disabled = disabled_handler(&BinfmtFolders::default(), wanted);
    if let Some(handler) = disabled.filter(|_| is_local) {
        return Err(EmulationError::Disabled { own, wanted, handler });
    }
    log_line(&format!("This {own} machine does not emulate {wanted} yet: registering QEMU"));
    let mut attempts = Vec::new();
    if is_local {
        let register = spawn_blocking(move || register(&BinfmtFolders::default(), wanted));
        match register.await.map_err(io::Error::other).flatten() {
            Ok(()) if emulates(docker, wanted, stop).await? => return Ok(()),
            Ok(()) => attempts.push("registering qemu-user-static had no effect".to_owned()),
            Err(error) => attempts.push(error.to_string()),
        }
    }
    let install = ["--install", wanted.as_str()];
    match run_privileged(docker, BINFMT_IMAGE, &install, IMAGE_LIMIT, stop).await {
        Ok(()) if emulates(docker, wanted, stop).await? => return Ok(()),
        Ok(()) => attempts.push(format!("{BINFMT_IMAGE} had no effect")),
        Err(error) => attempts.push(format!("{BINFMT_IMAGE}: {error}")),
    }
    Err(EmulationError::Impossible { own, wanted, attempts: attempts.join("; ") })
}

/// Whether the engine runs programs of `arch`. The engine finds out by running one.
async fn emulates(
    docker: &DockerCommand,
    arch: Arch,
    stop: &CancellationToken,
) -> Result<bool, EmulationError> {
    let (mut output, mut errors) = (Vec::new(), Vec::new());
    let inspect = docker.invocation().args(["buildx", "inspect", "default"]);
    let status = inspect
        .run(docker.grace, stop, |stream, bytes| match stream {
            Stream::Stdout => output.extend_from_slice(bytes),
            Stream::Stderr => errors.extend_from_slice(bytes),
        })
        .await?;
    let (output, errors) = (String::from_utf8_lossy(&output), String::from_utf8_lossy(&errors));
    match lists_arch(&output, arch) {
        Some(is_listed) if status.success() => Ok(is_listed),
        _ => {
            // buildx reports an engine that does not answer on its standard output, as `Error: …`.
            let shown = output.lines().rfind(|line| line.trim_start().starts_with("Error:"));
            let last_line = errors.trim().lines().last().or(shown);
            let message = last_line.map_or("`docker buildx inspect` lists no platforms", str::trim);
            Err(EmulationError::Inspect(message.to_owned()))
        }
    }
}

/// Whether the output of `buildx inspect` lists `arch`: `Platforms: linux/amd64*, linux/amd64/v2, linux/arm64`.
/// `None`: the output lists no platforms.
fn lists_arch(inspect_output: &str, arch: Arch) -> Option<bool> {
    let platforms =
        inspect_output.lines().find_map(|line| line.trim().strip_prefix("Platforms:"))?;
    let wanted = format!("linux/{arch}");
    let mut platforms = platforms.split(',').map(str::trim);
    Some(platforms.any(|platform| platform.trim_end_matches('*') == wanted))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::docker::container::ContainerError;
    use crate::docker::endpoint::Endpoint;

    #[tokio::test]
    async fn an_engine_that_does_not_answer_is_an_error() {
        let stop = CancellationToken::new();
        let docker = DockerCommand {
            machine: "vm_test".parse().unwrap(),
            endpoint: Endpoint::find(Some("unix:///nowhere/docker.sock")).unwrap(),
            config: "/nowhere".into(),
            grace: Duration::from_secs(1),
            registry_retry_limit: Duration::ZERO,
            engine_may_start: true,
        };
        let limit = Duration::from_secs(5);
        let error = run_privileged(&docker, BINFMT_IMAGE, &[], limit, &stop).await.unwrap_err();
        assert!(matches!(error, ContainerError::Engine(_)), "{error}");
        let error = emulates(&docker, Arch::Arm64, &stop).await.unwrap_err();
        assert!(matches!(error, EmulationError::Inspect(_)), "{error}");
    }

    #[test]
    fn the_engines_platforms_are_read() {
        let text = "Name: default\nDriver: docker\n\nNodes:\nStatus: running\n\
            Platforms:        linux/amd64*, linux/amd64/v2, linux/arm64/v8, linux/arm\n";
        assert_eq!(lists_arch(text, Arch::Amd64), Some(true));
        assert_eq!(lists_arch(text, Arch::Arm64), Some(false));
        assert_eq!(lists_arch(&text.replace("/v8", ""), Arch::Arm64), Some(true));
        assert_eq!(lists_arch("", Arch::Amd64), None);
    }
}
