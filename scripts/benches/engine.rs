//! A Docker engine that is as empty as that of a new machine.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, geteuid};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::time::sleep;

/// Longer than `dockerd` takes to start or to end, on a machine that is busy.
const LIMIT: Duration = Duration::from_mins(1);
const POLL: Duration = Duration::from_millis(50);

/// A `dockerd` that shares nothing with the machine's own. It is killed when the value is dropped.
pub(crate) struct Engine {
    folder: TempDir,
    bridge: String,
    process: Child,
}

impl Engine {
    /// Starts one and waits until it answers.
    pub(crate) async fn start() -> anyhow::Result<Self> {
        ensure!(geteuid().is_root(), "only root may start Docker engines");
        let folder = tempfile::Builder::new().prefix("bench-dockerd-").tempdir()?;
        let at = |name: &str| folder.path().join(name);
        // With `--bridge none` the engine would delete the `docker0` of the machine's own engine, so
        // it is given a bridge.
        let bridge = format!("bench{:x}", rand::random_range(0x1000_0000..u32::MAX));
        ip(&["link", "add", &bridge, "type", "bridge"])?;
        fs::write(at("daemon.json"), configuration()?.to_string())?;
        let log = File::create(at("dockerd.log"))?;
        let process = Command::new("dockerd")
            .arg(format!("--config-file={}", at("daemon.json").display()))
            .arg(format!("--data-root={}", at("data").display()))
            .arg(format!("--exec-root={}", at("exec").display()))
            .arg(format!("--pidfile={}", at("dockerd.pid").display()))
            .arg(format!("--host=unix://{}", at("docker.sock").display()))
            .arg(format!("--bridge={bridge}"))
            .args(["--iptables=false", "--ip-forward=false", "--ip-masq=false"])
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("cannot start dockerd")?;
        let mut engine = Self { folder, bridge, process };
        engine.answers().await?;
        Ok(engine)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Its address.
    pub(crate) fn host(&self) -> String {
        format!("unix://{}", self.path("docker.sock").display())
    }

    async fn answers(&mut self) -> anyhow::Result<()> {
        let give_up = Instant::now() + LIMIT;
        while Instant::now() < give_up && self.process.try_wait()?.is_none() {
            let version = Command::new("docker").args(["--host", &self.host(), "version"]).output();
            if version?.status.success() {
                return Ok(());
            }
            sleep(POLL).await;
        }
        bail!("the engine does not answer: {}", fs::read_to_string(self.path("dockerd.log"))?)
    }

    /// Stops it as a service manager does, so that its containerd ends with it.
    pub(crate) async fn stop(mut self) -> anyhow::Result<()> {
        kill(Pid::from_raw(i32::try_from(self.process.id())?), Signal::SIGTERM)?;
        let give_up = Instant::now() + LIMIT;
        while self.process.try_wait()?.is_none() {
            ensure!(Instant::now() < give_up, "dockerd has not ended after {LIMIT:?}");
            sleep(POLL).await;
        }
        Ok(())
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
        // Network namespaces and layers may still be mounted.
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let below = |mount: &&str| Path::new(mount).starts_with(self.folder.path());
        for mount in mounts.lines().rev().filter_map(|line| line.split(' ').nth(1)).filter(below) {
            let _ = umount2(mount, MntFlags::MNT_DETACH);
        }
        let _ = ip(&["link", "delete", &self.bridge]);
    }
}

fn ip(arguments: &[&str]) -> anyhow::Result<()> {
    let status = Command::new("ip").args(arguments).status().context("cannot start ip")?;
    ensure!(status.success(), "ip {arguments:?} failed");
    Ok(())
}

/// The machine's own settings of where images come from; its images are kept as the agent wants them.
fn configuration() -> anyhow::Result<Value> {
    let text = fs::read_to_string("/etc/docker/daemon.json").unwrap_or_else(|_| "{}".to_owned());
    let all: Value = serde_json::from_str(&text).context("/etc/docker/daemon.json")?;
    let mut own = json!({ "features": { "containerd-snapshotter": true } });
    for key in ["registry-mirrors", "insecure-registries", "proxies", "dns"] {
        if let Some(value) = all.get(key) {
            own[key] = value.clone();
        }
    }
    Ok(own)
}
