//! Simulated machines: core launches a process for each, which does nothing, and the test acts as its agent. So a
//! test decides when and how a build ends, while core's provider, sockets and leases are real.

use std::collections::{BTreeMap, VecDeque};
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use stagely_protocol::{Arch, CONNECT_PATH};
use stagely_test_support::processes::processes_with;
use stagely_test_support::registry::Registry;
use stagely_test_support::wait::{POLL, eventually};
use tempfile::TempDir;
use tokio::sync::Notify;
use tokio::time::sleep;
use tokio_tungstenite::tungstenite::Message;
use tokio_util::task::AbortOnDropHandle;

pub(crate) struct Machines {
    folder: TempDir,
    jobs: Jobs,
    _task: AbortOnDropHandle<()>,
}

type Jobs = Arc<Mutex<Vec<Job>>>;

/// A job that core has assigned to a machine.
#[derive(Clone)]
pub(crate) struct Job {
    /// The BUILD, MERGE or DEPLOY of core.
    pub(crate) message: Value,
    pub(crate) machine: String,
    agent: Arc<Agent>,
    registry: Registry,
}

#[derive(Default)]
struct Agent {
    /// Statuses that core has not acknowledged, by job.
    unacknowledged: Mutex<BTreeMap<String, Value>>,
    waiting: Mutex<VecDeque<Value>>,
    queued: Notify,
}

impl Agent {
    fn send(&self, message: Value) {
        if message["type"] == "STATUS" {
            let job = message["job_id"].as_str().unwrap().to_owned();
            self.unacknowledged.lock().unwrap().insert(job, message.clone());
        }
        self.waiting.lock().unwrap().push_back(message);
        self.queued.notify_one();
    }

    fn next(&self) -> Option<Value> {
        self.waiting.lock().unwrap().pop_front()
    }
}

impl Machines {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let arrivals = folder.path().join("arrivals");
        fs::create_dir(&arrivals).unwrap();
        let program = folder.path().join("machine");
        // Core finds the machine by the name of this file in the arguments. SIGTERM ends `tail`.
        let script = format!(
            "#!/bin/sh\nln -s \"$3\" \"{}/$(basename \"$(dirname \"$3\")\")\"\nexec tail -f \"$3\"\n",
            arrivals.display()
        );
        fs::write(&program, script).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        let jobs = Jobs::default();
        let task = tokio::spawn(welcome(arrivals, Arc::clone(&jobs)));
        Self { folder, jobs, _task: AbortOnDropHandle::new(task) }
    }

    /// The program that core launches.
    pub(crate) fn program(&self) -> PathBuf {
        self.folder.path().join("machine")
    }

    /// All jobs that core has assigned.
    pub(crate) fn all(&self) -> Vec<Job> {
        self.jobs.lock().unwrap().clone()
    }

    /// Waits for `count` jobs of a commit of this kind.
    pub(crate) async fn jobs_of(&self, commit: &str, kind: &str, count: usize) -> Vec<Job> {
        let what = format!("{count} machines get a {kind} of {commit}");
        eventually(&what, async || {
            let mut jobs = self.all();
            jobs.retain(|job| job.message["type"] == kind && job.is_of(commit));
            (jobs.len() == count).then_some(jobs)
        })
        .await
    }

    /// Waits for the only build of a commit.
    pub(crate) async fn build_of(&self, commit: &str) -> Job {
        self.jobs_of(commit, "BUILD", 1).await.remove(0)
    }

    /// Waits for the DEPLOY of this generation.
    pub(crate) async fn deployment(&self, generation: u64) -> Job {
        eventually(&format!("a machine gets DEPLOY {generation}"), async || {
            let of = |job: &Job| {
                job.message["type"] == "DEPLOY" && job.message["generation"] == generation
            };
            self.all().into_iter().find(of)
        })
        .await
    }

    pub(crate) async fn merge(&self) -> Job {
        eventually("a machine gets a MERGE", async || {
            self.all().into_iter().find(|job| job.message["type"] == "MERGE")
        })
        .await
    }
}

impl Job {
    fn is_of(&self, commit: &str) -> bool {
        self.message["type"] == "MERGE" || self.message["context"]["commit_hash"] == commit
    }

    /// Reports that the preview serves.
    pub(crate) fn serves(&self) {
        self.agent.send(json!({
            "type": "STATUS", "job_id": self.id(), "state": "completed",
            "endpoints": [{ "name": "web", "address": "127.0.0.1:1" }],
        }));
    }

