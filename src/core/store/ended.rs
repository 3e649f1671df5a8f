//! Ended runs and machines are written when they leave the state, and deleted when they come back.

use redb::WriteTransaction;
use stagely_state::{Ended, EndedRun};

use super::encoding::compressed;
use super::error::StoreError;
use super::tables::{ENDED_JOBS, ENDED_MACHINES, ENDED_RUNS, RUNS_OF_PROJECTS};

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

/// Creates the tables.
pub(super) fn prepare(write: &WriteTransaction) -> Result<(), StoreError> {
    write.open_table(ENDED_RUNS)?;
    write.open_table(ENDED_JOBS)?;
    write.open_table(RUNS_OF_PROJECTS)?;
    write.open_table(ENDED_MACHINES)?;
    Ok(())
}
