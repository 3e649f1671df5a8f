//! Ended runs and machines: written when they leave the state, and read when somebody asks for them.

use std::collections::{BTreeMap, BTreeSet};

use redb::{ReadableTable as _, TableHandle, WriteTransaction};
use serde::Serialize;
use serde::de::DeserializeOwned;
use stagely_state::ids::{EnvironmentId, MachineId, ProjectId, RunId};
use stagely_state::{Ended, EndedRun, Machine, Missing, Run, Timestamp};

use super::Store;
use super::error::StoreError;
use super::tables::{ENDED_JOBS, ENDED_MACHINES, ENDED_RUNS, RUNS_OF_PROJECTS};

/// A record shrinks to a third or less; further levels take longer and save little.
const LEVEL: i32 = 3;

/// The changes of one transaction.
#[derive(Debug, Default)]
pub(super) struct Changes {
    added: Ended,
    deleted: Ended,
}

impl Changes {
    pub(super) const fn is_empty(&self) -> bool {
        self.added.is_empty() && self.deleted.is_empty()
    }

    /// Adds records. Those that are deleted in the same transaction are deleted before.
    pub(super) fn add(&mut self, records: Ended) {
        self.added.extend(records);
    }

    pub(super) fn delete(&mut self, records: Ended) {
        self.deleted.extend(records);
    }

    pub(super) fn write_to(&self, write: &WriteTransaction) -> Result<(), StoreError> {
        if self.is_empty() {
            return Ok(());
        }
        let mut runs = write.open_table(ENDED_RUNS)?;
        let mut run_of_jobs = write.open_table(ENDED_JOBS)?;
        let mut of_projects = write.open_table(RUNS_OF_PROJECTS)?;
        let mut machines = write.open_table(ENDED_MACHINES)?;
        for EndedRun { run, jobs } in &self.deleted.runs {
            runs.remove(run.id.bits())?;
            of_projects.remove((run.project.bits(), run.id.bits()))?;
            for job in jobs {
                run_of_jobs.remove(job.id.bits())?;
            }
        }
        for machine in &self.deleted.machines {
            machines.remove(machine.id.bits())?;
        }
        for ended in &self.added.runs {
            let EndedRun { run, jobs } = ended;
            runs.insert(run.id.bits(), compressed(ended).as_slice())?;
            of_projects.insert((run.project.bits(), run.id.bits()), run.environment.bits())?;
            for job in jobs {
                run_of_jobs.insert(job.id.bits(), run.id.bits())?;
            }
        }
        for machine in &self.added.machines {
            machines.insert(machine.id.bits(), compressed(machine).as_slice())?;
        }
        Ok(())
    }
}

fn compressed(record: &impl Serialize) -> Vec<u8> {
    let json = super::encode(record);
    zstd::bulk::compress(&json, LEVEL).expect("a vector takes every byte")
}

fn decompressed<T: DeserializeOwned>(
    table: &impl TableHandle,
    bytes: &[u8],
) -> Result<T, StoreError> {
    let json = zstd::decode_all(bytes).map_err(serde_json::Error::io);
    json.and_then(|json| serde_json::from_slice(&json))
        .map_err(|source| StoreError::record(table, source))
}

/// Creates the tables.
pub(super) fn prepare(write: &WriteTransaction) -> Result<(), StoreError> {
    write.open_table(ENDED_RUNS)?;
    write.open_table(ENDED_JOBS)?;
    write.open_table(RUNS_OF_PROJECTS)?;
    write.open_table(ENDED_MACHINES)?;
    Ok(())
}

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
