//! Everything that speaks with Docker: its engine, its `buildx` command, and a registry's login.

mod abandoned;
mod buildx;
mod classify;
mod emulation;
mod engine;
mod login;
mod merge;
mod progress;
mod vertex;

#[cfg(test)]
mod recorded;

use std::path::PathBuf;
use std::time::Duration;

pub use self::buildx::{BuildError, BuildOutcome, BuildRequest, build, export_cache};
pub use self::emulation::{EmulationError, await_emulation};
pub use self::engine::{Engine, emulated_platforms, version_within};
pub use self::login::{LoginError, create_config, login};
pub use self::merge::{MergeError, merge};
pub(crate) use self::vertex::StepName;
pub use self::vertex::{BaseImage, BaseUser};

use stagely_protocol::WireId;

use crate::process::Invocation;

/// How this agent calls `docker`.
#[derive(Clone, Debug)]
pub struct DockerCommand {
    /// The machine that the call is for.
    pub machine: WireId,
    /// The engine's address; `None`: Docker's own default.
    pub host: Option<String>,
    /// The job's private `DOCKER_CONFIG`.
    pub config: PathBuf,
    /// Time between SIGTERM and SIGKILL when it is stopped.
    pub grace: Duration,
    /// How long a registry that does not answer is asked again.
    pub registry_patience: Duration,
}

impl DockerCommand {
    /// `docker`, with nothing of the surrounding user's configuration.
    fn invocation(&self) -> Invocation {
        let docker = Invocation::new("docker", &self.machine)
            .env("DOCKER_CONFIG", &self.config)
            .env("DOCKER_CLI_HINTS", "false")
            // A builder that somebody chose for this shell is not ours to use.
            .without_env("BUILDX_BUILDER")
            .without_env("BUILDX_CONFIG")
            .without_env("DOCKER_CONTEXT");
        match &self.host {
            Some(host) => docker.env("DOCKER_HOST", host),
            None => docker,
        }
    }
}

/// The last line of `output` that says something.
fn last_line(output: &[u8]) -> String {
    let output = String::from_utf8_lossy(output);
    output.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default().to_owned()
}
