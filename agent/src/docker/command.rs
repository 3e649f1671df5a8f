//! How the agent calls the `docker` command.

use std::path::PathBuf;
use std::time::Duration;

use stagely_protocol::WireId;

use super::endpoint::Endpoint;
use crate::process::Invocation;

/// The settings of every `docker` command of one job.
#[derive(Clone, Debug)]
pub struct DockerCommand {
    pub machine: WireId,
    pub endpoint: Endpoint,
    /// The job's private `DOCKER_CONFIG`.
    pub config: PathBuf,
    /// Time between SIGTERM and SIGKILL when the command is stopped.
    pub grace: Duration,
    /// How long a registry that does not answer is tried again.
    pub registry_retry_limit: Duration,
    /// Whether the engine may start later than the agent, so that its socket may not be there yet.
    pub engine_may_start: bool,
}

impl DockerCommand {
    /// `docker`, without the surrounding user's configuration.
    pub(super) fn invocation(&self) -> Invocation {
        let docker = Invocation::new("docker", &self.machine)
            .env("DOCKER_CONFIG", &self.config)
            .env("DOCKER_CLI_HINTS", "false");
        let variables = self.endpoint.variables().iter();
        variables.fold(docker, |docker, (name, value)| docker.env(name, value))
    }
}
