//! The commands `migrate` and `seed`.

use std::time::{Duration, Instant};

use stagely_protocol::{DeployProblem, FailureReason, ServiceCommand};
use tokio::time::timeout;

use super::{Deploying, JobError, compose_error, engine_error, reason};
use crate::docker::{ComposeError, ComposeProject, container_start_failure};
use crate::preview::containers;
use crate::preview::model;

impl Deploying<'_> {
    /// Runs `migrate` or `seed`.
    pub(super) async fn run_command(
        &self,
        compose: &ComposeProject,
        name: &str,
        problem: DeployProblem,
        command: &ServiceCommand,
    ) -> Result<(), JobError> {
        let service = model::service_of(self.deploy, &command.service);
        let text = command.command.join(" ");
        self.log.info(&format!("Running `{name}` in the service `{service}`: {text}"));
        let (started, stop) = (Instant::now(), self.stop.child_token());
        self.remove_command_containers().await?;
        let run = compose.run(service, &command.command, self.log, &stop);
        let mut run = std::pin::pin!(run);
        let limit = Duration::from_secs(command.timeout_seconds);
        let Ok(result) = timeout(limit, &mut run).await else {
            stop.cancel();
            // The container is removed afterwards, with all that are left of such commands.
            let _ = run.await;
            let message = format!("`{name}` did not end within {} s", limit.as_secs());
            return Err(JobError::with_message(reason(problem), message));
        };
        match result {
            Ok(()) => {
                self.remove_command_containers().await?;
                let seconds = started.elapsed().as_secs_f64();
                self.log.info(&format!("`{name}` succeeded in {seconds:.1}s"));
                Ok(())
            }
            Err(error @ (ComposeError::Failed { .. } | ComposeError::Missing)) => {
                Err(self.command_failure(name, service, problem, &error).await)
            }
            Err(error) => Err(compose_error(&error)),
        }
    }

    async fn remove_command_containers(&self) -> Result<(), JobError> {
        containers::remove_one_off_containers(&self.engine, &self.project)
            .await
            .map_err(|error| engine_error(&error))
    }

    /// Why a command failed. Its container says it: the error output of `docker compose run` also has what the command writes,
    /// which may be any message of an engine.
    async fn command_failure(
        &self,
        name: &str,
        service: &str,
        problem: DeployProblem,
        error: &ComposeError,
    ) -> JobError {
        let subject = format!("`{name}` in the service `{service}`");
        let found = containers::one_off_container(&self.engine, &self.project).await;
        let container = match found {
            Ok(Some(container)) => container,
            // It was not created, so the error output is that of Docker Compose alone.
            Ok(None) => {
                // A service that it depends on may be the cause.
                if let Some(failure) = self.service_failure().await {
                    return failure;
                }
                return match error {
                    ComposeError::Failed { machine: None, detail, .. } => {
                        let message = format!("{subject} cannot be started: {detail}");
                        JobError::with_message(reason(problem), message)
                    }
                    error => compose_error(error),
                };
            }
            Err(error) => return engine_error(&error),
        };
        if container.has_ended() {
            let last = self.last_line(&container.id).await;
            let last = last.map(|line| format!(": {line}")).unwrap_or_default();
            let message = format!("{subject} {}{last}", container.end());
            return JobError::with_message(reason(problem), message);
        }
        if !container.error.is_empty() {
            let reason = container_start_failure(&container.error).unwrap_or(reason(problem));
            let message = format!("{subject} cannot be started: {}", container.error);
            return JobError::with_message(reason, message);
        }
        // Docker Compose has lost a command that may still run.
        JobError::with_message(FailureReason::Engine, format!("{subject} was lost: {error}"))
    }
}
