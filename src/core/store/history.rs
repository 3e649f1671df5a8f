//! Reads ended runs and machines, which core does not keep in memory.

use std::collections::{BTreeMap, BTreeSet};

use redb::ReadableTable as _;
use stagely_state::ids::{EnvironmentId, MachineId, ProjectId, RunId};
use stagely_state::{Ended, EndedRun, Machine, Missing, Run, Timestamp};

use super::Store;
use super::encoding::decompressed;
use super::error::StoreError;
use super::tables::{ENDED_JOBS, ENDED_MACHINES, ENDED_RUNS, RUNS_OF_PROJECTS};

/// All methods block.
impl Store {
    /// How many runs of each environment have left the state.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(super) fn count_ended_runs(&self) -> Result<BTreeMap<EnvironmentId, u64>, StoreError> {
        self.read(|read| {
            let mut counts = BTreeMap::new();
            for row in read.open_table(RUNS_OF_PROJECTS)?.iter()? {
                let environment = EnvironmentId::from_bits(row?.1.value());
                *counts.entry(environment).or_default() += 1;
            }
            Ok(counts)
        })
    }

    /// Those of the `missing` records that have ended.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn ended(&self, missing: &Missing) -> Result<Ended, StoreError> {
        self.read(|read| {
            let (runs, of_jobs) = (read.open_table(ENDED_RUNS)?, read.open_table(ENDED_JOBS)?);
            let mut wanted: BTreeSet<u128> = missing.runs.iter().map(|run| run.bits()).collect();
            for job in &missing.jobs {
                wanted.extend(of_jobs.get(job.bits())?.map(|run| run.value()));
            }
            let mut ended = Ended::default();
            for run in wanted {
                if let Some(bytes) = runs.get(run)? {
                    ended.runs.push(decompressed(&runs, bytes.value())?);
                }
            }
            let machines = read.open_table(ENDED_MACHINES)?;
            for machine in &missing.machines {
                if let Some(bytes) = machines.get(machine.bits())? {
                    ended.machines.push(decompressed(&machines, bytes.value())?);
                }
            }
            Ok(ended)
        })
    }

    /// The newest ended runs, the newest first; those before `before` if it is given.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn newest_ended_runs(
        &self,
        before: Option<RunId>,
        limit: usize,
    ) -> Result<Vec<EndedRun>, StoreError> {
        self.read(|read| {
            let runs = read.open_table(ENDED_RUNS)?;
            let end = before.map_or(u128::MAX, RunId::bits);
            let rows = runs.range(..end)?.rev().take(limit);
            rows.map(|row| decompressed(&runs, row?.1.value())).collect()
        })
    }

    /// The newest ended runs of a project before `before`, the newest first.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn ended_runs_of(
        &self,
        project: ProjectId,
        before: RunId,
        limit: usize,
    ) -> Result<Vec<EndedRun>, StoreError> {
        self.read(|read| {
            let (runs, of_projects) =
                (read.open_table(ENDED_RUNS)?, read.open_table(RUNS_OF_PROJECTS)?);
            let (project, before) = (project.bits(), before.bits());
            let mut found = Vec::new();
            for row in of_projects.range((project, 0)..(project, before))?.rev().take(limit) {
                let (_, run) = row?.0.value();
                if let Some(bytes) = runs.get(run)? {
                    found.push(decompressed(&runs, bytes.value())?);
                }
            }
            Ok(found)
        })
    }

    /// At most `limit` ended runs that were requested before `time` and that `is_wanted`, the oldest first.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn old_runs(
        &self,
        time: Timestamp,
        limit: usize,
        is_wanted: impl Fn(&Run) -> bool,
    ) -> Result<Vec<EndedRun>, StoreError> {
        self.read(|read| {
            let runs = read.open_table(ENDED_RUNS)?;
            let mut found = Vec::new();
            for row in runs.range(..first_id_at(time))? {
                let ended: EndedRun = decompressed(&runs, row?.1.value())?;
                if is_wanted(&ended.run) {
                    found.push(ended);
                }
                if found.len() == limit {
                    break;
                }
            }
            Ok(found)
        })
    }

    /// At most `limit` machines that have ended, the newest first.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn newest_ended_machines(&self, limit: usize) -> Result<Vec<Machine>, StoreError> {
        self.read(|read| {
            let machines = read.open_table(ENDED_MACHINES)?;
            let rows = machines.iter()?.rev().take(limit);
            rows.map(|row| decompressed(&machines, row?.1.value())).collect()
        })
    }

    /// At most `limit` machines that were requested before `time` and that `is_wanted`, the oldest first.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn old_machines(
        &self,
        time: Timestamp,
        limit: usize,
        is_wanted: impl Fn(&Machine) -> bool,
    ) -> Result<Vec<MachineId>, StoreError> {
        self.read(|read| {
            let machines = read.open_table(ENDED_MACHINES)?;
            let mut found = Vec::new();
            for row in machines.range(..first_id_at(time))? {
                let machine: Machine = decompressed(&machines, row?.1.value())?;
                if is_wanted(&machine) {
                    found.push(machine.id);
                }
                if found.len() == limit {
                    break;
                }
            }
            Ok(found)
        })
    }
}

/// The smallest id that is made at `time`: ids begin with the milliseconds since the Unix epoch, in 48 bits.
const fn first_id_at(time: Timestamp) -> u128 {
    (time.0 as u128) << 80
}
