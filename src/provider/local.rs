//! Machines that are child processes on this host.
//!
//! A machine is a process of `stagely agent` with a folder of its own, told what to do by an
//! `agent.json` as a VM would be. All its processes carry its id in their environment, which they
//! hand on to their own children: so they are found after a crash of core, and none of them is
//! missed when the machine ends, whatever process group it is in.

use std::collections::HashMap;
use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use stagely_agent::MACHINE_VARIABLE;
use stagely_agent::config::AgentConfig;
use stagely_agent::protocol::Arch;
use tokio::process::{Child, Command};
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep, sleep_until};
use tracing::{info, warn};

use super::{
    Candidate, LaunchError, LaunchRequest, Listed, ListedState, Listing, Offer, Provider,
    ProviderError, Want,
};
use crate::core::state::{Fleet, MachineSize, Market, Placement};
use crate::ids::MachineId;

/// Names the core that a machine belongs to.
const CORE_VARIABLE: &str = "STAGELY_CORE";

/// The agent's configuration, in its machine's folder.
const AGENT_CONFIG: &str = "agent.json";

/// What the host itself is called where others have names for their sizes.
const INSTANCE_TYPE: &str = "host";

/// After SIGTERM to the agent and its own grace for its children, everything is killed.
const AGENT_STOP_LIMIT: Duration = Duration::from_secs(15);
/// How often an agent that this process launched is looked at when it is to end. Asking for a child is
/// cheap.
const POLL: Duration = Duration::from_millis(20);
/// Between two looks at all processes of this host while machines end: each reads the whole of `/proc`.
const SCAN_GAP: Duration = Duration::from_millis(150);

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
    /// The last look at this host's processes. Held while one is taken, so there is one at a time.
    scan: tokio::sync::Mutex<Option<Scan>>,
}

/// All processes of this core's machines, by machine.
type Found = HashMap<MachineId, Processes>;

/// One look at this host's processes.
#[derive(Debug)]
struct Scan {
    begun: Instant,
    found: Arc<Found>,
}

