//! The client of GitHub's API: chooses the credentials of a request, repeats reads, and notes failures.
//!
//! Only this module sends requests to GitHub.

pub(super) mod deliveries;
pub(super) mod deployments;
pub(super) mod error;
pub(super) mod limits;
pub(super) mod repository;

mod writes;

mod api;
mod app;
mod credentials;

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use secrecy::SecretString;
use serde::de::DeserializeOwned;
use stagely_state::{GithubRepository, Project};
use tracing::debug;

use self::api::{ApiClient, ApiRequest, ApiResponse, path};
use self::app::{Installations, TokenUse, with_advice};
use self::credentials::{App, Credential, Credentials, Variables};
use self::deployments::DeploymentPermissions;
use self::error::GithubError;
use self::limits::{Account, GithubHealth, WriteLimiter};
use crate::config::Config;
use crate::core::clock::now;
use crate::core::retry::{Retry, RetryPolicy};
use crate::core::secrets::SecretStore;

/// Reads are sent up to three times.
const READ_RETRIES: RetryPolicy =
    RetryPolicy::new(Duration::from_millis(500), Duration::from_mins(1)).retries_max(2).jitter();

/// The most pages of a list: ten thousand pull requests or comments.
const PAGES_MAX: usize = 100;

/// The client. Clones share rate limits and tokens.
#[derive(Clone)]
pub struct Github {
    inner: Arc<Inner>,
}

struct Inner {
    api: ApiClient,
    credentials: Credentials,
    installations: Installations,
    write_limiter: WriteLimiter,
    deployments: DeploymentPermissions,
    /// The last failure; `None` after a success.
    problem: Mutex<Option<String>>,
}

impl fmt::Debug for Github {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Github").finish_non_exhaustive()
    }
}

/// The credentials of one request.
struct Authorization {
    account: Account,
    bearer: SecretString,
    /// Names the source of a token that a person made; `None` for a token of the app.
    setting: Option<String>,
}

impl Github {
    /// Makes the client. Files that hold secrets are read when a request needs them.
    ///
    /// # Errors
    /// The API's address is not a URI.
    pub fn new(config: Arc<Config>, secrets: SecretStore) -> anyhow::Result<Self> {
        Self::with_variables(config, secrets, Variables::of_process())
    }

