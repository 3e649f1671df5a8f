//! Runs one privileged container on the engine's machine, and removes it.

use std::time::Duration;

use bollard::errors::Error as EngineError;
use bollard::models::{ContainerCreateBody, HostConfig};
use bollard::query_parameters::{
    CreateContainerOptionsBuilder, CreateImageOptionsBuilder, RemoveContainerOptionsBuilder,
    StartContainerOptions, WaitContainerOptionsBuilder,
};
use futures_util::TryStreamExt as _;
use stagely_protocol::MACHINE_VARIABLE;
use thiserror::Error;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::command::DockerCommand;

/// Removing a container that has ended may take this long.
const REMOVE_LIMIT: Duration = Duration::from_secs(10);

/// Why a container did not run to a successful end.
#[derive(Debug, Error)]
pub(super) enum ContainerError {
    #[error(transparent)]
    Engine(#[from] EngineError),
    #[error("exit code {0}")]
    Exit(i64),
    #[error("not done within {0:?}")]
    TimedOut(Duration),
    #[error("stopped")]
    Stopped,
}

/// Pulls `image` and runs it with the privileges of the engine's machine. `limit` holds for the pull and for
/// the run.
pub(super) async fn run_privileged(
    command: &DockerCommand,
    image: &str,
    arguments: &[&str],
    limit: Duration,
    stop: &CancellationToken,
) -> Result<(), ContainerError> {
    let docker = command.endpoint.connect()?;
    let pull = CreateImageOptionsBuilder::new().from_image(image).tag("latest").build();
    let pull = docker.create_image(Some(pull), None, None).try_for_each(|_| async { Ok(()) });
    within(limit, stop, pull).await?;
    let body = ContainerCreateBody {
        image: Some(image.to_owned()),
        cmd: Some(arguments.iter().map(|argument| (*argument).to_owned()).collect()),
        labels: Some([(MACHINE_VARIABLE.to_owned(), command.machine.to_string())].into()),
        host_config: Some(HostConfig {
            privileged: Some(true),
            auto_remove: Some(true),
            ..HostConfig::default()
        }),
        ..ContainerCreateBody::default()
    };
    // The name lets us remove the container even if the response to its creation never came.
    let container = format!("stagely-emulation-{:016x}", rand::random::<u64>());
    let options = CreateContainerOptionsBuilder::new().name(&container).build();
    let wait = WaitContainerOptionsBuilder::new().condition("removed").build();
    let run = Box::pin(async {
        docker.create_container(Some(options), body).await?;
        docker.start_container(&container, None::<StartContainerOptions>).await?;
        let ended = docker.wait_container(&container, Some(wait));
        match ended.try_for_each(|_| async { Ok(()) }).await {
            // The container is removed already. The caller checks its effect.
            Err(EngineError::DockerResponseServerError { status_code: 404, .. }) => Ok(()),
            result => result,
        }
    });
    let ended = within(limit, stop, run).await;
    let remove = RemoveContainerOptionsBuilder::new().force(true).build();
    let _ = timeout(REMOVE_LIMIT, docker.remove_container(&container, Some(remove))).await;
    ended
}

async fn within(
    limit: Duration,
    stop: &CancellationToken,
    task: impl Future<Output = Result<(), EngineError>>,
) -> Result<(), ContainerError> {
    match stop.run_until_cancelled(timeout(limit, task)).await {
        None => Err(ContainerError::Stopped),
        Some(Err(_)) => Err(ContainerError::TimedOut(limit)),
        Some(Ok(Err(EngineError::DockerContainerWaitError { code, .. }))) => {
            Err(ContainerError::Exit(code))
        }
        Some(Ok(result)) => Ok(result?),
    }
}
