//! The secrets of projects, which the services of their previews get as variables.

use std::collections::BTreeMap;

use secrecy::{ExposeSecret as _, SecretString};
use stagely_state::ids::ProjectId;

use super::keyring::SealBroken;
use super::{SecretStore, SecretsError};
use crate::core::clock::now;
use crate::core::store::{SecretEntry, SetOutcome, StoreError};

/// The most secrets of a project.
pub const SECRETS_MAX: usize = 100;

/// What a secret is sealed for: so it opens neither for another project nor under another name.
fn owner(project: ProjectId, name: &str) -> String {
    format!("{project}/{name}")
}

impl SecretStore {
    /// Stores a secret, sealed, unless the project has [`SECRETS_MAX`] others. Blocks until it is on the disk.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn set_project_secret(
        &self,
        project: ProjectId,
        name: &str,
        value: &SecretString,
    ) -> Result<(SecretEntry, SetOutcome), StoreError> {
        let sealed = self.keyring.seal(&owner(project, name), value.expose_secret().as_bytes());
        let entry = SecretEntry { name: name.to_owned(), set_at: now() };
        let outcome = self.store.set_project_secret(project, &entry, &sealed, SECRETS_MAX)?;
        Ok((entry, outcome))
    }

    /// Those of the project's secrets `names` that are set. Blocks while the disk works.
    ///
    /// # Errors
    /// [`SecretsError`].
    pub fn open_project_secrets(
        &self,
        project: ProjectId,
        names: &[String],
    ) -> Result<BTreeMap<String, SecretString>, SecretsError> {
        let mut values = BTreeMap::new();
        for name in names {
            let Some(sealed) = self.store.project_secret(project, name)? else { continue };
            let value = self.keyring.open_sealed(&owner(project, name), &sealed)?;
            let value = String::from_utf8(value).map_err(|_| SealBroken)?;
            values.insert(name.clone(), SecretString::from(value));
        }
        Ok(values)
    }

    /// The names of a project's secrets. Blocks while the disk works.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn project_secrets(&self, project: ProjectId) -> Result<Vec<SecretEntry>, StoreError> {
        self.store.project_secrets(project)
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
        self.store.remove_project_secret(project, name)
    }

    /// Deletes all secrets of a project. Blocks until that is on the disk.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn remove_project_secrets(&self, project: ProjectId) -> Result<(), StoreError> {
        self.store.remove_project_secrets(project)
    }
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;
    use crate::core::secrets::keyring::Keyring;
    use crate::core::store::Store;

    const APP: ProjectId = ProjectId::from_bits(1);
    const OTHER: ProjectId = ProjectId::from_bits(2);

    fn open(folder: &TempDir) -> SecretStore {
        let keyring = Keyring::open(&folder.path().join("secrets.key")).unwrap();
        let (store, _) = Store::open(&folder.path().join("core.redb")).unwrap();
        SecretStore::new(keyring, store, Vec::new(), Vec::new())
    }

    fn set(secrets: &SecretStore, project: ProjectId, name: &str, value: &str) -> SetOutcome {
        secrets.set_project_secret(project, name, &value.into()).unwrap().1
    }

    fn values(secrets: &SecretStore, project: ProjectId) -> Vec<(String, String)> {
        let names = ["A", "B", "C"].map(str::to_owned);
        let values = secrets.open_project_secrets(project, &names).unwrap().into_iter();
        values.map(|(name, value)| (name, value.expose_secret().to_owned())).collect()
    }

    fn pairs(expected: &[(&str, &str)]) -> Vec<(String, String)> {
        let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        expected.iter().map(owned).collect()
    }

    #[test]
    fn secrets_belong_to_one_project_and_outlive_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let secrets = open(&folder);
        assert_eq!(set(&secrets, APP, "A", "first"), SetOutcome::Added);
        assert_eq!(set(&secrets, APP, "A", "second"), SetOutcome::Replaced);
        assert_eq!(set(&secrets, APP, "B", "of app"), SetOutcome::Added);
        assert_eq!(set(&secrets, OTHER, "A", "of other"), SetOutcome::Added);
        drop(secrets);

        let secrets = open(&folder);

        assert_eq!(values(&secrets, APP), pairs(&[("A", "second"), ("B", "of app")]));
        let names: Vec<_> = secrets.project_secrets(APP).unwrap();
        let names: Vec<_> = names.iter().map(|entry| &*entry.name).collect();
        assert_eq!(names, ["A", "B"]);
        assert!(secrets.remove_project_secret(APP, "A").unwrap());
        assert!(!secrets.remove_project_secret(APP, "A").unwrap());
        assert_eq!(values(&secrets, APP), pairs(&[("B", "of app")]));
        secrets.remove_project_secrets(APP).unwrap();
        assert_eq!(values(&secrets, APP), []);
        assert_eq!(values(&secrets, OTHER), pairs(&[("A", "of other")]));
    }

    #[test]
    fn the_database_holds_no_value_and_a_value_opens_only_under_its_name() {
        let folder = tempfile::tempdir().unwrap();
        let secrets = open(&folder);
        let value = "a value that nobody else has";
        set(&secrets, APP, "A", value);
        let sealed = secrets.store.project_secret(APP, "A").unwrap().unwrap();
        let entry = SecretEntry { name: "B".to_owned(), set_at: now() };
        secrets.store.set_project_secret(APP, &entry, &sealed, SECRETS_MAX).unwrap();

        assert!(secrets.open_project_secrets(APP, &["B".to_owned()]).is_err());
        drop(secrets);
        let database = std::fs::read(folder.path().join("core.redb")).unwrap();
        assert!(!database.windows(value.len()).any(|found| found == value.as_bytes()));
    }

    #[test]
    fn a_project_has_a_limited_number_of_secrets() {
        let folder = tempfile::tempdir().unwrap();
        let secrets = open(&folder);
        for number in 0..SECRETS_MAX {
            set(&secrets, APP, &format!("S{number}"), "value");
        }
        assert_eq!(set(&secrets, APP, "ONE_MORE", "value"), SetOutcome::TooMany);
        assert_eq!(set(&secrets, APP, "S7", "other"), SetOutcome::Replaced);
        assert_eq!(set(&secrets, OTHER, "ONE_MORE", "value"), SetOutcome::Added);
        assert_eq!(secrets.project_secrets(APP).unwrap().len(), SECRETS_MAX);
    }
}
