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
mod project_secrets;
mod tables;
mod work;

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
use stagely_state::EffectId;
use stagely_state::ids::{CoreId, PreviewId, RunId};

use self::encoding::encode;
use self::tables::{
    API_TOKENS, FINGERPRINTS, ID_TABLES, INTERRUPTED_WORK, LAYOUT, META, OLD_LAYOUTS, OUTBOX,
    PREVIEW_SECRETS, PROJECT_SECRETS, RUN_SECRETS,
};
use super::damage::DamagedDatabase;
use super::tokens::TokenHash;

pub use batch::{Batch, RecordTable};
pub use contents::{ApiToken, StoreContents};
pub use error::StoreError;
pub use project_secrets::{SecretEntry, SetOutcome};
pub use work::Work;

/// What to do if the file is damaged, for people.
const ADVICE: &str = "restore the data folder from a backup";

/// The key of [`Store::is_bound`] in the table of properties.
const BOUND: &str = "bound";

/// The key of a core that runs, or was killed, in the table of properties.
const RUNNING: &str = "running";

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
        contents.kills = store.count_kills()?;
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
            write.open_table(PROJECT_SECRETS)?;
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

    /// Counts a kill for all work that was under way, unless the former core stopped by itself. Returns how often core was
    /// killed during each.
    fn count_kills(&self) -> Result<BTreeMap<Work, u32>, StoreError> {
        self.write(|write| {
            let was_killed = write.open_table(META)?.insert(RUNNING, "yes")?.is_some();
            // Effects of the outbox begin with core, unless core was killed during them before.
            let mut counted: BTreeMap<Work, (u32, bool)> = BTreeMap::new();
            for row in write.open_table(OUTBOX)?.iter()? {
                counted.insert(Work::Effect(EffectId(row?.0.value())), (0, true));
            }
            let mut table = write.open_table(INTERRUPTED_WORK)?;
            for row in table.iter()? {
                let (key, value) = row?;
                match Work::of_key(key.value()) {
                    Work::Effect(id) => {
                        if let Some(effect) = counted.get_mut(&Work::Effect(id)) {
                            *effect = value.value();
                        }
                    }
                    work @ Work::Comparison(_) => {
                        counted.insert(work, value.value());
                    }
                }
            }
            table.retain(|_, _| false)?;
            let mut kills = BTreeMap::new();
            for (work, (before, has_begun)) in counted {
                let now = before + u32::from(was_killed && has_begun);
                if now > 0 {
                    table.insert(work.key(), (now, false))?;
                    kills.insert(work, now);
                }
            }
            Ok(kills)
        })
    }

    /// Records durably that work begins.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn work_begins(&self, work: Work) -> Result<(), StoreError> {
        self.write(|write| {
            let mut table = write.open_table(INTERRUPTED_WORK)?;
            let kills = table.get(work.key())?.map_or(0, |known| known.value().0);
            Ok(table.insert(work.key(), (kills, true)).map(drop)?)
        })
    }

    /// Records that work has ended.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn work_ends(&self, work: Work) -> Result<(), StoreError> {
        self.write(|write| Ok(write.open_table(INTERRUPTED_WORK)?.remove(work.key()).map(drop)?))
    }

    /// Records that core stops by itself, so no work is the cause.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn stops_by_itself(&self) -> Result<(), StoreError> {
        self.write(|write| {
            write.open_table(META)?.remove(RUNNING)?;
            Ok(write.open_table(INTERRUPTED_WORK)?.retain(|_, _| false)?)
        })
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

    /// The secrets that were kept for a preview, with the run that they were sealed for. Blocks.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn preview_secrets(
        &self,
        preview: PreviewId,
    ) -> Result<Option<(RunId, Vec<u8>)>, StoreError> {
        self.read(|read| {
            let secrets = read.open_table(PREVIEW_SECRETS)?;
            let Some(row) = secrets.get(preview.bits())? else { return Ok(None) };
            let Some((run, sealed)) = row.value().split_first_chunk() else { return Ok(None) };
            Ok(Some((RunId::from_bits(u128::from_be_bytes(*run)), sealed.to_vec())))
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
