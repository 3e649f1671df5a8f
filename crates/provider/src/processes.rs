//! Machines that are processes of this host: started once, found again, and ended with all their children.
//!
//! All processes of a machine have its id in their environment, and so do their children. The scan of `/proc`
//! therefore finds them after a crash of core, and finds all of them when the machine ends, whatever their process
//! group. The machine's main process is the one with a certain file of the machine's folder in its arguments.

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
use stagely_protocol::{CORE_VARIABLE, ErrorChain, MACHINE_VARIABLE};
use stagely_state::comparison::{Listed, ListedState};
use stagely_state::ids::{CoreId, MachineId};
use thiserror::Error;
use tokio::process::{Child, Command};
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep, sleep_until};
use tracing::{info, warn};

use crate::ProviderError;

/// The time between two checks whether a child has ended. A check is cheap.
const POLL: Duration = Duration::from_millis(20);
/// The time between two scans while machines end. A scan reads the whole of `/proc`.
const SCAN_INTERVAL: Duration = Duration::from_millis(150);
/// The time that a process may take to disappear after SIGKILL.
pub(crate) const KILL_LIMIT: Duration = Duration::from_secs(5);

/// The processes of one core's machines.
#[derive(Debug)]
pub(crate) struct Processes {
    core_id: CoreId,
    /// Holds a folder for each machine.
    folder: PathBuf,
    /// The file of a machine's folder whose path ends an argument of the main process.
    marker_file: &'static str,
    /// Children of this process. They are kept to be reaped when they end.
    children: Mutex<HashMap<MachineId, Child>>,
    /// The last scan. The lock is held during a scan, so that there is one at a time.
    scan: tokio::sync::Mutex<Option<Scan>>,
}

/// The processes of all machines of this core.
pub(crate) type ProcessesByMachine = HashMap<MachineId, MachineProcesses>;

/// One scan of this host's processes.
#[derive(Debug)]
struct Scan {
    started: Instant,
    found: Arc<ProcessesByMachine>,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct MachineProcesses {
    all: Vec<Pid>,
    /// The main process; `None` where only its children are left.
    pub(crate) main: Option<Pid>,
}

/// A failed operation on processes.
#[derive(Debug, Error)]
pub(crate) enum ProcessError {
    #[error("cannot list processes: {0}")]
    List(io::Error),
    #[error("cannot remove the folder of {0}: {1}")]
    Folder(MachineId, io::Error),
    #[error("processes of {0} outlive SIGKILL")]
    Unkillable(MachineId),
}

impl From<ProcessError> for ProviderError {
    fn from(error: ProcessError) -> Self {
        Self::Failed(error.into())
    }
}

impl Processes {
    /// The processes whose environment names `core_id`, with folders below `folder`. The main process of a machine
    /// has `marker_file` of its folder in an argument.
    pub(crate) fn new(core_id: CoreId, folder: PathBuf, marker_file: &'static str) -> Self {
        Self {
            core_id,
            folder,
            marker_file,
            children: Mutex::default(),
            scan: tokio::sync::Mutex::default(),
        }
    }

    /// The folder of all machines' folders.
    pub(crate) fn all_folders(&self) -> &Path {
        &self.folder
    }

    /// The folder of `machine`. It exists from before the machine's start until after its end.
    pub(crate) fn folder(&self, machine: MachineId) -> PathBuf {
        self.folder.join(machine.to_string())
    }

    /// Creates the folder of `machine`. Only this user can read it.
    pub(crate) fn create_folder(&self, machine: MachineId) -> io::Result<PathBuf> {
        let folder = self.folder(machine);
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder)?;
        Ok(folder)
    }

