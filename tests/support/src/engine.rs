//! A separate Docker engine for one test, which is as empty as that of a new machine, and which the test may break.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::mount::{MntFlags, umount2};
use nix::sys::signal::Signal;
use nix::unistd::geteuid;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::network::IsolatedNetwork;
use crate::processes::{ChildProcess, Process, processes_with};
use crate::program;
use crate::wait::eventually;

/// A `dockerd` that shares nothing with the host's engine. All its processes, mounts and networks end with the
/// value.
pub struct PrivateEngine {
    folder: TempDir,
    place: Place,
    process: Option<ChildProcess>,
}

/// The network of an engine.
enum Place {
    /// The host's, with a bridge of its own, because with `--bridge none` it would delete the `docker0` of the host's
    /// engine. Its containers reach nothing.
    Host { bridge: String },
    /// Another one, in which it does all that an engine does. `path` names it.
    Inside { path: PathBuf },
}

impl PrivateEngine {
    pub async fn start() -> Self {
        let bridge = format!("test{:x}", rand::random_range(0x1000_0000..u32::MAX));
        ip(&["link", "add", &bridge, "type", "bridge"]);
        Self::start_at(Place::Host { bridge }).await
    }

    /// Starts an engine inside `network`, which must live longer.
    pub async fn start_in(network: &IsolatedNetwork) -> Self {
        Self::start_at(Place::Inside { path: network.path() }).await
    }

    async fn start_at(place: Place) -> Self {
        assert!(geteuid().is_root(), "only root may start Docker engines");
        let folder = tempfile::Builder::new().prefix("test-dockerd-").tempdir().unwrap();
        let mut engine = Self { folder, place, process: None };
        engine.launch().await;
        engine
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Its address in the form of `DOCKER_HOST`.
    pub fn host(&self) -> String {
        format!("unix://{}", self.path("docker.sock").display())
    }

    /// Starts the process and waits until it answers.
    pub async fn launch(&mut self) {
        fs::write(self.path("daemon.json"), configuration().to_string()).unwrap();
        let log = fs::OpenOptions::new().create(true).append(true).open(self.path("dockerd.log"));
        let flag = |name: &str, file: &str| format!("--{name}={}", self.path(file).display());
        let (mut command, flags) = match &self.place {
            Place::Host { bridge } => {
                let off = ["--iptables=false", "--ip-forward=false", "--ip-masq=false"];
                let flags = off.map(str::to_owned).into_iter();
                (Command::new("dockerd"), flags.chain([format!("--bridge={bridge}")]).collect())
            }
            Place::Inside { path } => {
                let mut command = Command::new("nsenter");
                command.arg(format!("--net={}", path.display())).arg("dockerd");
                (command, Vec::new())
            }
        };
        command
            .arg(flag("config-file", "daemon.json"))
            .arg(flag("data-root", "data"))
            .arg(flag("exec-root", "exec"))
            .arg(flag("pidfile", "dockerd.pid"))
            .arg(format!("--host={}", self.host()))
            .args(flags);
        self.process = Some(program::start(&mut command, log.unwrap()));
        eventually("the private engine answers", async || {
            let ended = self.process.as_mut().unwrap().status();
            assert!(ended.is_none(), "dockerd has ended: {}", self.log());
            let mut docker = Command::new("docker");
            docker.args(["--host", &self.host(), "version"]);
            docker.output().unwrap().status.success().then_some(())
        })
        .await;
    }

    fn log(&self) -> String {
        fs::read_to_string(self.path("dockerd.log")).unwrap()
    }

    /// Kills the engine with its containerd and its containers.
    pub fn crash(&mut self) {
        self.process.take().expect("the engine runs").kill();
        self.kill_containers();
    }

    /// Stops the engine as a service manager does.
    pub async fn stop(&mut self) {
        let mut process = self.process.take().expect("the engine runs");
        process.signal(Signal::SIGTERM);
        process.ended().await;
    }

    /// Replaces the engine by one without images, layers and caches, at the same address.
    pub async fn replace(&mut self) {
        self.stop().await;
        self.kill_containers();
        self.unmount();
        for folder in ["data", "exec"] {
            fs::remove_dir_all(self.path(folder)).unwrap();
        }
        self.launch().await;
    }

    /// Kills containerd and the containers, which all have the folder in their arguments.
    fn kill_containers(&self) {
        let folder = self.folder.path().to_str().unwrap();
        processes_with(folder).iter().for_each(Process::kill);
    }

    /// Network namespaces and layers are still mounted when the processes have ended.
    fn unmount(&self) {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let below = |mount: &&str| Path::new(mount).starts_with(self.folder.path());
        for mount in mounts.lines().rev().filter_map(|line| line.split(' ').nth(1)).filter(below) {
            let _ = umount2(mount, MntFlags::MNT_DETACH);
        }
    }
}

impl Drop for PrivateEngine {
    fn drop(&mut self) {
        self.process = None;
        self.kill_containers();
        self.unmount();
        if let Place::Host { bridge } = &self.place {
            ip(&["link", "delete", bridge]);
        }
    }
}

fn ip(arguments: &[&str]) {
    let status = Command::new("ip").args(arguments).status();
    assert!(status.unwrap().success(), "ip {arguments:?}");
}

/// The host's settings of registries and mirrors, and the image store that the agent requires.
fn configuration() -> Value {
    let text = fs::read_to_string("/etc/docker/daemon.json").unwrap_or_else(|_| "{}".to_owned());
    let all: Value = serde_json::from_str(&text).unwrap();
    let mut own = json!({ "features": { "containerd-snapshotter": true } });
    for key in ["registry-mirrors", "insecure-registries", "proxies", "dns"] {
        if let Some(value) = all.get(key) {
            own[key] = value.clone();
        }
    }
    own
}
