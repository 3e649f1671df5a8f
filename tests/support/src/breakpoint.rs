//! Gates: places in a build where it waits for the test.

use crate::processes::{Process, processes};
use crate::wait::eventually;

/// Holds builds: a `RUN` with [`command`](Self::command) goes on when the test opens the gate.
///
/// The command is a `sleep` of many years. The test finds its process on the host when a build has come to it,
/// and ends it there.
pub struct Gate {
    seconds: String,
}

impl Default for Gate {
    fn default() -> Self {
        Self { seconds: rand::random_range(100_000_000..1_000_000_000_u32).to_string() }
    }
}

impl Gate {
    pub fn new() -> Self {
        Self::default()
    }

    /// A shell command that succeeds once the gate is opened.
    pub fn command(&self) -> String {
        // By its path: the sleep that some shells have built in is no process of its own.
        format!("{{ /bin/sleep {} || true; }}", self.seconds)
    }

    fn waiting(&self) -> Vec<Process> {
        let mut all = processes();
        all.retain(|process| process.arguments.contains(&self.seconds));
        all
    }

    /// Waits until `count` builds stand at the gate.
    pub async fn reached_by(&self, count: usize) {
        let what = format!("{count} builds come to {}", self.command());
        eventually(&what, async || (self.waiting().len() == count).then_some(())).await;
    }

    pub async fn reached(&self) {
        self.reached_by(1).await;
    }

    /// Lets the builds go on that stand at the gate.
    pub fn open(&self) {
        let waiting = self.waiting();
        assert!(!waiting.is_empty(), "nobody stands at {}", self.command());
        waiting.iter().for_each(Process::kill);
    }

    /// Ends what stands at the gate and will never go on: its engine is gone.
    pub async fn clear(&self) {
        self.waiting().iter().for_each(Process::kill);
        self.deserted().await;
    }

    /// Waits until nothing is left of the builds that stood at the gate.
    pub async fn deserted(&self) {
        eventually("nothing stands at the gate", async || self.waiting().is_empty().then_some(()))
            .await;
    }
}
