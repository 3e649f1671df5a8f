//! Machines that are processes of this host: started once, found again, and ended with all that they started.
//!
//! All processes of a machine carry its id in their environment, which they hand on to their own children: so
//! they are found after a crash of core, and none of them is missed when the machine ends, whatever process
//! group it is in. The machine itself is the process that is told of a certain file in the machine's folder.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use stagely_protocol::MACHINE_VARIABLE;
use stagely_state::comparison::{Listed, ListedState};
use stagely_state::ids::{CoreId, MachineId};
use tokio::process::{Child, Command};
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep, sleep_until};
use tracing::{info, warn};

use super::ProviderError;

/// Names the core that a machine belongs to.
const CORE_VARIABLE: &str = "STAGELY_CORE";

/// How often a machine that this process started is looked at when it is to end. Asking for a child is cheap.
const POLL: Duration = Duration::from_millis(20);
/// Between two looks at all processes of this host while machines end: each reads the whole of `/proc`.
const SCAN_GAP: Duration = Duration::from_millis(150);
/// How long a process that was killed may be seen.
pub(super) const KILL_LIMIT: Duration = Duration::from_secs(5);

/// The processes of one core's machines.
#[derive(Debug)]
pub(super) struct Processes {
    core_id: CoreId,
    /// Holds a folder for each machine.
    folder: PathBuf,
    /// The file of a machine's folder that its own process names in an argument, as its end.
    mark: &'static str,
    /// Children of this process, kept so that they are reaped when they end.
    children: Mutex<HashMap<MachineId, Child>>,
    /// The last look at this host's processes. Held while one is taken, so there is one at a time.
    scan: tokio::sync::Mutex<Option<Scan>>,
}

/// All processes of this core's machines, by machine.
pub(super) type Found = HashMap<MachineId, FoundMachine>;

/// One look at this host's processes.
#[derive(Debug)]
struct Scan {
    begun: Instant,
    found: Arc<Found>,
}

/// The processes of one machine.
#[derive(Clone, Debug, Default)]
pub(super) struct FoundMachine {
    all: Vec<Pid>,
    /// The machine's own; `None` where only what it started is left.
    pub(super) main: Option<Pid>,
}

impl Processes {
    /// Those whose environment names `core_id`, with folders below `folder`. A machine's own process is known
    /// by `mark`, a file in its folder.
    pub(super) fn new(core_id: CoreId, folder: PathBuf, mark: &'static str) -> Self {
        Self {
            core_id,
            folder,
            mark,
            children: Mutex::default(),
            scan: tokio::sync::Mutex::default(),
        }
    }

    /// The folder of `machine`, which is there from before its start until after its end.
    pub(super) fn folder(&self, machine: MachineId) -> PathBuf {
        self.folder.join(machine.to_string())
    }

