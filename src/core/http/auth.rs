//! Bearer tokens and their roles.

use std::collections::HashMap;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};

use anyhow::Context as _;
use axum::extract::{FromRef, FromRequestParts};
use axum::http::header::AUTHORIZATION;
use axum::http::request::Parts;
use secrecy::{ExposeSecret as _, SecretString};
use stagely_protocol::MACHINE_HEADER;
use stagely_state::ids::MachineId;
use tokio::task::spawn_blocking;
use tracing::warn;

use super::{ApiError, ApiState};
use crate::api::Role;
use crate::core::clock::now;
use crate::core::secrets::SecretStore;
use crate::core::store::{ApiToken, Store, StoreError};
use crate::core::tokens::{TokenHash, random_token};

/// The API's tokens, by their hash. The duration of a lookup by hash discloses nothing about the tokens.
#[derive(Clone, Debug)]
pub(crate) struct ApiTokens {
    store: Store,
    known: Arc<RwLock<HashMap<TokenHash, ApiToken>>>,
}

impl ApiTokens {
    pub(crate) fn new(store: Store, stored: Vec<(TokenHash, ApiToken)>) -> Self {
        Self { store, known: Arc::new(RwLock::new(stored.into_iter().collect())) }
    }

    /// Creates a token and stores its hash.
    pub(crate) async fn create(&self, name: &str, role: Role) -> Result<SecretString, StoreError> {
        let token = random_token("stagely_");
        let record = ApiToken { name: name.to_owned(), role, created_at: now() };
        self.add(&token, record).await?;
        Ok(token)
    }

    /// Stores the hash of an existing token.
    pub(crate) async fn add(
        &self,
        token: &SecretString,
        record: ApiToken,
    ) -> Result<(), StoreError> {
        let hash = TokenHash::of(token);
        let (store, stored) = (self.store.clone(), record.clone());
        spawn_blocking(move || store.add_api_token(hash, &stored))
            .await
            .expect("storing a token does not panic")?;
        self.known.write().unwrap_or_else(PoisonError::into_inner).insert(hash, record);
        Ok(())
    }

    /// The role of `token`; `None` if it is unknown.
    pub(crate) fn role_of(&self, token: &SecretString) -> Option<Role> {
        self.find(token).map(|token| token.role)
    }

    fn find(&self, token: &SecretString) -> Option<ApiToken> {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        known.get(&TokenHash::of(token)).cloned()
    }
}

/// Reads the admin token that an earlier start wrote to `path`, or creates one.
///
/// # Errors
/// The file cannot be read or written, or the store fails.
pub(crate) async fn admin_token(path: &Path, tokens: &ApiTokens) -> anyhow::Result<SecretString> {
    match std::fs::read_to_string(path) {
        Ok(text) => {
            let token = SecretString::from(text.trim_end());
            if tokens.role_of(&token) == Some(Role::Admin) {
                return Ok(token);
            }
            warn!(path = %path.display(), "the admin token is not of this database; making another");
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => {
            return Err(error).with_context(|| format!("cannot read {}", path.display()));
        }
    }
    let token = random_token("stagely_");
    let record =
        ApiToken { name: "first admin token".to_owned(), role: Role::Admin, created_at: now() };
    tokens.add(&token, record).await?;
    write_token(path, &token).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(token)
}

fn write_token(path: &Path, token: &SecretString) -> io::Result<()> {
    let mut file = std::fs::OpenOptions::new()
        .create(true)
        .write(true)
        .truncate(true)
        .mode(0o600)
        .open(path)?;
    writeln!(file, "{}", token.expose_secret())
}

/// Proof that the request's token has at least the role `MINIMUM` (a [`Role`] as number).
#[derive(Debug)]
pub(super) struct Authorized<const MINIMUM: u8> {
    /// The token's name, for people.
    pub(super) name: String,
    pub(super) role: Role,
}

pub(super) type Reader = Authorized<{ Role::Read as u8 }>;
pub(super) type Writer = Authorized<{ Role::Write as u8 }>;
pub(super) type Admin = Authorized<{ Role::Admin as u8 }>;

impl<const MINIMUM: u8> FromRequestParts<ApiState> for Authorized<MINIMUM> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, api: &ApiState) -> Result<Self, ApiError> {
        let token = bearer_token(parts).ok_or_else(ApiError::unauthorized)?;
        let ApiToken { name, role, .. } =
            api.tokens.find(&token).ok_or_else(ApiError::unauthorized)?;
        if role as u8 >= MINIMUM {
            Ok(Self { name, role })
        } else {
            Err(ApiError::forbidden(format!("a token of role `{role}` may not do this")))
        }
    }
}

/// The machine whose agent sends the request.
#[derive(Debug)]
pub(super) struct AgentMachine(pub(super) MachineId);

impl<S: Sync> FromRequestParts<S> for AgentMachine
where
    SecretStore: FromRef<S>,
{
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let machine = parts.headers.get(MACHINE_HEADER).and_then(|id| id.to_str().ok());
        let machine: Option<MachineId> = machine.and_then(|id| id.parse().ok());
        // An unknown machine and a wrong token get the same answer, so that guessing reveals nothing.
        let (Some(machine), Some(token)) = (machine, bearer_token(parts)) else {
            return Err(ApiError::unauthorized());
        };
        if !SecretStore::from_ref(state).is_machine_token(machine, &token) {
            return Err(ApiError::unauthorized());
        }
        Ok(Self(machine))
    }
}

fn bearer_token(parts: &Parts) -> Option<SecretString> {
    let value = parts.headers.get(AUTHORIZATION)?.to_str().ok()?;
    value.strip_prefix("Bearer ").map(SecretString::from)
}