/// The processes of one machine.
#[derive(Clone, Debug, Default)]
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
        Self {
            core_id,
            program,
            folder,
            docker_host,
            children: Mutex::default(),
            scan: tokio::sync::Mutex::default(),
        }
    }

    fn machine_folder(&self, machine: MachineId) -> PathBuf {
        self.folder.join(machine.to_string())
    }

    /// Whether the agent of `machine` runs, also as a child of an earlier process of this core.
    async fn was_launched(&self, machine: MachineId) -> Result<bool, LaunchError> {
        // A machine has its folder from before its start until after its end.
        if !self.machine_folder(machine).exists() {
            return Ok(false);
        }
        let found = self.processes(Duration::ZERO).await;
        let found = found.map_err(|error| LaunchError::Unclear(error.to_string()))?;
        Ok(found.get(&machine).is_some_and(|processes| processes.has_agent))
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

    async fn remove_folder(&self, machine: MachineId) -> Result<(), ProviderError> {
        match tokio::fs::remove_dir_all(self.machine_folder(machine)).await {
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

    /// Whether the agent of `machine` is a child of this process and runs.
    fn has_running_child(&self, machine: MachineId) -> bool {
        self.reap();
        self.children().contains_key(&machine)
    }

    /// Looks at this host's processes, no sooner than `gap` after the last look. Who asks while another
    /// look is awaited shares it: none is older than the question.
    async fn processes(&self, gap: Duration) -> Result<Arc<Found>, ProviderError> {
        let asked = Instant::now();
        let mut last = self.scan.lock().await;
        if let Some(scan) = &*last {
            if scan.begun >= asked {
                return Ok(Arc::clone(&scan.found));
            }
            sleep_until(scan.begun + gap).await;
        }
        self.reap();
        let begun = Instant::now();
        let (core_id, folder) = (self.core_id.clone(), self.folder.clone());
        let found = spawn_blocking(move || scan(&core_id, &folder)).await;
        let found = found.map_err(|error| cannot_list(&error))?;
        let found = Arc::new(found.map_err(|error| cannot_list(&error))?);
        *last = Some(Scan { begun, found: Arc::clone(&found) });
        Ok(found)
    }

    /// Sends `signal` to every process of `machine`.
    async fn signal(&self, machine: MachineId, signal: Signal) -> Result<(), ProviderError> {
        let found = self.processes(Duration::ZERO).await?;
        for pid in found.get(&machine).into_iter().flat_map(|processes| &processes.all) {
            // One that has just ended cannot be killed again, and that is what we want of it.
            let _ = kill(*pid, signal);
        }
        Ok(())
    }

    /// Asks the agent to stop: it ends its own children, cleans up and exits.
    async fn ask_agent_to_stop(&self, machine: MachineId) -> Result<(), ProviderError> {
        let pid = self.children().get(&machine).and_then(Child::id);
        match pid.and_then(|pid| i32::try_from(pid).ok()) {
            Some(pid) => {
                let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
                Ok(())
            }
            // An agent that an earlier process of core launched: its children hear it too.
            None => self.signal(machine, Signal::SIGTERM).await,
        }
    }

    async fn gone_within(
        &self,
        machine: MachineId,
        limit: Duration,
    ) -> Result<bool, ProviderError> {
        let until = Instant::now() + limit;
        loop {
            // Only when the agent has ended is it worth a look whether anything is left of it.
            if self.has_running_child(machine) {
                sleep(POLL).await;
            } else if !self.processes(SCAN_GAP).await?.contains_key(&machine) {
                return Ok(true);
            }
            if Instant::now() >= until {
                return Ok(false);
            }
        }
    }
}

#[async_trait]
impl Provider for LocalProvider {
    fn candidates(&self, want: &Want) -> Vec<Candidate> {
        // One arch, one host: its size is what it is.
        let instance_type = INSTANCE_TYPE.to_owned();
        let here = Candidate {
            instance_type,
            zone: None,
            market: Market::OnDemand,
            price: None,
            max_price: None,
        };
        if want.arch == Arch::of_this_program() { vec![here] } else { Vec::new() }
    }

    async fn launch(&self, request: &LaunchRequest) -> Result<Placement, LaunchError> {
        let placement = Placement {
            provider_id: request.machine.to_string(),
            instance_type: INSTANCE_TYPE.to_owned(),
            zone: None,
            market: Market::OnDemand,
            price: None,
        };
        if self.was_launched(request.machine).await? {
            return Ok(placement);
        }
        match self.spawn(request) {
            Ok(child) => {
                self.children().insert(request.machine, child);
                Ok(placement)
            }
            Err(error) => {
                // Nobody ends a machine that never was, so nobody else would remove its folder.
                if let Err(error) = self.remove_folder(request.machine).await {
                    warn!(machine = %request.machine, %error, "it was not started");
                }
                Err(self.launch_error(&error))
            }
        }
    }

    async fn terminate(&self, machine: MachineId) -> Result<(), ProviderError> {
        self.ask_agent_to_stop(machine).await?;
        if !self.gone_within(machine, AGENT_STOP_LIMIT).await? {
            warn!(%machine, "the agent did not stop in time and is killed");
            self.signal(machine, Signal::SIGKILL).await?;
            if !self.gone_within(machine, Duration::from_secs(5)).await? {
                return Err(ProviderError(format!("processes of {machine} outlive SIGKILL")));
            }
        }
        self.remove_folder(machine).await
    }

    async fn list(&self) -> Result<Vec<Listed>, ProviderError> {
        // A machine is its agent: what a killed agent left behind is for `terminate` to end.
        let found = self.processes(Duration::ZERO).await?;
        let machines = found.iter().filter(|(_, processes)| processes.has_agent);
        let live = |machine: &MachineId| Listed { machine: *machine, state: ListedState::Live };
        Ok(machines.map(|(machine, _)| live(machine)).collect())
    }

    fn listing(&self) -> Listing {
        // It says how things are at this moment, and costs a look at `/proc`.
        Listing { interval: Duration::from_secs(1), grace: Duration::ZERO }
    }

    async fn describe(&self) -> Result<Vec<Offer>, ProviderError> {
        let offer = |fleet| Offer {
            fleet,
            arch: Arch::of_this_program(),
            size: MachineSize::Medium,
            instance_type: INSTANCE_TYPE.to_owned(),
            price: None,
            spot: false,
            problem: None,
        };
        Ok(Fleet::ALL.map(offer).to_vec())
    }
}

/// Finds the processes of the machines of core `core_id`, whose folders are below `folder`. Blocks.
fn scan(core_id: &str, folder: &Path) -> io::Result<Found> {
    let mut found = Found::new();
    for entry in fs::read_dir("/proc")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        // A process that ends in the meantime, or is not for this user to look into, is none of ours.
        let Ok(environment) = fs::read(format!("/proc/{pid}/environ")) else { continue };
        if variable(&environment, CORE_VARIABLE) != Some(core_id) {
            continue;
        }
        let machine = variable(&environment, MACHINE_VARIABLE);
        let Some(machine) = machine.and_then(|id| id.parse::<MachineId>().ok()) else { continue };
        let processes = found.entry(machine).or_default();
        processes.all.push(Pid::from_raw(pid));
        let config = folder.join(machine.to_string()).join(AGENT_CONFIG);
        let command_line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let mut words = command_line.split(|byte| *byte == 0);
        processes.has_agent |= words.any(|word| word == config.as_os_str().as_bytes());
    }
    Ok(found)
}

/// The value of a variable in a process's environment as the kernel shows it.
fn variable<'a>(environment: &'a [u8], name: &str) -> Option<&'a str> {
    environment.split(|byte| *byte == 0).find_map(|entry| {
        let value = entry.strip_prefix(name.as_bytes())?.strip_prefix(b"=")?;
        std::str::from_utf8(value).ok()
    })
}

