//! The records and the outbox in redb: what survives a crash.
//!
//! Everything but fingerprints is read once, at the start; after that the store only writes. Every batch is one
//! durable transaction.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use redb::{Database, Durability, ReadableDatabase as _, ReadableTable as _, TableDefinition};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use stagely_protocol::{Fingerprint, ImageRef};
use stagely_state::ids::{CoreId, EnvironmentId, JobId, MachineId, ProjectId, RunId};
use stagely_state::{DeliveryId, Effect, EffectId, Snapshot, Timestamp};
use thiserror::Error;

use super::tokens::TokenHash;
use crate::api::Role;

/// Rows are keyed by the bits of their id, so they lie in the order in which they were made.
type IdTable = TableDefinition<'static, u128, &'static [u8]>;

const PROJECTS: IdTable = TableDefinition::new("projects");
const ENVIRONMENTS: IdTable = TableDefinition::new("environments");
const RUNS: IdTable = TableDefinition::new("runs");
const JOBS: IdTable = TableDefinition::new("jobs");
const MACHINES: IdTable = TableDefinition::new("machines");
const OUTBOX: TableDefinition<'static, u64, &[u8]> = TableDefinition::new("outbox");
/// Sealed by the keyring; a row lives as long as its run is not final.
const RUN_SECRETS: IdTable = TableDefinition::new("run_secrets");
/// Sealed by the keyring: what opens a project's repository.
const PROJECT_SECRETS: IdTable = TableDefinition::new("project_secrets");
/// Hashes, 32 bytes each, of the tokens that a machine may say HELLO with.
const MACHINE_TOKENS: IdTable = TableDefinition::new("machine_tokens");
/// What builds were made of, by the cache ref that holds their layers. Up to 768 KiB each, so they are
/// read when they are asked for and not at the start.
const FINGERPRINTS: TableDefinition<'static, &str, &str> = TableDefinition::new("fingerprints");
const API_TOKENS: TableDefinition<'static, [u8; 32], &[u8]> = TableDefinition::new("api_tokens");
/// When each delivery of GitHub's came.
const DELIVERIES: IdTable = TableDefinition::new("deliveries");
const META: TableDefinition<'static, &str, &str> = TableDefinition::new("meta");

/// The layout of the tables. A store of another layout is refused, not guessed at. Fields that are added
/// to records with a default need no other.
const LAYOUT: &str = "2";

/// A store that cannot be used.
#[derive(Debug, Error)]
pub enum StoreError {
    /// Another process has it open.
    #[error("the database is in use by another stagely process")]
    InUse,
    /// It was written by another version.
    #[error(
        "the database has layout {found}, and this version of stagely knows {LAYOUT} only; use the \
         version that made it, or move the folder away to begin anew"
    )]
    Layout {
        /// The layout it has.
        found: String,
    },
    /// A record cannot be read.
    #[error("a record of table {table} cannot be read")]
    Record {
        /// The table.
        table: String,
        /// What is wrong.
        #[source]
        source: serde_json::Error,
    },
    /// redb failed.
    #[error("the database failed")]
    Database(#[source] Box<redb::Error>),
}

impl<E: Into<redb::Error>> From<E> for StoreError {
    fn from(error: E) -> Self {
        match error.into() {
            redb::Error::DatabaseAlreadyOpen => Self::InUse,
            error => Self::Database(Box::new(error)),
        }
    }
}

/// What is known of an API token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApiToken {
    /// What it is for.
    pub name: String,
    /// What it may do.
    pub role: Role,
    /// When it was made.
    pub created_at: Timestamp,
}

/// All that the store holds.
#[derive(Debug, Default)]
pub struct StoreContents {
    /// Names this core to its provider: every machine it launches is tagged with it.
    pub core_id: CoreId,
    /// The records and the outbox.
    pub state: Snapshot,
    /// Sealed secrets of runs.
    pub run_secrets: Vec<(RunId, Vec<u8>)>,
    /// Sealed tokens of projects.
    pub project_secrets: Vec<(ProjectId, Vec<u8>)>,
    /// Hashes of the tokens of machines.
    pub machine_tokens: Vec<(MachineId, Vec<TokenHash>)>,
    /// The API's tokens.
    pub api_tokens: Vec<(TokenHash, ApiToken)>,
}

