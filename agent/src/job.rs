//! Runs one job from its message to its final STATUS, in a folder that is removed afterwards.

mod build;
mod deploy;
mod merge;
mod test;

mod clone;

mod platforms;
mod prerequisites;

mod cache_export;
mod contexts;
mod report;
mod target;

mod error;
mod test_report;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use secrecy::ExposeSecret;
use stagely_protocol::{
    Build, Deploy, FailureReason, Merge, Status, TEST_REPORT_SECONDS_MAX, Test, WireId,
};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use self::error::JobError;
use self::report::JobOutput;
use crate::docker::{self, DockerCommand, Endpoint};
use crate::job_log::{JobLog, LineSink};
use crate::mask::{Masker, MaskerBuilder};
use crate::preview::Previews;
use crate::retry::Backoff;

/// The folder of all jobs, in the work folder.
pub const JOBS_FOLDER: &str = "jobs";

/// Joining images takes a second; a registry that needs minutes does not work.
const MERGE_LIMIT: Duration = Duration::from_mins(5);

/// How long an operation is tried again while the registry does not answer: about as long as a registry takes to
/// restart. A build that is tried again comes from the engine's own cache.
pub const REGISTRY_RETRY_LIMIT: Duration = Duration::from_secs(90);

/// How long, and how often, an engine is asked for what a killed agent has left. The next test asks again.
const LEFTOVERS_LIMIT: Duration = Duration::from_mins(5);
const LEFTOVERS_INTERVAL: Duration = Duration::from_secs(2);

/// What a job is to do.
#[derive(Clone, Debug)]
pub enum JobRequest {
    /// Clone, build, push.
    Build(Box<Build>),
    /// Join images.
    Merge(Merge),
    /// Run images as a preview.
    Deploy(Box<Deploy>),
    /// Run a command and read its results.
    Test(Box<Test>),
}

/// How this agent runs jobs.
#[derive(Clone, Debug)]
pub struct JobSettings {
    pub machine: WireId,
    /// Holds one folder for each job.
    pub work_dir: PathBuf,
    /// The engine's address; `None`: that of `DOCKER_HOST`, or of the current Docker context.
    pub docker_host: Option<String>,
    /// Whether the agent works for a command of this user: base images are pulled with the logins of the user's Docker,
    /// and an engine whose socket is missing is an error, not one that is booting.
    pub user_logins: bool,
    /// Time between SIGTERM and SIGKILL for child processes.
    pub grace: Duration,
    /// How long an operation is tried again while the registry does not answer: [`REGISTRY_RETRY_LIMIT`].
    pub registry_retry_limit: Duration,
    pub previews: Arc<Previews>,
}

impl JobRequest {
    pub const fn job_id(&self) -> &WireId {
        match self {
            Self::Build(build) => &build.job_id,
            Self::Merge(merge) => &merge.job_id,
            Self::Deploy(deploy) => &deploy.job_id,
            Self::Test(test) => &test.job_id,
        }
    }

    /// The registry that core has a login for.
    fn own_registry(&self) -> Option<&str> {
        let (target, auth) = match self {
            Self::Build(build) => (&build.build_config.target_image, &build.registry_auth),
            Self::Merge(merge) => (&merge.target_image, &merge.registry_auth),
            Self::Deploy(deploy) => (&deploy.image, &deploy.registry_auth),
            Self::Test(test) => (&test.image, &test.registry_auth),
        };
        auth.as_ref().map(|_| target.registry())
    }

    fn limit(&self) -> Duration {
        match self {
            Self::Build(build) => Duration::from_secs(build.build_config.timeout_seconds),
            Self::Merge(_) => MERGE_LIMIT,
            Self::Deploy(deploy) => Duration::from_secs(deploy.timeout_seconds),
            // The test itself sees to its limit, so that it can report what it has of a command that is late.
            Self::Test(test) => {
                Duration::from_secs(test.timeout_seconds.saturating_add(TEST_REPORT_SECONDS_MAX))
            }
        }
    }

