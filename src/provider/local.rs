//! Machines that are child processes on this host.
//!
//! A machine is a process of `stagely agent` with a folder of its own, told what to do by an
//! `agent.json` as a VM would be. All its processes carry its id in their environment, which they
//! hand on to their own children: so they are found after a crash of core, and none of them is
//! missed when the machine ends, whatever process group it is in.

use std::collections::HashMap;
use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Mutex;
use std::time::Duration;

use async_trait::async_trait;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use stagely_agent::config::AgentConfig;
use sysinfo::{ProcessRefreshKind, ProcessesToUpdate, System, UpdateKind};
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep};
use tracing::{info, warn};

use super::{LaunchError, LaunchRequest, Provider, ProviderError};
use crate::ids::MachineId;

/// Names the core that a machine belongs to.
const CORE_VARIABLE: &str = "STAGELY_CORE";
/// Names the machine that a process belongs to.
const MACHINE_VARIABLE: &str = "STAGELY_MACHINE";

/// The agent's configuration, in its machine's folder.
const AGENT_CONFIG: &str = "agent.json";

/// After SIGTERM to the agent and its own grace for its children, everything is killed.
const AGENT_STOP_LIMIT: Duration = Duration::from_secs(15);
/// How often a dying machine is looked at.
const POLL: Duration = Duration::from_millis(20);

/// Launches machines as processes of this host.
#[derive(Debug)]
pub struct LocalProvider {
    core_id: String,
    program: PathBuf,
    /// Holds a folder for each machine.
    folder: PathBuf,
    docker_host: Option<String>,
    /// Children of this process, kept so that they are reaped when they end.
    children: Mutex<HashMap<MachineId, Child>>,
}

/// The processes of one machine.
#[derive(Debug, Default)]
struct Processes {
    all: Vec<Pid>,
    /// Whether its agent is among them, and not only what it started.
    has_agent: bool,
}

impl LocalProvider {
    /// Launches `program agent` with folders below `folder`.
    pub fn new(
        core_id: String,
        program: PathBuf,
        folder: PathBuf,
        docker_host: Option<String>,
    ) -> Self {
        Self { core_id, program, folder, docker_host, children: Mutex::default() }
    }

    fn machine_folder(&self, machine: MachineId) -> PathBuf {
        self.folder.join(machine.to_string())
    }

