//! Kills the processes that a killed agent left behind.

use std::ffi::OsString;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use stagely_protocol::{MACHINE_VARIABLE, WireId};
use sysinfo::{ProcessRefreshKind, ProcessesToUpdate, System, UpdateKind};

/// The environment variable that holds the agent's process id in each of its children.
pub(super) const AGENT_VARIABLE: &str = "STAGELY_AGENT_PROCESS";

/// Kills the child processes of a former agent of `machine` that was killed itself. They carry the machine's id in
/// their environment. This process and its parent carry the id, too, and are left alone.
pub(crate) fn kill_leftovers(machine: &WireId) {
    kill_processes_with(&[variable(MACHINE_VARIABLE, machine.as_str())]);
}

/// Kills the child processes of one agent of `machine`, but not those of an agent that has taken its place.
pub(super) fn kill_children_of(machine: &WireId, agent: u32) {
    let agent = variable(AGENT_VARIABLE, &agent.to_string());
    kill_processes_with(&[variable(MACHINE_VARIABLE, machine.as_str()), agent]);
}

fn variable(name: &str, value: &str) -> OsString {
    format!("{name}={value}").into()
}

fn kill_processes_with(variables: &[OsString]) {
    let mut system = match System::new() {
        Ok(system) => system,
        Err(error) => return tracing::warn!(%error, "cannot list the processes of a former agent"),
    };
    let refresh = ProcessRefreshKind::nothing().with_environ(UpdateKind::Always).without_tasks();
    system.refresh_processes_specifics(ProcessesToUpdate::All, true, refresh);
    for (pid, process) in system.processes() {
        let pid = i32::try_from(pid.as_u32()).map_or(Pid::this(), Pid::from_raw);
        let has_all = variables.iter().all(|entry| process.environ().contains(entry));
        if has_all && pid != Pid::this() && pid != Pid::parent() {
            tracing::info!(%pid, "killing a process of a former agent");
            // A process that has just ended is no error.
            let _ = kill(pid, Signal::SIGKILL);
        }
    }
}