    fn with_variables(
        config: Arc<Config>,
        secrets: SecretStore,
        variables: Variables,
    ) -> anyhow::Result<Self> {
        let inner = Inner {
            api: ApiClient::new(&config.github.api_url)?,
            write_limiter: WriteLimiter::new(&config.github),
            credentials: Credentials::new(config, secrets, variables),
            installations: Installations::default(),
            deployments: DeploymentPermissions::default(),
            problem: Mutex::default(),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Whether there is a GitHub App, whose tokens may be given to the builds of forks.
    pub fn has_app(&self) -> bool {
        self.inner.credentials.has_app()
    }

    /// A token that only reads the contents of this repository, for one job. `None` if only a person's token is
    /// known and the commit is a fork's (`from_fork`).
    ///
    /// # Errors
    /// [`GithubError`].
    pub async fn clone_token(
        &self,
        project: &Project,
        from_fork: bool,
    ) -> Result<Option<SecretString>, GithubError> {
        let repository = repository_of(project)?;
        let create = || self.create_clone_token(project, repository, from_fork);
        self.noted(repeated("making a token for a clone", create).await)
    }

    async fn create_clone_token(
        &self,
        project: &Project,
        repository: &GithubRepository,
        from_fork: bool,
    ) -> Result<Option<SecretString>, GithubError> {
        let Inner { api, credentials, installations, .. } = &*self.inner;
        let app = if from_fork {
            let Some(app) = credentials.app().await? else { return Ok(None) };
            app
        } else {
            match credentials.of(project, repository).await? {
                Credential::Token(token) => return Ok(Some(token.value)),
                Credential::App(app) => app,
            }
        };
        installations.clone_token(api, &app, repository).await.map(Some)
    }

    /// Rate limits and the last failure.
    pub fn health(&self) -> GithubHealth {
        let problem = self.inner.problem.lock().unwrap_or_else(PoisonError::into_inner).clone();
        GithubHealth { problem, ..self.inner.api.limits.health(now()) }
    }

    /// Reads page after page until `take` returns false.
    async fn read_pages<T: DeserializeOwned>(
        &self,
        project: &Project,
        repository: &GithubRepository,
        mut request: ApiRequest,
        mut take: impl FnMut(Vec<T>) -> bool,
    ) -> Result<(), GithubError> {
        for _ in 0..PAGES_MAX {
            let response = self.read(project, repository, &request).await?;
            if !take(response.json(&request)?) {
                return Ok(());
            }
            match response.next_page() {
                Some(next) => request.path = next,
                None => return Ok(()),
            }
        }
        // With half a list the other pull requests would seem to be closed.
        let message = format!("{} fill more than {PAGES_MAX} pages", request.what);
        self.noted(Err(GithubError::Refused { status: 200, message }))
    }

    /// Sends a request that may be repeated.
    async fn read(
        &self,
        project: &Project,
        repository: &GithubRepository,
        request: &ApiRequest,
    ) -> Result<ApiResponse, GithubError> {
        let read = || self.send(project, repository, request);
        self.noted(repeated(&request.what, read).await)
    }

    /// Sends a request once: after a lost response only the caller can find out whether it took effect.
    async fn write(
        &self,
        project: &Project,
        repository: &GithubRepository,
        request: &ApiRequest,
    ) -> Result<ApiResponse, GithubError> {
        self.noted(self.send(project, repository, request).await)
    }

    /// As [`read`](Self::read), for requests about the app itself.
    async fn read_as_app(
        &self,
        app: &App,
        request: &ApiRequest,
    ) -> Result<ApiResponse, GithubError> {
        self.noted(repeated(&request.what, || self.send_as_app(app, request)).await)
    }

    async fn send_as_app(
        &self,
        app: &App,
        request: &ApiRequest,
    ) -> Result<ApiResponse, GithubError> {
        let response = self.inner.api.send(&Account::App, &app.jwt().await?, request).await;
        response.map_err(|error| with_advice(error, app))
    }

    async fn send(
        &self,
        project: &Project,
        repository: &GithubRepository,
        request: &ApiRequest,
    ) -> Result<ApiResponse, GithubError> {
        self.send_for(project, repository, TokenUse::Core, request).await
    }

    /// Sends a request with a token for this use.
    async fn send_for(
        &self,
        project: &Project,
        repository: &GithubRepository,
        token_use: TokenUse,
        request: &ApiRequest,
    ) -> Result<ApiResponse, GithubError> {
        let Authorization { account, bearer, setting } =
            self.authorization(project, repository, token_use).await?;
        let response = self.inner.api.send(&account, &bearer, request).await;
        match (response, setting) {
            (Err(GithubError::Refused { status: 401, message }), Some(setting)) => {
                Err(GithubError::Credentials(format!(
                    "GitHub does not take {setting} any more ({message}): make a new token and store it"
                )))
            }
            // The installation's token was revoked early. GitHub did nothing, so a write may be repeated.
            (Err(GithubError::Refused { status: 401, .. }), None) => {
                self.inner.installations.forget(repository).await;
                let renewed = self.authorization(project, repository, token_use).await?;
                self.inner.api.send(&renewed.account, &renewed.bearer, request).await
            }
            (response, _) => response,
        }
    }

    async fn authorization(
        &self,
        project: &Project,
        repository: &GithubRepository,
        token_use: TokenUse,
    ) -> Result<Authorization, GithubError> {
        match self.inner.credentials.of(project, repository).await? {
            Credential::Token(token) => Ok(Authorization {
                account: token.account,
                bearer: token.value,
                setting: Some(token.setting),
            }),
            Credential::App(app) => {
                let Inner { api, installations, .. } = &*self.inner;
                let own = installations.token(api, &app, repository, token_use).await?;
                let account = Account::Installation(own.installation);
                Ok(Authorization { account, bearer: own.token, setting: None })
            }
        }
    }

    /// Notes a failure for [`health`](Self::health). A missing resource is no failure.
    fn noted<T>(&self, result: Result<T, GithubError>) -> Result<T, GithubError> {
        let problem = match &result {
            Ok(_) | Err(GithubError::NotFound(_)) => None,
            Err(error) => {
                debug!(%error, "a request to GitHub failed");
                Some(error.to_string())
            }
        };
        *self.inner.problem.lock().unwrap_or_else(PoisonError::into_inner) = problem;
        result
    }
}

/// Repeats `attempt` while GitHub does not answer. Rate limits are left to the callers, which may have other
/// work meanwhile.
async fn repeated<T, F: Future<Output = Result<T, GithubError>>>(
    what: &str,
    attempt: impl FnMut() -> F,
) -> Result<T, GithubError> {
    let retry =
        |error: &GithubError| Retry::if_transient(matches!(error, GithubError::Unavailable(_)));
    READ_RETRIES.run(what, retry, attempt).await
}

fn repository_of(project: &Project) -> Result<&GithubRepository, GithubError> {
    project.github.as_ref().map(|link| &link.repository).ok_or_else(|| {
        GithubError::Credentials(format!(
            "the project {} has no repository at GitHub: add one with `stagely project add`",
            project.name
        ))
    })
}

/// The path of `repository`, followed by `segments`.
fn repository_path<'a>(
    repository: &'a GithubRepository,
    segments: impl IntoIterator<Item = &'a str>,
) -> String {
    path(["repos", repository.owner(), repository.name()].into_iter().chain(segments))
}

#[cfg(test)]
mod tests;
