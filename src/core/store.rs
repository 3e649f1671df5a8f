//! The records and the outbox in redb: what survives a crash.
//!
//! What is open is read once, at the start; ended runs and machines, fingerprints and secrets when they are needed.
//! Every batch is one durable transaction.

mod batch;
mod contents;
mod encoding;
mod ended;
mod error;
mod history;
mod tables;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use redb::{
    Database, Durability, ReadTransaction, ReadableDatabase as _, ReadableTable as _,
    WriteTransaction,
};
use stagely_protocol::{Fingerprint, ImageRef};
use stagely_state::ids::{CoreId, RunId};

use self::encoding::encode;
use self::tables::{
    API_TOKENS, FINGERPRINTS, ID_TABLES, LAYOUT, META, OLD_LAYOUTS, OUTBOX, READS, RUN_SECRETS,
};
use super::damage::DamagedDatabase;
use super::tokens::TokenHash;

pub use batch::{Batch, RecordTable};
pub use contents::{ApiToken, StoreContents};
pub use error::StoreError;

/// What to do if the file is damaged, for people.
const ADVICE: &str = "restore the data folder from a backup";

/// The key of [`Store::is_bound`] in the table of properties.
const BOUND: &str = "bound";

/// The database. Clones share it.
#[derive(Clone, Debug)]
pub struct Store {
    database: Arc<Database>,
    path: Arc<Path>,
}

