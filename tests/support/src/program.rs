//! The program under test. A test program passes the path: `env!("CARGO_BIN_EXE_stagely")`.

use std::fs::File;
use std::process::{Command, Stdio};

use crate::processes::ChildProcess;

/// A command for `program` without the settings of Stagely in this process's environment.
pub fn command(program: &str) -> Command {
    let mut command = Command::new(program);
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("STAGELY_")) {
        command.env_remove(name);
    }
    command
}

/// Starts `command` without input. Its output goes to `log`.
pub fn start(command: &mut Command, log: File) -> ChildProcess {
    let child = command
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"));
    ChildProcess::new(child)
}
