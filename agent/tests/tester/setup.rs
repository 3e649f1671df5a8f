//! Images and a work folder for test jobs.

use std::fs;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use stagely_agent::endpoints::Endpoints;
use stagely_agent::job::{self, JobRequest, JobSettings};
use stagely_agent::job_log::LineSink;
use stagely_agent::preview::{PreviewSettings, Previews};
use stagely_agent::spool::SpoolError;
use stagely_protocol::{CoreMessage, Status, StatusState, Stream, WireId};
use stagely_test_support::previews::{on_engine, remove_from_engine};
use stagely_test_support::registry::Registry;
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use crate::core::{Core, TOKEN};

/// The time between SIGTERM and SIGKILL.
const GRACE: Duration = Duration::from_secs(1);

/// Keeps the lines of jobs in memory.
#[derive(Default)]
pub(crate) struct Lines(Mutex<Vec<String>>);

impl LineSink for Lines {
    fn append(&self, lines: &[(Stream, String)]) -> Result<(), SpoolError> {
        self.0.lock().unwrap().extend(lines.iter().map(|(_, line)| line.clone()));
        Ok(())
    }
}

/// A machine and a core. Nothing is left of it afterwards.
pub(crate) struct Setup {
    pub(crate) machine: WireId,
    pub(crate) work_dir: TempDir,
    pub(crate) core: Core,
    pub(crate) registry: Registry,
    pub(crate) lines: Arc<Lines>,
    pub(crate) cancel: CancellationToken,
    name: String,
}

impl Setup {
    pub(crate) async fn new(name: &str) -> Self {
        let process = std::process::id();
        Self {
            machine: format!("vm_{name}_{process}").parse().unwrap(),
            work_dir: tempfile::tempdir().unwrap(),
            core: Core::start().await,
            registry: Registry::real(),
            lines: Arc::default(),
            cancel: CancellationToken::new(),
            name: format!("test-jobs/{name}-{process}"),
        }
    }

    /// Builds and pushes an image from busybox with these further instructions. Returns its reference by digest.
    pub(crate) fn image(&self, instructions: &str) -> String {
        let folder = tempfile::tempdir().unwrap();
        let dockerfile = format!("FROM busybox\nWORKDIR /app\n{instructions}\n");
        fs::write(folder.path().join("Dockerfile"), dockerfile).unwrap();
        let image = format!("{}/{}:test", self.registry.url, self.name);
        let metadata = folder.path().join("metadata.json");
        let flag = format!("--metadata-file={}", metadata.display());
        let context = folder.path().display().to_string();
        self.registry.docker(&[
            "buildx",
            "build",
            "--quiet",
            "--provenance=false",
            "--push",
            &flag,
            "-t",
            &image,
            &context,
        ]);
        // The engine keeps it, and the job is to pull it.
        docker(&["image", "rm", "--force", &image]);
        let metadata: Value = serde_json::from_slice(&fs::read(&metadata).unwrap()).unwrap();
        let digest = metadata["containerimage.digest"].as_str().unwrap();
        image.replace(":test", &format!("@{digest}"))
    }

    /// TEST of a shell command.
    pub(crate) fn test(&self, image: &str, script: &str, fields: Value) -> Value {
        let mut message = json!({
            "type": "TEST",
            "job_id": "job_test",
            "image": image,
            "command": ["sh", "-c", script],
            "timeout_seconds": 120,
            "registry_auth": { "username": self.registry.username, "password": self.registry.password() },
        });
        let Value::Object(fields) = fields else { panic!("{fields}") };
        message.as_object_mut().unwrap().extend(fields);
        message
    }

    pub(crate) async fn run(&self, message: Value) -> Status {
        let CoreMessage::Test(test) = CoreMessage::parse(&message.to_string()).unwrap() else {
            panic!("{message}")
        };
        let previews = PreviewSettings {
            machine: self.machine.clone(),
            work_dir: self.work_dir.path().to_owned(),
            docker_host: None,
            grace: GRACE,
            core: Some((self.core.url(), TOKEN.into())),
            endpoints: Endpoints::default(),
        };
        let settings = JobSettings {
            machine: self.machine.clone(),
            work_dir: self.work_dir.path().to_owned(),
            docker_host: None,
            user_logins: false,
            grace: GRACE,
            registry_retry_limit: Duration::ZERO,
            previews: Previews::new(previews, Arc::default()),
        };
        let (sink, cancel) = (Arc::clone(&self.lines) as _, &self.cancel);
        let status = job::run(JobRequest::Test(test), &settings, sink, cancel).await;
        let jobs = fs::read_dir(self.work_dir.path().join("jobs")).unwrap();
        assert_eq!(jobs.count(), 0, "the job's folder is left behind");
        assert_eq!(on_engine(self.machine.as_str()), [""; 0], "a container is left behind");
        status
    }

    /// Runs a test that passes.
    pub(crate) async fn passes(&self, message: Value) -> Status {
        let status = self.run(message).await;
        assert_eq!(status.state, StatusState::Completed, "{status:?}\n{}", self.log());
        assert_eq!((status.exit_code, &status.error), (Some(0), &None));
        status
    }

    /// Runs a test that fails.
    pub(crate) async fn fails(&self, message: Value) -> Status {
        let status = self.run(message).await;
        assert_eq!(status.state, StatusState::Failed, "{status:?}\n{}", self.log());
        status
    }

    pub(crate) fn log(&self) -> String {
        self.lines.0.lock().unwrap().join("\n")
    }
}

impl Drop for Setup {
    fn drop(&mut self) {
        // A failed test leaves something.
        remove_from_engine(self.machine.as_str());
    }
}

/// The output of `docker`.
pub(crate) fn docker(arguments: &[&str]) -> String {
    let output = Command::new("docker").args(arguments).output().unwrap();
    assert!(output.status.success(), "docker {arguments:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// The container of a test job of `machine` that runs.
pub(crate) fn running(machine: &str) -> Option<String> {
    let filter = format!("--filter=label=stagely.machine={machine}");
    let listed = docker(&["ps", "--quiet", &filter]);
    listed.lines().next().map(str::to_owned)
}