impl Store {
    /// Opens or creates the database at `path`, and reads it. Blocks while the disk works.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn open(path: &Path) -> Result<(Self, StoreContents), StoreError> {
        DamagedDatabase::checked(path, ADVICE, StoreError::Damaged, || Self::open_file(path))
    }

    fn open_file(path: &Path) -> Result<(Self, StoreContents), StoreError> {
        // What is open is in memory anyway, and the system caches the file.
        let database = Database::builder().set_cache_size(8 * 1024 * 1024).create(path)?;
        let store = Self { database: Arc::new(database), path: path.into() };
        let core_id = store.prepare()?;
        let mut contents = StoreContents::read(&store.database, core_id)?;
        contents.state.ended_runs = store.count_ended_runs()?;
        contents.interrupted_reads = store.interrupted_reads()?;
        Ok((store, contents))
    }

    /// Calls `read` with the records of one moment, and recognizes that the file is damaged.
    fn read<T>(
        &self,
        read: impl FnOnce(&ReadTransaction) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let read = || read(&self.database.begin_read()?);
        DamagedDatabase::checked(&self.path, ADVICE, StoreError::Damaged, read)
    }

    /// Performs `change` in one durable transaction, and recognizes that the file is damaged.
    fn write<T>(
        &self,
        change: impl FnOnce(&WriteTransaction) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let write = || {
            let mut write = self.database.begin_write()?;
            write.set_durability(Durability::Immediate)?;
            // Otherwise redb would read the whole file after a kill, to find its free pages.
            write.set_quick_repair(true);
            let changed = change(&write)?;
            write.commit()?;
            Ok(changed)
        };
        DamagedDatabase::checked(&self.path, ADVICE, StoreError::Damaged, write)
    }

    /// Creates the tables, checks the layout, and returns the id of this core.
    fn prepare(&self) -> Result<CoreId, StoreError> {
        self.write(|write| {
            for table in ID_TABLES {
                write.open_table(table)?;
            }
            write.open_table(OUTBOX)?;
            write.open_table(API_TOKENS)?;
            write.open_table(FINGERPRINTS)?;
            write.open_table(READS)?;
            ended::prepare(write)?;
            let mut meta = write.open_table(META)?;
            let layout = meta.get("layout")?.map(|layout| layout.value().to_owned());
            match layout {
                Some(found) if found == LAYOUT => {}
                Some(found) if !OLD_LAYOUTS.contains(&found.as_str()) => {
                    return Err(StoreError::Layout { found });
                }
                Some(_) | None => {
                    meta.insert("layout", LAYOUT)?;
                }
            }
            let known = meta.get("core_id")?.map(|id| CoreId::from(id.value()));
            if let Some(id) = known {
                return Ok(id);
            }
            let id = ulid::Ulid::generate().to_string().to_ascii_lowercase();
            meta.insert("core_id", id.as_str())?;
            Ok(CoreId::from(id.as_str()))
        })
    }

    /// Whether the database belongs to one host and path, which a file beside it names.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn is_bound(&self) -> Result<bool, StoreError> {
        self.read(|read| Ok(read.open_table(META)?.get(BOUND)?.is_some()))
    }

    /// Records that the database belongs to one host and path.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn set_bound(&self) -> Result<(), StoreError> {
        self.write(|write| Ok(write.open_table(META)?.insert(BOUND, "yes").map(drop)?))
    }

    /// The runs whose repository was being read when core was killed, each with how often that has happened.
    ///
    /// # Errors
    /// [`StoreError`].
    fn interrupted_reads(&self) -> Result<BTreeMap<RunId, u32>, StoreError> {
        let kills = self.read(|read| {
            let reads = read.open_table(READS)?;
            let kills = reads.iter()?.map(|row| {
                let (run, kills) = row?;
                Ok((RunId::from_bits(run.value()), kills.value() + 1))
            });
            kills.collect::<Result<BTreeMap<RunId, u32>, StoreError>>()
        })?;
        if !kills.is_empty() {
            self.forget_reads()?;
        }
        Ok(kills)
    }

    /// Records durably that the repository of `run` is going to be read. `kills` says how often core was killed during
    /// that before.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn reading_begins(&self, run: RunId, kills: u32) -> Result<(), StoreError> {
        self.change_reads(|reads| Ok(reads.insert(run.bits(), kills).map(drop)?))
    }

    /// Records that the repository of `run` is not being read any more.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn reading_ends(&self, run: RunId) -> Result<(), StoreError> {
        self.change_reads(|reads| Ok(reads.remove(run.bits()).map(drop)?))
    }

    /// Records that no repository is being read.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn forget_reads(&self) -> Result<(), StoreError> {
        self.change_reads(|reads| Ok(reads.retain(|_, _| false)?))
    }

    fn change_reads(
        &self,
        change: impl FnOnce(&mut redb::Table<'_, u128, u32>) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        self.write(|write| change(&mut write.open_table(READS)?))
    }

    /// Writes `batch` in one durable transaction. Blocks until it is on the disk.
    ///
    /// # Errors
    /// [`StoreError`]; then nothing of the batch is stored.
    pub fn commit(&self, batch: &Batch) -> Result<(), StoreError> {
        self.write(|write| batch.write_to(write))
    }

    /// The fingerprint of the build whose layers are in the first of `caches` that has one. Blocks.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn fingerprint(&self, caches: &[ImageRef]) -> Result<Option<Fingerprint>, StoreError> {
        self.read(|read| {
            let table = read.open_table(FINGERPRINTS)?;
            for cache in caches {
                if let Some(text) = table.get(cache.as_str())? {
                    // A fingerprint of another version only makes an explanation poorer.
                    return Ok(Fingerprint::try_from(text.value().to_owned()).ok());
                }
            }
            Ok(None)
        })
    }

    /// The sealed secrets of a run. Blocks.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn run_secrets(&self, run: RunId) -> Result<Option<Vec<u8>>, StoreError> {
        self.read(|read| {
            let secrets = read.open_table(RUN_SECRETS)?;
            Ok(secrets.get(run.bits())?.map(|sealed| sealed.value().to_vec()))
        })
    }

    /// Stores an API token by its hash. Blocks until it is on the disk.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn add_api_token(&self, hash: TokenHash, token: &ApiToken) -> Result<(), StoreError> {
        let token = encode(token);
        let insert = |write: &WriteTransaction| {
            write.open_table(API_TOKENS)?.insert(&hash.0, token.as_slice())?;
            Ok(())
        };
        self.write(insert)
    }
}
