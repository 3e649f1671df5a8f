//! Waits for an engine that is still starting, logs in to the registry, and retries a registry that does not answer.

use std::pin::pin;
use std::time::Duration;

use stagely_protocol::{ErrorChain, FailureReason, RegistryAuth};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::error::JobError;
use crate::docker::{self, DockerCommand, Engine, ProbeError};
use crate::job_log::JobLog;
use crate::retry::Backoff;

/// How long an engine may take to start. On a fresh machine the engine starts 20 s after the agent, and more than a
/// minute after it on an emulated machine whose host is busy.
const ENGINE_START_LIMIT: Duration = Duration::from_mins(3);

/// The delay before an engine that does not answer is asked again.
const ENGINE_POLL_INTERVAL: Duration = Duration::from_millis(250);

/// The longest time without a line about a wait.
const SILENCE_MAX: Duration = Duration::from_secs(2);

/// The first delay before a registry that does not answer is tried again; each further one is twice as long.
const REGISTRY_DELAY_MIN: Duration = Duration::from_secs(1);

/// The longest delay before a registry that does not answer is tried again.
const REGISTRY_DELAY_MAX: Duration = Duration::from_secs(20);

/// Asks the engine for its features. The agent may start before the engine, so it waits for the engine.
pub(super) async fn wait_for_engine(
    docker: &DockerCommand,
    log: &JobLog,
    stop: &CancellationToken,
) -> Result<Engine, JobError> {
    let mut backoff = Backoff::constant(ENGINE_POLL_INTERVAL, ENGINE_START_LIMIT);
    let mut is_logged = false;
    let mut log_once = |why: &str| {
        if !std::mem::replace(&mut is_logged, true) {
            let limit = humantime::format_duration(ENGINE_START_LIMIT);
            log.info(&format!("Waiting for the Docker engine, for {limit} at most: {why}"));
        }
    };
    loop {
        let mut probe = pin!(stop.run_until_cancelled(Engine::probe(&docker.endpoint)));
        let probe = if let Ok(probe) = timeout(SILENCE_MAX, &mut probe).await {
            probe
        } else {
            log_once("no answer yet");
            probe.await
        };
        let message = match probe {
            Some(Ok(engine)) => return Ok(engine),
            Some(Err(error @ ProbeError::Unusable { .. })) => {
                return Err(JobError::new(FailureReason::EngineSettings, &error));
            }
            Some(Err(error)) if !docker.engine_may_start && !docker.endpoint.has_socket() => {
                return Err(JobError::new(FailureReason::EngineSettings, &error));
            }
            Some(Err(error)) => ErrorChain(&error).to_string(),
            None => "stopped before the Docker engine answered".to_owned(),
        };
        if !backoff.wait(stop, |_| log_once(&message)).await {
            return Err(JobError::with_message(FailureReason::Engine, message));
        }
    }
}

/// Logs in to `registry`. Without `auth` there is nothing to do.
pub(super) async fn log_in(
    docker: &DockerCommand,
    registry: &str,
    auth: Option<&RegistryAuth>,
    log: &JobLog,
    stop: &CancellationToken,
) -> Result<(), JobError> {
    let Some(auth) = auth else { return Ok(()) };
    log.info(&format!("Logging in to {registry}"));
    let mut backoff = RegistryBackoff::new(docker);
    loop {
        match docker::login(docker, registry, auth, stop).await {
            Ok(()) => return Ok(()),
            Err(error) => backoff.wait_after(error.into(), log, stop).await?,
        }
    }
}

/// The delays between attempts at a registry that does not answer.
pub(super) struct RegistryBackoff(Backoff);

impl RegistryBackoff {
    /// The first attempt starts now.
    pub(super) fn new(docker: &DockerCommand) -> Self {
        let limit = docker.registry_retry_limit;
        Self(Backoff::exponential(REGISTRY_DELAY_MIN, REGISTRY_DELAY_MAX, limit))
    }

    /// Waits for the next attempt if `error` says that the registry does not answer.
    ///
    /// # Errors
    /// `error`, if it is final or there is no time for another attempt.
    pub(super) async fn wait_after(
        &mut self,
        error: JobError,
        log: &JobLog,
        stop: &CancellationToken,
    ) -> Result<(), JobError> {
        let time_left = self.0.time_left().unwrap_or_default().as_secs_f64().round();
        let time_left = humantime::format_duration(Duration::from_secs_f64(time_left));
        let log_retry = |delay| {
            let last_line = error.message.lines().last().unwrap_or_default();
            log.info(&format!(
                "The registry does not answer, trying again in {delay:?}, for {time_left} at most: {last_line}"
            ));
        };
        if error.is_transient() && self.0.wait(stop, log_retry).await {
            return Ok(());
        }
        Err(error)
    }
}