/// A table of records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecordTable {
    /// [`Project`](stagely_state::Project)s.
    Projects,
    /// [`Environment`](stagely_state::Environment)s.
    Environments,
    /// [`Run`](stagely_state::Run)s.
    Runs,
    /// [`Job`](stagely_state::Job)s.
    Jobs,
    /// [`Machine`](stagely_state::Machine)s.
    Machines,
}

impl RecordTable {
    const fn definition(self) -> IdTable {
        match self {
            Self::Projects => PROJECTS,
            Self::Environments => ENVIRONMENTS,
            Self::Runs => RUNS,
            Self::Jobs => JOBS,
            Self::Machines => MACHINES,
        }
    }
}

/// Rows to be written or deleted together. `None` deletes.
#[derive(Default)]
pub struct Batch {
    rows: Vec<(IdTable, u128, Option<Vec<u8>>)>,
    outbox: Vec<(EffectId, Option<Vec<u8>>)>,
    fingerprints: Vec<(ImageRef, Option<String>)>,
}

impl Batch {
    /// Whether there is nothing to write.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty() && self.outbox.is_empty() && self.fingerprints.is_empty()
    }

    /// Writes `record`, or deletes the row where there is none.
    pub fn record(&mut self, table: RecordTable, key: u128, record: Option<&impl Serialize>) {
        self.rows.push((table.definition(), key, record.map(encode)));
    }

    /// Writes the effect, or deletes it.
    pub fn effect(&mut self, id: EffectId, effect: Option<&Effect>) {
        self.outbox.push((id, effect.map(encode)));
    }

    /// Writes the sealed secrets of a run, or deletes them.
    pub fn run_secrets(&mut self, run: RunId, sealed: Option<Vec<u8>>) {
        self.rows.push((RUN_SECRETS, run.bits(), sealed));
    }

    /// Writes when a delivery came, or forgets it.
    pub fn delivery(&mut self, delivery: DeliveryId, at: Option<&Timestamp>) {
        self.rows.push((DELIVERIES, delivery.0, at.map(encode)));
    }

    /// Writes the sealed token of a project, or deletes it.
    pub fn project_secret(&mut self, project: ProjectId, sealed: Option<Vec<u8>>) {
        self.rows.push((PROJECT_SECRETS, project.bits(), sealed));
    }

    /// Writes what the build was made of whose layers `cache` holds, or deletes it.
    pub fn fingerprint(&mut self, cache: &ImageRef, fingerprint: Option<&Fingerprint>) {
        let text = fingerprint.map(|fingerprint| fingerprint.as_str().to_owned());
        self.fingerprints.push((cache.clone(), text));
    }

    /// Writes all token hashes of a machine, or deletes them.
    pub fn machine_tokens(&mut self, machine: MachineId, hashes: Option<&[TokenHash]>) {
        let bytes = hashes.map(|hashes| hashes.iter().flat_map(|hash| hash.0).collect());
        self.rows.push((MACHINE_TOKENS, machine.bits(), bytes));
    }
}

fn encode(record: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(record).expect("a record has string keys and no failing serializer")
}

/// The database. Clones share it.
#[derive(Clone, Debug)]
pub struct Store {
    database: Arc<Database>,
}

