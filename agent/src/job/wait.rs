//! Waits for an engine that is still starting, and for a registry that does not answer.

use std::time::Duration;

use stagely_protocol::{FailureReason, RegistryAuth, RegistryProblem};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::JobError;
use crate::docker::{self, DockerCommand, Engine, LoginError};
use crate::job_log::JobLog;

/// How long an engine may take to start. On a fresh machine it follows the agent by 20 s, and by more than a
/// minute in an emulated guest of a busy host.
const ENGINE_PATIENCE: Duration = Duration::from_mins(3);

/// Time between two looks at an engine that does not answer.
const ENGINE_POLL: Duration = Duration::from_millis(250);

/// The first wait between two attempts at a registry; each further one is twice as long.
const RETRY_DELAY_MIN: Duration = Duration::from_secs(1);

/// The longest wait between two attempts at a registry.
const RETRY_DELAY_MAX: Duration = Duration::from_secs(20);

impl From<LoginError> for JobError {
    fn from(error: LoginError) -> Self {
        Self::new(error.reason(), &error)
    }
}

/// Asks the engine what it can do, and waits for one that is still starting: the agent is up first.
pub(super) async fn await_engine(
    docker: &DockerCommand,
    log: &JobLog,
    stop: &CancellationToken,
) -> Result<Engine, JobError> {
    let give_up = Instant::now() + ENGINE_PATIENCE;
    let mut is_told = false;
    loop {
        let probe = stop.run_until_cancelled(Engine::probe(docker.host.as_deref())).await;
        let message = match probe {
            Some(Ok(engine)) => return Ok(engine),
            Some(Err(error)) => format!("the Docker engine does not answer: {error}"),
            None => "stopped before the Docker engine answered".to_owned(),
        };
        if stop.is_cancelled() || Instant::now() > give_up {
            return Err(JobError { reason: FailureReason::Engine, message, steps: Vec::new() });
        }
        if !is_told {
            log.say("Waiting for the Docker engine");
            is_told = true;
        }
        sleep(ENGINE_POLL).await;
    }
}

/// Logs in to `registry`, if there is anything to log in with.
pub(super) async fn log_in(
    docker: &DockerCommand,
    registry: &str,
    auth: Option<&RegistryAuth>,
    log: &JobLog,
    stop: &CancellationToken,
) -> Result<(), JobError> {
    let Some(auth) = auth else { return Ok(()) };
    log.say(&format!("Logging in to {registry}"));
    let mut retry = Retry::new(docker.registry_patience);
    loop {
        match docker::login(docker, registry, auth, stop).await {
            Ok(()) => return Ok(()),
            Err(error) => retry.wait_after(error.into(), log, stop).await?,
        }
    }
}

/// Attempts at a registry that does not answer.
pub(super) struct Retry {
    give_up: Instant,
    delay: Duration,
}

impl Retry {
    pub(super) fn new(patience: Duration) -> Self {
        Self { give_up: Instant::now() + patience, delay: RETRY_DELAY_MIN }
    }

    /// Waits if another attempt may help, or gives `error` back.
    pub(super) async fn wait_after(
        &mut self,
        error: JobError,
        log: &JobLog,
        stop: &CancellationToken,
    ) -> Result<(), JobError> {
        let unavailable = FailureReason::Registry { problem: RegistryProblem::Unavailable };
        let delay = self.delay;
        if error.reason != unavailable || Instant::now() + delay > self.give_up {
            return Err(error);
        }
        self.delay = (delay * 2).min(RETRY_DELAY_MAX);
        let last = error.message.lines().last().unwrap_or_default();
        log.say(&format!("The registry does not answer, trying again in {delay:?}: {last}"));
        match stop.run_until_cancelled(sleep(delay)).await {
            Some(()) => Ok(()),
            None => Err(error),
        }
    }
}
