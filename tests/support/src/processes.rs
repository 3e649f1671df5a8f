//! Processes of this host: those that a test starts, and those that something else has left behind.

use std::fs;
use std::process::{Child, ExitStatus};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::wait::eventually;

/// A process that a test has started. It is killed with the value.
#[derive(Debug)]
pub struct ChildProcess(Child);

impl ChildProcess {
    pub fn new(child: Child) -> Self {
        Self(child)
    }

    pub fn id(&self) -> u32 {
        self.0.id()
    }

    /// How it ended, if it has.
    pub fn status(&mut self) -> Option<ExitStatus> {
        self.0.try_wait().unwrap()
    }

    pub fn is_running(&mut self) -> bool {
        self.status().is_none()
    }

    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(self.id()).unwrap()), signal).unwrap();
    }

    /// Kills it as a power cut would.
    pub fn kill(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }

    /// Asks it to end, as a service manager does.
    pub async fn stop(mut self) -> ExitStatus {
        self.signal(Signal::SIGTERM);
        self.ended().await
    }

    /// Waits until it ends.
    pub async fn ended(&mut self) -> ExitStatus {
        eventually("the process ends", async || self.status()).await
    }
}

impl Drop for ChildProcess {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A process of this host.
#[derive(Debug)]
pub struct Process {
    pub pid: Pid,
    pub arguments: Vec<String>,
    pub environment: Vec<String>,
}

impl Process {
    fn read(pid: i32) -> Option<Self> {
        let words = |file: &str| -> Option<Vec<String>> {
            let bytes = fs::read(format!("/proc/{pid}/{file}")).ok()?;
            let words = bytes.split(|byte| *byte == 0).filter(|word| !word.is_empty());
            Some(words.map(|word| String::from_utf8_lossy(word).into_owned()).collect())
        };
        let (arguments, environment) = (words("cmdline")?, words("environ")?);
        Some(Self { pid: Pid::from_raw(pid), arguments, environment })
    }

    pub fn kill(&self) {
        // One that has just ended cannot be killed again.
        let _ = kill(self.pid, Signal::SIGKILL);
    }
}

/// All processes that are no zombies.
pub fn processes() -> Vec<Process> {
    let entries = fs::read_dir("/proc").unwrap().map(|entry| entry.unwrap().file_name());
    let pids = entries.filter_map(|name| name.to_str()?.parse().ok());
    pids.filter_map(Process::read).filter(|process| !process.arguments.is_empty()).collect()
}

/// Processes that have `text` in their arguments or their environment, this one apart.
pub fn processes_with(text: &str) -> Vec<Process> {
    let mut found = processes();
    found.retain(|process| {
        let mut words = process.arguments.iter().chain(&process.environment);
        process.pid != Pid::this() && words.any(|word| word.contains(text))
    });
    found
}