impl Store {
    /// Opens the database at `path`, or makes it, and reads all of it.
    ///
    /// Blocks for as long as the disk takes.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn open(path: &Path) -> Result<(Self, StoreContents), StoreError> {
        // All records are in memory anyway: the cache only serves the writing of changed pages.
        let database = Database::builder().set_cache_size(8 * 1024 * 1024).create(path)?;
        let store = Self { database: Arc::new(database) };
        let core_id = store.prepare()?;
        let stored = store.load(core_id)?;
        Ok((store, stored))
    }

    /// Makes the tables, checks the layout, and returns the id of this core.
    fn prepare(&self) -> Result<CoreId, StoreError> {
        let mut write = self.database.begin_write()?;
        write.set_quick_repair(true);
        let core_id;
        {
            for table in [
                PROJECTS,
                ENVIRONMENTS,
                RUNS,
                JOBS,
                MACHINES,
                RUN_SECRETS,
                PROJECT_SECRETS,
                MACHINE_TOKENS,
                DELIVERIES,
            ] {
                write.open_table(table)?;
            }
            write.open_table(OUTBOX)?;
            write.open_table(API_TOKENS)?;
            write.open_table(FINGERPRINTS)?;
            let mut meta = write.open_table(META)?;
            let layout = meta.get("layout")?.map(|layout| layout.value().to_owned());
            match layout {
                Some(found) if found != LAYOUT => return Err(StoreError::Layout { found }),
                Some(_) => {}
                None => {
                    meta.insert("layout", LAYOUT)?;
                }
            }
            let known = meta.get("core_id")?.map(|id| CoreId::from(id.value()));
            core_id = if let Some(id) = known {
                id
            } else {
                let id = ulid::Ulid::generate().to_string().to_ascii_lowercase();
                meta.insert("core_id", id.as_str())?;
                CoreId::from(id.as_str())
            };
        }
        write.commit()?;
        Ok(core_id)
    }

    fn load(&self, core_id: CoreId) -> Result<StoreContents, StoreError> {
        let hashes = self.rows(MACHINE_TOKENS, |bytes| {
            let (hashes, _) = bytes.as_chunks::<32>();
            Ok(hashes.iter().copied().map(TokenHash).collect())
        })?;
        Ok(StoreContents {
            core_id,
            state: Snapshot {
                projects: self.records(PROJECTS, ProjectId::from_bits)?,
                environments: self.records(ENVIRONMENTS, EnvironmentId::from_bits)?,
                runs: self.records(RUNS, RunId::from_bits)?,
                jobs: self.records(JOBS, JobId::from_bits)?,
                machines: self.records(MACHINES, MachineId::from_bits)?,
                deliveries: self.records(DELIVERIES, DeliveryId)?,
                outbox: self.outbox()?,
            },
            run_secrets: keyed(
                self.rows(RUN_SECRETS, |bytes| Ok(bytes.to_vec()))?,
                RunId::from_bits,
            ),
            project_secrets: keyed(
                self.rows(PROJECT_SECRETS, |bytes| Ok(bytes.to_vec()))?,
                ProjectId::from_bits,
            ),
            machine_tokens: keyed(hashes, MachineId::from_bits),
            api_tokens: self.api_tokens()?,
        })
    }

    fn records<Id: Ord, T: DeserializeOwned>(
        &self,
        table: IdTable,
        id: impl Fn(u128) -> Id,
    ) -> Result<BTreeMap<Id, T>, StoreError> {
        let rows = self.rows(table, |bytes| serde_json::from_slice(bytes))?;
        Ok(rows.into_iter().map(|(key, record)| (id(key), record)).collect())
    }

    fn rows<T>(
        &self,
        table: IdTable,
        decode: impl Fn(&[u8]) -> Result<T, serde_json::Error>,
    ) -> Result<Vec<(u128, T)>, StoreError> {
        let read = self.database.begin_read()?;
        let mut rows = Vec::new();
        for row in read.open_table(table)?.iter()? {
            let (key, value) = row?;
            let record = decode(value.value()).map_err(|source| unreadable(&table, source))?;
            rows.push((key.value(), record));
        }
        Ok(rows)
    }

    fn outbox(&self) -> Result<BTreeMap<EffectId, Effect>, StoreError> {
        let read = self.database.begin_read()?;
        let mut outbox = BTreeMap::new();
        for row in read.open_table(OUTBOX)?.iter()? {
            let (id, effect) = row?;
            let effect = serde_json::from_slice(effect.value())
                .map_err(|source| unreadable(&OUTBOX, source))?;
            outbox.insert(EffectId(id.value()), effect);
        }
        Ok(outbox)
    }

    fn api_tokens(&self) -> Result<Vec<(TokenHash, ApiToken)>, StoreError> {
        let read = self.database.begin_read()?;
        let mut tokens = Vec::new();
        for row in read.open_table(API_TOKENS)?.iter()? {
            let (hash, token) = row?;
            let token = serde_json::from_slice(token.value())
                .map_err(|source| unreadable(&API_TOKENS, source))?;
            tokens.push((TokenHash(hash.value()), token));
        }
        Ok(tokens)
    }

    /// Writes `batch` in one durable transaction. Blocks until it is on the disk.
    ///
    /// # Errors
    /// [`StoreError`]; then nothing of the batch is stored.
    pub fn commit(&self, batch: &Batch) -> Result<(), StoreError> {
        let mut write = self.database.begin_write()?;
        write.set_durability(Durability::Immediate)?;
        // After a kill redb would walk the whole file to find its free pages.
        write.set_quick_repair(true);
        for (table, key, value) in &batch.rows {
            let mut table = write.open_table(*table)?;
            match value {
                Some(value) => table.insert(key, value.as_slice())?,
                None => table.remove(key)?,
            };
        }
        {
            let mut outbox = write.open_table(OUTBOX)?;
            for (id, effect) in &batch.outbox {
                match effect {
                    Some(effect) => outbox.insert(id.0, effect.as_slice())?,
                    None => outbox.remove(id.0)?,
                };
            }
        }
        {
            let mut fingerprints = write.open_table(FINGERPRINTS)?;
            for (cache, text) in &batch.fingerprints {
                match text {
                    Some(text) => fingerprints.insert(cache.as_str(), text.as_str())?,
                    None => fingerprints.remove(cache.as_str())?,
                };
            }
        }
        write.commit()?;
        Ok(())
    }

    /// What the build was made of whose layers the first of `caches` holds that is known. Blocks.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn fingerprint(&self, caches: &[ImageRef]) -> Result<Option<Fingerprint>, StoreError> {
        let read = self.database.begin_read()?;
        let table = read.open_table(FINGERPRINTS)?;
        for cache in caches {
            if let Some(text) = table.get(cache.as_str())? {
                // One of another version's making would only make an explanation poorer.
                return Ok(Fingerprint::try_from(text.value().to_owned()).ok());
            }
        }
        Ok(None)
    }

    /// Stores an API token's hash. Blocks until it is on the disk.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn add_api_token(&self, hash: TokenHash, token: &ApiToken) -> Result<(), StoreError> {
        let mut write = self.database.begin_write()?;
        write.set_quick_repair(true);
        write.open_table(API_TOKENS)?.insert(&hash.0, encode(token).as_slice())?;
        write.commit()?;
        Ok(())
    }
}