    /// Makes the folder of `machine`, for this user alone.
    pub(super) fn make_folder(&self, machine: MachineId) -> io::Result<PathBuf> {
        let folder = self.folder(machine);
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder)?;
        Ok(folder)
    }

    /// Removes the folder of `machine`.
    pub(super) async fn remove_folder(&self, machine: MachineId) -> Result<(), ProviderError> {
        match tokio::fs::remove_dir_all(self.folder(machine)).await {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(ProviderError(format!("cannot remove the folder of {machine}: {error}")))
            }
            _ => Ok(()),
        }
    }

    /// Starts `command` as the process of `machine`; what it says goes to `log`.
    pub(super) fn start(
        &self,
        machine: MachineId,
        mut command: Command,
        log: fs::File,
    ) -> io::Result<()> {
        let child = command
            .env(CORE_VARIABLE, self.core_id.as_str())
            .env(MACHINE_VARIABLE, machine.to_string())
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            // Ctrl-C at core's terminal is for core to hear; it ends its machines itself.
            .process_group(0)
            .spawn()?;
        self.children().insert(machine, child);
        Ok(())
    }

    /// Whether the process of `machine` runs, also as a child of an earlier process of this core.
    pub(super) async fn was_started(&self, machine: MachineId) -> Result<bool, ProviderError> {
        if !self.folder(machine).exists() {
            return Ok(false);
        }
        let found = self.look().await?;
        Ok(found.get(&machine).is_some_and(|found| found.main.is_some()))
    }

    /// Every machine that runs. What a killed one left behind is for [`end`](Self::end) to find.
    pub(super) async fn list(&self) -> Result<Vec<Listed>, ProviderError> {
        let found = self.look().await?;
        let machines = found.iter().filter(|(_, found)| found.main.is_some());
        let live = |machine: &MachineId| Listed { machine: *machine, state: ListedState::Live };
        Ok(machines.map(|(machine, _)| live(machine)).collect())
    }

    /// All processes of this core's machines at this moment.
    pub(super) async fn look(&self) -> Result<Arc<Found>, ProviderError> {
        self.look_after(Duration::ZERO).await
    }

    /// Looks at this host's processes, no sooner than `gap` after the last look. Who asks while another
    /// look is awaited shares it: none is older than the question.
    async fn look_after(&self, gap: Duration) -> Result<Arc<Found>, ProviderError> {
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
        let (core_id, folder, mark) = (self.core_id.clone(), self.folder.clone(), self.mark);
        let found = spawn_blocking(move || scan(&core_id, &folder, mark)).await;
        let found = found.map_err(|error| cannot_list(&error))?;
        let found = Arc::new(found.map_err(|error| cannot_list(&error))?);
        *last = Some(Scan { begun, found: Arc::clone(&found) });
        Ok(found)
    }

    /// Asks the process of `machine` to stop.
    pub(super) async fn ask_to_stop(&self, machine: MachineId) -> Result<(), ProviderError> {
        let pid = self.children().get(&machine).and_then(Child::id);
        match pid.and_then(|pid| i32::try_from(pid).ok()) {
            Some(pid) => {
                let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
                Ok(())
            }
            // One that an earlier process of core started: its children hear it too.
            None => self.signal(machine, Signal::SIGTERM).await,
        }
    }

    /// Waits until nothing of `machine` runs, kills what does after `limit`, and removes its folder.
    pub(super) async fn end(
        &self,
        machine: MachineId,
        limit: Duration,
    ) -> Result<(), ProviderError> {
        if !self.gone_within(machine, limit).await? {
            warn!(%machine, "it did not stop in time and is killed");
            self.signal(machine, Signal::SIGKILL).await?;
            if !self.gone_within(machine, KILL_LIMIT).await? {
                return Err(ProviderError(format!("processes of {machine} outlive SIGKILL")));
            }
        }
        self.remove_folder(machine).await
    }

    /// Sends `signal` to every process of `machine`.
    async fn signal(&self, machine: MachineId, signal: Signal) -> Result<(), ProviderError> {
        let found = self.look().await?;
        for pid in found.get(&machine).into_iter().flat_map(|found| &found.all) {
            // One that has just ended cannot be killed again, and that is what we want of it.
            let _ = kill(*pid, signal);
        }
        Ok(())
    }

    async fn gone_within(
        &self,
        machine: MachineId,
        limit: Duration,
    ) -> Result<bool, ProviderError> {
        let until = Instant::now() + limit;
        loop {
            // Only when the machine has ended is it worth a look whether anything is left of it.
            if self.has_running_child(machine) {
                sleep(POLL).await;
            } else if !self.look_after(SCAN_GAP).await?.contains_key(&machine) {
                return Ok(true);
            }
            if Instant::now() >= until {
                return Ok(false);
            }
        }
    }

    /// Whether the process of `machine`, a child of this one, ends within `limit`.
    pub(super) async fn child_ends_within(&self, machine: MachineId, limit: Duration) -> bool {
        let until = Instant::now() + limit;
        while self.has_running_child(machine) {
            if Instant::now() >= until {
                return false;
            }
            sleep(POLL).await;
        }
        true
    }

    /// Whether the process of `machine` is a child of this process and runs.
    fn has_running_child(&self, machine: MachineId) -> bool {
        self.reap();
        self.children().contains_key(&machine)
    }

    /// Reaps children that have ended.
    fn reap(&self) {
        self.children().retain(|machine, child| match child.try_wait() {
            Ok(None) => true,
            Ok(Some(status)) => {
                info!(%machine, %status, "the process of a machine has ended");
                false
            }
            Err(error) => {
                warn!(%machine, %error, "cannot ask for the process of a machine");
                true
            }
        });
    }

    fn children(&self) -> MutexGuard<'_, HashMap<MachineId, Child>> {
        self.children.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Finds the processes of the machines of core `core_id`, whose folders are below `folder`. Blocks.
fn scan(core_id: &CoreId, folder: &Path, mark: &str) -> io::Result<Found> {
    let mut found = Found::new();
    for entry in fs::read_dir("/proc")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        // A process that ends in the meantime, or is not for this user to look into, is none of ours.
        let Ok(environment) = fs::read(format!("/proc/{pid}/environ")) else { continue };
        if variable(&environment, CORE_VARIABLE) != Some(core_id.as_str()) {
            continue;
        }
        let machine = variable(&environment, MACHINE_VARIABLE);
        let Some(machine) = machine.and_then(|id| id.parse::<MachineId>().ok()) else { continue };
        let found = found.entry(machine).or_default();
        found.all.push(Pid::from_raw(pid));
        let mark = folder.join(machine.to_string()).join(mark);
        let command_line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let mut words = command_line.split(|byte| *byte == 0);
        if words.any(|word| word.ends_with(mark.as_os_str().as_bytes())) {
            found.main = Some(Pid::from_raw(pid));
        }
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

/// Opens a file that this user alone may read, empty unless it is a log to go on with.
pub(super) fn private_file(path: &Path, go_on: bool) -> io::Result<fs::File> {
    let mut options = fs::OpenOptions::new();
    options.create(true).mode(0o600);
    if go_on {
        options.append(true)
    } else {
        options.write(true).truncate(true)
    };
    options.open(path)
}

#[cfg(test)]
impl Processes {
    /// How many children of this process are kept.
    pub(super) fn children_kept(&self) -> usize {
        self.children().len()
    }

    /// Whether nothing of any machine is left: neither a process nor a folder.
    pub(super) fn is_deserted(&self) -> bool {
        scan(&self.core_id, &self.folder, self.mark).unwrap().is_empty()
            && fs::read_dir(&self.folder).unwrap().next().is_none()
    }
}
