//! The secrets of runs, the tokens of projects and the tokens of machines: sealed or hashed in the store, and the tokens
//! also in memory.

pub mod keyring;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use stagely_state::ids::{MachineId, ProjectId, RunId};

use self::keyring::{Keyring, SealBroken};
use super::store::{Batch, Store, StoreError};
use super::tokens::{TokenHash, random_token};

/// The secrets in the request for a run.
#[derive(Debug, Default)]
pub struct RunSecrets {
    pub clone_token: Option<SecretString>,
    /// Build arguments for every build.
    pub set: BTreeMap<String, SecretString>,
}

/// The secrets of a run cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum RunSecretsError {
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
    projects: HashMap<ProjectId, Vec<u8>>,
    machines: HashMap<MachineId, Vec<TokenHash>>,
}

impl SecretStore {
    pub fn new(
        keyring: Keyring,
        store: Store,
        projects: Vec<(ProjectId, Vec<u8>)>,
        machines: Vec<(MachineId, Vec<TokenHash>)>,
    ) -> Self {
        let inner = Inner {
            projects: projects.into_iter().collect(),
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
    /// [`RunSecretsError`].
    pub fn open_run(&self, run: RunId) -> Result<RunSecrets, RunSecretsError> {
        let Some(sealed) = self.store.run_secrets(run)? else {
            return Ok(RunSecrets::default());
        };
        let json = self.keyring.open_sealed(&run.to_string(), &sealed)?;
        let form: SealedForm = serde_json::from_slice(&json).map_err(|_| SealBroken)?;
        Ok(RunSecrets {
            clone_token: form.clone_token.map(SecretString::from),
            set: form.set.into_iter().map(|(name, value)| (name, value.into())).collect(),
        })
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
        batch.project_secret(project, sealed.clone());
        self.store.commit(&batch)?;
        let projects = &mut self.lock().projects;
        match sealed {
            Some(sealed) => projects.insert(project, sealed),
            None => projects.remove(&project),
        };
        Ok(())
    }

    /// Opens the token of a project; `None` if it has none of its own.
    ///
    /// # Errors
    /// [`SealBroken`].
    pub fn project_token(&self, project: ProjectId) -> Result<Option<SecretString>, SealBroken> {
        let Some(sealed) = self.lock().projects.get(&project).cloned() else { return Ok(None) };
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
