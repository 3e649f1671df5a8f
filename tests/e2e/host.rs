//! This host's processes: gates that hold builds, and what is left behind.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::time::{Instant, sleep};

/// No event that a test waits for takes this long, however busy the machine is.
pub(crate) const LIMIT: Duration = Duration::from_mins(3);

/// How often a test looks.
pub(crate) const POLL: Duration = Duration::from_millis(50);

/// Waits until `look` finds something; `what` says what for.
pub(crate) async fn eventually<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(started.elapsed() < LIMIT, "in vain: {what}");
        sleep(POLL).await;
    }
}

/// A process of this host.
pub(crate) struct Process {
    pub(crate) pid: Pid,
    pub(crate) arguments: Vec<String>,
    pub(crate) environment: Vec<String>,
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

    pub(crate) fn kill(&self) {
        // One that has just ended cannot be killed again.
        let _ = kill(self.pid, Signal::SIGKILL);
    }
}

/// All processes that are no zombies.
pub(crate) fn processes() -> Vec<Process> {
    let entries = fs::read_dir("/proc").unwrap().map(|entry| entry.unwrap().file_name());
    let pids = entries.filter_map(|name| name.to_str()?.parse().ok());
    pids.filter_map(Process::read).filter(|process| !process.arguments.is_empty()).collect()
}

/// Processes that have `text` in their arguments or their environment, this one apart.
pub(crate) fn processes_with(text: &str) -> Vec<Process> {
    let mut found = processes();
    found.retain(|process| {
        let mut words = process.arguments.iter().chain(&process.environment);
        process.pid != Pid::this() && words.any(|word| word.contains(text))
    });
    found
}

/// Holds builds: a `RUN` with [`command`](Self::command) goes on when the test opens the gate.
///
/// The command is a `sleep` that nobody wants to end by itself; it shows on the host when a build
/// has come to it, and the test ends it from there.
pub(crate) struct Gate {
    seconds: String,
}

impl Gate {
    pub(crate) fn new() -> Self {
        Self { seconds: rand::random_range(100_000_000..1_000_000_000_u32).to_string() }
    }

    /// A shell command that succeeds once the gate is opened.
    pub(crate) fn command(&self) -> String {
        // By its path: the sleep that some shells have built in is no process of its own.
        format!("{{ /bin/sleep {} || true; }}", self.seconds)
    }

    fn waiting(&self) -> Vec<Process> {
        let mut all = processes();
        all.retain(|process| process.arguments.contains(&self.seconds));
        all
    }

    /// Waits until `count` builds stand at the gate.
    pub(crate) async fn reached_by(&self, count: usize) {
        let what = format!("{count} builds come to {}", self.command());
        eventually(&what, async || (self.waiting().len() == count).then_some(())).await;
    }

    pub(crate) async fn reached(&self) {
        self.reached_by(1).await;
    }

    /// Lets the builds go on that stand at the gate.
    pub(crate) fn open(&self) {
        let waiting = self.waiting();
        assert!(!waiting.is_empty(), "nobody stands at {}", self.command());
        waiting.iter().for_each(Process::kill);
    }

    /// Ends what stands at the gate and will never go on: its engine is gone.
    pub(crate) async fn clear(&self) {
        self.waiting().iter().for_each(Process::kill);
        self.deserted().await;
    }

    /// Waits until nothing is left of the builds that stood at the gate.
    pub(crate) async fn deserted(&self) {
        eventually("nothing stands at the gate", async || self.waiting().is_empty().then_some(()))
            .await;
    }
}

/// Everything below `folder` that is not a folder.
pub(crate) fn files_below(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let paths = entries.map(|entry| entry.unwrap().path());
    paths.flat_map(|path| if path.is_dir() { files_below(&path) } else { vec![path] }).collect()
}
