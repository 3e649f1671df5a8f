//! A repository, a registry and a work folder for jobs.

use std::fs;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use stagely_agent::endpoints::Endpoints;
use stagely_agent::job::{self, JobRequest, JobSettings, REGISTRY_RETRY_LIMIT};
use stagely_agent::job_log::LineSink;
use stagely_agent::preview::{PreviewSettings, Previews};
use stagely_agent::spool::SpoolError;
use stagely_protocol::{Arch, CoreMessage, Status, Stream};
use stagely_test_support::git::{GitServer, Repository, TOKEN};
use stagely_test_support::wait::eventually;
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

pub(crate) fn setting(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set: these tests need a registry"))
}

/// Keeps the lines of a job in memory.
#[derive(Default)]
pub(crate) struct Lines {
    pub(crate) text: Mutex<Vec<String>>,
    /// The STATUS of the push.
    pub(crate) pushed: Mutex<Option<Status>>,
}

impl LineSink for Lines {
    fn append(&self, lines: &[(Stream, String)]) -> Result<(), SpoolError> {
        self.text.lock().unwrap().extend(lines.iter().map(|(_, line)| line.clone()));
        Ok(())
    }

    fn record_pushed(&self, status: Status) -> Result<(), SpoolError> {
        let former = self.pushed.lock().unwrap().replace(status);
        assert_eq!(former, None, "a job pushes once");
        Ok(())
    }
}

pub(crate) struct Setup {
    pub(crate) git: GitServer,
    pub(crate) repository: Repository,
    pub(crate) work_dir: TempDir,
    pub(crate) registry: String,
    pub(crate) password: String,
    /// The repository in the registry that this test pushes to.
    pub(crate) name: String,
    pub(crate) lines: Arc<Lines>,
    pub(crate) cancel: CancellationToken,
    pub(crate) docker_host: Option<String>,
}

impl Setup {
    pub(crate) fn new(name: &str) -> Self {
        let git = GitServer::start();
        let repository = git.repository("app", true);
        let password = fs::read_to_string(setting("STAGELY_REGISTRY_PASSWORD_FILE")).unwrap();
        Self {
            git,
            repository,
            work_dir: tempfile::tempdir().unwrap(),
            registry: setting("STAGELY_REGISTRY"),
            password: password.trim().to_owned(),
            name: format!("agent-tests/{name}-{}", std::process::id()),
            lines: Arc::default(),
            cancel: CancellationToken::new(),
            docker_host: None,
        }
    }

    pub(crate) fn image(&self, tag: &str) -> String {
        format!("{}/{}:{tag}", self.registry, self.name)
    }

    pub(crate) fn auth(&self) -> Value {
        json!({ "username": setting("STAGELY_REGISTRY_USERNAME"), "password": self.password })
    }

    /// Commits `files` and describes their build; `config` adds to its configuration.
    pub(crate) fn build(&self, files: &[(&str, &str)], config: Value) -> Value {
        let commit = self.repository.commit(files);
        let mut build_config = json!({
            "context_path": ".", "target_image": self.image("app"),
            "platform": format!("linux/{}", Arch::of_this_program()),
        });
        let Value::Object(config) = config else { panic!("{config}") };
        build_config.as_object_mut().unwrap().extend(config);
        json!({
            "type": "BUILD",
            "job_id": "job_build_xk82",
            "context": {
                "repo_url": self.git.url("private", "app/.git"),
                "commit_hash": commit,
                "clone_token": TOKEN,
            },
            "build_config": build_config,
            "registry_auth": self.auth(),
        })
    }

    pub(crate) async fn run(&self, message: Value) -> Status {
        self.run_with(message, REGISTRY_RETRY_LIMIT).await
    }

    pub(crate) async fn run_with(&self, message: Value, registry_retry_limit: Duration) -> Status {
        self.run_to(message, registry_retry_limit, self.lines.clone()).await
    }

    pub(crate) async fn run_to(
        &self,
        message: Value,
        registry_retry_limit: Duration,
        sink: Arc<dyn LineSink>,
    ) -> Status {
        *self.lines.pushed.lock().unwrap() = None;
        let work = match CoreMessage::parse(&message.to_string()).unwrap() {
            CoreMessage::Build(build) => JobRequest::Build(build),
            CoreMessage::Merge(merge) => JobRequest::Merge(merge),
            other => panic!("{other:?}"),
        };
        let previews = PreviewSettings {
            machine: "vm_docker_test".parse().unwrap(),
            work_dir: self.work_dir.path().to_owned(),
            docker_host: self.docker_host.clone(),
            grace: Duration::from_secs(5),
            core: None,
            endpoints: Endpoints::default(),
        };
        let settings = JobSettings {
            previews: Previews::new(previews, Arc::default()),
            machine: "vm_docker_test".parse().unwrap(),
            work_dir: self.work_dir.path().to_owned(),
            docker_host: self.docker_host.clone(),
            user_logins: false,
            grace: Duration::from_secs(5),
            registry_retry_limit,
        };
        let status = job::run(work, &settings, sink, &self.cancel).await;
        let jobs = fs::read_dir(self.work_dir.path().join("jobs")).unwrap();
        assert_eq!(jobs.count(), 0, "the job's folder is left behind");
        status
    }

    pub(crate) fn log(&self) -> String {
        self.lines.text.lock().unwrap().join("\n")
    }

    pub(crate) async fn log_has(&self, text: &str) {
        let what = format!("the log has {text:?}");
        eventually(&what, async || self.log().contains(text).then_some(())).await;
    }
}

pub(crate) fn runs_on_host(command: &str) -> bool {
    Command::new("pgrep").args(["-f", command]).output().unwrap().status.success()
}
