//! Runs one job from its message to its STATUS, in a folder that is gone afterwards.

mod build;
mod log;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use secrecy::ExposeSecret;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

pub use self::log::{JobLog, LineSink};
use crate::docker::{self, DockerCommand, Engine, LoginError, MergeError};
use crate::mask::{Masker, Secrets};
use crate::protocol::{
    Build, Digest, FailureReason, ImageRef, Merge, RegistryAuth, RegistryProblem, Status,
    StatusState, Step, WireId,
};

/// The folder of all jobs, in the work folder.
pub const JOBS_FOLDER: &str = "jobs";

/// Joining images takes a second; a registry that needs minutes is down.
const MERGE_LIMIT: Duration = Duration::from_mins(5);

/// How long a registry that does not answer is asked again, within one job: about what a restarting
/// one takes. What is built by then comes from the engine's own cache.
pub const REGISTRY_PATIENCE: Duration = Duration::from_secs(90);

/// How long an engine may take to start. On a fresh machine it follows the agent by 20 s.
const ENGINE_PATIENCE: Duration = Duration::from_mins(1);

/// Time between two looks at an engine that does not answer.
const ENGINE_POLL: Duration = Duration::from_millis(250);

/// The first wait between two attempts at a registry; each further one is twice as long.
const RETRY_DELAY_MIN: Duration = Duration::from_secs(1);

/// The longest wait between two attempts at a registry.
const RETRY_DELAY_MAX: Duration = Duration::from_secs(20);

/// The longest error message, in bytes. Its end is what counts.
const MESSAGE_BYTES_MAX: usize = 4 * 1024;

/// What to do.
#[derive(Clone, Debug)]
pub enum Work {
    /// Clone, build, push.
    Build(Box<Build>),
    /// Join images.
    Merge(Merge),
}

/// Where it is done.
#[derive(Clone, Debug)]
pub struct Workplace {
    /// The machine's id.
    pub machine: WireId,
    /// Holds one folder a job.
    pub work_dir: PathBuf,
    /// The engine's address; `None`: Docker's own default.
    pub docker_host: Option<String>,
    /// Time between SIGTERM and SIGKILL for child processes.
    pub grace: Duration,
    /// How long a registry that does not answer is asked again: [`REGISTRY_PATIENCE`].
    pub registry_patience: Duration,
}

/// A job that has made what it was asked for.
#[derive(Debug)]
struct Outcome {
    image: ImageRef,
    digest: Digest,
    steps: Vec<Step>,
}

/// A job that has not.
#[derive(Debug)]
struct JobError {
    reason: FailureReason,
    /// For people. Masked when it is reported.
    message: String,
    steps: Vec<Step>,
}

impl JobError {
    fn new(reason: FailureReason, error: &dyn std::error::Error) -> Self {
        let mut message = error.to_string();
        let mut source = error.source();
        while let Some(error) = source {
            message = format!("{message}: {error}");
            source = error.source();
        }
        Self { reason, message, steps: Vec::new() }
    }

    fn io(what: &str, error: &io::Error) -> Self {
        let reason = match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => FailureReason::DiskFull,
            _ => FailureReason::Internal,
        };
        Self { reason, message: format!("{what}: {error}"), steps: Vec::new() }
    }
}

impl From<LoginError> for JobError {
    fn from(error: LoginError) -> Self {
        Self::new(error.reason(), &error)
    }
}

impl From<MergeError> for JobError {
    fn from(error: MergeError) -> Self {
        Self::new(error.reason(), &error)
    }
}

impl Work {
    /// The job.
    pub const fn job_id(&self) -> &WireId {
        match self {
            Self::Build(build) => &build.job_id,
            Self::Merge(merge) => &merge.job_id,
        }
    }

    fn limit(&self) -> Duration {
        match self {
            Self::Build(build) => Duration::from_secs(build.build_config.timeout_seconds),
            Self::Merge(_) => MERGE_LIMIT,
        }
    }

    fn masker(&self) -> Result<Masker, JobError> {
        let mut secrets = Secrets::default();
        let auth = match self {
            Self::Build(build) => {
                if let Some(token) = &build.context.clone_token {
                    secrets.credential(token.expose_secret());
                }
                for (name, value) in &build.build_config.build_args.0 {
                    secrets.build_arg(name, value);
                }
                &build.registry_auth
            }
            Self::Merge(merge) => &merge.registry_auth,
        };
        if let Some(auth) = auth {
            secrets.credential(auth.password.expose_secret());
        }
        Masker::new(secrets).map_err(|error| JobError::new(FailureReason::Internal, &error))
    }
}