    pub(crate) async fn remove_folder(&self, machine: MachineId) -> Result<(), ProcessError> {
        match tokio::fs::remove_dir_all(self.folder(machine)).await {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(ProcessError::Folder(machine, error))
            }
            _ => Ok(()),
        }
    }

    /// Starts `command` as the main process of `machine`. Its output goes to `log`.
    pub(crate) fn start(
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
            // Ctrl-C at core's terminal is for core alone, which ends its machines itself.
            .process_group(0)
            .spawn()?;
        self.children().insert(machine, child);
        Ok(())
    }

    /// Whether the main process of `machine` runs. An earlier process of this core may have started it.
    pub(crate) async fn was_started(&self, machine: MachineId) -> Result<bool, ProcessError> {
        if !self.folder(machine).exists() {
            return Ok(false);
        }
        let found = self.scan().await?;
        Ok(found.get(&machine).is_some_and(|found| found.main.is_some()))
    }

    /// All machines whose main process runs.
    pub(crate) async fn list(&self) -> Result<Vec<Listed>, ProcessError> {
        let found = self.scan().await?;
        let machines = found.iter().filter(|(_, found)| found.main.is_some());
        let live = |machine: &MachineId| Listed { machine: *machine, state: ListedState::Live };
        Ok(machines.map(|(machine, _)| live(machine)).collect())
    }

    /// All processes of this core's machines at this moment.
    pub(crate) async fn scan(&self) -> Result<Arc<ProcessesByMachine>, ProcessError> {
        self.scan_after(Duration::ZERO).await
    }

    /// Scans this host's processes, no sooner than `interval` after the last scan. Callers that wait during a scan
    /// share the next one. The result is never older than the call.
    async fn scan_after(
        &self,
        interval: Duration,
    ) -> Result<Arc<ProcessesByMachine>, ProcessError> {
        let called = Instant::now();
        let mut last = self.scan.lock().await;
        if let Some(scan) = &*last {
            if scan.started >= called {
                return Ok(Arc::clone(&scan.found));
            }
            sleep_until(scan.started + interval).await;
        }
        self.reap();
        let started = Instant::now();
        let (core_id, folder, marker_file) =
            (self.core_id.clone(), self.folder.clone(), self.marker_file);
        let found = spawn_blocking(move || scan(&core_id, &folder, marker_file)).await;
        let found = found.map_err(io::Error::other).flatten().map_err(ProcessError::List)?;
        let found = Arc::new(found);
        *last = Some(Scan { started, found: Arc::clone(&found) });
        Ok(found)
    }

    /// Asks the main process of `machine` to stop.
    pub(crate) async fn request_stop(&self, machine: MachineId) -> Result<(), ProcessError> {
        let pid = self.children().get(&machine).and_then(Child::id);
        match pid.and_then(|pid| i32::try_from(pid).ok()) {
            Some(pid) => {
                let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
                Ok(())
            }
            // An earlier process of core started it, so it is not among the children. The signal goes to all
            // processes of the machine.
            None => self.signal(machine, Signal::SIGTERM).await,
        }
    }

    /// As [`stop`](Self::stop). Then removes the machine's folder.
    pub(crate) async fn end(
        &self,
        machine: MachineId,
        limit: Duration,
    ) -> Result<(), ProcessError> {
        self.stop(machine, limit).await?;
        self.remove_folder(machine).await
    }

    /// Waits until no process of `machine` is left, and kills those that are left after `limit`.
    pub(crate) async fn stop(
        &self,
        machine: MachineId,
        limit: Duration,
    ) -> Result<(), ProcessError> {
        if !self.ends_within(machine, limit).await? {
            warn!(%machine, "a machine did not stop in time and is killed");
            self.signal(machine, Signal::SIGKILL).await?;
            if !self.ends_within(machine, KILL_LIMIT).await? {
                return Err(ProcessError::Unkillable(machine));
            }
        }
        Ok(())
    }

    /// Stops all machines of this core, those that are left after `limit` by SIGKILL.
    pub(crate) async fn stop_all(&self, limit: Duration) -> Result<(), ProcessError> {
        let found = self.scan().await?;
        for machine in found.keys() {
            self.signal(*machine, Signal::SIGTERM).await?;
        }
        let until = Instant::now() + limit;
        for machine in found.keys() {
            self.stop(*machine, until.saturating_duration_since(Instant::now())).await?;
        }
        Ok(())
    }

    /// The machines that have a folder.
    pub(crate) fn with_folder(&self) -> Vec<MachineId> {
        let entries = fs::read_dir(&self.folder).into_iter().flatten().flatten();
        let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
        names.filter_map(|name| name.parse().ok()).collect()
    }

    async fn signal(&self, machine: MachineId, signal: Signal) -> Result<(), ProcessError> {
        let found = self.scan().await?;
        for pid in found.get(&machine).into_iter().flat_map(|found| &found.all) {
            // The process may have ended since the scan.
            let _ = kill(*pid, signal);
        }
        Ok(())
    }

    async fn ends_within(&self, machine: MachineId, limit: Duration) -> Result<bool, ProcessError> {
        let until = Instant::now() + limit;
        loop {
            // A scan is only useful after the end of the main process.
            if self.has_running_child(machine) {
                sleep(POLL).await;
            } else if !self.scan_after(SCAN_INTERVAL).await?.contains_key(&machine) {
                return Ok(true);
            }
            if Instant::now() >= until {
                return Ok(false);
            }
        }
    }

    /// Whether the main process of `machine`, a child of this process, ends within `limit`.
    pub(crate) async fn child_ends_within(&self, machine: MachineId, limit: Duration) -> bool {
        let until = Instant::now() + limit;
        while self.has_running_child(machine) {
            if Instant::now() >= until {
                return false;
            }
            sleep(POLL).await;
        }
        true
    }

    /// Whether the main process of `machine` is a child of this process and runs.
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
                warn!(%machine, error = %ErrorChain(&error), "cannot read the status of a machine's process");
                true
            }
        });
    }

    fn children(&self) -> MutexGuard<'_, HashMap<MachineId, Child>> {
        self.children.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Finds the processes of the machines of core `core_id`, whose folders are below `folder`. Blocks.