    /// Reports that the preview cannot be deployed.
    pub(crate) fn is_not_healthy(&self, message: &str) {
        self.agent.send(json!({
            "type": "STATUS", "job_id": self.id(), "state": "failed", "error_message": message,
            "error": { "kind": "deploy", "problem": "service" },
        }));
    }

    fn id(&self) -> &str {
        self.message["job_id"].as_str().unwrap()
    }

    /// The reference that the job pushes to.
    pub(crate) fn image(&self) -> String {
        let image = &self.message["build_config"]["target_image"];
        image.as_str().or(self.message["target_image"].as_str()).unwrap().to_owned()
    }

    pub(crate) fn clone_token(&self) -> Option<String> {
        self.message["context"]["clone_token"].as_str().map(str::to_owned)
    }

    /// Sends these lines of the build's log.
    pub(crate) fn prints(&self, lines: &[&str]) {
        let lines: Vec<Value> =
            lines.iter().map(|line| json!({ "data": format!("{line}\n") })).collect();
        let log = json!({ "type": "LOG", "job_id": self.id(), "first": 0, "lines": lines });
        self.agent.send(log);
    }

    /// Pushes the image, and the cache if the job writes one, and reports success.
    pub(crate) async fn succeeds(&self) {
        let digest = push(&self.registry, &self.image()).await;
        if let Some(cache) = self.message["build_config"]["cache_to"].as_str() {
            push(&self.registry, cache).await;
        }
        self.agent.send(json!({
            "type": "STATUS", "job_id": self.id(), "state": "completed", "exit_code": 0,
            "artifact_url": self.image(), "digest": digest,
        }));
    }

    /// Reports a failure of the user's build.
    pub(crate) fn fails(&self, step: &str, exit_code: i32) {
        self.agent.send(json!({
            "type": "STATUS", "job_id": self.id(), "state": "failed", "exit_code": exit_code,
            "error": { "kind": "user", "step": step, "exit_code": exit_code },
        }));
    }

    pub(crate) fn has_machine(&self) -> bool {
        !processes_with(&self.machine).is_empty()
    }

    /// Waits until the machine is gone. Returns how long that took.
    pub(crate) async fn machine_is_gone(&self) -> Duration {
        let started = tokio::time::Instant::now();
        eventually("the machine is gone", async || (!self.has_machine()).then_some(())).await;
        started.elapsed()
    }
}

/// Acts as the agent of each new machine.
async fn welcome(arrivals: PathBuf, jobs: Jobs) {
    let mut tasks = tokio::task::JoinSet::new();
    let mut known = std::collections::BTreeSet::new();
    loop {
        for entry in fs::read_dir(&arrivals).unwrap() {
            let path = entry.unwrap().path();
            if known.insert(path.clone()) {
                tasks.spawn(stand_in(path, Arc::clone(&jobs)));
            }
        }
        sleep(Duration::from_millis(10)).await;
    }
}

/// Acts as the agent of a machine until the machine is gone.
async fn stand_in(path: PathBuf, jobs: Jobs) {
    let machine = path.file_name().unwrap().to_str().unwrap().to_owned();
    let agent = Arc::new(Agent::default());
    // Core deletes the folder with the machine.
    while let Ok(text) = fs::read_to_string(&path) {
        let config: Value = serde_json::from_str(&text).unwrap();
        // Core may be down for a while.
        let _ = session(&config, &machine, &agent, &jobs).await;
        sleep(POLL).await;
    }
}

async fn session(
    config: &Value,
    machine: &str,
    agent: &Arc<Agent>,
    jobs: &Jobs,
) -> Result<(), tokio_tungstenite::tungstenite::Error> {
    let url = config["core_url"].as_str().unwrap().replacen("http", "ws", 1);
    let url = format!("{}{CONNECT_PATH}", url.trim_end_matches('/'));
    let (mut socket, _) = tokio_tungstenite::connect_async(url).await?;
    let held: Vec<String> = {
        let jobs = jobs.lock().unwrap();
        let mine = jobs.iter().filter(|job| job.machine == machine && !job.is_acknowledged());
        mine.map(|job| job.id().to_owned()).collect()
    };
    let emulated = Arch::ALL.iter().filter(|arch| **arch != Arch::of_this_program());
    let emulated: Vec<String> = emulated.map(|arch| format!("linux/{arch}")).collect();
    let hello = json!({
        "type": "HELLO", "version": "1", "agent_id": config["agent_id"], "token": config["token"],
        "system_info": {
            "hostname": "stand-in", "architecture": Arch::of_this_program(), "emulated": emulated,
        },
        "jobs": held,
    });
    socket.send(Message::text(hello.to_string())).await?;
    let again: Vec<Value> = agent.unacknowledged.lock().unwrap().values().cloned().collect();
    agent.waiting.lock().unwrap().extend(again);
    loop {
        while let Some(message) = agent.next() {
            socket.send(Message::text(message.to_string())).await?;
        }
        tokio::select! {
            () = agent.queued.notified() => {}
            message = socket.next() => {
                let Some(message) = message else { return Ok(()) };
                if let Message::Text(text) = message? {
                    handle(&serde_json::from_str(&text).unwrap(), machine, agent, jobs);
                }
            }
        }
    }
}