/// Does `work` and says what became of it. The log goes to `sink`, masked.
///
/// When `cancel` fires, or the job's limit is over, everything it started is stopped first.
pub async fn run(
    work: Work,
    place: &Workplace,
    sink: Arc<dyn LineSink>,
    cancel: &CancellationToken,
) -> Status {
    let stop = cancel.child_token();
    let masker = match work.masker() {
        Ok(masker) => masker,
        Err(error) => return failed(work.job_id(), error, Vec::new()),
    };
    let log = JobLog::new(sink, masker, stop.clone());
    let limit = work.limit();
    let (result, timed_out) = {
        let mut performing = pin!(perform(&work, place, &log, &stop));
        tokio::select! {
            result = &mut performing => (result, false),
            () = sleep(limit) => {
                stop.cancel();
                (performing.await, true)
            }
        }
    };
    let result = result.map_err(|error| match log.failure() {
        Some(reason) => {
            JobError { reason, message: "its log could not be kept".to_owned(), ..error }
        }
        None if cancel.is_cancelled() => JobError { reason: FailureReason::Cancelled, ..error },
        None if timed_out => {
            let reason = FailureReason::Timeout { limit_seconds: limit.as_secs() };
            JobError { reason, ..error }
        }
        None => error,
    });
    report(work.job_id(), result, &log)
}

fn report(job_id: &WireId, result: Result<Outcome, JobError>, log: &JobLog) -> Status {
    match result {
        Ok(outcome) => {
            log.say(&summary(&outcome));
            Status {
                exit_code: Some(0),
                artifact_url: Some(outcome.image),
                digest: Some(outcome.digest),
                steps: outcome.steps,
                warnings: log.warnings(),
                ..Status::new(job_id.clone(), StatusState::Completed)
            }
        }
        Err(mut error) => {
            error.message = match error.reason {
                FailureReason::Cancelled | FailureReason::Timeout { .. } => {
                    error.reason.to_string()
                }
                _ => log.masker().mask(&error.message),
            };
            log.say(&format!("Failed: {}", sentence(&error)));
            failed(job_id, error, log.warnings())
        }
    }
}

fn failed(job_id: &WireId, error: JobError, warnings: Vec<String>) -> Status {
    let state = match error.reason {
        FailureReason::Cancelled => StatusState::Cancelled,
        _ => StatusState::Failed,
    };
    let exit_code = match error.reason {
        FailureReason::User { exit_code, .. } => Some(exit_code),
        _ => None,
    };
    let from = error.message.len().saturating_sub(MESSAGE_BYTES_MAX);
    let message = error.message[error.message.ceil_char_boundary(from)..].to_owned();
    Status {
        exit_code,
        error: Some(error.reason),
        error_message: Some(message),
        steps: error.steps,
        warnings,
        ..Status::new(job_id.clone(), state)
    }
}

/// The failure in one line.
fn sentence(error: &JobError) -> String {
    match &error.reason {
        reason @ FailureReason::User { step, .. } if !step.is_empty() => reason.to_string(),
        reason @ (FailureReason::Cancelled | FailureReason::Timeout { .. }) => reason.to_string(),
        reason => format!("{reason}: {}", error.message.lines().last().unwrap_or_default()),
    }
}

fn summary(outcome: &Outcome) -> String {
    let cached = outcome.steps.iter().filter(|step| step.cached).count();
    let pushed = format!("pushed {} ({})", outcome.image, outcome.digest);
    match outcome.steps.len() {
        0 => format!("Completed: {pushed}"),
        steps => format!("Completed: {cached} of {steps} steps cached, {pushed}"),
    }
}