fn scan(core_id: &CoreId, folder: &Path, marker_file: &str) -> io::Result<ProcessesByMachine> {
    let mut found = ProcessesByMachine::new();
    for entry in fs::read_dir("/proc")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        // A process that has ended, or that this user cannot read, does not belong to this core.
        let Ok(environment) = fs::read(format!("/proc/{pid}/environ")) else { continue };
        if variable(&environment, CORE_VARIABLE) != Some(core_id.as_str()) {
            continue;
        }
        let machine = variable(&environment, MACHINE_VARIABLE);
        let Some(machine) = machine.and_then(|id| id.parse::<MachineId>().ok()) else { continue };
        let found = found.entry(machine).or_default();
        found.all.push(Pid::from_raw(pid));
        let marker = folder.join(machine.to_string()).join(marker_file);
        let command_line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let mut words = command_line.split(|byte| *byte == 0);
        if words.any(|word| word.ends_with(marker.as_os_str().as_bytes())) {
            found.main = Some(Pid::from_raw(pid));
        }
    }
    Ok(found)
}

/// The value of a variable in the content of `/proc/PID/environ`.
fn variable<'a>(environment: &'a [u8], name: &str) -> Option<&'a str> {
    environment.split(|byte| *byte == 0).find_map(|entry| {
        let value = entry.strip_prefix(name.as_bytes())?.strip_prefix(b"=")?;
        std::str::from_utf8(value).ok()
    })
}

/// Whether a process was not started for want of something that comes back: memory, space, processes, open files.
pub(crate) fn is_lack(error: &io::Error) -> bool {
    use nix::libc::{EAGAIN, EDQUOT, EMFILE, ENFILE, ENOMEM, ENOSPC, ETXTBSY};
    matches!(
        error.raw_os_error(),
        Some(EAGAIN | EDQUOT | EMFILE | ENFILE | ENOMEM | ENOSPC | ETXTBSY)
    )
}

/// Creates an empty file that only this user can read.
pub(crate) fn private_file(path: &Path) -> io::Result<fs::File> {
    fs::OpenOptions::new().create(true).mode(0o600).write(true).truncate(true).open(path)
}

/// Opens a log that only this user can read. Its content stays.
pub(crate) fn private_log(path: &Path) -> io::Result<fs::File> {
    fs::OpenOptions::new().create(true).mode(0o600).append(true).open(path)
}