    /// Masks the job's secrets, and those of `proxies`, which builds get as variables.
    fn masker(&self, proxies: &[String]) -> Result<Masker, JobError> {
        let mut secrets = MaskerBuilder::default();
        for proxy in proxies {
            secrets.proxy(proxy);
        }
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
            Self::Deploy(deploy) => {
                let context = deploy.context.as_ref();
                if let Some(token) = context.and_then(|context| context.clone_token.as_ref()) {
                    secrets.credential(token.expose_secret());
                }
                for (name, value) in &deploy.env.0 {
                    secrets.build_arg(name, value);
                }
                for secret in deploy.secrets.0.values() {
                    secrets.credential(secret.expose_secret());
                }
                &deploy.registry_auth
            }
            Self::Test(test) => {
                for (name, value) in &test.env.0 {
                    secrets.build_arg(name, value);
                }
                let headers = test.preview.iter().flat_map(|preview| preview.headers.0.values());
                for secret in test.secrets.0.values().chain(headers) {
                    secrets.credential(secret.expose_secret());
                }
                &test.registry_auth
            }
        };
        if let Some(auth) = auth {
            secrets.credential(auth.password.expose_secret());
        }
        secrets.build().map_err(|error| JobError::new(FailureReason::Internal, &error))
    }
}

/// Runs the job that `request` asks for, and returns its final STATUS. The log goes to `sink`, masked.
///
/// When `cancel` fires or the job's limit is over, everything that the job started is stopped first. A build
/// that has pushed its image records that in `sink` and goes on to export its cache. The export has a limit of
/// its own, and its failure does not fail the job.
pub async fn run(
    request: JobRequest,
    settings: &JobSettings,
    sink: Arc<dyn LineSink>,
    cancel: &CancellationToken,
) -> Status {
    let (job_id, stop) = (request.job_id(), cancel.child_token());
    let proxies = if settings.user_logins { docker::proxies() } else { Vec::new() };
    let masker = match request.masker(&proxies) {
        Ok(masker) => masker,
        Err(error) => return report::failed(job_id, error, Vec::new()),
    };
    let log = Arc::new(JobLog::new(sink, masker, stop.clone()));
    let folder = match JobFolder::create(&settings.work_dir, job_id) {
        Ok(folder) => folder,
        Err(error) => {
            let error = JobError::io("cannot create the job's folder", &error);
            return report::report(job_id, Err(error), &log);
        }
    };
    let mut result = perform(&request, settings, &folder, &log, cancel, &stop).await;
    let cache_exporter = result.as_mut().ok().and_then(|output| output.cache_exporter.take());
    let mut status = report::report(job_id, result, &log);
    if let Some(exporter) = cache_exporter {
        log.report_pushed(Status { exporting_cache: true, ..status.clone() });
        let is_exported = exporter.finish(&log, &stop).await;
        if !is_exported {
            // The fingerprint describes a cache that the registry does not have.
            status.fingerprint = None;
        }
    }
    folder.remove().await;
    status
}

