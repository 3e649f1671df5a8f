//! The sealed secrets of projects, by project and name. They may be large and are seldom needed, so they are read when they
//! are needed.

use std::ops::Range;

use redb::ReadableTable as _;
use stagely_state::Timestamp;
use stagely_state::ids::ProjectId;

use super::tables::PROJECT_SECRETS;
use super::{Store, StoreError};

/// A stored secret, without its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SecretEntry {
    pub name: String,
    pub set_at: Timestamp,
}

/// What became of a secret that was to be stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetOutcome {
    Added,
    Replaced,
    /// The project has too many others.
    TooMany,
}

/// The keys of all secrets of a project.
const fn keys_of(project: ProjectId) -> Range<(u128, &'static str)> {
    (project.bits(), "")..(project.bits() + 1, "")
}

impl Store {
    /// Stores a sealed secret, unless the project then had more than `max`. Blocks until it is on the disk.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn set_project_secret(
        &self,
        project: ProjectId,
        secret: &SecretEntry,
        sealed: &[u8],
        max: usize,
    ) -> Result<SetOutcome, StoreError> {
        let key = (project.bits(), &*secret.name);
        self.write(|write| {
            let mut secrets = write.open_table(PROJECT_SECRETS)?;
            let is_known = secrets.get(key)?.is_some();
            if !is_known && secrets.range(keys_of(project))?.count() >= max {
                return Ok(SetOutcome::TooMany);
            }
            secrets.insert(key, (secret.set_at.0, sealed))?;
            Ok(if is_known { SetOutcome::Replaced } else { SetOutcome::Added })
        })
    }

    /// Deletes a secret. Returns false if there is none. Blocks until that is on the disk.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn remove_project_secret(
        &self,
        project: ProjectId,
        name: &str,
    ) -> Result<bool, StoreError> {
        self.write(|write| {
            let mut secrets = write.open_table(PROJECT_SECRETS)?;
            Ok(secrets.remove((project.bits(), name))?.is_some())
        })
    }

    /// Deletes all secrets of a project. Blocks until that is on the disk.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn remove_project_secrets(&self, project: ProjectId) -> Result<(), StoreError> {
        self.write(|write| {
            let mut secrets = write.open_table(PROJECT_SECRETS)?;
            Ok(secrets.retain_in(keys_of(project), |_, _| false)?)
        })
    }

    /// The secrets of a project, by name, without their values. Blocks.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn project_secrets(&self, project: ProjectId) -> Result<Vec<SecretEntry>, StoreError> {
        self.read(|read| {
            let secrets = read.open_table(PROJECT_SECRETS)?;
            let entries = secrets.range(keys_of(project))?.map(|row| {
                let (key, value) = row?;
                let (name, set_at) = (key.value().1.to_owned(), Timestamp(value.value().0));
                Ok(SecretEntry { name, set_at })
            });
            entries.collect()
        })
    }

    /// A sealed secret of a project. Blocks.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn project_secret(
        &self,
        project: ProjectId,
        name: &str,
    ) -> Result<Option<Vec<u8>>, StoreError> {
        self.read(|read| {
            let secrets = read.open_table(PROJECT_SECRETS)?;
            Ok(secrets.get((project.bits(), name))?.map(|value| value.value().1.to_vec()))
        })
    }
}
