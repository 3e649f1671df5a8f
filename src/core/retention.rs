//! Forgets what is older than the configuration keeps, in small steps.

use std::time::Duration;

use anyhow::Context as _;
use tokio::time::interval;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::logs::LogStore;
use super::orchestrator::{Events, now};
use super::records::SharedRecords;
use super::state::{Event, MachineState};
use crate::config::RetentionConfig;
use crate::ids::{JobId, MachineId, RunId};

/// Between two looks.
const INTERVAL: Duration = Duration::from_mins(10);

/// Records that go in one step: a transaction of milliseconds, between which core does its work.
const STEP: usize = 100;

/// The forgetting task.
pub(super) struct Retention {
    pub(super) config: RetentionConfig,
    pub(super) records: SharedRecords,
    pub(super) events: Events,
    pub(super) logs: LogStore,
}

impl Retention {
    /// Forgets until `stop` fires.
    pub(super) async fn run(self, stop: CancellationToken) {
        let mut ticks = interval(INTERVAL);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = ticks.tick() => {}
            }
            loop {
                match self.step().await {
                    Ok(0) => break,
                    Ok(count) => info!(count, "old records are forgotten"),
                    Err(error) => {
                        warn!(error = format!("{error:#}"), "old records cannot be forgotten");
                        break;
                    }
                }
                if stop.is_cancelled() {
                    return;
                }
            }
        }
    }

    /// Forgets some; returns how many.
    async fn step(&self) -> anyhow::Result<usize> {
        let (runs, jobs, machines) = self.old();
        let count = runs.len() + machines.len();
        if count > 0 {
            // Logs first: a crash in between leaves runs without logs, never logs without a run.
            self.logs.forget(&jobs).await.context("delete logs")?;
            self.events.store(Event::Forgotten { runs, machines }).await?;
        }
        Ok(count)
    }

    fn old(&self) -> (Vec<RunId>, Vec<JobId>, Vec<MachineId>) {
        let now = now();
        let records = self.records.read();
        let is_old = |ended: Option<super::state::Timestamp>, keep: Duration| {
            ended.is_some_and(|ended| now.since(ended) > keep)
        };
        // A run goes with its jobs when its machines are gone too, so that no record is left hanging.
        let runs: Vec<RunId> = records
            .runs
            .values()
            .filter(|run| run.state.is_final() && is_old(run.ended_at, self.config.runs))
            .map(|run| run.id)
            .take(STEP)
            .collect();
        let jobs = runs.iter().flat_map(|run| records.jobs_of(*run)).map(|job| job.id).collect();
        let machines = records
            .machines
            .values()
            .filter(|machine| machine.state == MachineState::Terminated)
            .filter(|machine| is_old(machine.terminated_at, self.config.machines))
            .map(|machine| machine.id)
            .take(STEP)
            .collect();
        (runs, jobs, machines)
    }
}
