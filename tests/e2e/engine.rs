//! A Docker engine of a test's own, to be broken.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

use crate::host::{eventually, processes_with};

/// A `dockerd` that shares nothing with the machine's own. Everything of it ends with the value.
pub(crate) struct Engine {
    folder: TempDir,
    bridge: String,
    process: Option<Child>,
}

impl Engine {
    pub(crate) async fn start() -> Self {
        let folder = tempfile::Builder::new().prefix("e2e-dockerd-").tempdir().unwrap();
        // With `--bridge none` the engine would delete the `docker0` of the machine's own engine,
        // so it is given a bridge.
        let bridge = format!("e2e{:x}", rand::random_range(0x1000_0000..u32::MAX));
        ip(&["link", "add", &bridge, "type", "bridge"]);
        let mut engine = Self { folder, bridge, process: None };
        engine.launch().await;
        engine
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Its address.
    pub(crate) fn host(&self) -> String {
        format!("unix://{}", self.path("docker.sock").display())
    }

    /// Starts the process and waits until it answers.
    pub(crate) async fn launch(&mut self) {
        fs::write(self.path("daemon.json"), configuration().to_string()).unwrap();
        let log = fs::OpenOptions::new().create(true).append(true).open(self.path("dockerd.log"));
        let log = log.unwrap();
        let flag = |name: &str, file: &str| format!("--{name}={}", self.path(file).display());
        let process = Command::new("dockerd")
            .arg(flag("config-file", "daemon.json"))
            .arg(flag("data-root", "data"))
            .arg(flag("exec-root", "exec"))
            .arg(flag("pidfile", "dockerd.pid"))
            .arg(format!("--host={}", self.host()))
            .arg(format!("--bridge={}", self.bridge))
            .args(["--iptables=false", "--ip-forward=false", "--ip-masq=false"])
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start dockerd: {error}"));
        self.process = Some(process);
        eventually("the private engine answers", async || {
            let ended = self.process.as_mut().unwrap().try_wait().unwrap();
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

    fn signal(&self, signal: Signal) {
        let process = self.process.as_ref().expect("it runs");
        kill(Pid::from_raw(i32::try_from(process.id()).unwrap()), signal).unwrap();
    }

    /// Kills it, and what it runs besides itself.
    pub(crate) fn crash(&mut self) {
        self.signal(Signal::SIGKILL);
        self.process.take().unwrap().wait().unwrap();
        self.clean();
    }

    /// Stops it as a service manager does.
    pub(crate) async fn stop(&mut self) {
        self.signal(Signal::SIGTERM);
        let mut process = self.process.take().unwrap();
        eventually("dockerd ends", async || process.try_wait().unwrap()).await;
    }

    /// Ends containerd and the containers, which all name the folder.
    fn clean(&self) {
        let folder = self.folder.path().to_str().unwrap();
        processes_with(folder).iter().for_each(crate::host::Process::kill);
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = process.kill();
            let _ = process.wait();
        }
        self.clean();
        // Network namespaces and layers are still mounted.
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let below = |mount: &&str| Path::new(mount).starts_with(self.folder.path());
        for mount in mounts.lines().rev().filter_map(|line| line.split(' ').nth(1)).filter(below) {
            let _ = nix::mount::umount2(mount, nix::mount::MntFlags::MNT_DETACH);
        }
        ip(&["link", "delete", &self.bridge]);
    }
}

fn ip(arguments: &[&str]) {
    let status = Command::new("ip").args(arguments).status();
    assert!(status.unwrap().success(), "ip {arguments:?}");
}

/// The machine's own settings of where images come from and how they are kept.
fn configuration() -> Value {
    let text = fs::read_to_string("/etc/docker/daemon.json").unwrap_or_else(|_| "{}".to_owned());
    let all: Value = serde_json::from_str(&text).unwrap();
    let mut own = serde_json::json!({ "features": { "containerd-snapshotter": true } });
    for key in ["registry-mirrors", "insecure-registries", "proxies", "dns"] {
        if let Some(value) = all.get(key) {
            own[key] = value.clone();
        }
    }
    own
}
