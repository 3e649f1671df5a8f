//! The `[github]` table.

use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use secrecy::SecretString;
use serde::Deserialize;
use stagely_provider::settings::check_url;
use stagely_state::GithubRepository;
use url::Url;

use super::error::ConfigError;
use super::secrets::{has_variable, read_secret};

/// The `[github]` table. Credentials are a GitHub App's or a token, from files or from the environment.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct GithubConfig {
    /// The URL of the API. GitHub Enterprise: `https://HOST/api/v3`. Default: `https://api.github.com`.
    pub api_url: Url,
    /// The URL to clone from, without `owner/name.git`. Default: derived from `api-url`.
    pub clone_url: Option<Url>,
    /// The id of a GitHub App. Default: none.
    pub app_id: Option<u64>,
    /// A file with the app's private key, PEM. Default: the environment's `STAGELY_GITHUB_PRIVATE_KEY`.
    pub private_key_file: Option<PathBuf>,
    /// A file with a fine-grained token, used if there is no app and read for each use. Default: the
    /// environment's `STAGELY_GITHUB_TOKEN`.
    pub token_file: Option<PathBuf>,
    /// A file with the secret of webhooks. Default: the environment's `STAGELY_GITHUB_WEBHOOK_SECRET`.
    /// Without a secret, webhooks are refused.
    pub webhook_secret_file: Option<PathBuf>,
    /// Whether draft pull requests are built. Default: false.
    pub drafts: bool,
    /// The label that approves a commit from a fork. Default: `stagely-approve`.
    pub approval_label: String,
    /// The interval of comparing open pull requests with the records. Default: 5m.
    #[serde(with = "humantime_serde")]
    pub reconcile_interval: Duration,
    /// The shortest time between two edits of one comment. Default: 5s.
    #[serde(with = "humantime_serde")]
    pub report_interval: Duration,
    /// The most comments and statuses written in a minute, over all projects. Default: 80, GitHub's limit.
    pub writes_per_minute: NonZeroU32,
    /// The most comments written in an hour, over all projects. Default: 500, GitHub's limit.
    pub comments_per_hour: NonZeroU32,
}

impl Default for GithubConfig {
    fn default() -> Self {
        Self {
            api_url: Url::parse("https://api.github.com").expect("the text is a URL"),
            clone_url: None,
            app_id: None,
            private_key_file: None,
            token_file: None,
            webhook_secret_file: None,
            drafts: false,
            approval_label: "stagely-approve".to_owned(),
            reconcile_interval: Duration::from_mins(5),
            report_interval: Duration::from_secs(5),
            writes_per_minute: NonZeroU32::new(80).expect("80 is not zero"),
            comments_per_hour: NonZeroU32::new(500).expect("500 is not zero"),
        }
    }
}

/// The kind of core's credentials for GitHub.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GithubCredentials {
    App,
    Token,
    /// Only public repositories can be read.
    None,
}

impl GithubConfig {
    /// The URL to clone `repository` from.
    pub fn clone_address(&self, repository: &GithubRepository) -> Url {
        let mut url = self.clone_url.clone().unwrap_or_else(|| self.web_url());
        let base = url.path().trim_end_matches('/').to_owned();
        url.set_path(&format!("{base}/{repository}.git"));
        url
    }

    /// The URL of the web site, without a repository.
    fn web_url(&self) -> Url {
        let mut url = self.api_url.clone();
        let path = url.path().trim_end_matches('/');
        let path = path.strip_suffix("/api/v3").unwrap_or(path).to_owned();
        url.set_path(&path);
        let host = url.host_str().unwrap_or_default().to_owned();
        // `api.github.com`, and `api.NAME.ghe.com` of GitHub Enterprise Cloud.
        if let Some(host) = host.strip_prefix("api.")
            && (host == "github.com" || host.ends_with(".ghe.com"))
        {
            // A host that was parsed from a URL is valid in another.
            let _ = url.set_host(Some(host));
        }
        url
    }

    /// The kind of core's credentials.
    pub fn credentials(&self) -> GithubCredentials {
        if self.app_id.is_some() {
            GithubCredentials::App
        } else if self.token_file.is_some() || has_variable("STAGELY_GITHUB_TOKEN") {
            GithubCredentials::Token
        } else {
            GithubCredentials::None
        }
    }

    /// Reads the secret of webhooks; `None` if there is none.
    ///
    /// # Errors
    /// [`ConfigError`], naming the setting.
    pub fn webhook_secret(&self) -> Result<Option<SecretString>, ConfigError> {
        let key = "github.webhook-secret-file";
        let Some(path) = &self.webhook_secret_file else {
            let secret = std::env::var("STAGELY_GITHUB_WEBHOOK_SECRET").ok();
            return Ok(secret.filter(|secret| !secret.is_empty()).map(SecretString::from));
        };
        read_secret(key, path).map(Some)
    }

    pub(super) fn check(&self) -> Result<(), ConfigError> {
        let wrong =
            |key, problem: &str| Err(ConfigError::Value { key, problem: problem.to_owned() });
        let has_key = self.private_key_file.is_some() || has_variable("STAGELY_GITHUB_PRIVATE_KEY");
        if self.app_id.is_some() && !has_key {
            let problem = "is missing although github.app-id is set; STAGELY_GITHUB_PRIVATE_KEY can \
                           hold the key instead";
            return wrong("github.private-key-file", problem);
        }
        if self.private_key_file.is_some() && self.app_id.is_none() {
            return wrong("github.app-id", "is missing although github.private-key-file is set");
        }
        for (key, url) in
            [("github.api-url", Some(&self.api_url)), ("github.clone-url", self.clone_url.as_ref())]
        {
            url.map_or(Ok(()), |url| check_url(key, url))?;
        }
        if self.approval_label.is_empty() {
            return wrong("github.approval-label", "is empty; name a label");
        }
        if self.reconcile_interval.is_zero() {
            return wrong("github.reconcile-interval", "must be more than 0s");
        }
        if self.report_interval.is_zero() {
            return wrong("github.report-interval", "must be more than 0s");
        }
        Ok(())
    }
}
