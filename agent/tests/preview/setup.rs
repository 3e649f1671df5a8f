//! Images, a repository and a work folder for deployments, and requests to what they serve.

use std::fs;
use std::path::Path;
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
use stagely_test_support::git::{GitServer, Repository, TOKEN};
use stagely_test_support::previews::{on_engine, remove_from_engine};
use stagely_test_support::registry::Registry;
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

/// A web service without dependencies: `/cgi-bin/env` shows its variables, and `/cgi-bin/data` what is in `/data`.
pub(crate) const WEB: &str = "FROM busybox\n\
    RUN mkdir -p /www/cgi-bin /data && echo page VERSION >/www/index.html && \
    printf '#!/bin/sh\\necho; env\\n' >/www/cgi-bin/env && \
    printf '#!/bin/sh\\necho; cat /data/* 2>/dev/null\\n' >/www/cgi-bin/data && \
    chmod +x /www/cgi-bin/*\n\
    CMD [\"httpd\", \"-f\", \"-p\", \"8080\", \"-h\", \"/www\"]\n";

/// Keeps the lines of jobs in memory.
#[derive(Default)]
pub(crate) struct Lines(Mutex<Vec<String>>);

impl LineSink for Lines {
    fn append(&self, lines: &[(Stream, String)]) -> Result<(), SpoolError> {
        self.0.lock().unwrap().extend(lines.iter().map(|(_, line)| line.clone()));
        Ok(())
    }
}

/// What is on the machine of one preview. Nothing of it is left afterwards.
pub(crate) struct Setup {
    pub(crate) machine: WireId,
    pub(crate) preview: String,
    pub(crate) work_dir: TempDir,
    pub(crate) registry: Registry,
    git: GitServer,
    pub(crate) repository: Repository,
    name: String,
    previews: Arc<Previews>,
    lines: Arc<Lines>,
    pub(crate) cancel: CancellationToken,
}

impl Setup {
    pub(crate) fn new(name: &str) -> Self {
        let (process, git) = (std::process::id(), GitServer::start());
        let machine: WireId = format!("vm_{name}_{process}").parse().unwrap();
        let work_dir = tempfile::tempdir().unwrap();
        let previews = PreviewSettings {
            machine: machine.clone(),
            work_dir: work_dir.path().to_owned(),
            docker_host: None,
            grace: Duration::from_secs(5),
            core: None,
            endpoints: Endpoints::default(),
        };
        Self {
            machine,
            preview: format!("prev_{name}_{process}"),
            work_dir,
            registry: Registry::real(),
            repository: git.repository("app", true),
            git,
            name: format!("preview-tests/{name}-{process}"),
            previews: Previews::new(previews, Arc::default()),
            lines: Arc::default(),
            cancel: CancellationToken::new(),
        }
    }

