//! Whole jobs against a real Docker engine, a real registry with a password, and git over HTTP.
//!
//! The registry is named by `STAGELY_REGISTRY`, `STAGELY_REGISTRY_USERNAME` and
//! `STAGELY_REGISTRY_PASSWORD_FILE`; the engine must be able to pull `debian:13-slim`.

#![expect(clippy::unwrap_used, reason = "a helper's failure fails the test")]

use std::fs;
use std::io::Write as _;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use stagely_agent::job::{self, JobRequest, JobSettings, REGISTRY_RETRY_LIMIT};
use stagely_agent::job_log::LineSink;
use stagely_agent::spool::SpoolError;
use stagely_protocol::{
    Arch, CoreMessage, FailureReason, RegistryProblem, Status, StatusState, Stream,
};
use stagely_test_support::git::{GitServer, Repository, TOKEN};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

fn setting(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set: these tests need a registry"))
}

/// Keeps the lines of a job in memory.
#[derive(Default)]
struct Lines {
    text: Mutex<Vec<String>>,
    /// The STATUS of the push.
    pushed: Mutex<Option<Status>>,
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

/// A repository, a registry and a work folder.
struct Setup {
    git: GitServer,
    repository: Repository,
    work_dir: TempDir,
    registry: String,
    password: String,
    /// The repository in the registry that this test pushes to.
    name: String,
    lines: Arc<Lines>,
    cancel: CancellationToken,
    docker_host: Option<String>,
}

impl Setup {
    fn new(name: &str) -> Self {
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

    fn image(&self, tag: &str) -> String {
        format!("{}/{}:{tag}", self.registry, self.name)
    }

    fn auth(&self) -> Value {
        json!({ "username": setting("STAGELY_REGISTRY_USERNAME"), "password": self.password })
    }

    /// Commits `files` and describes their build; `config` adds to its configuration.
    fn build(&self, files: &[(&str, &str)], config: Value) -> Value {
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

    async fn run(&self, message: Value) -> Status {
        self.run_with(message, REGISTRY_RETRY_LIMIT).await
    }

    async fn run_with(&self, message: Value, registry_retry_limit: Duration) -> Status {
        self.run_to(message, registry_retry_limit, self.lines.clone()).await
    }

    async fn run_to(
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
        let settings = JobSettings {
            machine: "vm_docker_test".parse().unwrap(),
            work_dir: self.work_dir.path().to_owned(),
            docker_host: self.docker_host.clone(),
            grace: Duration::from_secs(5),
            registry_retry_limit,
        };
        let status = job::run(work, &settings, sink, &self.cancel).await;
        let jobs = fs::read_dir(self.work_dir.path().join("jobs")).unwrap();
        assert_eq!(jobs.count(), 0, "the job's folder is left behind");
        status
    }

    fn log(&self) -> String {
        self.lines.text.lock().unwrap().join("\n")
    }

    async fn log_has(&self, text: &str) {
        let started = Instant::now();
        while !self.log().contains(text) {
            assert!(started.elapsed().as_secs() < 60, "no {text:?} in:\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

fn runs_on_host(command: &str) -> bool {
    Command::new("pgrep").args(["-f", command]).output().unwrap().status.success()
}

/// Passes connections on to `to` from the time it is started.
async fn proxy(listener: TcpListener, to: String) {
    loop {
        let (mut client, _) = listener.accept().await.unwrap();
        let mut server = TcpStream::connect(&to).await.unwrap();
        tokio::spawn(async move { tokio::io::copy_bidirectional(&mut client, &mut server).await });
    }
}

#[tokio::test]
async fn a_build_is_pushed_and_its_repeat_is_cached() {
    let setup = Setup::new("push");
    let marker = setup.name.clone();
    let dockerfile =
        format!("FROM debian:13-slim\nCOPY file /\nRUN echo {marker}; cat /file >&2\n");
    let files = [("api/docker/Dockerfile", &*dockerfile), ("api/file", "the file\n")];
    let cache = setup.image("cache");
    let config = json!({
        "context_path": "./api", "dockerfile": "docker/Dockerfile",
        "cache_from": [cache], "cache_to": cache,
    });
    let status = setup.run(setup.build(&files, config.clone())).await;
    assert_eq!(status.state, StatusState::Completed, "{status:?}\n{}", setup.log());
    assert_eq!(status.artifact_url.unwrap().as_str(), setup.image("app"));
    assert!(status.digest.is_some() && status.warnings.is_empty());
    let names: Vec<_> = status.steps.iter().map(|step| step.name.as_str()).collect();
    assert!(names.iter().any(|name| name.starts_with("[3/3] RUN")), "{names:?}");
    assert!(status.steps.iter().any(|step| !step.cached));
    let log = setup.log();
    for text in
        [&*format!(" {marker}"), " the file", "DONE", "steps cached, pushed", "Cache exported to "]
    {
        assert!(log.contains(text), "{text}\n{log}");
    }
    assert!(!log.contains(&setup.password) && !log.contains(TOKEN), "{log}");

    let status = setup.run(setup.build(&[("unused", "")], config)).await;
    // BuildKit reports only sometimes that FROM is cached.
    assert!(status.steps[1..].iter().all(|step| step.cached), "{status:?}");
}

#[tokio::test]
async fn a_cache_that_cannot_be_read_or_written_never_fails_a_build() {
    let setup = Setup::new("nocache");
    let files = [("Dockerfile", "FROM debian:13-slim\nCOPY Dockerfile /\n")];
    let (missing, down) = (setup.image("nothing"), "127.0.0.1:1/cache:app".to_owned());
    for (cache_from, cache_to) in [(&missing, &down), (&down, &missing), (&down, &down)] {
        let config = json!({ "cache_from": [cache_from], "cache_to": cache_to });
        let status = setup.run(setup.build(&files, config)).await;
        assert_eq!(status.state, StatusState::Completed, "{status:?}\n{}", setup.log());
    }
}

#[tokio::test]
async fn the_users_failures_name_the_step() {
    let setup = Setup::new("fails");
    let dockerfile = "FROM debian:13-slim\nRUN echo the reason; exit 42\n";
    let status = setup.run(setup.build(&[("Dockerfile", dockerfile)], json!({}))).await;
    assert_eq!(
        (status.state, status.exit_code),
        (StatusState::Failed, Some(42)),
        "{}",
        setup.log()
    );
    let Some(FailureReason::User { step, exit_code: 42 }) = status.error else {
        panic!("{:?}", status.error)
    };
    assert_eq!(step, "[2/2] RUN echo the reason; exit 42");
    assert!(status.error_message.unwrap().contains("the reason"));

    for dockerfile in ["FROM debian:13-slim\nRUNN x\n", "FROM debian:13-slim\nCOPY nothing /\n"] {
        let status = setup.run(setup.build(&[("Dockerfile", dockerfile)], json!({}))).await;
        let user = matches!(status.error, Some(FailureReason::User { exit_code: 1, .. }));
        assert!(user, "{status:?}\n{}", setup.log());
    }
    let missing = setup.build(&[], json!({ "dockerfile": "x.Dockerfile" }));
    let status = setup.run(missing).await;
    let message = status.error_message.unwrap();
    assert_eq!(message, "no Dockerfile: `x.Dockerfile` is not a file of the repository");
}

#[tokio::test]
async fn secrets_are_neither_logged_nor_arguments() {
    let setup = Setup::new("secrets");
    let secret = "s3cr3t-value-0815";
    let dockerfile = "FROM debian:13-slim\nARG NPM_TOKEN\nARG MODE\n\
        RUN echo plain $NPM_TOKEN; echo $NPM_TOKEN | base64; echo mode=$MODE; sleep 2\n";
    let args = json!({ "build_args": { "NPM_TOKEN": secret, "MODE": "fast" } });
    let message = setup.build(&[("Dockerfile", dockerfile)], args);
    let (status, ()) = tokio::join!(setup.run(message), async {
        setup.log_has("mode=fast").await;
        for secret in [secret, &setup.password, TOKEN] {
            // pgrep does not find itself.
            assert!(!runs_on_host(secret), "{secret} is an argument of a process");
        }
    });
    assert_eq!(status.state, StatusState::Completed, "{status:?}\n{}", setup.log());
    let log = setup.log();
    assert!(log.contains("plain ***") && !log.contains(secret), "{log}");
    assert!(!log.contains("czNjcjN0LXZhbHVl"), "{log}");
    assert!(!format!("{status:?}").contains(secret));
}

/// A step that sleeps for a time that no other one sleeps, and how it looks on the host.
fn sleeper(number: u32) -> (String, String) {
    let sleep = format!("sleep {}{number}", std::process::id());
    (format!("FROM debian:13-slim\nRUN echo begun | tr a-z A-Z; {sleep}\n"), sleep)
}

#[tokio::test]
async fn a_timeout_leaves_nothing_running() {
    let setup = Setup::new("timeout");
    let (dockerfile, sleep) = sleeper(1);
    // The limit holds for the clone as well; a loaded machine takes its time until the step begins.
    for limit in [8, 16, 32, 64] {
        let config = json!({ "timeout_seconds": limit });
        let started = Instant::now();
        let status = setup.run(setup.build(&[("Dockerfile", &dockerfile)], config)).await;
        let took = started.elapsed();
        assert!(!runs_on_host(&sleep));
        let error = status.error.unwrap();
        assert_eq!(error, FailureReason::Timeout { limit_seconds: limit }, "{}", setup.log());
        assert!(took >= Duration::from_secs(limit), "{took:?}");
        if setup.log().contains(" BEGUN") {
            return;
        }
    }
    panic!("the step never began: {}", setup.log());
}

#[tokio::test]
async fn a_cancel_leaves_nothing_running_whenever_it_comes() {
    // Docker loses a cancellation that comes while a container is being started: some 20 to 50 ms
    // after the step's name is shown, on a quiet machine.
    let moments = [("] RUN", 0), ("] RUN", 20), ("] RUN", 30), ("] RUN", 45), (" BEGUN", 0)];
    for (number, (mark, millis)) in (2..).zip(moments) {
        let setup = Setup::new("cancel");
        let (dockerfile, sleep) = sleeper(number);
        let message = setup.build(&[("Dockerfile", &dockerfile)], json!({}));
        let (status, ()) = tokio::join!(setup.run(message), async {
            setup.log_has(mark).await;
            tokio::time::sleep(Duration::from_millis(millis)).await;
            setup.cancel.cancel();
        });
        assert!(!runs_on_host(&sleep), "{mark} {millis}\n{}", setup.log());
        assert_eq!(status.state, StatusState::Cancelled, "{mark} {millis}\n{}", setup.log());
    }
}

#[tokio::test]
async fn a_registry_that_refuses_and_one_that_does_not_answer_are_different_reasons() {
    let setup = Setup::new("registry");
    let files = [("Dockerfile", "FROM debian:13-slim\n")];
    let mut message = setup.build(&files, json!({}));
    message["registry_auth"]["password"] = "wrong-password".into();
    let status = setup.run(message).await;
    let problem = RegistryProblem::Authentication;
    assert_eq!(status.error, Some(FailureReason::Registry { problem }), "{}", setup.log());

    let mut message = setup.build(&files, json!({}));
    message.as_object_mut().unwrap().remove("registry_auth");
    let status = setup.run(message).await;
    assert_eq!(status.error, Some(FailureReason::Registry { problem }), "{}", setup.log());

    let unreachable = json!({ "target_image": "127.0.0.1:1/a:b" });
    let retry_limit = Duration::from_secs(2);
    let status = setup.run_with(setup.build(&files, unreachable.clone()), retry_limit).await;
    let problem = RegistryProblem::Unavailable;
    assert_eq!(status.error, Some(FailureReason::Registry { problem }), "{}", setup.log());
    let mut message = setup.build(&files, unreachable);
    message.as_object_mut().unwrap().remove("registry_auth");
    let status = setup.run_with(message, retry_limit).await;
    assert_eq!(status.error, Some(FailureReason::Registry { problem }), "{}", setup.log());
}

#[tokio::test]
async fn a_registry_that_restarts_is_waited_for() {
    let setup = Setup::new("restart");
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let away = Setup { registry: address.to_string(), ..setup };
    let message = away.build(&[("Dockerfile", "FROM debian:13-slim\n")], json!({}));
    let registry = setting("STAGELY_REGISTRY");
    let back = async {
        away.log_has("trying again").await;
        proxy(TcpListener::bind(address).await.unwrap(), registry).await;
    };
    let status = tokio::select! {
        status = away.run(message) => status,
        () = back => panic!("the proxy ended"),
    };
    assert_eq!(status.state, StatusState::Completed, "{}", away.log());
}

/// The socket of the engine that the other tests use.
fn engine_socket() -> String {
    let host = std::env::var("DOCKER_HOST");
    let host = host.as_deref().unwrap_or("unix:///var/run/docker.sock");
    host.strip_prefix("unix://").unwrap_or_else(|| panic!("{host} is no socket")).to_owned()
}

#[tokio::test]
async fn an_engine_that_is_still_starting_is_waited_for() {
    let setup = Setup::new("starting");
    let socket = setup.work_dir.path().join("docker.sock");
    let setup = Setup { docker_host: Some(format!("unix://{}", socket.display())), ..setup };
    let message = setup.build(&[("Dockerfile", "FROM debian:13-slim\n")], json!({}));
    let (status, ()) = tokio::join!(setup.run(message), async {
        setup.log_has("Waiting for the Docker engine").await;
        std::os::unix::fs::symlink(engine_socket(), &socket).unwrap();
    });
    assert_eq!(status.state, StatusState::Completed, "{}", setup.log());
}

impl Setup {
    /// Builds `FROM scratch` with `text` in it for both platforms; returns the images by digest.
    async fn both_platforms(&self, text: &str) -> Vec<String> {
        let mut images = Vec::new();
        for arch in Arch::ALL {
            let target = self.image(&format!("app-{text}-{arch}"));
            let config = json!({ "platform": format!("linux/{arch}"), "target_image": target });
            let dockerfile = format!("FROM scratch\nCOPY Dockerfile /{text}\n");
            let status = self.run(self.build(&[("Dockerfile", &dockerfile)], config)).await;
            assert_eq!(status.state, StatusState::Completed, "{}", self.log());
            let is_native = arch == Arch::of_this_program();
            assert_eq!(status.warnings.is_empty(), is_native, "{:?}", status.warnings);
            let image = status.artifact_url.unwrap().at_digest(&status.digest.unwrap());
            images.push(image.to_string());
        }
        images
    }

    /// Joins `images` as `app` and gives the index's digest.
    async fn merge(&self, images: &[String], platforms: &[&str]) -> Status {
        let message = json!({
            "type": "MERGE", "job_id": "job_merge_xk82", "source_images": images,
            "target_image": self.image("app"), "platforms": platforms, "registry_auth": self.auth(),
        });
        self.run(message).await
    }
}

const BOTH: [&str; 2] = ["linux/amd64", "linux/arm64"];

#[tokio::test]
async fn platforms_are_joined_and_counted() {
    let setup = Setup::new("merge");
    let images = setup.both_platforms("file").await;
    let status = setup.merge(&images, &BOTH).await;
    assert_eq!(status.state, StatusState::Completed, "{status:?}");
    let index = status.artifact_url.unwrap().at_digest(status.digest.as_ref().unwrap());
    let again = setup.merge(&[index.to_string()], &BOTH).await;
    assert_eq!(again.digest, status.digest, "{again:?}");
    let status = setup.merge(&images, &["linux/amd64"]).await;
    assert_eq!(status.error, Some(FailureReason::Internal));
    assert!(status.error_message.unwrap().contains("linux/arm64"));
}

#[tokio::test]
async fn two_merges_into_one_tag_report_their_own_digests() {
    let one = Setup::new("merges");
    let other = Setup { name: one.name.clone(), ..Setup::new("merges") };
    let (ones, others) = (one.both_platforms("one").await, other.both_platforms("other").await);
    // An index depends only on its images.
    let alone = (one.merge(&ones, &BOTH).await.digest, other.merge(&others, &BOTH).await.digest);
    assert!(alone.0.is_some() && alone.1.is_some() && alone.0 != alone.1);
    for _ in 0..5 {
        let (one, other) = tokio::join!(one.merge(&ones, &BOTH), other.merge(&others, &BOTH));
        assert_eq!((one.digest, other.digest), alone);
    }
}

/// What `BuildKit` writes where it drops output.
const CLIP_MARK: &str = "[output clipped, log limit ";

#[tokio::test]
async fn every_line_arrives_or_the_user_is_warned() {
    let setup = Setup::new("lines");
    // The lines of a failed build matter most: people read them.
    for (end, state) in [(0, StatusState::Completed), (5, StatusState::Failed)] {
        setup.lines.text.lock().unwrap().clear();
        let dockerfile = format!(
            "FROM debian:13-slim\nRUN : {}; seq -f 'line %.0f' 200000; exit {end}\n",
            setup.name
        );
        let status = setup.run(setup.build(&[("Dockerfile", &dockerfile)], json!({}))).await;
        assert_eq!(status.state, state, "{status:?}");
        let log = setup.log();
        let (mut next, mut torn) = (1, Vec::new());
        for line in log.lines() {
            let number =
                line.rsplit_once(" line ").and_then(|(_, number)| number.parse::<u32>().ok());
            match number {
                Some(number) if number == next => next += 1,
                _ if next > 1 => torn.push(line),
                _ => {}
            }
        }
        torn.truncate(10);
        if log.contains(CLIP_MARK) {
            // The engine was not set up by Stagely.
            let is_warned =
                status.warnings.iter().any(|text| text.contains("BUILDKIT_STEP_LOG_MAX_SIZE"));
            assert!(is_warned, "{:?}", status.warnings);
        } else {
            assert_eq!((next, &status.warnings[..]), (200_001, &[][..]), "{torn:#?}");
        }
    }
}

/// Accepts a step's output so slowly, the content of a pipe each 3 s, that `buildx` gives up its report before the end,
/// however long the build takes.
#[derive(Default)]
struct SlowLines(Lines);

impl LineSink for SlowLines {
    fn append(&self, lines: &[(Stream, String)]) -> Result<(), SpoolError> {
        if lines.iter().any(|(_, line)| line.contains(" line ")) {
            let (_sender, nothing) = std::sync::mpsc::channel::<()>();
            nothing.recv_timeout(Duration::from_secs(3)).unwrap_err();
        }
        self.0.append(lines)
    }
}

#[tokio::test]
async fn a_build_whose_report_is_lost_on_a_busy_machine_completes() {
    let setup = Setup::new("busy");
    let dockerfile =
        format!("FROM debian:13-slim\nRUN : {}; seq -f 'line %.0f' 400000\n", setup.name);
    let message = setup.build(&[("Dockerfile", &dockerfile)], json!({}));
    let sink = Arc::new(SlowLines::default());
    let status = setup.run_to(message, REGISTRY_RETRY_LIMIT, sink.clone()).await;
    let log = sink.0.text.lock().unwrap().join("\n");
    assert_eq!(status.state, StatusState::Completed, "{status:?}\n{log}");
    assert!(status.digest.is_some());
    assert!(status.warnings[0].contains("too busy"), "{:?}", status.warnings);
}

#[tokio::test]
async fn a_failed_build_whose_report_is_lost_on_a_busy_machine_says_that_lines_are_missing() {
    let setup = Setup::new("busy-failure");
    let dockerfile =
        format!("FROM debian:13-slim\nRUN : {}; seq -f 'line %.0f' 400000; exit 5\n", setup.name);
    let message = setup.build(&[("Dockerfile", &dockerfile)], json!({}));
    let sink = Arc::new(SlowLines::default());
    let status = setup.run_to(message, REGISTRY_RETRY_LIMIT, sink.clone()).await;
    assert_eq!(status.state, StatusState::Failed, "{status:?}");
    assert!(matches!(status.error, Some(FailureReason::User { exit_code: 5, .. })), "{status:?}");
    let log = sink.0.text.lock().unwrap().join("\n");
    assert!(!log.contains(" line 400000\n"), "the report is not lost");
    let has_warning =
        status.warnings.iter().any(|text| text.contains("a part of its log is missing"));
    assert!(has_warning, "{:?}", status.warnings);
}

#[tokio::test]
async fn one_message_runs_without_core() {
    let setup = Setup::new("exec");
    let message = setup.build(&[("Dockerfile", "FROM debian:13-slim\nRUN exit 7\n")], json!({}));
    let file = setup.work_dir.path().join("message.json");
    fs::write(&file, message.to_string()).unwrap();
    let code = stagely_agent::exec::exec(&file, None, CancellationToken::new()).await.unwrap();
    assert_eq!(code, 7);
}

/// How a [`gate`] treats the upload of a cache's manifest.
#[derive(Clone)]
enum CacheUpload {
    /// The upload waits until the token fires.
    Held(CancellationToken),
    Refused,
}

/// Passes connections on to the registry, but for the upload of `cache`'s manifest.
async fn gate(listener: TcpListener, upload: CacheUpload) {
    loop {
        let (client, _) = listener.accept().await.unwrap();
        let server = TcpStream::connect(setting("STAGELY_REGISTRY")).await.unwrap();
        tokio::spawn(pass(client, server, upload.clone()));
    }
}

async fn pass(client: TcpStream, server: TcpStream, upload: CacheUpload) {
    let ((mut from_client, mut to_client), (mut from_server, mut to_server)) =
        (client.into_split(), server.into_split());
    let answers = async {
        let _ = tokio::io::copy(&mut from_server, &mut to_client).await;
    };
    let requests = async {
        let mut buffer = vec![0; 64 * 1024];
        while let Ok(length @ 1..) = from_client.read(&mut buffer).await {
            let text = String::from_utf8_lossy(&buffer[..length]);
            if text.starts_with("PUT ") && text.contains("/manifests/cache HTTP/") {
                match &upload {
                    CacheUpload::Held(opened) => opened.cancelled().await,
                    CacheUpload::Refused => return,
                }
            }
            if to_server.write_all(&buffer[..length]).await.is_err() {
                return;
            }
        }
    };
    // If one direction ends, the other one ends as well.
    tokio::select! {
        () = answers => {}
        () = requests => {}
    }
}

impl Setup {
    /// A registry that does `upload` with the manifest of [`Self::cached_build`]'s cache.
    async fn gated(name: &str, upload: CacheUpload) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let registry = listener.local_addr().unwrap().to_string();
        tokio::spawn(gate(listener, upload));
        Self { registry, ..Self::new(name) }
    }

    /// A build with a cache, and with a step that no other build has.
    fn cached_build(&self, config: Value) -> Value {
        let dockerfile = format!("FROM busybox\nRUN echo {}\n", self.name);
        let mut message = self.build(&[("Dockerfile", &dockerfile)], config);
        message["build_config"]["cache_to"] = self.image("cache").into();
        message
    }

    /// Waits for the STATUS of the push.
    async fn pushed(&self) -> Status {
        let started = Instant::now();
        loop {
            if let Some(status) = self.lines.pushed.lock().unwrap().clone() {
                return status;
            }
            assert!(started.elapsed().as_secs() < 20, "nothing is reported:\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Whether the registry has `tag`.
    fn is_in_registry(&self, tag: &str) -> bool {
        let user = format!("user = \"{}:{}\"", setting("STAGELY_REGISTRY_USERNAME"), self.password);
        // Not through a gate, whose task cannot run while this thread waits.
        let registry = setting("STAGELY_REGISTRY");
        let url = format!("http://{registry}/v2/{}/manifests/{tag}", self.name);
        let accept = "Accept: application/vnd.oci.image.manifest.v1+json";
        let mut curl = Command::new("curl")
            .args(["--silent", "--fail", "--output", "/dev/null", "--header", accept])
            .args(["--config", "-", &url])
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        curl.stdin.take().unwrap().write_all(user.as_bytes()).unwrap();
        curl.wait().unwrap().success()
    }
}

#[tokio::test]
async fn an_image_is_reported_and_joined_while_its_cache_is_exported() {
    let opened = CancellationToken::new();
    let setup = Setup::gated("first", CacheUpload::Held(opened.clone())).await;
    let message = setup.cached_build(json!({ "timeout_seconds": 60 }));
    let meanwhile = async {
        let status = setup.pushed().await;
        assert_eq!((status.state, status.exporting_cache), (StatusState::Completed, true));
        assert!(setup.is_in_registry("app") && !setup.is_in_registry("cache"));
        let image = status.artifact_url.as_ref().unwrap();
        let image = image.at_digest(status.digest.as_ref().unwrap()).to_string();
        // Another job on the same machine.
        let merge = Setup { registry: setup.registry.clone(), ..Setup::new("joined") };
        let joined = merge.merge(&[image], &["linux/amd64"]).await;
        assert_eq!(joined.state, StatusState::Completed, "{}", merge.log());
        assert!(!setup.is_in_registry("cache"));
        opened.cancel();
        status
    };
    let (last, first) = tokio::join!(setup.run(message), meanwhile);
    assert_eq!(last, Status { exporting_cache: false, ..first });
    assert!(setup.is_in_registry("cache"));
    let log = setup.log();
    let after = log.split("steps cached, pushed").nth(1).unwrap();
    let lines: Vec<_> = after.lines().skip(2).collect();
    let cache = setup.image("cache");
    assert_eq!((lines.len(), lines[0]), (2, &*format!("Exporting the cache to {cache}")), "{log}");
    assert!(lines[1].starts_with(&format!("Cache exported to {cache} in ")), "{log}");
}

#[tokio::test]
async fn a_job_that_is_cancelled_while_it_exports_its_cache_has_completed() {
    let setup = Setup::gated("stop", CacheUpload::Held(CancellationToken::new())).await;
    let message = setup.cached_build(json!({}));
    let (status, first) = tokio::join!(setup.run(message), async {
        let status = setup.pushed().await;
        tokio::time::sleep(Duration::from_millis(500)).await;
        setup.cancel.cancel();
        status
    });
    // The fingerprint is missing, because it would describe a cache that the registry does not have.
    assert_eq!(status, Status { exporting_cache: false, fingerprint: None, ..first });
    assert!(setup.log().ends_with("The export of the cache was stopped"), "{}", setup.log());
    assert!(!runs_on_host(&setup.image("cache")));
    assert!(!setup.is_in_registry("cache"));
}

#[tokio::test]
async fn a_refused_cache_is_logged_and_fails_no_build() {
    let setup = Setup::gated("refused", CacheUpload::Refused).await;
    let status = setup.run(setup.cached_build(json!({}))).await;
    assert_eq!(status.state, StatusState::Completed);
    assert!(status.warnings.is_empty() && setup.is_in_registry("app"));
    let log = setup.log();
    let last = log.lines().last().unwrap();
    assert!(last.starts_with("The cache was not exported: error writing manifest"), "{log}");
}

#[tokio::test]
async fn a_warm_up_exports_the_cache_and_pushes_nothing() {
    let setup = Setup::new("warm");
    let status = setup.run(setup.cached_build(json!({ "push": false }))).await;
    assert_eq!(status.state, StatusState::Completed, "{}", setup.log());
    assert_eq!((status.artifact_url, status.digest), (None, None));
    assert!(setup.lines.pushed.lock().unwrap().is_none(), "one STATUS is enough");
    assert!(setup.is_in_registry("cache") && !setup.is_in_registry("app"));
    assert!(setup.log().contains("steps cached, nothing to push"), "{}", setup.log());
    assert!(status.steps.iter().any(|step| step.name.contains("RUN") && !step.cached));
}

#[tokio::test]
async fn a_warm_up_whose_cache_is_refused_fails() {
    let setup = Setup::gated("warm-refused", CacheUpload::Refused).await;
    let message = setup.cached_build(json!({ "push": false }));
    let status = setup.run_with(message, Duration::ZERO).await;
    let unavailable = FailureReason::Registry { problem: RegistryProblem::Unavailable };
    assert_eq!((status.state, status.error), (StatusState::Failed, Some(unavailable)));
    let message = status.error_message.unwrap();
    assert!(message.contains("error writing manifest"), "{message}");
    assert!(!status.steps.is_empty() && !setup.is_in_registry("cache"));
}

#[tokio::test]
async fn a_build_is_made_from_another_builds_image() {
    let base = Setup::new("base");
    let dockerfile = format!("FROM busybox\nRUN echo {} > /file\n", base.name);
    let status = base.run(base.build(&[("Dockerfile", &dockerfile)], json!({}))).await;
    let image = status.artifact_url.unwrap().at_digest(&status.digest.unwrap());
    let setup = Setup::new("on-base");
    let dockerfile = "FROM base\nCOPY --from=other-base /file /copy\n\
        RUN echo found $(cat /file) and $(cat /copy)\n";
    let contexts = json!({ "base": image, "other-base": image });
    let config = json!({ "build_contexts": contexts });
    let status = setup.run(setup.build(&[("Dockerfile", dockerfile)], config)).await;
    assert_eq!(status.state, StatusState::Completed, "{}", setup.log());
    let found = format!("found {0} and {0}", base.name);
    assert!(setup.log().contains(&found), "{}", setup.log());
}

#[tokio::test]
async fn emulation_is_measured_or_refused() {
    let setup = Setup::new("emulated");
    let foreign = Arch::ALL.into_iter().find(|arch| *arch != Arch::of_this_program()).unwrap();
    let platform = format!("linux/{foreign}");
    let count = "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done";
    let dockerfile = format!("FROM busybox\nRUN echo {}; uname -m; {count}\n", setup.name);
    let files = [("Dockerfile", &*dockerfile)];
    let forbidden = json!({ "platform": platform, "emulation": "forbid" });
    let status = setup.run(setup.build(&files, forbidden)).await;
    assert_eq!(status.error, Some(FailureReason::Emulation), "{}", setup.log());
    assert!(status.error_message.unwrap().contains("`emulation: forbid`"));

    let native = json!([{
        "name": dockerfile.lines().nth(1).map(|run| format!("[2/2] {run}")),
        "seconds": 0.2, "cached": false,
    }]);
    let config = json!({ "platform": platform, "native_steps": native });
    let status = setup.run(setup.build(&files, config)).await;
    assert_eq!(status.state, StatusState::Completed, "{}", setup.log());
    let machine = if foreign == Arch::Arm64 { "aarch64" } else { "x86_64" };
    assert!(setup.log().contains(&format!(" {machine}")), "{}", setup.log());
    let run = status.steps.iter().find(|step| step.name.contains("] RUN ")).unwrap();
    let times = format!("({:.1} times as long as natively)", run.seconds / 0.2);
    let [warning] = &status.warnings[..] else { panic!("{:?}", status.warnings) };
    assert!(warning.contains("is emulated") && warning.contains(&times), "{warning}, {run:?}");
}