fn keyed<Id, T>(rows: Vec<(u128, T)>, id: impl Fn(u128) -> Id) -> Vec<(Id, T)> {
    rows.into_iter().map(|(key, value)| (id(key), value)).collect()
}

fn unreadable(table: &impl redb::TableHandle, source: serde_json::Error) -> StoreError {
    StoreError::Record { table: table.name().to_owned(), source }
}

#[cfg(test)]
mod tests {
    use stagely_state::{Environment, Project};
    use tempfile::TempDir;

    use super::*;

    struct Folder(TempDir);

    impl Folder {
        fn new() -> Self {
            Self(tempfile::tempdir().unwrap())
        }

        fn open(&self) -> Result<(Store, StoreContents), StoreError> {
            Store::open(&self.0.path().join("core.redb"))
        }

        /// Changes the closed database behind the store's back.
        fn tamper(&self, change: impl FnOnce(&redb::WriteTransaction)) {
            let database = Database::open(self.0.path().join("core.redb")).unwrap();
            let write = database.begin_write().unwrap();
            change(&write);
            write.commit().unwrap();
        }
    }

    fn project(name: &str) -> Project {
        let id = ProjectId::from_bits(1);
        Project::new(id, name.to_owned(), "https://git.example/app".to_owned())
    }

    fn environment() -> Environment {
        let id = EnvironmentId::from_bits(u128::MAX);
        Environment::new(id, ProjectId::from_bits(1), "main".to_owned())
    }

    /// Writes something into every table that a batch can write to.
    fn full_batch() -> Batch {
        let mut batch = Batch::default();
        batch.record(RecordTable::Projects, 1, Some(&project("app")));
        batch.record(RecordTable::Environments, u128::MAX, Some(&environment()));
        batch.effect(EffectId(3), Some(&Effect::Plan { run: RunId::from_bits(2) }));
        batch.run_secrets(RunId::from_bits(2), Some(vec![1, 2, 3]));
        let hashes = [TokenHash([1; 32]), TokenHash([2; 32])];
        batch.machine_tokens(MachineId::from_bits(4), Some(&hashes));
        batch
    }

