//! Breakpoints in builds: a build waits there for the test.

use crate::processes::{Process, processes};
use crate::wait::eventually;

/// Stops builds: a `RUN` with [`command`](Self::command) goes on when the test resumes it.
///
/// The command is a `sleep` of many years. The test finds its process on the host when a build has reached it,
/// and ends it there.
pub struct Breakpoint {
    seconds: String,
}

impl Default for Breakpoint {
    fn default() -> Self {
        Self { seconds: rand::random_range(100_000_000..1_000_000_000_u32).to_string() }
    }
}

impl Breakpoint {
    pub fn new() -> Self {
        Self::default()
    }

    /// A shell command that succeeds when the test resumes it.
    pub fn command(&self) -> String {
        // With its path, because a `sleep` that is built into the shell has no process of its own.
        format!("{{ /bin/sleep {} || true; }}", self.seconds)
    }

    fn waiting(&self) -> Vec<Process> {
        let mut all = processes();
        all.retain(|process| process.arguments.contains(&self.seconds));
        all
    }

    /// Waits until `count` builds wait here.
    pub async fn reached_by(&self, count: usize) {
        let what = format!("{count} builds reach {}", self.command());
        eventually(&what, async || (self.waiting().len() == count).then_some(())).await;
    }

    pub async fn reached(&self) {
        self.reached_by(1).await;
    }

    /// Resumes the builds that wait here.
    pub fn resume(&self) {
        let waiting = self.waiting();
        assert!(!waiting.is_empty(), "no build waits at {}", self.command());
        waiting.iter().for_each(Process::kill);
    }

    /// Ends the waiting steps of an engine that is gone.
    pub async fn clear(&self) {
        self.waiting().iter().for_each(Process::kill);
        self.deserted().await;
    }

    /// Waits until no build waits here.
    pub async fn deserted(&self) {
        eventually("no build waits at the breakpoint", async || {
            self.waiting().is_empty().then_some(())
        })
        .await;
    }
}
