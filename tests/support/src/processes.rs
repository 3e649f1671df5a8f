//! Processes of this host: a test's own ones, and those that others have left behind.

use std::fs;
use std::process::{Child, ExitStatus};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::wait::eventually;

/// A process that a test has started. Dropping the value kills it.
#[derive(Debug)]
pub struct ChildProcess(Child);

impl ChildProcess {
    pub fn new(child: Child) -> Self {
        Self(child)
    }

    pub fn id(&self) -> u32 {
        self.0.id()
    }

    /// Its exit status, if it has ended.
    pub fn status(&mut self) -> Option<ExitStatus> {
        self.0.try_wait().unwrap()
    }

    pub fn is_running(&mut self) -> bool {
        self.status().is_none()
    }

    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(self.id()).unwrap()), signal).unwrap();
    }

    /// Kills the process as a power cut would.
    pub fn kill(&mut self) {
        // The process may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }

    /// Stops the process as a service manager does.
    pub async fn stop(mut self) -> ExitStatus {
        self.signal(Signal::SIGTERM);
        self.ended().await
    }

    pub async fn ended(&mut self) -> ExitStatus {
        eventually("the process ends", async || self.status()).await
    }
}

impl Drop for ChildProcess {
    fn drop(&mut self) {
        self.kill();
    }
}

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
        // The process may have just ended.
        let _ = kill(self.pid, Signal::SIGKILL);
    }
}

/// All processes except zombies.
pub fn processes() -> Vec<Process> {
    let entries = fs::read_dir("/proc").unwrap().map(|entry| entry.unwrap().file_name());
    let pids = entries.filter_map(|name| name.to_str()?.parse().ok());
    pids.filter_map(Process::read).filter(|process| !process.arguments.is_empty()).collect()
}

/// The other processes with `text` in their arguments or their environment.
pub fn processes_with(text: &str) -> Vec<Process> {
    let mut found = processes();
    found.retain(|process| {
        let mut words = process.arguments.iter().chain(&process.environment);
        process.pid != Pid::this() && words.any(|word| word.contains(text))
    });
    found
}
