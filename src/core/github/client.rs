//! The only code that speaks with GitHub's API.

mod api;
mod app;
mod credentials;
mod error;
mod limits;

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::http::Method;
use backon::{ExponentialBuilder, Retryable as _};
use secrecy::SecretString;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::json;
use serde_json::value::RawValue;
use stagely_protocol::CommitSha;
use stagely_state::{CommitStatus, DeliveryId, GithubRepository, Project, Timestamp};
use tracing::debug;

use self::api::{Answer, Api, Ask, path};
use self::app::{Installations, explained};
use self::credentials::{App, Credential, Credentials, Variables};
use self::limits::{Account, Budget};
use super::payload::{PullRequest, PullRequestPayload, Repository, RepositoryPayload, moment};
use super::webhook::delivery_id;
use crate::config::Config;
use crate::core::clock::now;
use crate::core::secrets::SecretStore;

pub use self::error::GithubError;
pub use self::limits::GithubHealth;

/// What is only read is asked for three times.
const PATIENCE: ExponentialBuilder = ExponentialBuilder::new()
    .with_min_delay(Duration::from_millis(500))
    .with_max_times(2)
    .with_jitter();

/// The most of a file that is read: more than any `stagely.yaml` may have.
const FILE_BYTES_MAX: usize = 1024 * 1024;

/// The most pages of a list: ten thousand pull requests or comments.
const PAGES_MAX: usize = 100;

/// The file as it is, not in JSON.
const RAW: &str = "application/vnd.github.raw+json";

/// The commit's id alone.
const SHA: &str = "application/vnd.github.sha";

/// What an account may do in a repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Permission {
    /// Nothing.
    None,
    /// Look.
    Read,
    /// Push.
    Write,
    /// All.
    Admin,
}

/// A delivery that no core answered well.
#[derive(Clone, Debug)]
pub struct FailedDelivery {
    /// GitHub's number of this try.
    pub id: u64,
    /// What all its tries have in common.
    pub delivery: DeliveryId,
    /// When.
    pub at: Timestamp,
}

/// Asks GitHub. Clones share limits and tokens.
#[derive(Clone)]
pub struct Github {
    inner: Arc<Inner>,
}

struct Inner {
    api: Api,
    credentials: Credentials,
    installations: Installations,
    budget: Budget,
    problem: Mutex<Option<String>>,
}

impl fmt::Debug for Github {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Github").finish_non_exhaustive()
    }
}

/// What one request shows.
struct Session {
    account: Account,
    bearer: SecretString,
    /// Where the token comes from, for people; `None` for one that an app made.
    setting: Option<String>,
}

#[derive(Deserialize)]
struct PermissionPayload {
    permission: String,
    #[serde(default)]
    role_name: String,
}

#[derive(Deserialize)]
struct CommentPayload {
    id: u64,
    #[serde(default)]
    body: Option<String>,
}

#[derive(Deserialize)]
struct TryPayload {
    id: u64,
    guid: String,
    delivered_at: jiff::Timestamp,
    status_code: u16,
}

#[derive(Deserialize)]
struct DeliveryPayload {
    event: String,
    request: DeliveryRequest,
}

#[derive(Deserialize)]
struct DeliveryRequest {
    payload: Box<RawValue>,
}

impl Github {
    /// Makes the client. Files that hold secrets are read when they are needed.
    ///
    /// # Errors
    /// The API's address cannot be.
    pub fn new(config: Arc<Config>, secrets: SecretStore) -> anyhow::Result<Self> {
        Self::with_variables(config, secrets, Variables::read())
    }