/// Performs `request` within its limit.
async fn perform(
    request: &JobRequest,
    settings: &JobSettings,
    folder: &JobFolder,
    log: &Arc<JobLog>,
    cancel: &CancellationToken,
    stop: &CancellationToken,
) -> Result<JobOutput, JobError> {
    let endpoint = Endpoint::find(settings.docker_host.as_deref())
        .map_err(|error| JobError::new(FailureReason::EngineSettings, &error))?;
    let docker = folder.docker(settings, endpoint);
    docker::create_config(&docker.config)
        .map_err(|error| JobError::io("cannot create the job's Docker configuration", &error))?;
    if settings.user_logins {
        let added = docker::add_user_logins(&docker, request.own_registry(), stop).await;
        added.map_err(|error| JobError::io("cannot use the user's Docker logins", &error))?;
    }
    let work = async {
        match request {
            JobRequest::Build(build) => build::perform(build, &docker, &folder.0, log, stop).await,
            JobRequest::Merge(merge) => merge::perform(merge, &docker, log, stop).await,
            JobRequest::Deploy(deploy) => {
                deploy::perform(deploy, settings, &docker, log, stop).await
            }
            JobRequest::Test(test) => {
                test::perform(test, settings, &docker, &folder.0, log, stop).await
            }
        }
    };
    let (mut work, limit) = (pin!(work), request.limit());
    let (result, timed_out) = tokio::select! {
        result = &mut work => (result, false),
        () = sleep(limit) => {
            stop.cancel();
            (work.await, true)
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

/// Removes the containers of tests that a killed agent has left. The engine may start later than this agent.
pub(crate) async fn remove_leftovers(settings: JobSettings) {
    let mut backoff = Backoff::constant(LEFTOVERS_INTERVAL, LEFTOVERS_LIMIT);
    let never = CancellationToken::new();
    loop {
        let removed = async {
            let engine = Endpoint::find(settings.docker_host.as_deref())?.connect()?;
            anyhow::Ok(test::remove_leftovers(&engine, &settings.machine).await?)
        };
        let Err(error) = removed.await else { return };
        tracing::debug!("cannot look for containers of a killed agent: {error:#}");
        if !backoff.wait(&never, |_| {}).await {
            return;
        }
    }
}

/// The name of the Docker configuration of a job of the agent with the process id `agent`. It holds logins.
fn docker_config_of(agent: u32) -> String {
    format!("docker-{agent}")
}

/// Removes the Docker configurations of the jobs of the agent with the process id `agent`, which was killed, in
/// `work_dir`. A new agent may have jobs there already.
pub(crate) fn remove_docker_configs(work_dir: &Path, agent: u32) {
    let Ok(jobs) = fs::read_dir(work_dir.join(JOBS_FOLDER)) else { return };
    for job in jobs.flatten() {
        // A job of another agent has none.
        let _ = fs::remove_dir_all(job.path().join(docker_config_of(agent)));
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

    /// The settings of the job's `docker` commands.
    fn docker(&self, settings: &JobSettings, endpoint: Endpoint) -> DockerCommand {
        DockerCommand {
            machine: settings.machine.clone(),
            endpoint,
            config: self.0.join(docker_config_of(std::process::id())),
            grace: settings.grace,
            registry_retry_limit: settings.registry_retry_limit,
            engine_may_start: !settings.user_logins,
        }
    }

    /// Removes the folder on a blocking thread: a checkout may hold a hundred thousand files.
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
    use crate::endpoints::Endpoints;
    use crate::preview::PreviewSettings;
    use crate::spool::SpoolError;

    /// A sink without space for a line.
    struct FullDisk;

    impl LineSink for FullDisk {
        fn append(&self, _: &[(Stream, String)]) -> Result<(), SpoolError> {
            Err(SpoolError::DiskFull)
        }
    }

    fn settings(work_dir: &Path) -> JobSettings {
        let previews = PreviewSettings {
            machine: "vm_test".parse().unwrap(),
            work_dir: work_dir.to_owned(),
            docker_host: None,
            grace: Duration::from_secs(1),
            core: None,
            endpoints: Endpoints::default(),
        };
        JobSettings {
            previews: Previews::new(previews, Arc::default()),
            machine: "vm_test".parse().unwrap(),
            work_dir: work_dir.to_owned(),
            docker_host: Some("unix:///nowhere/docker.sock".to_owned()),
            user_logins: false,
            grace: Duration::from_secs(1),
            registry_retry_limit: Duration::ZERO,
        }
    }

    fn merge() -> JobRequest {
        let text = r#"{"job_id":"job_1","source_images":["r/a:1"],"target_image":"r/a:2"}"#;
        JobRequest::Merge(serde_json::from_str(text).unwrap())
    }

    #[test]
    fn the_logins_of_a_killed_agent_are_removed() {
        let folder = tempfile::tempdir().unwrap();
        let jobs = folder.path().join(JOBS_FOLDER);
        let of = |agent| jobs.join("job_1").join(docker_config_of(agent));
        for agent in [7, 8] {
            docker::create_config(&of(agent)).unwrap();
            fs::write(of(agent).join("config.json"), "{}").unwrap();
        }
        remove_docker_configs(folder.path(), 7);
        assert!(!of(7).exists() && of(8).join("config.json").exists());
        remove_docker_configs(&folder.path().join("nothing"), 7);
    }

    #[tokio::test]
    async fn a_log_without_space_fails_the_job_with_disk_full() {
        let folder = tempfile::tempdir().unwrap();
        let cancel = CancellationToken::new();
        let status = run(merge(), &settings(folder.path()), Arc::new(FullDisk), &cancel).await;
        assert_eq!(
            (status.state, status.error),
            (StatusState::Failed, Some(FailureReason::DiskFull))
        );
        assert_eq!(fs::read_dir(folder.path().join(JOBS_FOLDER)).unwrap().count(), 0);
    }
}