    #[test]
    fn what_was_committed_is_there_when_it_is_opened_again() {
        let folder = Folder::new();
        let (store, new) = folder.open().unwrap();
        assert_eq!(new.state, Snapshot::default());
        let token = ApiToken { name: "ci".to_owned(), role: Role::Write, created_at: Timestamp(5) };
        store.commit(&full_batch()).unwrap();
        store.add_api_token(TokenHash([9; 32]), &token).unwrap();
        drop(store);

        let (_, stored) = folder.open().unwrap();

        assert_eq!(stored.core_id, new.core_id, "machines are found by it");
        assert_eq!(stored.state.projects[&ProjectId::from_bits(1)], project("app"));
        assert_eq!(stored.state.environments[&environment().id], environment());
        let plan = Effect::Plan { run: RunId::from_bits(2) };
        assert_eq!(stored.state.outbox, BTreeMap::from([(EffectId(3), plan)]));
        assert_eq!(stored.run_secrets, [(RunId::from_bits(2), vec![1, 2, 3])]);
        let hashes = vec![TokenHash([1; 32]), TokenHash([2; 32])];
        assert_eq!(stored.machine_tokens, [(MachineId::from_bits(4), hashes)]);
        assert_eq!(stored.api_tokens, [(TokenHash([9; 32]), token)]);
    }

    #[test]
    fn a_batch_changes_and_deletes_rows_and_leaves_the_others_alone() {
        let folder = Folder::new();
        let (store, _) = folder.open().unwrap();
        store.commit(&full_batch()).unwrap();
        let mut batch = Batch::default();
        batch.record(RecordTable::Projects, 1, Some(&project("renamed")));
        batch.record(RecordTable::Environments, u128::MAX, None::<&Environment>);
        batch.effect(EffectId(3), None);
        batch.run_secrets(RunId::from_bits(2), None);
        store.commit(&batch).unwrap();
        drop(store);

        let (_, stored) = folder.open().unwrap();

        assert_eq!(stored.state.projects[&ProjectId::from_bits(1)], project("renamed"));
        assert!(stored.state.environments.is_empty() && stored.state.outbox.is_empty());
        assert!(stored.run_secrets.is_empty());
        assert_eq!(stored.machine_tokens.len(), 1);
    }

    #[test]
    fn a_fingerprint_is_found_by_the_first_cache_that_has_one() {
        let folder = Folder::new();
        let (store, _) = folder.open().unwrap();
        let cache = |name: &str| format!("r/app/cache:{name}").parse::<ImageRef>().unwrap();
        let print = |text: &str| Fingerprint::try_from(text.to_owned()).unwrap();
        let mut batch = Batch::default();
        batch.fingerprint(&cache("app"), Some(&print("shared")));
        batch.fingerprint(&cache("app.pr-7"), Some(&print("own")));
        store.commit(&batch).unwrap();
        drop(store);

        let (store, _) = folder.open().unwrap();

        let first_of = |names: &[&str]| {
            let caches: Vec<ImageRef> = names.iter().map(|name| cache(name)).collect();
            store.fingerprint(&caches).unwrap()
        };
        assert_eq!(first_of(&["app.pr-7", "app"]), Some(print("own")));
        assert_eq!(first_of(&["app.pr-8", "app"]), Some(print("shared")));
        assert_eq!(first_of(&["app.pr-8"]), None);
        let mut batch = Batch::default();
        batch.fingerprint(&cache("app.pr-7"), None);
        store.commit(&batch).unwrap();
        assert_eq!(first_of(&["app.pr-7", "app"]), Some(print("shared")));
    }

    #[test]
    fn a_database_that_is_open_is_in_use() {
        let folder = Folder::new();
        let (store, _) = folder.open().unwrap();

        assert!(matches!(folder.open(), Err(StoreError::InUse)));

        drop(store);
        folder.open().unwrap();
    }

    #[test]
    fn another_layout_is_refused_and_left_as_it_is() {
        let folder = Folder::new();
        drop(folder.open().unwrap());
        folder.tamper(|write| {
            write.open_table(META).unwrap().insert("layout", "0").unwrap();
        });

        for _ in 0..2 {
            let Err(StoreError::Layout { found }) = folder.open() else { panic!("it is taken") };
            assert_eq!(found, "0");
        }
    }

    #[test]
    fn a_record_that_cannot_be_read_is_named_by_its_table() {
        let folder = Folder::new();
        drop(folder.open().unwrap());
        folder.tamper(|write| {
            write.open_table(JOBS).unwrap().insert(1, b"{}".as_slice()).unwrap();
        });

        let Err(StoreError::Record { table, .. }) = folder.open() else { panic!("it is read") };

        assert_eq!(table, "jobs");
    }
}
