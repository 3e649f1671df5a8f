//! The rows that one transaction writes or deletes.

use redb::WriteTransaction;
use serde::Serialize;
use stagely_protocol::{Fingerprint, ImageRef};
use stagely_state::ids::{MachineId, PreviewId, ProjectId, RunId};
use stagely_state::{DeliveryId, Effect, EffectId, Ended, Timestamp};

use super::encoding::encode;
use super::ended::Changes;
use super::error::StoreError;
use super::tables::{
    DELIVERIES, ENVIRONMENTS, FINGERPRINTS, IdTable, JOBS, MACHINE_TOKENS, MACHINES, OUTBOX,
    PREVIEW_SECRETS, PREVIEWS, PROJECT_TOKENS, PROJECTS, RUN_SECRETS, RUNS,
};
use crate::core::tokens::TokenHash;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecordTable {
    Projects,
    Environments,
    Runs,
    Jobs,
    Machines,
    Previews,
}

impl RecordTable {
    const fn definition(self) -> IdTable {
        match self {
            Self::Projects => PROJECTS,
            Self::Environments => ENVIRONMENTS,
            Self::Runs => RUNS,
            Self::Jobs => JOBS,
            Self::Machines => MACHINES,
            Self::Previews => PREVIEWS,
        }
    }
}

/// Rows to write or delete together. `None` deletes a row.
#[derive(Default)]
pub struct Batch {
    rows: Vec<(IdTable, u128, Option<Vec<u8>>)>,
    outbox: Vec<(EffectId, Option<Vec<u8>>)>,
    fingerprints: Vec<(ImageRef, Option<String>)>,
    history: Changes,
}

impl Batch {
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
            && self.outbox.is_empty()
            && self.fingerprints.is_empty()
            && self.history.is_empty()
    }

    pub fn record(&mut self, table: RecordTable, key: u128, record: Option<&impl Serialize>) {
        self.rows.push((table.definition(), key, record.map(encode)));
    }

    /// Adds records that have left the state to those that core reads when somebody asks for them.
    pub fn end(&mut self, records: Ended) {
        self.history.add(records);
    }

    /// Deletes records from those: they are in the state again, or forgotten.
    pub fn recall(&mut self, records: Ended) {
        self.history.delete(records);
    }

    pub fn effect(&mut self, id: EffectId, effect: Option<&Effect>) {
        self.outbox.push((id, effect.map(encode)));
    }

    pub fn run_secrets(&mut self, run: RunId, sealed: Option<Vec<u8>>) {
        self.rows.push((RUN_SECRETS, run.bits(), sealed));
    }

    /// What a preview needs of the secrets of the run that it shows, sealed for that run.
    pub fn preview_secrets(&mut self, preview: PreviewId, secrets: Option<(RunId, &[u8])>) {
        let row = secrets.map(|(run, sealed)| [&run.bits().to_be_bytes()[..], sealed].concat());
        self.rows.push((PREVIEW_SECRETS, preview.bits(), row));
    }

    pub fn delivery(&mut self, delivery: DeliveryId, at: Option<&Timestamp>) {
        self.rows.push((DELIVERIES, delivery.0, at.map(encode)));
    }

    pub fn project_token(&mut self, project: ProjectId, sealed: Option<Vec<u8>>) {
        self.rows.push((PROJECT_TOKENS, project.bits(), sealed));
    }

    /// The fingerprint of the build whose layers `cache` holds.
    pub fn fingerprint(&mut self, cache: &ImageRef, fingerprint: Option<&Fingerprint>) {
        let text = fingerprint.map(|fingerprint| fingerprint.as_str().to_owned());
        self.fingerprints.push((cache.clone(), text));
    }

    /// Replaces all token hashes of a machine.
    pub fn machine_tokens(&mut self, machine: MachineId, hashes: Option<&[TokenHash]>) {
        let bytes = hashes.map(|hashes| hashes.iter().flat_map(|hash| hash.0).collect());
        self.rows.push((MACHINE_TOKENS, machine.bits(), bytes));
    }

    pub(super) fn write_to(&self, write: &WriteTransaction) -> Result<(), StoreError> {
        for (table, key, value) in &self.rows {
            let mut table = write.open_table(*table)?;
            match value {
                Some(value) => table.insert(key, value.as_slice())?,
                None => table.remove(key)?,
            };
        }
        self.history.write_to(write)?;
        let mut outbox = write.open_table(OUTBOX)?;
        for (id, effect) in &self.outbox {
            match effect {
                Some(effect) => outbox.insert(id.0, effect.as_slice())?,
                None => outbox.remove(id.0)?,
            };
        }
        let mut fingerprints = write.open_table(FINGERPRINTS)?;
        for (cache, text) in &self.fingerprints {
            match text {
                Some(text) => fingerprints.insert(cache.as_str(), text.as_str())?,
                None => fingerprints.remove(cache.as_str())?,
            };
        }
        Ok(())
    }
}