    /// Builds and pushes an image. Returns its reference by digest.
    pub(crate) fn image(&self, tag: &str, dockerfile: &str) -> String {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("Dockerfile"), dockerfile).unwrap();
        let image = format!("{}/{}:{tag}", self.registry.url, self.name);
        let context = folder.path().display().to_string();
        let metadata = folder.path().join("metadata.json");
        let flag = format!("--metadata-file={}", metadata.display());
        let arguments = [
            "buildx",
            "build",
            "--quiet",
            "--provenance=false",
            "--push",
            &flag,
            "-t",
            &image,
            &context,
        ];
        self.registry.docker(&arguments);
        // The engine keeps it, and previews are to pull it.
        docker(&["image", "rm", "--force", &image]);
        let metadata: Value = serde_json::from_slice(&fs::read(&metadata).unwrap()).unwrap();
        format!("{image}@{}", metadata["containerimage.digest"].as_str().unwrap())
            .replace(&format!(":{tag}@"), "@")
    }

    /// The image of [`WEB`] with another page.
    pub(crate) fn web(&self, version: &str) -> String {
        self.image(version, &WEB.replace("VERSION", version))
    }

    fn auth(&self) -> Value {
        json!({ "username": self.registry.username, "password": self.registry.password() })
    }

    /// DEPLOY of one image.
    pub(crate) fn deploy(&self, generation: u64, image: &str, fields: Value) -> Value {
        let mut message = json!({
            "type": "DEPLOY",
            "job_id": format!("job_{generation}"),
            "preview_id": self.preview,
            "generation": generation,
            "image": image,
            "endpoints": [{ "name": "web", "port": 8080, "health": { "timeout_seconds": 20 } }],
            "registry_auth": self.auth(),
        });
        let Value::Object(fields) = fields else { panic!("{fields}") };
        message.as_object_mut().unwrap().extend(fields);
        message
    }

    /// DEPLOY of a commit with `files`, one of which is `compose.yaml`; its service `web` has `image`.
    pub(crate) fn deploy_commit(
        &self,
        generation: u64,
        image: &str,
        files: &[(&str, &str)],
        fields: Value,
    ) -> Value {
        let commit = self.repository.commit(files);
        let mut message = self.deploy(generation, image, json!({
            "images": { "web": image },
            "compose_path": "compose.yaml",
            "context": {
                "repo_url": self.git.url("private", "app/.git"), "commit_hash": commit, "clone_token": TOKEN,
            },
            "endpoints": [{
                "name": "web", "service": "web", "port": 8080, "health": { "timeout_seconds": 20 },
            }],
        }));
        let Value::Object(fields) = fields else { panic!("{fields}") };
        message.as_object_mut().unwrap().extend(fields);
        message
    }

    /// Runs DEPLOY or TEST.
    pub(crate) async fn run(&self, message: Value) -> Status {
        let request = match CoreMessage::parse(&message.to_string()).unwrap() {
            CoreMessage::Deploy(deploy) => JobRequest::Deploy(deploy),
            CoreMessage::Test(test) => JobRequest::Test(test),
            _ => panic!("{message}"),
        };
        let settings = JobSettings {
            machine: self.machine.clone(),
            work_dir: self.work_dir.path().to_owned(),
            docker_host: None,
            user_logins: false,
            grace: Duration::from_secs(5),
            registry_retry_limit: Duration::ZERO,
            previews: Arc::clone(&self.previews),
        };
        let (sink, cancel) = (Arc::clone(&self.lines) as _, &self.cancel);
        let status = job::run(request, &settings, sink, cancel).await;
        let jobs = fs::read_dir(self.work_dir.path().join("jobs")).unwrap();
        assert_eq!(jobs.count(), 0, "the job's folder is left behind");
        status
    }

    /// Runs a job that succeeds. Returns the address of its first endpoint.
    pub(crate) async fn serves(&self, message: Value) -> String {
        let status = self.run(message).await;
        assert_eq!(status.state, StatusState::Completed, "{status:?}\n{}", self.log());
        status.endpoints[0].address.clone()
    }

    pub(crate) fn log(&self) -> String {
        self.lines.0.lock().unwrap().join("\n")
    }

    /// The folder of the preview's files.
    pub(crate) fn folder(&self) -> std::path::PathBuf {
        self.work_dir.path().join("previews").join(&self.preview)
    }

    /// The ids and names of what the engine has of this machine: containers, volumes and networks.
    pub(crate) fn left(&self) -> Vec<String> {
        on_engine(self.machine.as_str())
    }
}

/// The output of `docker`.
pub(crate) fn docker(arguments: &[&str]) -> String {
    let output = Command::new("docker").args(arguments).output().unwrap();
    assert!(output.status.success(), "docker {arguments:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Whether the engine has an image.
pub(crate) fn has_image(image: &str) -> bool {
    Command::new("docker").args(["image", "inspect", image]).output().unwrap().status.success()
}

/// The id of the container of a service.
pub(crate) fn container(preview: &str, service: &str) -> String {
    let preview = format!("label=stagely.preview={preview}");
    let service = format!("label=com.docker.compose.service={service}");
    let listed = docker(&[
        "ps",
        "--all",
        "--quiet",
        "--no-trunc",
        "--filter",
        &preview,
        "--filter",
        &service,
    ]);
    listed.trim().to_owned()
}

/// The body of the answer to a GET request.
pub(crate) async fn get(address: &str, path: &str) -> String {
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let response = client.get(format!("http://{address}{path}")).send().await.unwrap();
    response.text().await.unwrap()
}

/// Whether a file or folder exists only for its owner.
pub(crate) fn is_private(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    fs::metadata(path).unwrap().permissions().mode().trailing_zeros() >= 6
}

impl Drop for Setup {
    fn drop(&mut self) {
        // A failed test leaves something.
        remove_from_engine(self.machine.as_str());
    }
}
