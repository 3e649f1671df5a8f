//! A `stagely core` of the release binary, with a process and a folder of its own.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use secrecy::SecretString;
use stagely::api::{AddMachine, CreateRun, JobView};
use stagely::client::Client;
use stagely_protocol::Arch;
use stagely_protocol::agent_config::AgentConfig;
use stagely_test_support::core_process::CoreProcess;
use tempfile::TempDir;
use tokio::time::sleep;
use url::Url;

use crate::STAGELY;

/// The time limit of each step, generous for a busy machine.
const LIMIT: Duration = Duration::from_mins(1);

/// A running core. Dropping the value kills it.
pub(crate) struct Core {
    process: CoreProcess,
    pub(crate) url: Url,
    pub(crate) token: SecretString,
    pub(crate) client: Client,
    _folder: TempDir,
}

impl Core {
    /// Starts core with `settings` in addition to its address and its data folder.
    pub(crate) async fn start(settings: &str) -> anyhow::Result<Self> {
        Self::start_in(tempfile::tempdir()?, settings).await
    }

    /// Starts core in a folder that may contain files of the caller.
    pub(crate) async fn start_in(folder: TempDir, settings: &str) -> anyhow::Result<Self> {
        let path = folder.path().to_owned();
        let mut process = CoreProcess::new(STAGELY, path, "127.0.0.1", settings);
        process.launch().await;
        let url: Url = process.url.parse()?;
        let token = SecretString::from(process.admin_token());
        let client = Client::new(url.clone(), token.clone())?;
        Ok(Self { process, url, token, client, _folder: folder })
    }

    /// Registers a machine and returns the configuration of its agent.
    pub(crate) async fn add_machine(&self) -> anyhow::Result<AgentConfig> {
        let machine = AddMachine::new(Arch::of_this_program());
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

    pub(crate) fn processor_time(&self) -> anyhow::Result<Duration> {
        processor_time(self.process.id())
    }

    /// Resets the peak of the resident memory.
    pub(crate) fn forget_peak(&self) -> anyhow::Result<()> {
        Ok(fs::write(format!("/proc/{}/clear_refs", self.process.id()), "5")?)
    }

    /// The peak of the resident memory since the last reset, in bytes.
    pub(crate) fn peak(&self) -> anyhow::Result<u64> {
        let path = format!("/proc/{}/status", self.process.id());
        bytes_of(&fs::read_to_string(path)?, "VmHWM:")
    }

    /// Stops core with SIGTERM. Its folder stays until the value is dropped.
    pub(crate) async fn stop(&mut self) -> anyhow::Result<()> {
        let status = self.process.shut_down().await;
        ensure!(status.success(), "core: {status}: {}", self.process.log());
        Ok(())
    }

    pub(crate) fn log_database(&self) -> PathBuf {
        self.process.path("data/logs.redb")
    }
}

/// The memory of a process.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Memory {
    /// Resident set size, in bytes.
    pub(crate) rss: u64,
    /// Proportional set size, in bytes.
    pub(crate) pss: u64,
}

impl Memory {
    pub(crate) fn of(process: u32) -> anyhow::Result<Self> {
        let text = fs::read_to_string(format!("/proc/{process}/smaps_rollup"))?;
        Ok(Self { rss: bytes_of(&text, "Rss:")?, pss: bytes_of(&text, "Pss:")? })
    }
}

/// The processor time that a process has used, in hundredths of a second.
pub(crate) fn processor_time(process: u32) -> anyhow::Result<Duration> {
    let text = fs::read_to_string(format!("/proc/{process}/stat"))?;
    // The second field, the program's name in parentheses, may contain spaces.
    let (_, fields) = text.rsplit_once(") ").context("no name")?;
    let mut ticks = fields.split(' ').skip(11).map(str::parse::<u64>);
    let mut next = || ticks.next().context("too few fields")?.context("not a number");
    Ok(Duration::from_millis((next()? + next()?) * 10))
}

/// Reads a field in KiB of a file in `/proc`, and returns bytes.
fn bytes_of(text: &str, name: &str) -> anyhow::Result<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kib.map(|kib| kib * 1024).with_context(|| format!("the kernel says no {name}"))
}
