//! Core's credentials at GitHub: a project's own token, a token of the configuration, or the key of an app.

use std::path::Path;
use std::sync::Arc;

use octocrab::auth::{AppAuth, EncodingKey};
use octocrab::models::AppId;
use secrecy::{ExposeSecret as _, SecretString};
use stagely_state::{GithubRepository, Project};
use tokio::task::spawn_blocking;

use super::error::GithubError;
use super::limits::Account;
use crate::config::Config;
use crate::config::secrets::{SecretFileError, read_secret_file};
use crate::core::secrets::SecretStore;

const TOKEN_VARIABLE: &str = "STAGELY_GITHUB_TOKEN";
const KEY_VARIABLE: &str = "STAGELY_GITHUB_PRIVATE_KEY";

/// The secrets in the environment of the process, which does not change while core runs.
#[derive(Clone, Default)]
pub(super) struct Variables {
    pub(super) token: Option<SecretString>,
    pub(super) private_key: Option<SecretString>,
}

impl Variables {
    pub(super) fn of_process() -> Self {
        let read = |name: &str| {
            let text = std::env::var(name).ok().filter(|text| !text.trim().is_empty());
            text.map(SecretString::from)
        };
        Self { token: read(TOKEN_VARIABLE), private_key: read(KEY_VARIABLE) }
    }
}

/// A token that a person or a machine account made.
#[derive(Clone)]
pub(super) struct Token {
    pub(super) account: Account,
    pub(super) value: SecretString,
    /// Names the token's source in errors.
    pub(super) setting: String,
}

#[derive(Clone)]
pub(super) enum Credential {
    Token(Token),
    /// Tokens are made with its key.
    App(App),
}

/// A GitHub App.
#[derive(Clone)]
pub(super) struct App {
    pub(super) id: u64,
    key: Arc<EncodingKey>,
}

impl App {
    /// A token of the app itself, valid for minutes.
    pub(super) async fn jwt(&self) -> Result<SecretString, GithubError> {
        let auth = AppAuth { app_id: AppId(self.id), key: (*self.key).clone() };
        // An RSA signature takes milliseconds of CPU time.
        let signed = spawn_blocking(move || auth.generate_bearer_token()).await;
        signed
            .expect("signing does not panic")
            .map(SecretString::from)
            .map_err(|_| GithubError::Credentials(bad_key("the GitHub App's private key")))
    }
}

/// Chooses the credential for a repository.
pub(super) struct Credentials {
    config: Arc<Config>,
    secrets: SecretStore,
    variables: Variables,
}

impl Credentials {
    pub(super) fn new(config: Arc<Config>, secrets: SecretStore, variables: Variables) -> Self {
        Self { config, secrets, variables }
    }

    pub(super) fn has_app(&self) -> bool {
        self.config.github.app_id.is_some()
    }

    /// The credential for the repository of `project`: its own token, else the app, else the shared token.
    pub(super) async fn of(
        &self,
        project: &Project,
        repository: &GithubRepository,
    ) -> Result<Credential, GithubError> {
        if let Some(token) = self.own_token(project, repository).await? {
            return Ok(Credential::Token(token));
        }
        if let Some(app) = self.app().await? {
            return Ok(Credential::App(app));
        }
        match self.shared_token().await? {
            Some(token) => Ok(Credential::Token(token)),
            None => Err(GithubError::Credentials(format!(
                "nothing opens {repository} at GitHub: set github.app-id and \
                 github.private-key-file, or github.token-file, or give the project a token"
            ))),
        }
    }

    /// The app; `None` where none is configured.
    pub(super) async fn app(&self) -> Result<Option<App>, GithubError> {
        let Some(id) = self.config.github.app_id else { return Ok(None) };
        let (setting, pem) = match (&self.config.github.private_key_file, &self.variables) {
            (Some(path), _) => {
                let setting = "github.private-key-file";
                (setting, read_secret(setting, path).await?)
            }
            (None, Variables { private_key: Some(key), .. }) => (KEY_VARIABLE, key.clone()),
            (None, Variables { private_key: None, .. }) => {
                return Err(GithubError::Credentials(format!(
                    "github.app-id is set, but there is no private key: set \
                     github.private-key-file, or {KEY_VARIABLE} of the environment"
                )));
            }
        };
        let key = EncodingKey::from_rsa_pem(pem.expose_secret().as_bytes())
            .map_err(|_| GithubError::Credentials(bad_key(setting)))?;
        Ok(Some(App { id, key: Arc::new(key) }))
    }

    async fn own_token(
        &self,
        project: &Project,
        repository: &GithubRepository,
    ) -> Result<Option<Token>, GithubError> {
        let stored = self.secrets.project_token(project.id);
        let stored = stored.map_err(|error| GithubError::Credentials(error.to_string()))?;
        if let Some(value) = stored {
            let setting = format!("the token of the project {}", project.name);
            return Ok(Some(Token { account: Account::Project(project.id), value, setting }));
        }
        let mut projects = self.config.projects.iter();
        let configured = projects.find(|project| project.github.is(repository.as_str()));
        let Some(path) = configured.and_then(|project| project.token_file.as_ref()) else {
            return Ok(None);
        };
        let setting = format!("token-file of {repository} in [[projects]]");
        let value = read_secret(&setting, path).await?;
        let account = Account::Repository(repository.as_str().to_ascii_lowercase());
        Ok(Some(Token { account, value, setting }))
    }

    async fn shared_token(&self) -> Result<Option<Token>, GithubError> {
        let account = Account::Shared;
        if let Some(path) = &self.config.github.token_file {
            let setting = "github.token-file".to_owned();
            let value = read_secret(&setting, path).await?;
            return Ok(Some(Token { account, value, setting }));
        }
        let setting = TOKEN_VARIABLE.to_owned();
        Ok(self.variables.token.clone().map(|value| Token { account, value, setting }))
    }
}

fn bad_key(setting: &str) -> String {
    format!(
        "{setting} is not an RSA private key in PEM: make a new one on the page of the GitHub App and \
         store the whole file"
    )
}

/// Reads a secret for each use, so that a replaced file takes effect at once.
async fn read_secret(setting: &str, path: &Path) -> Result<SecretString, GithubError> {
    let file = path.to_owned();
    let read = spawn_blocking(move || read_secret_file(&file)).await;
    let unusable = |error| {
        GithubError::Credentials(format!("{setting} names {}, which {error}", path.display()))
    };
    let secret = read.expect("reading does not panic").map_err(unusable)?;
    match secret.expose_secret().trim() {
        "" => Err(unusable(SecretFileError::Empty)),
        secret => Ok(SecretString::from(secret)),
    }
}