    fn spawn(&self, request: &LaunchRequest) -> io::Result<Child> {
        let folder = self.machine_folder(request.machine);
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder)?;
        let mut agent = request.agent.clone();
        agent.work_dir = folder.join("work");
        agent.docker_host.clone_from(&self.docker_host);
        let config_path = folder.join(AGENT_CONFIG);
        write_agent_config(&config_path, &agent)?;
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(folder.join("agent.log"))?;
        Command::new(&self.program)
            .arg("agent")
            .arg("--config")
            .arg(&config_path)
            .env(CORE_VARIABLE, &self.core_id)
            .env(MACHINE_VARIABLE, request.machine.to_string())
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            // Ctrl-C at core's terminal is for core to hear; it ends its machines itself.
            .process_group(0)
            .spawn()
    }

    fn launch_error(&self, error: &io::Error) -> LaunchError {
        match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied => {
                LaunchError::Permanent(format!("cannot start {}: {error}", self.program.display()))
            }
            _ => LaunchError::NoCapacity(format!("cannot start an agent: {error}")),
        }
    }

    fn remove_folder(&self, machine: MachineId) -> Result<(), ProviderError> {
        match fs::remove_dir_all(self.machine_folder(machine)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(ProviderError(format!("cannot remove the folder of {machine}: {error}")))
            }
            _ => Ok(()),
        }
    }

    fn children(&self) -> std::sync::MutexGuard<'_, HashMap<MachineId, Child>> {
        self.children.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Reaps children that have ended.
    fn reap(&self) {
        self.children().retain(|machine, child| match child.try_wait() {
            Ok(None) => true,
            Ok(Some(status)) => {
                info!(%machine, %status, "the agent of a local machine has ended");
                false
            }
            Err(error) => {
                warn!(%machine, %error, "cannot ask for the agent of a local machine");
                true
            }
        });
    }

    /// All processes of this core's machines, by machine.
    fn processes(&self) -> Result<HashMap<MachineId, Processes>, ProviderError> {
        self.reap();
        let mut system = System::new()
            .map_err(|error| ProviderError(format!("cannot list processes: {error}")))?;
        let what = ProcessRefreshKind::nothing()
            .with_environ(UpdateKind::Always)
            .with_cmd(UpdateKind::Always)
            .without_tasks();
        system.refresh_processes_specifics(ProcessesToUpdate::All, true, what);
        let mut found: HashMap<MachineId, Processes> = HashMap::new();
        for (pid, process) in system.processes() {
            let variable = |name: &str| {
                process.environ().iter().find_map(|entry| {
                    entry.to_str()?.strip_prefix(name)?.strip_prefix('=').map(str::to_owned)
                })
            };
            if variable(CORE_VARIABLE).as_deref() != Some(&self.core_id) {
                continue;
            }
            let machine = variable(MACHINE_VARIABLE).and_then(|id| id.parse().ok());
            let pid = i32::try_from(pid.as_u32()).ok();
            if let (Some(machine), Some(pid)) = (machine, pid) {
                let processes = found.entry(machine).or_default();
                processes.all.push(Pid::from_raw(pid));
                let config = self.machine_folder(machine).join(AGENT_CONFIG);
                processes.has_agent |= process.cmd().iter().any(|word| *word == *config);
            }
        }
        Ok(found)
    }

    /// Sends `signal` to every process of `machine`.
    fn signal(&self, machine: MachineId, signal: Signal) -> Result<(), ProviderError> {
        for pid in self.processes()?.remove(&machine).unwrap_or_default().all {
            // One that has just ended cannot be killed again, and that is what we want of it.
            let _ = kill(pid, signal);
        }
        Ok(())
    }

    /// Asks the agent to stop: it ends its own children, cleans up and exits.
    fn ask_agent_to_stop(&self, machine: MachineId) -> Result<(), ProviderError> {
        let pid = self.children().get(&machine).and_then(Child::id);
        match pid.and_then(|pid| i32::try_from(pid).ok()) {
            Some(pid) => {
                let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
                Ok(())
            }
            // An agent that an earlier process of core launched: its children hear it too.
            None => self.signal(machine, Signal::SIGTERM),
        }
    }

    async fn gone_within(
        &self,
        machine: MachineId,
        limit: Duration,
    ) -> Result<bool, ProviderError> {
        let until = Instant::now() + limit;
        loop {
            if !self.processes()?.contains_key(&machine) {
                return Ok(true);
            }
            if Instant::now() >= until {
                return Ok(false);
            }
            sleep(POLL).await;
        }
    }
}

#[async_trait]
impl Provider for LocalProvider {
    async fn launch(&self, request: &LaunchRequest) -> Result<(), LaunchError> {
        let processes =
            self.processes().map_err(|error| LaunchError::Unclear(error.to_string()))?;
        if processes.get(&request.machine).is_some_and(|found| found.has_agent) {
            return Ok(());
        }
        match self.spawn(request) {
            Ok(child) => {
                self.children().insert(request.machine, child);
                Ok(())
            }
            Err(error) => {
                // Nobody ends a machine that never was, so nobody else would remove its folder.
                if let Err(error) = self.remove_folder(request.machine) {
                    warn!(machine = %request.machine, %error, "it was not started");
                }
                Err(self.launch_error(&error))
            }
        }
    }

    async fn terminate(&self, machine: MachineId) -> Result<(), ProviderError> {
        self.ask_agent_to_stop(machine)?;
        if !self.gone_within(machine, AGENT_STOP_LIMIT).await? {
            warn!(%machine, "the agent did not stop in time and is killed");
            self.signal(machine, Signal::SIGKILL)?;
            if !self.gone_within(machine, Duration::from_secs(5)).await? {
                return Err(ProviderError(format!("processes of {machine} outlive SIGKILL")));
            }
        }
        self.remove_folder(machine)
    }

    async fn list(&self) -> Result<Vec<MachineId>, ProviderError> {
        // A machine is its agent: what a killed agent left behind is for `terminate` to end.
        let machines = self.processes()?.into_iter().filter(|(_, processes)| processes.has_agent);
        Ok(machines.map(|(machine, _)| machine).collect())
    }
}

fn write_agent_config(path: &Path, agent: &AgentConfig) -> io::Result<()> {
    let json = serde_json::to_vec_pretty(agent)?;
    let mut file =
        OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(path)?;
    file.write_all(&json)
}
