//! A process beside the agent that kills the agent's children, and removes the logins of its jobs, if the agent itself is
//! killed.
//!
//! A build that goes on without its agent would push its image over that of the next attempt. The signal of the parent's
//! death (`PR_SET_PDEATHSIG`) reaches only direct children, and `docker` starts the builder as its own child.

use std::io::{self, Read as _};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use stagely_protocol::WireId;

use super::leftovers::kill_children_of;
use crate::job::remove_docker_configs;

/// The command of the program that calls [`guard_children`].
pub const GUARD_COMMAND: &str = "agent-guard";

/// A running guard. It ends, and kills what is left, when the value is dropped or this process ends.
#[derive(Debug)]
pub struct Guard {
    /// Only this process has the other end of its input.
    _child: Child,
}

impl Guard {
    /// Starts this program as the guard of this process, which is the agent of `machine` and works in `work_dir`.
    ///
    /// # Errors
    /// If the program cannot be started.
    pub fn start(machine: &WireId, work_dir: &Path) -> io::Result<Self> {
        // Also if the program was replaced by a newer one meanwhile.
        let mut command = Command::new("/proc/self/exe");
        command.args([GUARD_COMMAND, machine.as_str(), &std::process::id().to_string()]);
        command.arg(work_dir);
        // It is not one of the processes that it looks for, and a signal to the agent's group does not reach it.
        command.env_clear().process_group(0);
        let child = command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn()?;
        Ok(Self { _child: child })
    }
}

/// Waits for the end of standard input, kills the processes that the agent with the process id `agent` started for
/// `machine`, and then removes the logins of its jobs in `work_dir`.
pub fn guard_children(machine: &WireId, agent: u32, work_dir: &Path) {
    // An error ends the input, too.
    let _ = io::stdin().read_to_end(&mut Vec::new());
    kill_children_of(machine, agent);
    remove_docker_configs(work_dir, agent);
}
