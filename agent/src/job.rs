//! Runs one job from its message to its STATUS, in a folder that is gone afterwards.

mod build;
mod merge;

mod report;
mod wait;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use secrecy::ExposeSecret;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use self::build::CacheExport;
use stagely_protocol::{
    Build, CacheMiss, Digest, FailureReason, Fingerprint, ImageRef, Merge, Status, Step, WireId,
};

use crate::docker::{self, DockerCommand};
use crate::job_log::{JobLog, LineSink};
use crate::mask::{Masker, Secrets};

/// The folder of all jobs, in the work folder.
pub const JOBS_FOLDER: &str = "jobs";

/// Joining images takes a second; a registry that needs minutes is down.
const MERGE_LIMIT: Duration = Duration::from_mins(5);

/// How long a registry that does not answer is asked again, within one job: about what a restarting
/// one takes. What is built by then comes from the engine's own cache.
pub const REGISTRY_PATIENCE: Duration = Duration::from_secs(90);

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
#[derive(Debug, Default)]
struct Outcome {
    /// What is in the registry; `None`: nothing was to be pushed.
    pushed: Option<(ImageRef, Digest)>,
    /// How long it took.
    duration: Duration,
    steps: Vec<Step>,
    cache_miss: Option<CacheMiss>,
    fingerprint: Option<Fingerprint>,
    /// The layer cache that is still to be exported.
    to_export: Option<CacheExport>,
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
/// When `cancel` fires, or the job's limit is over, everything it started is stopped first. A build
/// that has pushed its image tells `sink` so, and goes on to export its cache: that has a limit of its
/// own, and whatever becomes of it, the job has completed.
pub async fn run(
    work: Work,
    place: &Workplace,
    sink: Arc<dyn LineSink>,
    cancel: &CancellationToken,
) -> Status {
    let (job_id, stop) = (work.job_id(), cancel.child_token());
    let masker = match work.masker() {
        Ok(masker) => masker,
        Err(error) => return report::failed(job_id, error, Vec::new()),
    };
    let log = JobLog::new(sink, masker, stop.clone());
    let folder = match JobFolder::create(&place.work_dir, job_id) {
        Ok(folder) => folder,
        Err(error) => {
            let error = JobError::io("cannot make the job's folder", &error);
            return report::report(job_id, Err(error), &log);
        }
    };
    let mut result = perform(&work, place, &folder, &log, cancel, &stop).await;
    let to_export = result.as_mut().ok().and_then(|outcome| outcome.to_export.take());
    let mut status = report::report(job_id, result, &log);
    if let Some(export) = to_export.filter(|_| !stop.is_cancelled()) {
        log.pushed(Status { exporting_cache: true, ..status.clone() });
        let is_exported = export.perform(&folder.docker(place), &folder.0, &log, &stop).await;
        if !is_exported {
            // It would speak of layers that the cache does not hold.
            status.fingerprint = None;
        }
    }
    folder.remove().await;
    status
}

/// Does `work` within its limit.
async fn perform(
    work: &Work,
    place: &Workplace,
    folder: &JobFolder,
    log: &JobLog,
    cancel: &CancellationToken,
    stop: &CancellationToken,
) -> Result<Outcome, JobError> {
    let docker = folder.docker(place);
    docker::create_config(&docker.config)
        .map_err(|error| JobError::io("cannot make the job's Docker configuration", &error))?;
    let performing = async {
        match work {
            Work::Build(build) => build::perform(build, &docker, &folder.0, log, stop).await,
            Work::Merge(merge) => merge::perform(merge, &docker, log, stop).await,
        }
    };
    let (mut performing, limit) = (pin!(performing), work.limit());
    let (result, timed_out) = tokio::select! {
        result = &mut performing => (result, false),
        () = sleep(limit) => {
            stop.cancel();
            (performing.await, true)
        }
    };
    result.map_err(|error| match log.failure() {
        Some(reason) => {
            JobError { reason, message: "its log could not be kept".to_owned(), ..error }
        }
        None if cancel.is_cancelled() => JobError { reason: FailureReason::Cancelled, ..error },
        None if timed_out => {
            let reason = FailureReason::Timeout { limit_seconds: limit.as_secs() };
            JobError { reason, ..error }
        }
        None => error,
    })
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

    /// How `docker` is called for the job.
    fn docker(&self, place: &Workplace) -> DockerCommand {
        DockerCommand {
            machine: place.machine.clone(),
            host: place.docker_host.clone(),
            config: self.0.join("docker"),
            grace: place.grace,
            registry_patience: place.registry_patience,
        }
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
    use stagely_protocol::{StatusState, Stream};

    use super::*;
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
}