impl Job {
    fn is_acknowledged(&self) -> bool {
        self.message["acknowledged"] == true
    }
}

fn handle(message: &Value, machine: &str, agent: &Arc<Agent>, jobs: &Jobs) {
    let id = &message["job_id"];
    match message["type"].as_str().unwrap() {
        "BUILD" | "MERGE" | "DEPLOY" => {
            let mut jobs = jobs.lock().unwrap();
            if jobs.iter().any(|job| job.message["job_id"] == *id) {
                return;
            }
            let (agent_of_job, registry) = (Arc::clone(agent), Registry::real());
            jobs.push(Job {
                message: message.clone(),
                machine: machine.to_owned(),
                agent: agent_of_job,
                registry,
            });
            drop(jobs);
            agent.send(json!({ "type": "STATUS", "job_id": id, "state": "running" }));
        }
        "STATUS_ACK" => {
            let mut unacknowledged = agent.unacknowledged.lock().unwrap();
            let is_end = unacknowledged
                .get(id.as_str().unwrap())
                .is_some_and(|status| status["state"] != "running");
            if is_end {
                unacknowledged.remove(id.as_str().unwrap());
                let mut jobs = jobs.lock().unwrap();
                let job = jobs.iter_mut().find(|job| job.message["job_id"] == *id);
                if let Some(job) = job {
                    job.message["acknowledged"] = json!(true);
                }
            }
        }
        "CANCEL" => agent.send(json!({ "type": "STATUS", "job_id": id, "state": "cancelled" })),
        // It has no volumes.
        "SLEEP" => agent.send(json!({
            "type": "PREVIEW", "preview_id": message["preview_id"], "state": "archived",
        })),
        "ERROR" => panic!("core does not understand the stand-in: {message}"),
        _ => {}
    }
}

/// Pushes an empty image with a digest of its own, which is returned.
pub(crate) async fn push(registry: &Registry, image: &str) -> String {
    let path = image.strip_prefix(&registry.url).unwrap().trim_start_matches('/');
    let (repository, tag) = path.rsplit_once(':').unwrap();
    let base = format!("http://{}/v2/{repository}", registry.url);
    let http = reqwest::Client::new();
    let password = registry.password();
    let ask = |request: reqwest::RequestBuilder| {
        request.basic_auth(&registry.username, Some(&password)).send()
    };
    let config = json!({ "architecture": "amd64", "os": "linux", "unique": rand::random::<u64>() });
    let config = config.to_string();
    let digest = digest_of(config.as_bytes());
    let upload = ask(http.post(format!("{base}/blobs/uploads/"))).await.unwrap();
    let place = upload.headers()["location"].to_str().unwrap().to_owned();
    let place =
        if place.starts_with('/') { format!("http://{}{place}", registry.url) } else { place };
    let and = if place.contains('?') { '&' } else { '?' };
    let put = http.put(format!("{place}{and}digest={digest}")).body(config.clone());
    assert!(ask(put).await.unwrap().status().is_success());
    let kind = "application/vnd.oci.image.manifest.v1+json";
    let manifest = json!({
        "schemaVersion": 2, "mediaType": kind, "layers": [],
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json", "digest": digest,
            "size": config.len(),
        },
    });
    let manifest = manifest.to_string();
    let digest = digest_of(manifest.as_bytes());
    let put = http.put(format!("{base}/manifests/{tag}")).header("content-type", kind);
    let answer = ask(put.body(manifest)).await.unwrap();
    assert!(answer.status().is_success(), "{image}: {answer:?}");
    digest
}

fn digest_of(bytes: &[u8]) -> String {
    use sha2::Digest as _;
    let digest = sha2::Sha256::digest(bytes);
    format!("sha256:{}", crate::fake::hooks::hex(&digest))
}
