//! Deletes records that are older than the configured retention, in small steps.

use std::time::Duration;

use anyhow::Context as _;
use stagely_protocol::ErrorChain;
use stagely_state::ids::{JobId, MachineId};
use stagely_state::{DeliveryId, EndedRun, Event, Run, Timestamp};
use tokio::task::spawn_blocking;
use tokio::time::interval;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::clock::now;
use super::logs::{LogError, LogStore};
use super::orchestrator::Events;
use super::records::{Records, SharedRecords};
use super::store::{Store, StoreError};
use crate::config::RetentionConfig;

/// The time between two searches for old records.
const INTERVAL: Duration = Duration::from_mins(10);

/// Most records that one step deletes, which is a transaction of milliseconds.
const STEP_RECORDS_MAX: usize = 100;

/// The retention of deliveries. GitHub repeats those of the last three days.
const DELIVERIES_KEPT: Duration = Duration::from_hours(7 * 24);

/// The records of one step.
struct OldRecords {
    runs: Vec<EndedRun>,
    machines: Vec<MachineId>,
    deliveries: Vec<DeliveryId>,
}

/// Deletes old records and their logs.
pub(super) struct Retention {
    config: RetentionConfig,
    records: SharedRecords,
    store: Store,
    events: Events,
    logs: LogStore,
}

impl Retention {
    pub(super) fn new(
        config: &RetentionConfig,
        records: &SharedRecords,
        store: Store,
        events: &Events,
        logs: LogStore,
    ) -> Self {
        let (config, records, events) = (config.clone(), records.clone(), events.clone());
        Self { config, records, store, events, logs }
    }

    /// Deletes old records until `stop` fires.
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
            if let Err(error) = self.forget_service_logs().await {
                warn!(error = %ErrorChain(&error), "the logs of previews cannot be forgotten");
            }
        }
    }

    /// Deletes the logs of previews that are forgotten.
    async fn forget_service_logs(&self) -> Result<(), LogError> {
        for preview in self.logs.logged_previews().await? {
            if !self.records.read().previews.contains_key(&preview) {
                self.logs.forget_services(preview, u64::MAX).await?;
            }
        }
        Ok(())
    }

    /// Deletes the records of one step, and returns their number. A machine's record may outlast that of its job, and
    /// the other way round, because ended records do not need each other.
    async fn step(&self) -> anyhow::Result<usize> {
        let OldRecords { runs, machines, deliveries } = self.old().await?;
        let count = runs.len() + machines.len() + deliveries.len();
        if count > 0 {
            let jobs = runs.iter().flat_map(|ended| &ended.jobs).map(|job| job.id);
            let jobs: Vec<JobId> = jobs.collect();
            // Logs first, so that a crash in between leaves runs without logs and never logs without a run.
            self.logs.forget(&jobs).await.context("delete logs")?;
            let runs = runs.into_iter().map(|ended| ended.run.id).collect();
            self.events.store(Event::Forgotten { runs, machines, deliveries }).await?;
        }
        Ok(count)
    }

    /// Records that something still refers to are not old.
    async fn old(&self) -> anyhow::Result<OldRecords> {
        let (store, records, config) =
            (self.store.clone(), self.records.clone(), self.config.clone());
        let read = move || {
            let now = now();
            let is_old = |ended: Option<Timestamp>, keep: Duration| {
                ended.is_some_and(|ended| now.since(ended) > keep)
            };
            // What ended before that was requested before that, too.
            let before = |keep: Duration| now.before(keep);
            let runs = store.old_runs(before(config.runs), STEP_RECORDS_MAX, |run| {
                is_old(run.ended_at, config.runs) && !is_of_open_pull_request(&records.read(), run)
            })?;
            let machines =
                store.old_machines(before(config.machines), STEP_RECORDS_MAX, |machine| {
                    is_old(machine.terminated_at, config.machines)
                })?;
            let deliveries = (records.read().deliveries.iter())
                .filter(|(_, came_at)| now.since(**came_at) > DELIVERIES_KEPT)
                .map(|(delivery, _)| *delivery)
                .take(STEP_RECORDS_MAX)
                .collect();
            Ok::<_, StoreError>(OldRecords { runs, machines, deliveries })
        };
        Ok(spawn_blocking(read).await??)
    }
}