fn cannot_list(error: &dyn std::error::Error) -> ProviderError {
    ProviderError(format!("cannot list processes: {error}"))
}

fn write_agent_config(path: &Path, agent: &AgentConfig) -> io::Result<()> {
    let json = serde_json::to_vec_pretty(agent)?;
    let mut file =
        OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(path)?;
    file.write_all(&json)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use tempfile::TempDir;

    use super::*;
    use crate::config::Config;

    /// A program that stands in for the agent, and a provider that launches it.
    struct Host {
        folder: TempDir,
    }

    impl Host {
        fn with(agent: &str) -> Self {
            let folder = tempfile::tempdir().unwrap();
            let program = folder.path().join("agent");
            let script = format!("#!/bin/sh\n{agent}\n");
            fs::write(&program, script).unwrap();
            fs::set_permissions(&program, fs::Permissions::from_mode(0o700)).unwrap();
            Self { folder }
        }

        /// As core makes it at each start.
        fn provider(&self) -> LocalProvider {
            let path = |name| self.folder.path().join(name);
            let core_id = self.folder.path().display().to_string();
            LocalProvider::new(core_id, path("agent"), path("machines"), None)
        }

        async fn launch(&self, provider: &LocalProvider) -> MachineId {
            let machine = MachineId::random();
            provider.launch(&request(machine)).await.unwrap();
            machine
        }
    }

    /// Whether nothing of any machine is left: neither a process nor a folder.
    fn is_deserted(provider: &LocalProvider) -> bool {
        scan(&provider.core_id, &provider.folder).unwrap().is_empty()
            && fs::read_dir(&provider.folder).unwrap().next().is_none()
    }

    fn request(machine: MachineId) -> LaunchRequest {
        let agent = Config::default().agent_config(machine, "secret".into());
        LaunchRequest {
            machine,
            job: None,
            fleet: Fleet::Builder,
            arch: Arch::of_this_program(),
            size: MachineSize::Small,
            candidates: Vec::new(),
            agent,
            lease: Duration::from_hours(1),
            insecure_registry: None,
            binary: None,
        }
    }

    #[tokio::test]
    async fn a_machine_is_started_once_and_found_by_the_next_core() {
        let host = Host::with("sleep 1000 & wait");
        let first = host.provider();
        let machine = host.launch(&first).await;
        first.launch(&request(machine)).await.unwrap();
        let next = host.provider();
        next.launch(&request(machine)).await.unwrap();

        assert_eq!((first.children().len(), next.children().len()), (1, 0));
        assert_eq!(next.list().await.unwrap(), [Listed { machine, state: ListedState::Live }]);
        next.terminate(machine).await.unwrap();

        assert!(is_deserted(&next));
        assert_eq!(next.list().await.unwrap(), []);
        next.terminate(machine).await.unwrap();
    }

    #[tokio::test]
    async fn machines_that_end_together_leave_nothing() {
        let host = Host::with("trap 'kill $child; exit' TERM; sleep 1000 & child=$!; wait");
        let provider = Arc::new(host.provider());
        let mut machines = Vec::new();
        for _ in 0..8 {
            machines.push(host.launch(&provider).await);
        }

        let ends = machines.into_iter().map(|machine| {
            let provider = Arc::clone(&provider);
            tokio::spawn(async move { provider.terminate(machine).await })
        });
        for end in ends.collect::<Vec<_>>() {
            end.await.unwrap().unwrap();
        }

        assert!(is_deserted(&provider));
    }

    #[tokio::test]
    async fn what_an_agent_leaves_behind_in_a_session_of_its_own_is_ended_with_its_machine() {
        let host = Host::with("setsid sleep 1000 & trap exit TERM; wait");
        let provider = host.provider();
        let machine = host.launch(&provider).await;
        // The agent ends at once; until the limit what it started may end by itself.
        provider.terminate(machine).await.unwrap();

        assert!(is_deserted(&provider));
    }
}
