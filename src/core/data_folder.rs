//! The data folder: opens its databases, its key, its archives and artifacts, and empties its folder for checkouts.

mod binding;

use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::{fs, io};

use anyhow::Context as _;
use tokio::task::spawn_blocking;

use super::blobs::BlobStore;
use super::logs::{LogSettings, LogStore};
use super::secrets::keyring::Keyring;
use super::store::{Store, StoreContents, StoreError};
use crate::config::Config;

use self::binding::{Binding, BindingError};

pub(super) const RECORDS_FILE: &str = "core.redb";
pub(super) const LOGS_FILE: &str = "logs.redb";
const KEY_FILE: &str = "secrets.key";

/// The folder of previews' archives.
const ARCHIVES: &str = "archives";
/// The folder of what tests have left.
const ARTIFACTS: &str = "artifacts";

/// The folder of short-lived checkouts. It is emptied at every start.
const SCRATCH: &str = "scratch";

/// Whether a core may use a data folder that was used elsewhere before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FolderCheck {
    /// Yes: it launches machines on this host alone, as the core inside a command does.
    None,
    /// No.
    SameLocation,
    /// Once: the folder was moved or restored, and the core that used it is gone.
    Moved,
}

/// An open data folder, which no other core uses.
pub(super) struct DataFolder {
    pub(super) path: PathBuf,
    pub(super) store: Store,
    pub(super) contents: StoreContents,
    pub(super) logs: LogStore,
    pub(super) keyring: Keyring,
    pub(super) archives: BlobStore,
    pub(super) artifacts: BlobStore,
}

impl DataFolder {
    /// Opens or creates the folder that `config` names.
    ///
    /// # Errors
    /// It is in use by another core, or cannot be read or written.
    pub(super) async fn open(config: &Config, check: FolderCheck) -> anyhow::Result<Self> {
        let (path, settings) = (config.core.data_dir.clone(), LogSettings::from(config));
        spawn_blocking(move || Self::open_blocking(path, settings, check)).await?
    }

    fn open_blocking(
        path: PathBuf,
        settings: LogSettings,
        check: FolderCheck,
    ) -> anyhow::Result<Self> {
        let unusable = || format!("cannot use the data folder {}", path.display());
        let mut private = fs::DirBuilder::new();
        private.recursive(true).mode(0o700).create(&path).with_context(unusable)?;
        let records = path.join(RECORDS_FILE);
        let (store, contents) = check_not_lost(&path, &records)
            .and_then(|()| Store::open(&records))
            .with_context(|| format!("cannot open the database in {}", path.display()))?;
        bind(&path, &store, check).with_context(unusable)?;
        // The database is open, so no other core works here. A killed core may have left checkouts.
        let scratch = path.join(SCRATCH);
        match fs::remove_dir_all(&scratch) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(error).with_context(unusable);
            }
            _ => private.create(&scratch).with_context(unusable)?,
        }
        let logs = path.join(LOGS_FILE);
        let logs = LogStore::open(&logs, settings)
            .with_context(|| format!("cannot open the logs in {}", path.display()))?;
        let keyring = Keyring::open(&path.join(KEY_FILE))
            .with_context(|| format!("cannot open the key in {}", path.display()))?;
        let archives = BlobStore::open(path.join(ARCHIVES))
            .with_context(|| format!("cannot open the archives in {}", path.display()))?;
        let artifacts = BlobStore::open(path.join(ARTIFACTS))
            .with_context(|| format!("cannot open the artifacts in {}", path.display()))?;
        Ok(Self { path, store, contents, logs, keyring, archives, artifacts })
    }

    pub(super) fn scratch(&self) -> PathBuf {
        self.path.join(SCRATCH)
    }
}

/// Refuses a database that is empty or missing beside files that core makes after it. A new one would not know the
/// machines of the old one.
fn check_not_lost(folder: &Path, records: &Path) -> Result<(), StoreError> {
    let what = match fs::metadata(records) {
        Ok(file) if file.is_file() && file.len() == 0 => "the file is empty",
        Err(error) if error.kind() == io::ErrorKind::NotFound => "the file is missing",
        _ => return Ok(()),
    };
    let others = [binding::FILE, LOGS_FILE, KEY_FILE, ARCHIVES];
    if others.iter().any(|name| folder.join(name).exists()) {
        return Err(StoreError::lost(records, what));
    }
    Ok(())
}

/// Checks where the folder was used before, and binds it to this place. A database of an older version is bound without
/// a check.
fn bind(path: &Path, store: &Store, check: FolderCheck) -> anyhow::Result<()> {
    if check == FolderCheck::None {
        return Ok(());
    }
    let here = Binding::here(path).map_err(BindingError::from)?;
    if store.is_bound()? && check == FolderCheck::SameLocation {
        let stored = Binding::stored(path).map_err(BindingError::from)?;
        here.check(stored.as_ref())?;
    }
    here.store().map_err(BindingError::from)?;
    Ok(store.set_bound()?)
}

#[cfg(test)]
mod tests;