/// Whether the run is the newest of a pull request that GitHub has not closed: without its record the next
/// comparison with GitHub would find the pull request anew, and build it.
fn is_of_open_pull_request(records: &Records, run: &Run) -> bool {
    records.environments.get(&run.environment).is_some_and(|environment| {
        let is_at_github = environment.pull_request.is_some() && environment.head.is_some();
        is_at_github
            && !environment.state.is_closed_by_github()
            && environment.newest_run == Some(run.id)
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use stagely_protocol::{LogLine, Stream};
    use stagely_state::ids::{EnvironmentId, ProjectId, RunId};
    use stagely_state::{
        Attempt, ClosedBy, Environment, EnvironmentState, Head, Job, JobState, Machine,
        MachineState, RunState, Snapshot, State,
    };
    use tempfile::TempDir;

    use super::*;
    use crate::config::Config;
    use crate::core::fixtures::{self, RunningOrchestrator};
    use crate::core::logs::LogSettings;
    use crate::core::store::{Batch, RecordTable, Store};

    /// An environment with old runs only, and one with newer runs too.
    const BRANCH_OF_OLD: EnvironmentId = EnvironmentId::from_bits(1);
    const BRANCH_OF_ALL: EnvironmentId = EnvironmentId::from_bits(2);

    const DAY: Duration = Duration::from_hours(24);

    fn ago(days: u32) -> Timestamp {
        Timestamp(now().0 - u64::try_from((DAY * days).as_millis()).unwrap())
    }

    fn run(number: u128, state: RunState, ended_at: Option<Timestamp>) -> Run {
        let environment = if number <= 100 { BRANCH_OF_OLD } else { BRANCH_OF_ALL };
        let environment = Environment::new(environment, ProjectId::from_bits(1), String::new());
        let id = RunId::from_bits(number);
        Run { state, ended_at, ..Run::new(id, &environment, String::new(), ago(100)) }
    }

    fn job(run: &Run) -> Job {
        let state = match run.state {
            RunState::Building => JobState::Queued { attempt: 1 },
            _ => JobState::Cancelled,
        };
        let job = fixtures::job(run.id.bits(), run.id.bits(), "app", "linux/amd64");
        Job { state, ended_at: run.ended_at, ..job }
    }

    fn machine(number: u128, terminated_at: Option<Timestamp>) -> Machine {
        let state = terminated_at.map_or(MachineState::Ready, |_| MachineState::Terminated);
        Machine { state, terminated_at, ..fixtures::machine(number) }
    }

    /// A core with only its orchestrator.
    struct Core {
        folder: TempDir,
        retention: Retention,
        stop: CancellationToken,
        orchestrator: tokio::task::JoinHandle<anyhow::Result<()>>,
    }

    impl Core {
        fn start(runs: Vec<Run>, machines: Vec<Machine>) -> Self {
            let folder = tempfile::tempdir().unwrap();
            let (store, _) = Store::open(&folder.path().join("core.redb")).unwrap();
            let jobs: Vec<Job> = runs.iter().map(job).collect();
            let project = ProjectId::from_bits(1);
            let environments = [BRANCH_OF_OLD, BRANCH_OF_ALL]
                .map(|id| (id, Environment::new(id, project, id.to_string())));
            let mut batch = Batch::default();
            for (id, environment) in &environments {
                batch.record(RecordTable::Environments, id.bits(), Some(environment));
            }
            for run in &runs {
                batch.record(RecordTable::Runs, run.id.bits(), Some(run));
            }
            for job in &jobs {
                batch.record(RecordTable::Jobs, job.id.bits(), Some(job));
            }
            for machine in &machines {
                batch.record(RecordTable::Machines, machine.id.bits(), Some(machine));
            }
            store.commit(&batch).unwrap();
            let mut config = Config::default();
            config.builders.provider = None;
            let state = State::load(
                config.limits(),
                Snapshot {
                    environments: environments.into(),
                    runs: runs.into_iter().map(|run| (run.id, run)).collect(),
                    jobs: jobs.into_iter().map(|job| (job.id, job)).collect(),
                    machines: machines.into_iter().map(|machine| (machine.id, machine)).collect(),
                    ..Snapshot::default()
                },
            );
            Self::with(folder, &config, store, state)
        }

        fn with(folder: TempDir, config: &Config, store: Store, state: State) -> Self {
            let settings = LogSettings {
                job_bytes_max: 1 << 20,
                cache_bytes: 1 << 20,
                disk_free_min_bytes: 0,
            };
            let logs = LogStore::open(&folder.path().join("logs.redb"), settings).unwrap();
            let RunningOrchestrator { records, events, stop, task, .. } =
                fixtures::start_orchestrator(folder.path(), config.clone(), store.clone(), state);
            let retention = Retention::new(&config.retention, &records, store, &events, logs);
            Self { folder, retention, stop, orchestrator: task }
        }

        /// Waits until the orchestrator has put the ended records away.
        async fn ready(&self) {
            self.retention.events.store(Event::Tick).await.unwrap();
        }

        async fn log(&self, job: JobId) {
            let lines = [LogLine { t: 0, stream: Stream::Stdout, data: "a line".into() }];
            let mut receipt =
                self.retention.logs.append(Attempt { job, number: 1 }, None, &lines).await.unwrap();
            receipt.stored().await.unwrap();
        }

        /// Stops core and returns the stored records.
        async fn stop(self) -> Snapshot {
            self.stop.cancel();
            self.orchestrator.await.unwrap().unwrap();
            drop(self.retention);
            let (store, stored) = Store::open(&self.folder.path().join("core.redb")).unwrap();
            let mut state = stored.state;
            for ended in store.newest_ended_runs(None, usize::MAX).unwrap() {
                state.jobs.extend(ended.jobs.into_iter().map(|job| (job.id, job)));
                state.runs.insert(ended.run.id, ended.run);
            }
            let machines = store.newest_ended_machines(usize::MAX).unwrap();
            state.machines.extend(machines.into_iter().map(|machine| (machine.id, machine)));
            state
        }
    }

    #[tokio::test]
    async fn old_records_and_their_logs_are_deleted_in_steps_and_nothing_else_is() {
        let old: Vec<Run> =
            (1..=250).map(|number| run(number, RunState::Completed, Some(ago(91)))).collect();
        let recent = run(1_000, RunState::Completed, Some(ago(89)));
        let open = run(1_001, RunState::Building, None);
        let (old_job, recent_job) = (job(&old[7]).id, job(&recent).id);
        let kept = [recent.id, open.id];
        let runs = old.into_iter().chain([recent, open]).collect();
        let machines = vec![machine(1, Some(ago(91))), machine(2, Some(ago(1))), machine(3, None)];
        let core = Core::start(runs, machines);
        core.ready().await;
        core.log(old_job).await;
        core.log(recent_job).await;

        let mut steps = Vec::new();
        while let count @ 1.. = core.retention.step().await.unwrap() {
            steps.push(count);
        }

        assert_eq!(steps, [101, 100, 50], "100 runs a step, and the machine with the first");
        assert_eq!(
            core.retention.logs.next_line(Attempt { job: old_job, number: 1 }).await.unwrap(),
            0
        );
        assert_eq!(
            core.retention.logs.next_line(Attempt { job: recent_job, number: 1 }).await.unwrap(),
            1
        );
        let disk = core.stop().await;
        let ids = |map: &BTreeMap<RunId, Run>| map.keys().copied().collect::<Vec<_>>();
        assert_eq!(ids(&disk.runs), kept);
        assert_eq!(disk.jobs.values().map(|job| job.run).collect::<Vec<_>>(), kept);
        let environments: Vec<EnvironmentId> = disk.environments.into_keys().collect();
        assert_eq!(environments, [BRANCH_OF_ALL], "one goes with its last run");
        let machines: Vec<MachineId> = disk.machines.into_keys().collect();
        assert_eq!(machines, [MachineId::from_bits(2), MachineId::from_bits(3)]);
    }

    #[tokio::test]
    async fn the_newest_run_of_a_pull_request_stays_until_github_has_closed_it() {
        let open = |number: u128| {
            let id = EnvironmentId::from_bits(number);
            let mut open = Environment::new(id, ProjectId::from_bits(1), id.to_string());
            (open.pull_request, open.newest_run) = (Some(7), Some(RunId::from_bits(number)));
            let commit = "a".repeat(40).parse().unwrap();
            open.head = Some(Head { commit, before: None, at: ago(99), is_first: true });
            open
        };
        let environments = [
            open(1),
            Environment { state: EnvironmentState::closed(ClosedBy::Request), ..open(2) },
            Environment { state: EnvironmentState::closed(ClosedBy::Github), ..open(3) },
            Environment { newest_run: None, ..open(4) },
            Environment { pull_request: None, ..open(5) },
            Environment { head: None, ..open(6) },
        ];
        let old = |environment: &Environment| {
            let id = RunId::from_bits(environment.id.bits());
            let run = Run::new(id, environment, String::new(), ago(100));
            (id, Run { state: RunState::Completed, ended_at: Some(ago(91)), ..run })
        };
        let runs = environments.iter().map(old).collect();
        let environments = environments.into_iter().map(|found| (found.id, found)).collect();
        let (folder, mut config) = (tempfile::tempdir().unwrap(), Config::default());
        config.builders.provider = None;
        let (store, _) = Store::open(&folder.path().join("core.redb")).unwrap();
        let snapshot = Snapshot { environments, runs, ..Snapshot::default() };
        let state = State::load(config.limits(), snapshot);
        let core = Core::with(folder, &config, store, state);

        core.ready().await;
        let old = core.retention.old().await.unwrap().runs;
        let old: Vec<RunId> = old.iter().map(|ended| ended.run.id).collect();

        assert_eq!(old, [3, 4, 5, 6].map(RunId::from_bits), "2 would be open again");
        core.stop().await;
    }
}
