//! What core shows GitHub: a project's own token, that of the configuration, or an app's key.

use std::fmt;
use std::fs::File;
use std::io::Read as _;
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
use crate::core::secrets::SecretStore;

/// The most of a file that is read. A key of 16,384 bits has 13 KiB.
const FILE_BYTES_MAX: u64 = 64 * 1024;

const TOKEN_VARIABLE: &str = "STAGELY_GITHUB_TOKEN";
const KEY_VARIABLE: &str = "STAGELY_GITHUB_PRIVATE_KEY";

/// What the environment holds. It does not change while core runs.
#[derive(Clone, Default)]
pub(super) struct Variables {
    pub(super) token: Option<SecretString>,
    pub(super) private_key: Option<SecretString>,
}

impl Variables {
    /// Those of this process.
    pub(super) fn read() -> Self {
        let of = |name: &str| {
            let text = std::env::var(name).ok().filter(|text| !text.trim().is_empty());
            text.map(SecretString::from)
        };
        Self { token: of(TOKEN_VARIABLE), private_key: of(KEY_VARIABLE) }
    }
}

/// A token that a person or a machine account made.
#[derive(Clone)]
pub(super) struct Token {
    pub(super) account: Account,
    pub(super) value: SecretString,
    /// Where it comes from, for people.
    pub(super) setting: String,
}

/// What opens a repository.
#[derive(Clone)]
pub(super) enum Credential {
    /// A token, as it is.
    Token(Token),
    /// An app, whose tokens are minted.
    App(App),
}

/// A GitHub App.
#[derive(Clone)]
pub(super) struct App {
    pub(super) id: u64,
    key: Arc<EncodingKey>,
}

impl App {
    /// A token of the app itself, good for minutes.
    pub(super) async fn jwt(&self) -> Result<SecretString, GithubError> {
        let auth = AppAuth { app_id: AppId(self.id), key: (*self.key).clone() };
        // RSA takes a while.
        let signed = spawn_blocking(move || auth.generate_bearer_token()).await;
        signed
            .expect("signing does not panic")
            .map(SecretString::from)
            .map_err(|_| GithubError::Credentials(bad_key("the GitHub App's private key")))
    }
}

/// Finds credentials.
pub(super) struct Credentials {
    config: Arc<Config>,
    secrets: SecretStore,
    variables: Variables,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credentials")
    }
}

impl Credentials {
    pub(super) fn new(config: Arc<Config>, secrets: SecretStore, variables: Variables) -> Self {
        Self { config, secrets, variables }
    }

    /// Whether there is an app.
    pub(super) fn has_app(&self) -> bool {
        self.config.github.app_id.is_some()
    }

    /// What opens the repository of `project`.
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

    /// The app, if there is one.
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
        let sealed = self.secrets.project_token(project.id);
        let sealed = sealed.map_err(|error| GithubError::Credentials(error.to_string()))?;
        if let Some(value) = sealed {
            let setting = format!("the token of the project {}", project.name);
            return Ok(Some(Token { account: Account::Project(project.id), value, setting }));
        }
        let mut projects = self.config.projects.iter();
        let configured = projects.find(|it| it.github.is(repository.as_str()));
        let Some(path) = configured.and_then(|it| it.token_file.as_ref()) else {
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

/// Reads a secret each time it is needed, so that a new one holds at once.
async fn read_secret(setting: &str, path: &Path) -> Result<SecretString, GithubError> {
    let file = path.to_owned();
    let read = spawn_blocking(move || {
        let mut text = String::new();
        File::open(file)?.take(FILE_BYTES_MAX).read_to_string(&mut text)?;
        std::io::Result::Ok(SecretString::from(text.trim()))
    });
    let named = |problem: String| {
        GithubError::Credentials(format!("{setting} names {}, which {problem}", path.display()))
    };
    let secret = read.await.expect("reading does not panic");
    let secret = secret.map_err(|error| named(format!("cannot be read: {error}")))?;
    if secret.expose_secret().is_empty() {
        return Err(named("is empty".to_owned()));
    }
    Ok(secret)
}
