//! The secrets of runs and of projects, and the tokens of projects and of machines: sealed or hashed in the store, and the
//! tokens also in memory.

pub mod keyring;
pub mod project_secrets;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use stagely_protocol::ErrorChain;
use stagely_state::ids::{MachineId, PreviewId, ProjectId, RunId};
use stagely_state::{Access, Preview, Run};
use tracing::warn;

use self::keyring::{Keyring, SealBroken};
use super::records::Records;
use super::store::{Batch, Store, StoreError};
use super::tokens::{TokenHash, random_token};

/// The secrets in the request for a run.
#[derive(Debug, Default)]
pub struct RunSecrets {
    pub clone_token: Option<SecretString>,
    /// Build arguments for every build.
    pub set: BTreeMap<String, SecretString>,
}

/// Stored secrets cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum SecretsError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Sealed(#[from] SealBroken),
}

#[derive(Serialize, Deserialize)]
struct SealedForm {
    clone_token: Option<String>,
    set: BTreeMap<String, String>,
}

/// The secrets of core. Clones share them.
#[derive(Clone, Debug)]
pub struct SecretStore {
    keyring: Keyring,
    store: Store,
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug, Default)]
struct Inner {
    /// Sealed, as in the store.
    project_tokens: HashMap<ProjectId, Vec<u8>>,
    machines: HashMap<MachineId, Vec<TokenHash>>,
}

/// Whose secrets a run has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SecretsOf {
    Run(RunId),
    /// Those that were kept for a preview; if none were, those of the run that it shows.
    Preview {
        preview: PreviewId,
        shown: RunId,
    },
}

impl SecretsOf {
    /// Core's own runs for a preview have those that were kept for it.
    pub(crate) fn run(records: &Records, run: &Run) -> Self {
        let is_of_preview = run.trigger.is_for_preview();
        match records.preview_of(run.environment).filter(|_| is_of_preview) {
            Some(preview) => {
                let shown = preview.shown.as_ref().map_or(run.id, |shown| shown.run);
                Self::Preview { preview: preview.id, shown }
            }
            None => Self::Run(run.id),
        }
    }
}

impl SecretStore {
    pub fn new(
        keyring: Keyring,
        store: Store,
        project_tokens: Vec<(ProjectId, Vec<u8>)>,
        machines: Vec<(MachineId, Vec<TokenHash>)>,
    ) -> Self {
        let inner = Inner {
            project_tokens: project_tokens.into_iter().collect(),
            machines: machines.into_iter().collect(),
        };
        Self { keyring, store, inner: Arc::new(Mutex::new(inner)) }
    }

    /// Seals the secrets of a run that is about to be requested. The orchestrator stores the bytes
    /// together with the run.
    pub fn seal_run(&self, run: RunId, secrets: &RunSecrets) -> Vec<u8> {
        let form = SealedForm {
            clone_token: secrets.clone_token.as_ref().map(|token| token.expose_secret().to_owned()),
            set: (secrets.set.iter())
                .map(|(name, value)| (name.clone(), value.expose_secret().to_owned()))
                .collect(),
        };
        let json = serde_json::to_vec(&form).expect("strings always serialize");
        self.keyring.seal(&run.to_string(), &json)
    }

    /// Reads the secrets of a stored run, which may be empty. Blocks while the disk works: they may be large and are
    /// seldom needed, so they are not kept in memory.
    ///
    /// # Errors
    /// [`SecretsError`].
    pub fn open_run(&self, run: RunId) -> Result<RunSecrets, SecretsError> {
        match self.store.run_secrets(run)? {
            Some(sealed) => self.open_form(run, &sealed),
            None => Ok(RunSecrets::default()),
        }
    }

