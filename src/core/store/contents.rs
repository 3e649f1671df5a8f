//! Everything that core reads from the store at its start.

use std::collections::BTreeMap;

use redb::{Database, Key, ReadableDatabase as _, ReadableTable as _, TableDefinition};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use stagely_state::ids::{CoreId, EnvironmentId, JobId, MachineId, PreviewId, ProjectId, RunId};
use stagely_state::{DeliveryId, EffectId, Snapshot, Timestamp};

use super::error::StoreError;
use super::tables::{
    API_TOKENS, DELIVERIES, ENVIRONMENTS, IdTable, JOBS, MACHINE_TOKENS, MACHINES, OUTBOX,
    PREVIEWS, PROJECT_TOKENS, PROJECTS, RUNS,
};
use super::work::Work;
use crate::api::Role;
use crate::core::tokens::TokenHash;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApiToken {
    /// The name that its owner gave it.
    pub name: String,
    pub role: Role,
    pub created_at: Timestamp,
}

/// What core keeps in memory.
#[derive(Debug, Default)]
pub struct StoreContents {
    /// The name of this core at its provider: every machine that it launches is tagged with it.
    pub core_id: CoreId,
    /// The records and the outbox.
    pub state: Snapshot,
    /// Sealed tokens of projects' repositories.
    pub project_tokens: Vec<(ProjectId, Vec<u8>)>,
    pub machine_tokens: Vec<(MachineId, Vec<TokenHash>)>,
    pub api_tokens: Vec<(TokenHash, ApiToken)>,
    /// How often core was killed during work.
    pub kills: BTreeMap<Work, u32>,
}

impl StoreContents {
    pub(super) fn read(database: &Database, core_id: CoreId) -> Result<Self, StoreError> {
        let reader = Reader(database);
        Ok(Self {
            core_id,
            state: Snapshot {
                projects: reader.records(PROJECTS, ProjectId::from_bits)?,
                environments: reader.records(ENVIRONMENTS, EnvironmentId::from_bits)?,
                runs: reader.records(RUNS, RunId::from_bits)?,
                jobs: reader.records(JOBS, JobId::from_bits)?,
                machines: reader.records(MACHINES, MachineId::from_bits)?,
                previews: reader.records(PREVIEWS, PreviewId::from_bits)?,
                deliveries: reader.records(DELIVERIES, DeliveryId)?,
                outbox: reader.json(OUTBOX, EffectId)?.into_iter().collect(),
                ended_runs: BTreeMap::new(),
            },
            project_tokens: reader.sealed(PROJECT_TOKENS, ProjectId::from_bits)?,
            machine_tokens: reader
                .rows(MACHINE_TOKENS, MachineId::from_bits, |bytes| Ok(token_hashes(bytes)))?,
            api_tokens: reader.json(API_TOKENS, TokenHash)?,
            kills: BTreeMap::new(),
        })
    }
}

fn token_hashes(bytes: &[u8]) -> Vec<TokenHash> {
    let (hashes, _) = bytes.as_chunks::<32>();
    hashes.iter().copied().map(TokenHash).collect()
}

struct Reader<'a>(&'a Database);

impl Reader<'_> {
    fn records<Id: Ord, T: DeserializeOwned>(
        &self,
        table: IdTable,
        id: impl Fn(u128) -> Id,
    ) -> Result<BTreeMap<Id, T>, StoreError> {
        Ok(self.json(table, id)?.into_iter().collect())
    }

    fn sealed<Id>(
        &self,
        table: IdTable,
        id: impl Fn(u128) -> Id,
    ) -> Result<Vec<(Id, Vec<u8>)>, StoreError> {
        self.rows(table, id, |bytes| Ok(bytes.to_vec()))
    }

    fn json<K: for<'k> Key<SelfType<'k> = K> + 'static, Id, T: DeserializeOwned>(
        &self,
        table: TableDefinition<'static, K, &'static [u8]>,
        id: impl Fn(K) -> Id,
    ) -> Result<Vec<(Id, T)>, StoreError> {
        self.rows(table, id, |bytes| serde_json::from_slice(bytes))
    }

    fn rows<K: for<'k> Key<SelfType<'k> = K> + 'static, Id, T>(
        &self,
        table: TableDefinition<'static, K, &'static [u8]>,
        id: impl Fn(K) -> Id,
        decode: impl Fn(&[u8]) -> Result<T, serde_json::Error>,
    ) -> Result<Vec<(Id, T)>, StoreError> {
        let read = self.0.begin_read()?;
        let mut rows = Vec::new();
        for row in read.open_table(table)?.iter()? {
            let (key, value) = row?;
            let record =
                decode(value.value()).map_err(|source| StoreError::record(&table, source))?;
            rows.push((id(key.value()), record));
        }
        Ok(rows)
    }
}
