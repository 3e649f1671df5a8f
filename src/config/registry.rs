//! The `[registry]` table.

use std::path::PathBuf;

use secrecy::SecretString;
use serde::Deserialize;
use stagely_protocol::ImageRef;

use super::error::ConfigError;
use super::secrets::read_secret;

/// The `[registry]` table.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct RegistryConfig {
    /// Host and port, and optionally a path for the images. Default: `127.0.0.1:5000`.
    pub url: String,
    /// The user. Default: none; core does not log in.
    pub username: Option<String>,
    /// A file with the user's password, read for each job. Default: none.
    pub password_file: Option<PathBuf>,
    /// Whether the registry has no TLS. Docker Engines are then configured for plain HTTP, which they
    /// always use on loopback. Default: false.
    pub insecure: bool,
}

impl Default for RegistryConfig {
    fn default() -> Self {
        Self {
            url: "127.0.0.1:5000".to_owned(),
            username: None,
            password_file: None,
            insecure: false,
        }
    }
}

impl RegistryConfig {
    /// Host and port, without the path.
    pub fn host(&self) -> &str {
        self.url.split_once('/').map_or(&*self.url, |(host, _)| host)
    }

    /// Reads the password; `None` if no user is configured.
    ///
    /// # Errors
    /// [`ConfigError::SecretFile`], or [`ConfigError::Value`] for a user without a password.
    pub fn password(&self) -> Result<Option<SecretString>, ConfigError> {
        if self.username.is_none() {
            return Ok(None);
        }
        let Some(path) = &self.password_file else {
            return Err(ConfigError::Value {
                key: "registry.password-file",
                problem: "is missing although registry.username is set".to_owned(),
            });
        };
        read_secret("registry.password-file", path).map(Some)
    }

    pub(super) fn check(&self) -> Result<(), ConfigError> {
        // Checked here, so that a wrong registry does not fail the first build.
        let sample = format!("{}/project/environment:build", self.url);
        if sample.parse::<ImageRef>().is_err() {
            return Err(ConfigError::Value {
                key: "registry.url",
                problem: format!(
                    "{:?} is not a registry; write host:port or host:port/path, without https://",
                    self.url
                ),
            });
        }
        Ok(())
    }
}