    /// Adds the clone token of a run that has ended to `batch`, for the preview that shows it: what deploys it again clones
    /// its compose file. Build arguments are not kept. Blocks while the disk works.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn keep_clone_token(
        &self,
        batch: &mut Batch,
        run: RunId,
        preview: PreviewId,
    ) -> Result<(), StoreError> {
        let clone_token = match self
            .store
            .run_secrets(run)?
            .map(|sealed| self.open_form(run, &sealed))
        {
            Some(Ok(secrets)) => secrets.clone_token,
            Some(Err(error)) => {
                warn!(%run, %preview, error = %ErrorChain(&error), "the clone token cannot be kept for wakes");
                None
            }
            None => {
                let kept = self.store.preview_secrets(preview)?;
                // The record of the run has changed once more after its end.
                if kept.is_some_and(|(kept, _)| kept == run) {
                    return Ok(());
                }
                None
            }
        };
        let sealed = clone_token.map(|token| {
            let secrets = RunSecrets { clone_token: Some(token), set: BTreeMap::new() };
            self.seal_run(run, &secrets)
        });
        batch.preview_secrets(preview, sealed.as_deref().map(|sealed| (run, sealed)));
        Ok(())
    }

    /// As [`open_run`](Self::open_run), also of runs that have the secrets of an earlier one. Of that, only the clone token
    /// is there.
    ///
    /// # Errors
    /// [`SecretsError`].
    pub fn open(&self, of: SecretsOf) -> Result<RunSecrets, SecretsError> {
        match of {
            SecretsOf::Run(run) => self.open_run(run),
            SecretsOf::Preview { preview, shown } => match self.store.preview_secrets(preview)? {
                Some((run, sealed)) => self.open_form(run, &sealed),
                None => self.open_run(shown),
            },
        }
    }

    fn open_form(&self, run: RunId, sealed: &[u8]) -> Result<RunSecrets, SecretsError> {
        let json = self.keyring.open_sealed(&run.to_string(), sealed)?;
        let form: SealedForm = serde_json::from_slice(&json).map_err(|_| SealBroken)?;
        Ok(RunSecrets {
            clone_token: form.clone_token.map(SecretString::from),
            set: form.set.into_iter().map(|(name, value)| (name, value.into())).collect(),
        })
    }

    /// The key that opens the preview alone, until it ends or is reset, or `access` changes.
    pub fn preview_key(&self, preview: &Preview, access: Access) -> SecretString {
        let Preview { id, key_number, .. } = preview;
        self.keyring.derive(&format!("{id} {access:?} {key_number}"))
    }

    /// Stores the token for a project's repository, sealed, or deletes it. Blocks until that is on the disk.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn set_project_token(
        &self,
        project: ProjectId,
        token: Option<&SecretString>,
    ) -> Result<(), StoreError> {
        let sealed = token
            .map(|token| self.keyring.seal(&project.to_string(), token.expose_secret().as_bytes()));
        let mut batch = Batch::default();
        batch.project_token(project, sealed.clone());
        self.store.commit(&batch)?;
        let tokens = &mut self.lock().project_tokens;
        match sealed {
            Some(sealed) => tokens.insert(project, sealed),
            None => tokens.remove(&project),
        };
        Ok(())
    }

    /// Opens the token of a project; `None` if it has none of its own.
    ///
    /// # Errors
    /// [`SealBroken`].
    pub fn project_token(&self, project: ProjectId) -> Result<Option<SecretString>, SealBroken> {
        let Some(sealed) = self.lock().project_tokens.get(&project).cloned() else {
            return Ok(None);
        };
        let token = self.keyring.open_sealed(&project.to_string(), &sealed)?;
        let token = String::from_utf8(token).map_err(|_| SealBroken)?;
        Ok(Some(SecretString::from(token)))
    }

    /// Creates a token for `machine` and stores its hash. Earlier tokens stay valid, because an earlier launch whose
    /// answer was lost in a crash may have started the machine with one of them. Blocks until the hash is on the
    /// disk.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn add_machine_token(&self, machine: MachineId) -> Result<SecretString, StoreError> {
        let token = random_token("stagely_vm_");
        let mut hashes = self.lock().machines.get(&machine).cloned().unwrap_or_default();
        hashes.push(TokenHash::of(&token));
        let mut batch = Batch::default();
        batch.machine_tokens(machine, Some(&hashes));
        self.store.commit(&batch)?;
        self.lock().machines.insert(machine, hashes);
        Ok(token)
    }

    /// Whether `token` is one of the machine's tokens.
    pub fn is_machine_token(&self, machine: MachineId, token: &SecretString) -> bool {
        let offered = TokenHash::of(token);
        let inner = self.lock();
        inner.machines.get(&machine).is_some_and(|hashes| {
            // All hashes are compared, so that the duration does not depend on the matching one.
            hashes.iter().fold(false, |found, hash| hash.matches(&offered) | found)
        })
    }

    /// Forgets the tokens of a machine that is gone.
    pub(super) fn forget_machine(&self, machine: MachineId) {
        self.lock().machines.remove(&machine);
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_preview_keeps_only_the_clone_token_of_the_run_that_it_shows() {
        let folder = tempfile::tempdir().unwrap();
        let keyring = Keyring::open(&folder.path().join("secrets.key")).unwrap();
        let (store, _) = Store::open(&folder.path().join("core.redb")).unwrap();
        let secrets = SecretStore::new(keyring, store.clone(), Vec::new(), Vec::new());
        let preview = PreviewId::from_bits(9);
        let commit = |change: &dyn Fn(&mut Batch)| {
            let mut batch = Batch::default();
            change(&mut batch);
            store.commit(&batch).unwrap();
        };
        let request = |run, clone_token: Option<&str>| {
            let set = BTreeMap::from([("PASSWORD".to_owned(), "of the build".into())]);
            let requested = RunSecrets { clone_token: clone_token.map(Into::into), set };
            commit(&|batch| batch.run_secrets(run, Some(secrets.seal_run(run, &requested))));
        };
        let end = |run| {
            commit(&|batch| {
                batch.run_secrets(run, None);
                secrets.keep_clone_token(batch, run, preview).unwrap();
            });
        };
        let kept = |run| {
            let kept = secrets.open(SecretsOf::Preview { preview, shown: run }).unwrap();
            assert!(kept.set.is_empty(), "{kept:?}");
            kept.clone_token.map(|token| token.expose_secret().to_owned())
        };
        let [first, second, third] = [1, 2, 3].map(RunId::from_bits);
        request(first, Some("the token"));
        // Twice: its record may change after its end.
        for _ in 0..2 {
            end(first);
            assert_eq!(kept(first).as_deref(), Some("the token"));
        }
        request(second, None);
        end(second);
        assert_eq!(kept(second), None, "the newer run has no token");
        request(first, Some("the token"));
        end(first);
        // A run that GitHub's webhook started has no secrets.
        end(third);
        assert_eq!(kept(third), None);
    }
}
