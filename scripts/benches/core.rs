//! A `stagely core` of the release binary, in a process and a folder of its own.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use secrecy::SecretString;
use stagely::api::{AddMachine, CreateRun, JobView};
use stagely::client::Client;
use stagely::core::{ADDRESS_FILE, ADMIN_TOKEN_FILE};
use stagely_protocol::Arch;
use stagely_protocol::agent_config::AgentConfig;
use tempfile::TempDir;
use tokio::time::sleep;
use url::Url;

use crate::STAGELY;

/// Longer than anything here takes, on a machine that is busy.
const LIMIT: Duration = Duration::from_mins(1);

/// A running core. It is killed when the value is dropped.
pub(crate) struct Core {
    process: Child,
    pub(crate) data: TempDir,
    pub(crate) url: Url,
    pub(crate) token: SecretString,
    pub(crate) client: Client,
}

impl Core {
    /// Starts one with `settings` beside where it listens and keeps its data.
    pub(crate) async fn start(settings: &str) -> anyhow::Result<Self> {
        Self::start_in(tempfile::tempdir()?, settings).await
    }

    /// Starts one on a data folder that may hold something already.
    pub(crate) async fn start_in(data: TempDir, settings: &str) -> anyhow::Result<Self> {
        let config = data.path().join("stagely.toml");
        let folder = data.path().display();
        let place = format!("[core]\nlisten = \"127.0.0.1:0\"\ndata-dir = \"{folder}\"\n");
        fs::write(&config, format!("{place}{settings}"))?;
        let log = File::create(data.path().join("core.log"))?;
        let process = Command::new(STAGELY)
            .arg("core")
            .arg("--config")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()?;
        let address = data.path().join(ADDRESS_FILE);
        let url: Url = read_when_there(&address).await?.trim().parse()?;
        let token = fs::read_to_string(data.path().join(ADMIN_TOKEN_FILE))?;
        let token = SecretString::from(token.trim());
        let client = Client::new(url.clone(), token.clone())?;
        Ok(Self { process, data, url, token, client })
    }

    /// Registers a machine and returns what its agent is told.
    pub(crate) async fn add_machine(&self) -> anyhow::Result<AgentConfig> {
        let machine = AddMachine { arch: Arch::of_this_program(), name: None };
        let added = self.client.add_machine(&machine).await?;
        Ok(serde_json::from_value(added.agent_json)?)
    }

    /// Starts a run of the repository at `url` and returns its jobs once they are planned.
    pub(crate) async fn plan(&self, url: &str) -> anyhow::Result<Vec<JobView>> {
        let request = CreateRun::new(url.to_owned());
        let run = self.client.create_run(&request).await?.id;
        let give_up = Instant::now() + LIMIT;
        while Instant::now() < give_up {
            let run = self.client.run(run).await?;
            if let Some(error) = run.error {
                bail!("the run was not planned: {error}");
            }
            if !run.jobs.is_empty() {
                return Ok(run.jobs);
            }
            sleep(Duration::from_millis(5)).await;
        }
        bail!("the run was not planned in {LIMIT:?}")
    }

    pub(crate) fn memory(&self) -> anyhow::Result<Memory> {
        Memory::of(self.process.id())
    }

    /// Lets the peak of its memory begin anew.
    pub(crate) fn forget_peak(&self) -> anyhow::Result<()> {
        Ok(fs::write(format!("/proc/{}/clear_refs", self.process.id()), "5")?)
    }

    /// The most resident memory since then, in bytes.
    pub(crate) fn peak(&self) -> anyhow::Result<u64> {
        let path = format!("/proc/{}/status", self.process.id());
        bytes_of(&fs::read_to_string(path)?, "VmHWM:")
    }

    /// Stops it as its supervisor would. Its folder stays until the value is dropped.
    pub(crate) fn stop(&mut self) -> anyhow::Result<()> {
        kill(Pid::from_raw(i32::try_from(self.process.id())?), Signal::SIGTERM)?;
        self.process.wait()?;
        Ok(())
    }

    pub(crate) fn log_database(&self) -> PathBuf {
        self.data.path().join("logs.redb")
    }
}

impl Drop for Core {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The content of a file, as soon as it has some.
pub(crate) async fn read_when_there(path: &Path) -> anyhow::Result<String> {
    let give_up = Instant::now() + LIMIT;
    while Instant::now() < give_up {
        match fs::read_to_string(path) {
            Ok(text) if text.ends_with('\n') => return Ok(text),
            _ => sleep(Duration::from_millis(2)).await,
        }
    }
    bail!("{} did not appear in {LIMIT:?}", path.display())
}

/// The memory of a process.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Memory {
    /// Resident, in bytes.
    pub(crate) rss: u64,
    /// The same with pages that others share counted in part, in bytes.
    pub(crate) pss: u64,
}

impl Memory {
    pub(crate) fn of(process: u32) -> anyhow::Result<Self> {
        let text = fs::read_to_string(format!("/proc/{process}/smaps_rollup"))?;
        Ok(Self { rss: bytes_of(&text, "Rss:")?, pss: bytes_of(&text, "Pss:")? })
    }
}

/// A field of a file in `/proc` that counts KiB, in bytes.
fn bytes_of(text: &str, name: &str) -> anyhow::Result<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kib.map(|kib| kib * 1024).with_context(|| format!("the kernel says no {name}"))
}
