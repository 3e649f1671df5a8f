//! The tokens of a GitHub App: where it is installed, and what may be done there.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::http::Method;
use secrecy::SecretString;
use serde::Deserialize;
use serde_json::{Value, json};
use stagely_state::{GithubRepository, Timestamp};

use super::api::{Api, Ask, path};
use super::credentials::App;
use super::error::GithubError;
use super::limits::Account;
use crate::core::clock::now;
use crate::core::github::payload::moment;

/// A token is made anew this long before it ends: a request may take a while, and clocks differ.
const RESERVE: Duration = Duration::from_mins(5);

/// A token of the app for one repository.
#[derive(Clone)]
pub(super) struct Minted {
    pub(super) installation: u64,
    pub(super) token: SecretString,
    expires_at: Timestamp,
}

/// What is known of one repository. The lock is held while it is found out.
#[derive(Default)]
struct Place {
    installation: Option<u64>,
    minted: Option<Minted>,
}

/// What is known of the repositories where the app is installed.
#[derive(Default)]
pub(super) struct Installations {
    places: Mutex<HashMap<String, Arc<tokio::sync::Mutex<Place>>>>,
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
    pub(super) async fn own_token(
        &self,
        api: &Api,
        app: &App,
        repository: &GithubRepository,
    ) -> Result<Minted, GithubError> {
        let place = self.place(repository);
        let mut place = place.lock().await;
        if let Some(minted) = &place.minted
            && minted.expires_at > now().after(RESERVE)
        {
            return Ok(minted.clone());
        }
        let permissions = json!({
            "contents": "read",
            "issues": "write",
            "metadata": "read",
            "pull_requests": "write",
            "statuses": "write",
        });
        let minted = mint(api, app, &mut place, repository, permissions).await?;
        place.minted = Some(minted.clone());
        Ok(minted)
    }

    /// A new token that only reads the contents of `repository`.
    pub(super) async fn clone_token(
        &self,
        api: &Api,
        app: &App,
        repository: &GithubRepository,
    ) -> Result<SecretString, GithubError> {
        let place = self.place(repository);
        // Only finding the installation is worth waiting for others.
        let installation = find(api, app, &mut *place.lock().await, repository).await?;
        let mut known = Place { installation: Some(installation), minted: None };
        let minted = mint(api, app, &mut known, repository, json!({ "contents": "read" })).await;
        if known.installation.is_none() {
            place.lock().await.installation = None;
        }
        Ok(minted?.token)
    }

    /// Forgets what GitHub does not take any more.
    pub(super) async fn forget(&self, repository: &GithubRepository) {
        *self.place(repository).lock().await = Place::default();
    }

    fn place(&self, repository: &GithubRepository) -> Arc<tokio::sync::Mutex<Place>> {
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(places.entry(repository.as_str().to_ascii_lowercase()).or_default())
    }
}

/// Where the app is installed for `repository`.
async fn find(
    api: &Api,
    app: &App,
    place: &mut Place,
    repository: &GithubRepository,
) -> Result<u64, GithubError> {
    if let Some(installation) = place.installation {
        return Ok(installation);
    }
    let of = path(["repos", repository.owner(), repository.name(), "installation"]);
    let ask = Ask::get(of, format!("the GitHub App's installation for {repository}"));
    let answer = api.ask(&Account::App, &app.jwt().await?, &ask).await;
    let InstallationPayload { id } = match answer {
        Ok(answer) => answer.json(&ask)?,
        Err(GithubError::NotFound(_)) => {
            return Err(GithubError::Credentials(format!(
                "the GitHub App {} is not installed for {repository}: install it on the page of the app",
                app.id
            )));
        }
        Err(error) => return Err(explained(error, app)),
    };
    place.installation = Some(id);
    Ok(id)
}

async fn mint(
    api: &Api,
    app: &App,
    place: &mut Place,
    repository: &GithubRepository,
    permissions: Value,
) -> Result<Minted, GithubError> {
    let installation = find(api, app, place, repository).await?;
    let id = installation.to_string();
    let body = json!({ "repositories": [repository.name()], "permissions": permissions });
    let of = path(["app", "installations", &id, "access_tokens"]);
    let ask = Ask::send(Method::POST, of, &body, format!("a token of the app for {repository}"));
    match api.ask(&Account::App, &app.jwt().await?, &ask).await {
        Ok(answer) => {
            let TokenPayload { token, expires_at } = answer.json(&ask)?;
            Ok(Minted { installation, token, expires_at: moment(expires_at) })
        }
        Err(GithubError::NotFound(what)) => {
            // The app was installed anew; the next try looks where. It says nothing of what was asked for.
            place.installation = None;
            Err(GithubError::Unavailable(format!("there is no {what} any more")))
        }
        Err(GithubError::Refused { status: 422, message }) => {
            Err(GithubError::Credentials(format!(
                "GitHub makes no token for {repository} ({message}): the app needs the permissions \
                 contents: read, issues: write, pull requests: write and commit statuses: write, and its \
                 installation must include the repository"
            )))
        }
        Err(error) => Err(explained(error, app)),
    }
}

/// With what to do where the app itself is refused.
pub(super) fn explained(error: GithubError, app: &App) -> GithubError {
    match error {
        GithubError::Refused { status: 401, message } => GithubError::Credentials(format!(
            "GitHub does not take the key of the GitHub App {} ({message}): check github.app-id, the \
             private key and this machine's clock",
            app.id
        )),
        error => error,
    }
}