    fn with_variables(
        config: Arc<Config>,
        secrets: SecretStore,
        variables: Variables,
    ) -> anyhow::Result<Self> {
        let inner = Inner {
            api: Api::new(&config.github.api_url)?,
            budget: Budget::new(&config.github),
            credentials: Credentials::new(config, secrets, variables),
            installations: Installations::default(),
            problem: Mutex::default(),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Whether there is a GitHub App, whose tokens may be given to the builds of forks.
    pub fn has_app(&self) -> bool {
        self.inner.credentials.has_app()
    }

    /// Reads a file of a commit; `None` where it has none of that name.
    ///
    /// # Errors
    /// [`GithubError`].
    pub async fn file(
        &self,
        project: &Project,
        path: &str,
        commit: &CommitSha,
    ) -> Result<Option<Vec<u8>>, GithubError> {
        let repository = repository_of(project)?;
        let below = ["contents"].into_iter().chain(path.split('/'));
        let address = format!("{}?ref={commit}", in_repository(repository, below));
        let what = format!("{path} at {commit} in {repository}");
        let ask = Ask { accept: RAW, bytes_max: FILE_BYTES_MAX, ..Ask::get(address, what) };
        match self.read(project, repository, &ask).await {
            Ok(answer) => Ok(Some(answer.body.to_vec())),
            // A commit that is not there has no files either.
            Err(GithubError::NotFound(_)) => {
                let address = in_repository(repository, ["commits", commit.as_str()]);
                let what = format!("commit {commit} in {repository}");
                let ask = Ask { accept: SHA, ..Ask::get(address, what.clone()) };
                match self.read(project, repository, &ask).await {
                    Ok(_) => Ok(None),
                    Err(GithubError::Refused { status: 422, .. }) => {
                        Err(GithubError::NotFound(what))
                    }
                    Err(error) => Err(error),
                }
            }
            Err(error) => Err(error),
        }
    }

    /// A token that only reads the contents of this repository, for one job. `None` where nothing but a
    /// person's own token is known and `is_foreign` says that the commit is a fork's.
    ///
    /// # Errors
    /// [`GithubError`].
    pub async fn clone_token(
        &self,
        project: &Project,
        is_foreign: bool,
    ) -> Result<Option<SecretString>, GithubError> {
        let repository = repository_of(project)?;
        let token = async || {
            let credentials = &self.inner.credentials;
            let app = if is_foreign {
                let Some(app) = credentials.app().await? else { return Ok(None) };
                app
            } else {
                match credentials.of(project, repository).await? {
                    Credential::Token(token) => return Ok(Some(token.value)),
                    Credential::App(app) => app,
                }
            };
            let Inner { api, installations, .. } = &*self.inner;
            installations.clone_token(api, &app, repository).await.map(Some)
        };
        self.noted(token.retry(PATIENCE).when(is_worth_another).await)
    }

    /// What `account` may do in the repository.
    ///
    /// # Errors
    /// [`GithubError`].
    pub async fn permission(
        &self,
        project: &Project,
        account: &str,
    ) -> Result<Permission, GithubError> {
        let repository = repository_of(project)?;
        let address = in_repository(repository, ["collaborators", account, "permission"]);
        let ask = Ask::get(address, format!("the permission of {account} in {repository}"));
        let payload: PermissionPayload = match self.read(project, repository, &ask).await {
            Ok(answer) => answer.json(&ask)?,
            Err(GithubError::NotFound(_)) => return Ok(Permission::None),
            Err(error) => return Err(error),
        };
        Ok(match (payload.permission.as_str(), payload.role_name.as_str()) {
            ("admin", _) => Permission::Admin,
            ("write" | "maintain", _) | (_, "maintain") => Permission::Write,
            ("read" | "triage", _) => Permission::Read,
            _ => Permission::None,
        })
    }

    /// The repository as it is now.
    ///
    /// # Errors
    /// [`GithubError`].
    pub async fn repository(&self, project: &Project) -> Result<Repository, GithubError> {
        let repository = repository_of(project)?;
        let ask = Ask::get(in_repository(repository, []), format!("repository {repository}"));
        let answer = self.read(project, repository, &ask).await?;
        Ok(answer.json::<RepositoryPayload>(&ask)?.into())
    }

    /// All open pull requests.
    ///
    /// # Errors
    /// [`GithubError`].
    pub async fn open_pull_requests(
        &self,
        project: &Project,
    ) -> Result<Vec<PullRequest>, GithubError> {
        let repository = repository_of(project)?;
        // In this order a new one while the pages are read moves no other to a page before.
        let query = "state=open&sort=created&direction=asc&per_page=100";
        let address = format!("{}?{query}", in_repository(repository, ["pulls"]));
        let ask = Ask::get(address, format!("the open pull requests of {repository}"));
        let mut all: Vec<PullRequest> = Vec::new();
        self.pages(project, repository, ask, |page: Vec<PullRequestPayload>| {
            all.extend(page.into_iter().map(PullRequest::from));
            true
        })
        .await?;
        Ok(all)
    }

    /// One pull request.
    ///
    /// # Errors
    /// [`GithubError`].
    pub async fn pull_request(
        &self,
        project: &Project,
        number: u64,
    ) -> Result<PullRequest, GithubError> {
        let repository = repository_of(project)?;
        let address = in_repository(repository, ["pulls", &number.to_string()]);
        let ask = Ask::get(address, format!("pull request {number} of {repository}"));
        let answer = self.read(project, repository, &ask).await?;
        Ok(answer.json::<PullRequestPayload>(&ask)?.into())
    }

    /// The comment of a pull request that begins with `marker`; the oldest of more.
    ///
    /// # Errors
    /// [`GithubError`].
    pub async fn find_comment(
        &self,
        project: &Project,
        number: u64,
        marker: &str,
    ) -> Result<Option<u64>, GithubError> {
        let repository = repository_of(project)?;
        let list = in_repository(repository, ["issues", &number.to_string(), "comments"]);
        let what = format!("the comments of pull request {number} of {repository}");
        let mut found = None;
        let ask = Ask::get(format!("{list}?per_page=100"), what);
        self.pages(project, repository, ask, |page: Vec<CommentPayload>| {
            let holds =
                |it: &CommentPayload| it.body.as_ref().is_some_and(|body| body.starts_with(marker));
            found = page.iter().find(|it| holds(it)).map(|it| it.id);
            found.is_none()
        })
        .await?;
        Ok(found)
    }

    /// Waits until a comment may be written. Whoever is to write one asks first and makes up the text then:
    /// it may take minutes.
    pub async fn room_for_comment(&self) {
        self.inner.budget.comment().await;
    }

    /// Waits until a status may be written, as [`room_for_comment`](Self::room_for_comment).
    pub async fn room_for_status(&self) {
        self.inner.budget.status().await;
    }

    /// Writes a comment and returns its id.
    ///
    /// # Errors
    /// [`GithubError`]; it may be written all the same.
    pub async fn create_comment(
        &self,
        project: &Project,
        number: u64,
        body: &str,
    ) -> Result<u64, GithubError> {
        let repository = repository_of(project)?;
        let address = in_repository(repository, ["issues", &number.to_string(), "comments"]);
        let what = format!("the comments of pull request {number} of {repository}");
        let ask = Ask::send(Method::POST, address, &json!({ "body": body }), what);
        let answer = self.write(project, repository, &ask).await?;
        Ok(answer.json::<CommentPayload>(&ask)?.id)
    }

    /// Writes a comment anew.
    ///
    /// # Errors
    /// [`GithubError`]; [`GithubError::NotFound`] if somebody deleted it.
    pub async fn edit_comment(
        &self,
        project: &Project,
        comment: u64,
        body: &str,
    ) -> Result<(), GithubError> {
        let repository = repository_of(project)?;
        let address = in_repository(repository, ["issues", "comments", &comment.to_string()]);
        let what = format!("comment {comment} of {repository}");
        let ask = Ask::send(Method::PATCH, address, &json!({ "body": body }), what);
        self.write(project, repository, &ask).await.map(drop)
    }

    /// Sets a status of a commit.
    ///
    /// # Errors
    /// [`GithubError`].
    pub async fn set_status(
        &self,
        project: &Project,
        commit: &CommitSha,
        context: &str,
        status: &CommitStatus,
    ) -> Result<(), GithubError> {
        let repository = repository_of(project)?;
        let address = in_repository(repository, ["statuses", commit.as_str()]);
        let body = json!({
            "state": status.state,
            "description": status.description,
            "target_url": status.target_url,
            "context": context,
        });
        let what = format!("the statuses of {commit} in {repository}");
        let ask = Ask::send(Method::POST, address, &body, what);
        self.write(project, repository, &ask).await.map(drop)
    }

    /// The deliveries since `since` that failed, the oldest first; none without a GitHub App.
    ///
    /// # Errors
    /// [`GithubError`].
    pub async fn failed_deliveries(
        &self,
        since: Timestamp,
    ) -> Result<Vec<FailedDelivery>, GithubError> {
        let Some(app) = self.noted(self.inner.credentials.app().await)? else {
            return Ok(Vec::new());
        };
        // `None`: a later try went well.
        let mut newest: HashMap<String, Option<FailedDelivery>> = HashMap::new();
        let mut next = Some("/app/hook/deliveries?per_page=100".to_owned());
        for _ in 0..PAGES_MAX {
            let Some(address) = next else { break };
            let ask = Ask::get(address, "the deliveries of the GitHub App");
            let answer = match self.read_as_app(&app, &ask).await {
                // An app need not have a webhook.
                Err(GithubError::NotFound(_)) => break,
                answer => answer?,
            };
            let page: Vec<TryPayload> = answer.json(&ask)?;
            let is_last = page.last().is_none_or(|it| moment(it.delivered_at) < since);
            for one in page.into_iter().filter(|it| moment(it.delivered_at) >= since) {
                let is_good = (200..300).contains(&one.status_code);
                let failed = FailedDelivery {
                    id: one.id,
                    delivery: delivery_id(&one.guid),
                    at: moment(one.delivered_at),
                };
                let known = newest.entry(one.guid).or_insert(Some(failed));
                if is_good {
                    *known = None;
                }
            }
            next = answer.next_page().filter(|_| !is_last);
        }
        let mut failed: Vec<FailedDelivery> = newest.into_values().flatten().collect();
        failed.sort_by_key(|it| (it.at, it.id));
        Ok(failed)
    }

    /// The event and the payload of a delivery.
    ///
    /// # Errors
    /// [`GithubError`].
    pub async fn delivery(&self, id: u64) -> Result<(String, Vec<u8>), GithubError> {
        let Some(app) = self.noted(self.inner.credentials.app().await)? else {
            let problem = "deliveries are read by a GitHub App only: set github.app-id";
            return Err(GithubError::Credentials(problem.to_owned()));
        };
        let address = path(["app", "hook", "deliveries", &id.to_string()]);
        let ask = Ask::get(address, format!("delivery {id}"));
        let answer = self.read_as_app(&app, &ask).await?;
        let DeliveryPayload { event, request } = answer.json(&ask)?;
        Ok((event, request.payload.get().as_bytes().to_vec()))
    }

    /// How core gets on with it.
    pub fn health(&self) -> GithubHealth {
        let problem = self.inner.problem.lock().unwrap_or_else(PoisonError::into_inner).clone();
        GithubHealth { problem, ..self.inner.api.limits.health(now()) }
    }

    /// Reads page after page until `take` has enough.
    async fn pages<T: DeserializeOwned>(
        &self,
        project: &Project,
        repository: &GithubRepository,
        mut ask: Ask,
        mut take: impl FnMut(Vec<T>) -> bool,
    ) -> Result<(), GithubError> {
        for _ in 0..PAGES_MAX {
            let answer = self.read(project, repository, &ask).await?;
            if !take(answer.json(&ask)?) {
                return Ok(());
            }
            match answer.next_page() {
                Some(next) => ask.path = next,
                None => return Ok(()),
            }
        }
        // Half a list would look as if the rest were closed.
        let message = format!("{} fill more than {PAGES_MAX} pages", ask.what);
        self.noted(Err(GithubError::Refused { status: 200, message }))
    }

    /// Asks for something that may be asked for twice.
    async fn read(
        &self,
        project: &Project,
        repository: &GithubRepository,
        ask: &Ask,
    ) -> Result<Answer, GithubError> {
        let read = async || self.ask(project, repository, ask).await;
        self.noted(read.retry(PATIENCE).when(is_worth_another).await)
    }

    /// Writes once: whether it was written after all, only the caller can find out.
    async fn write(
        &self,
        project: &Project,
        repository: &GithubRepository,
        ask: &Ask,
    ) -> Result<Answer, GithubError> {
        self.noted(self.ask(project, repository, ask).await)
    }

    async fn read_as_app(&self, app: &App, ask: &Ask) -> Result<Answer, GithubError> {
        let read = async || {
            let answer = self.inner.api.ask(&Account::App, &app.jwt().await?, ask).await;
            answer.map_err(|error| explained(error, app))
        };
        self.noted(read.retry(PATIENCE).when(is_worth_another).await)
    }

    async fn ask(
        &self,
        project: &Project,
        repository: &GithubRepository,
        ask: &Ask,
    ) -> Result<Answer, GithubError> {
        let session = self.session(project, repository).await?;
        let answer = self.inner.api.ask(&session.account, &session.bearer, ask).await;
        match (answer, session.setting) {
            (Err(GithubError::Refused { status: 401, message }), Some(setting)) => {
                Err(GithubError::Credentials(format!(
                    "GitHub does not take {setting} any more ({message}): make a new token and store it"
                )))
            }
            // The installation's token ended early. Nothing was done, so it is safe to write again.
            (Err(GithubError::Refused { status: 401, .. }), None) => {
                self.inner.installations.forget(repository).await;
                let session = self.session(project, repository).await?;
                self.inner.api.ask(&session.account, &session.bearer, ask).await
            }
            (answer, _) => answer,
        }
    }

    async fn session(
        &self,
        project: &Project,
        repository: &GithubRepository,
    ) -> Result<Session, GithubError> {
        match self.inner.credentials.of(project, repository).await? {
            Credential::Token(token) => Ok(Session {
                account: token.account,
                bearer: token.value,
                setting: Some(token.setting),
            }),
            Credential::App(app) => {
                let Inner { api, installations, .. } = &*self.inner;
                let minted = installations.own_token(api, &app, repository).await?;
                let account = Account::Installation(minted.installation);
                Ok(Session { account, bearer: minted.token, setting: None })
            }
        }
    }

    /// Remembers how it went. That something is not there is an answer as good as others.
    fn noted<T>(&self, result: Result<T, GithubError>) -> Result<T, GithubError> {
        let problem = match &result {
            Ok(_) | Err(GithubError::NotFound(_)) => None,
            Err(error) => {
                debug!(%error, "GitHub did not do what was asked");
                Some(error.to_string())
            }
        };
        *self.inner.problem.lock().unwrap_or_else(PoisonError::into_inner) = problem;
        result
    }
}

/// A limit is not waited for here: the callers know what else there is to do.
fn is_worth_another(error: &GithubError) -> bool {
    matches!(error, GithubError::Unavailable(_))
}

fn repository_of(project: &Project) -> Result<&GithubRepository, GithubError> {
    project.github.as_ref().map(|link| &link.repository).ok_or_else(|| {
        GithubError::Credentials(format!(
            "the project {} has no repository at GitHub: add one with `stagely project add`",
            project.name
        ))
    })
}

fn in_repository<'a>(
    repository: &'a GithubRepository,
    below: impl IntoIterator<Item = &'a str>,
) -> String {
    path(["repos", repository.owner(), repository.name()].into_iter().chain(below))
}

#[cfg(test)]
mod tests;
