//! Ended runs and machines for readers: from memory if something there still refers to them, otherwise from the store.

use std::collections::{BTreeMap, BTreeSet};

use stagely_protocol::Step;
use stagely_state::ids::{EnvironmentId, JobId, MachineId, RunId};
use stagely_state::{Ended, EndedRun, Job, Machine, Missing, Run};
use tokio::task::spawn_blocking;

use super::records::{Records, SharedRecords, TWIN_RUNS_MAX};
use super::store::{Store, StoreError};

/// The records of core, ended or not. Clones share them.
#[derive(Clone, Debug)]
pub(crate) struct History {
    records: SharedRecords,
    store: Store,
}

impl History {
    pub(crate) const fn new(records: SharedRecords, store: Store) -> Self {
        Self { records, store }
    }

    /// Applies `read` to a run and to records that hold at least this run, its jobs, its project and its environment.
    /// `None` if there is no such run.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn with_run<T>(
        &self,
        id: RunId,
        read: impl FnOnce(&Records, &Run) -> T + Send,
    ) -> Result<Option<T>, StoreError> {
        {
            let records = self.records.read();
            if let Some(run) = records.runs.get(&id) {
                return Ok(Some(read(&records, run)));
            }
        }
        let missing = Missing { runs: BTreeSet::from([id]), ..Missing::default() };
        let ended = self.ended_records(missing).await?;
        // An event may have needed it meanwhile.
        let records = self.records.read();
        let found = [&ended, &*records]
            .into_iter()
            .find_map(|records| Some((records, records.runs.get(&id)?)));
        Ok(found.map(|(records, run)| read(records, run)))
    }

    /// The newest run of an environment; `None` if it has none, or is not there.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn newest_run_of(&self, id: EnvironmentId) -> Result<Option<Run>, StoreError> {
        let newest = self.records.read().environments.get(&id).and_then(|found| found.newest_run);
        let Some(newest) = newest else { return Ok(None) };
        self.with_run(newest, |_, run| run.clone()).await
    }

    /// As [`with_run`](Self::with_run), for a job.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn with_job<T>(
        &self,
        id: JobId,
        read: impl FnOnce(&Records, &Job) -> T + Send,
    ) -> Result<Option<T>, StoreError> {
        {
            let records = self.records.read();
            if let Some(job) = records.jobs.get(&id) {
                return Ok(Some(read(&records, job)));
            }
        }
        let missing = Missing { jobs: BTreeSet::from([id]), ..Missing::default() };
        let ended = self.ended_records(missing).await?;
        let records = self.records.read();
        let found = [&ended, &*records]
            .into_iter()
            .find_map(|records| Some((records, records.jobs.get(&id)?)));
        Ok(found.map(|(records, job)| read(records, job)))
    }

    /// The records of ended runs, with the earlier runs in which emulated jobs look for a native build.
    async fn ended_records(&self, missing: Missing) -> Result<Records, StoreError> {
        let read = move |store: &Store| {
            let mut ended = store.ended(&missing)?;
            let emulated =
                ended.runs.iter().find(|ended| ended.jobs.iter().any(|job| job.emulated));
            if let Some(run) = emulated.map(|ended| ended.run.clone()) {
                ended.runs.extend(store.ended_runs_of(run.project, run.id, TWIN_RUNS_MAX)?);
            }
            Ok(ended)
        };
        let Ended { runs, .. } = self.read(read).await?;
        Ok(self.records.read().with_ended(runs))
    }

    /// The newest runs before `before`, the newest first, each applied to `read`.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn newest_runs<T>(
        &self,
        before: Option<RunId>,
        limit: usize,
        read: impl Fn(&Records, &Run) -> T + Send,
    ) -> Result<Vec<T>, StoreError> {
        let end = before.unwrap_or(RunId::from_bits(u128::MAX));
        let mut open: BTreeSet<RunId> = self.records.read().runs.keys().copied().collect();
        let mut ended = self.read(move |store| store.newest_ended_runs(before, limit)).await?;
        loop {
            let left: BTreeSet<RunId> = {
                let records = self.records.read();
                let left = open.iter().filter(|run| !records.runs.contains_key(run)).copied();
                let left: BTreeSet<RunId> = left.collect();
                if left.is_empty() {
                    let ended = records.with_ended(ended);
                    let all = [&ended, &*records].into_iter().flat_map(|records| {
                        let older = records.runs.range(..end).rev().take(limit);
                        older.map(move |(id, run)| (*id, (records, run)))
                    });
                    // A run that is in both counts as it is in memory.
                    let runs: BTreeMap<RunId, (&Records, &Run)> = all.collect();
                    let newest = runs.into_values().rev().take(limit);
                    return Ok(newest.map(|(records, run)| read(records, run)).collect());
                }
                left
            };
            // They have left the memory since the store was read.
            open.retain(|run| !left.contains(run));
            let missing = Missing { runs: left, ..Missing::default() };
            ended.extend(self.read(move |store| store.ended(&missing)).await?.runs);
        }
    }

    /// All live machines and at most `limit` ended ones, the oldest first.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn machines(&self, limit: usize) -> Result<Vec<Machine>, StoreError> {
        let mut live: BTreeSet<MachineId> = self.records.read().machines.keys().copied().collect();
        let mut ended = self.read(move |store| store.newest_ended_machines(limit)).await?;
        loop {
            let left: BTreeSet<MachineId> = {
                let records = self.records.read();
                let left = live.iter().filter(|id| !records.machines.contains_key(id)).copied();
                let left: BTreeSet<MachineId> = left.collect();
                if left.is_empty() {
                    let mut machines: BTreeMap<MachineId, Machine> =
                        ended.into_iter().map(|machine| (machine.id, machine)).collect();
                    let live = records.machines.iter();
                    machines.extend(live.map(|(id, machine)| (*id, machine.clone())));
                    return Ok(machines.into_values().collect());
                }
                left
            };
            live.retain(|machine| !left.contains(machine));
            ended.extend(self.ended_machines(left).await?);
        }
    }

    /// Those of `machines` that have ended and left the memory.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn ended_machines(
        &self,
        machines: BTreeSet<MachineId>,
    ) -> Result<Vec<Machine>, StoreError> {
        let missing = Missing { machines, ..Missing::default() };
        Ok(self.read(move |store| store.ended(&missing)).await?.machines)
    }

    /// The steps of the native build with which an emulated job is compared, if that is of an earlier run.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn earlier_native_steps(&self, id: JobId) -> Result<Vec<Step>, StoreError> {
        let (job, run) = {
            let records = self.records.read();
            let job = records.jobs.get(&id).filter(|job| job.emulated);
            let Some(job) = job.filter(|job| records.native_twin(job).is_none()) else {
                return Ok(Vec::new());
            };
            let Some(run) = records.runs.get(&job.run) else { return Ok(Vec::new()) };
            (job.clone(), run.clone())
        };
        let (project, before) = (run.project, run.id);
        let ended =
            self.read(move |store| store.ended_runs_of(project, before, TWIN_RUNS_MAX)).await?;
        let records = self
            .records
            .read()
            .with_ended(ended.into_iter().chain([EndedRun { run, jobs: Vec::new() }]));
        Ok(records.native_twin(&job).map(|twin| twin.steps.clone()).unwrap_or_default())
    }

    async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Store) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let store = self.store.clone();
        spawn_blocking(move || read(&store)).await.expect("reading the store does not panic")
    }
}