async fn perform(
    work: &Work,
    place: &Workplace,
    log: &JobLog,
    stop: &CancellationToken,
) -> Result<Outcome, JobError> {
    let folder = JobFolder::create(&place.work_dir, work.job_id())
        .map_err(|error| JobError::io("cannot make the job's folder", &error))?;
    let docker = DockerCommand {
        machine: place.machine.clone(),
        host: place.docker_host.clone(),
        config: folder.0.join("docker"),
        grace: place.grace,
        registry_patience: place.registry_patience,
    };
    let result = match docker::create_config(&docker.config) {
        Ok(()) => match work {
            Work::Build(build) => build::perform(build, &docker, &folder.0, log, stop).await,
            Work::Merge(merge) => perform_merge(merge, &docker, log, stop).await,
        },
        Err(error) => Err(JobError::io("cannot make the job's Docker configuration", &error)),
    };
    folder.remove().await;
    result
}

async fn perform_merge(
    merge: &Merge,
    docker: &DockerCommand,
    log: &JobLog,
    stop: &CancellationToken,
) -> Result<Outcome, JobError> {
    await_engine(docker, log, stop).await?;
    let registry = merge.target_image.registry();
    log_in(docker, registry, merge.registry_auth.as_ref(), log, stop).await?;
    log.say(&format!("Joining {} images into {}", merge.source_images.len(), merge.target_image));
    let mut retry = Retry::new(docker.registry_patience);
    loop {
        match docker::merge(docker, merge, stop).await {
            Ok(digest) => {
                let image = merge.target_image.clone();
                return Ok(Outcome { image, digest, steps: Vec::new() });
            }
            Err(error) => retry.wait_after(error.into(), log, stop).await?,
        }
    }
}

/// Asks the engine what it can do, and waits for one that is still starting: the agent is up first.
async fn await_engine(
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
async fn log_in(
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
struct Retry {
    give_up: Instant,
    delay: Duration,
}

impl Retry {
    fn new(patience: Duration) -> Self {
        Self { give_up: Instant::now() + patience, delay: RETRY_DELAY_MIN }
    }

    /// Waits if another attempt may help, or gives `error` back.
    async fn wait_after(
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

/// A job's private folder.
struct JobFolder(PathBuf);

impl JobFolder {
    fn create(work_dir: &Path, job_id: &WireId) -> io::Result<Self> {
        let path = work_dir.join(JOBS_FOLDER).join(job_id.as_str());
        match fs::remove_dir_all(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        fs::create_dir_all(&path)?;
        Ok(Self(path))
    }

    /// Removes it without stopping the runtime: a checkout may hold a hundred thousand files.
    async fn remove(self) {
        let _ = tokio::task::spawn_blocking(move || drop(self)).await;
    }
}

impl Drop for JobFolder {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            tracing::warn!(folder = %self.0.display(), %error, "cannot remove a job's folder");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::Stream;
    use crate::spool::SpoolError;

    /// Has no space for a line.
    struct FullDisk;

    impl LineSink for FullDisk {
        fn append(&self, _: &[(Stream, String)]) -> Result<(), SpoolError> {
            Err(SpoolError::DiskFull)
        }
    }

    fn place(work_dir: &Path) -> Workplace {
        Workplace {
            machine: "vm_test".parse().unwrap(),
            work_dir: work_dir.to_owned(),
            docker_host: Some("unix:///nowhere/docker.sock".to_owned()),
            grace: Duration::from_secs(1),
            registry_patience: Duration::ZERO,
        }
    }

    fn merge() -> Work {
        let text = r#"{"job_id":"job_1","source_images":["r/a:1"],"target_image":"r/a:2"}"#;
        Work::Merge(serde_json::from_str(text).unwrap())
    }

    #[tokio::test]
    async fn a_log_without_space_stops_the_job_and_names_the_disk() {
        let folder = tempfile::tempdir().unwrap();
        let cancel = CancellationToken::new();
        let status = run(merge(), &place(folder.path()), Arc::new(FullDisk), &cancel).await;
        assert_eq!(
            (status.state, status.error),
            (StatusState::Failed, Some(FailureReason::DiskFull))
        );
        assert_eq!(fs::read_dir(folder.path().join(JOBS_FOLDER)).unwrap().count(), 0);
    }

    #[test]
    fn a_long_message_keeps_its_end() {
        let message = format!("{}the end", "ü".repeat(MESSAGE_BYTES_MAX));
        let error = JobError { reason: FailureReason::Internal, message, steps: Vec::new() };
        let message = failed(merge().job_id(), error, Vec::new()).error_message.unwrap();
        assert!(message.ends_with("the end") && message.len() <= MESSAGE_BYTES_MAX);
    }
}
