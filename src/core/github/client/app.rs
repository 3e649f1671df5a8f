//! The tokens of a GitHub App: where the app is installed, and a token for each use.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use secrecy::SecretString;
use serde::Deserialize;
use serde_json::{Value, json};
use stagely_state::{GithubRepository, Timestamp};

use super::api::{ApiClient, ApiRequest, path};
use super::credentials::App;
use super::error::GithubError;
use super::limits::Account;
use crate::core::clock::now;
use crate::core::github::payload::timestamp;

/// A token is replaced this long before it expires: a request takes time, and clocks differ.
const EXPIRY_MARGIN: Duration = Duration::from_mins(5);

/// A token of the app for one repository.
#[derive(Clone)]
pub(super) struct InstallationToken {
    pub(super) installation: u64,
    pub(super) token: SecretString,
    expires_at: Timestamp,
}

/// What is known of the app in one repository. Its lock is held during requests for more.
#[derive(Default)]
struct Installation {
    id: Option<u64>,
    tokens: HashMap<TokenUse, InstallationToken>,
}

/// What core uses a token of the app for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum TokenUse {
    /// Everything but deployments.
    Core,
    /// The permission is optional, and GitHub makes no token at all that asks for one that the app lacks.
    Deployments,
}

impl TokenUse {
    fn permissions(self) -> Value {
        match self {
            Self::Core => json!({
                "contents": "read",
                "issues": "write",
                "metadata": "read",
                "pull_requests": "write",
                "statuses": "write",
            }),
            Self::Deployments => json!({ "deployments": "write" }),
        }
    }
}

/// The app's installations, by repository.
#[derive(Default)]
pub(super) struct Installations {
    by_repository: Mutex<HashMap<String, Arc<tokio::sync::Mutex<Installation>>>>,
}

#[derive(Deserialize)]
struct InstallationPayload {
    id: u64,
}

#[derive(Deserialize)]
struct TokenPayload {
    token: SecretString,
    expires_at: jiff::Timestamp,
}

impl Installations {
    /// Core's own token for `repository`.
    ///
    /// # Errors
    /// [`GithubError::Refused`] with the status 422 if the app may not do what the token is for.
    pub(super) async fn token(
        &self,
        api: &ApiClient,
        app: &App,
        repository: &GithubRepository,
        token_use: TokenUse,
    ) -> Result<InstallationToken, GithubError> {
        let installation = self.of(repository);
        let mut installation = installation.lock().await;
        if let Some(token) = installation.tokens.get(&token_use)
            && token.expires_at > now().after(EXPIRY_MARGIN)
        {
            return Ok(token.clone());
        }
        let permissions = token_use.permissions();
        let token = create_token(api, app, &mut installation, repository, permissions).await;
        let token = token.map_err(|error| match token_use {
            TokenUse::Core => with_permissions(error, repository),
            TokenUse::Deployments => error,
        })?;
        installation.tokens.insert(token_use, token.clone());
        Ok(token)
    }

    /// A new token that only reads the contents of `repository`.
    pub(super) async fn clone_token(
        &self,
        api: &ApiClient,
        app: &App,
        repository: &GithubRepository,
    ) -> Result<SecretString, GithubError> {
        let shared = self.of(repository);
        // The lock is held while the installation is looked up, and not while the token is made: tokens
        // for several jobs are made at the same time.
        let id = find_installation(api, app, &mut *shared.lock().await, repository).await?;
        let mut installation = Installation { id: Some(id), tokens: HashMap::new() };
        let permissions = json!({ "contents": "read" });
        let token = create_token(api, app, &mut installation, repository, permissions).await;
        if installation.id.is_none() {
            shared.lock().await.id = None;
        }
        Ok(token.map_err(|error| with_permissions(error, repository))?.token)
    }

    /// Drops the token and the installation of `repository`, which GitHub has refused.
    pub(super) async fn forget(&self, repository: &GithubRepository) {
        *self.of(repository).lock().await = Installation::default();
    }

    fn of(&self, repository: &GithubRepository) -> Arc<tokio::sync::Mutex<Installation>> {
        let mut installations = self.by_repository.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(installations.entry(repository.as_str().to_ascii_lowercase()).or_default())
    }
}

async fn find_installation(
    api: &ApiClient,
    app: &App,
    installation: &mut Installation,
    repository: &GithubRepository,
) -> Result<u64, GithubError> {
    if let Some(id) = installation.id {
        return Ok(id);
    }
    let address = path(["repos", repository.owner(), repository.name(), "installation"]);
    let what = format!("the GitHub App's installation for {repository}");
    let request = ApiRequest::get(address, what);
    let response = api.send(&Account::App, &app.jwt().await?, &request).await;
    let InstallationPayload { id } = match response {
        Ok(response) => response.json(&request)?,
        Err(GithubError::NotFound(_)) => {
            return Err(GithubError::Credentials(format!(
                "the GitHub App {} is not installed for {repository}: install it on the page of the app",
                app.id
            )));
        }
        Err(error) => return Err(with_advice(error, app)),
    };
    installation.id = Some(id);
    Ok(id)
}

async fn create_token(
    api: &ApiClient,
    app: &App,
    installation: &mut Installation,
    repository: &GithubRepository,
    permissions: Value,
) -> Result<InstallationToken, GithubError> {
    let id = find_installation(api, app, installation, repository).await?;
    let body = json!({ "repositories": [repository.name()], "permissions": permissions });
    let address = path(["app", "installations", &id.to_string(), "access_tokens"]);
    let request = ApiRequest::post(address, &body, format!("a token of the app for {repository}"));
    match api.send(&Account::App, &app.jwt().await?, &request).await {
        Ok(response) => {
            let TokenPayload { token, expires_at } = response.json(&request)?;
            Ok(InstallationToken { installation: id, token, expires_at: timestamp(expires_at) })
        }
        Err(GithubError::NotFound(what)) => {
            // The app was installed anew. The next attempt looks the installation up.
            installation.id = None;
            Err(GithubError::Unavailable(format!("there is no {what} any more")))
        }
        Err(error) => Err(with_advice(error, app)),
    }
}

/// Adds to a refusal of a token which permissions the app needs.
fn with_permissions(error: GithubError, repository: &GithubRepository) -> GithubError {
    match error {
        GithubError::Refused { status: 422, message } => GithubError::Credentials(format!(
            "GitHub makes no token for {repository} ({message}): the app needs the permissions \
             contents: read, issues: write, pull requests: write and commit statuses: write, and its \
             installation must include the repository"
        )),
        error => error,
    }
}

/// Adds to a refusal of the app itself what to check.
pub(super) fn with_advice(error: GithubError, app: &App) -> GithubError {
    match error {
        GithubError::Refused { status: 401, message } => GithubError::Credentials(format!(
            "GitHub does not take the key of the GitHub App {} ({message}): check github.app-id, the \
             private key and this machine's clock",
            app.id
        )),
        error => error,
    }
}
