//! Bearer tokens and what they may do.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use axum::extract::FromRequestParts;
use axum::http::header::AUTHORIZATION;
use axum::http::request::Parts;
use secrecy::SecretString;
use tokio::task::spawn_blocking;

use super::{Api, ApiError};
use crate::api::Role;
use crate::core::clock::now;
use crate::core::store::{ApiToken, Store, StoreError};
use crate::core::tokens::{TokenHash, random_token};

/// The API's tokens, by their hash. Looking a hash up tells nothing of the tokens by its time.
#[derive(Clone, Debug)]
pub(crate) struct ApiTokens {
    store: Store,
    known: Arc<RwLock<HashMap<TokenHash, ApiToken>>>,
}

impl ApiTokens {
    /// Begins with what the store holds.
    pub(crate) fn new(store: Store, stored: Vec<(TokenHash, ApiToken)>) -> Self {
        Self { store, known: Arc::new(RwLock::new(stored.into_iter().collect())) }
    }

    /// Makes a token and stores its hash.
    pub(crate) async fn create(&self, name: &str, role: Role) -> Result<SecretString, StoreError> {
        let token = random_token("stagely_");
        let record = ApiToken { name: name.to_owned(), role, created_at: now() };
        self.add(&token, record).await?;
        Ok(token)
    }

    /// Stores the hash of a token that is there already.
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

    /// What `token` may do; `None` if it is not one of ours.
    pub(crate) fn role_of(&self, token: &SecretString) -> Option<Role> {
        self.find(token).map(|token| token.role)
    }

    fn find(&self, token: &SecretString) -> Option<ApiToken> {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        known.get(&TokenHash::of(token)).cloned()
    }
}

/// Proof that the request's token may do what `MINIMUM` (a [`Role`] as number) may.
#[derive(Debug)]
pub(super) struct Authorized<const MINIMUM: u8> {
    /// The token's name, for people.
    pub(super) name: String,
}

/// May read.
pub(super) type Reader = Authorized<{ Role::Read as u8 }>;
/// May write.
pub(super) type Writer = Authorized<{ Role::Write as u8 }>;
/// May do all.
pub(super) type Admin = Authorized<{ Role::Admin as u8 }>;

impl<const MINIMUM: u8> FromRequestParts<Api> for Authorized<MINIMUM> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, api: &Api) -> Result<Self, ApiError> {
        let token = parts
            .headers
            .get(AUTHORIZATION)
            .and_then(|value| value.to_str().ok())
            .and_then(|value| value.strip_prefix("Bearer "))
            .map(SecretString::from)
            .ok_or_else(ApiError::unauthorized)?;
        let ApiToken { name, role, .. } =
            api.tokens.find(&token).ok_or_else(ApiError::unauthorized)?;
        if role as u8 >= MINIMUM {
            Ok(Self { name })
        } else {
            Err(ApiError::forbidden(format!("a token of role `{role}` may not do this")))
        }
    }
}
