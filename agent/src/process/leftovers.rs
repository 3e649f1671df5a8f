//! Kills the processes that a killed agent left behind.

use std::ffi::OsString;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use stagely_protocol::{MACHINE_VARIABLE, WireId};
use sysinfo::{ProcessRefreshKind, ProcessesToUpdate, System, UpdateKind};

/// Kills the child processes of a former agent of `machine` that was killed itself. They carry the machine's id in
/// their environment. This process and its parent carry the id, too, and are left alone.
pub(crate) fn kill_leftovers(machine: &WireId) {
    let entry = OsString::from(format!("{MACHINE_VARIABLE}={machine}"));
    let mut system = match System::new() {
        Ok(system) => system,
        Err(error) => return tracing::warn!(%error, "cannot list the processes of a former agent"),
    };
    let refresh = ProcessRefreshKind::nothing().with_environ(UpdateKind::Always).without_tasks();
    system.refresh_processes_specifics(ProcessesToUpdate::All, true, refresh);
    for (pid, process) in system.processes() {
        let pid = i32::try_from(pid.as_u32()).map_or(Pid::this(), Pid::from_raw);
        if process.environ().contains(&entry) && pid != Pid::this() && pid != Pid::parent() {
            tracing::info!(%pid, "killing a process of a former agent");
            // A process that has just ended is no error.
            let _ = kill(pid, Signal::SIGKILL);
        }
    }
}
