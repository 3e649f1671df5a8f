//! Core's settings on the command line: the configuration file, and options that override it.

use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::path::PathBuf;

use clap::Args;
use url::Url;

use crate::config::{Config, ConfigError, check_registry};

/// Options of `stagely core` and of a core inside `stagely run`.
#[derive(Args, Debug, Default)]
pub struct SettingsArgs {
    /// Core's configuration, `stagely.toml`. Other options override it
    #[arg(long, value_name = "FILE", env = "STAGELY_CONFIG", help_heading = "Core")]
    pub config: Option<PathBuf>,
    /// The registry for images: HOST:PORT, optionally with a path
    #[arg(
        long,
        value_name = "REGISTRY",
        env = "STAGELY_REGISTRY",
        value_parser = parse_registry,
        help_heading = "Core"
    )]
    pub registry: Option<String>,
    /// The registry's user
    #[arg(long, value_name = "NAME", env = "STAGELY_REGISTRY_USERNAME", help_heading = "Core")]
    pub registry_username: Option<String>,
    /// A file with the password of the registry's user
    #[arg(
        long,
        value_name = "FILE",
        env = "STAGELY_REGISTRY_PASSWORD_FILE",
        help_heading = "Core"
    )]
    pub registry_password_file: Option<PathBuf>,
    /// The Docker Engine of local builders, unix:///…, tcp://… or ssh://…. Default: `DOCKER_HOST`, or
    /// the current Docker context
    #[arg(long, value_name = "URL", env = "STAGELY_DOCKER_HOST", help_heading = "Core")]
    pub docker_host: Option<String>,
    /// The most builders at once. Further jobs wait
    #[arg(long, value_name = "N", env = "STAGELY_MAX_CONCURRENT", help_heading = "Core")]
    pub max_concurrent: Option<NonZeroU32>,
}

/// Options of `stagely core` alone.
#[derive(Args, Debug, Default)]
pub struct ServiceArgs {
    /// The address to listen on
    #[arg(long, value_name = "ADDRESS:PORT", env = "STAGELY_LISTEN")]
    pub listen: Option<SocketAddr>,
    /// The URL at which agents and people reach core
    #[arg(long, value_name = "URL", env = "STAGELY_PUBLIC_URL")]
    pub public_url: Option<Url>,
    /// The folder of the databases, the key of stored secrets and the first admin token
    #[arg(long, value_name = "FOLDER", env = "STAGELY_DATA_DIR")]
    pub data_dir: Option<PathBuf>,
}

fn parse_registry(text: &str) -> Result<String, String> {
    check_registry(text).map(|()| text.to_owned())
}

impl SettingsArgs {
    /// Reads the configuration file and applies the options.
    ///
    /// # Errors
    /// [`ConfigError`], naming the file and the line or setting.
    pub fn read(&self) -> Result<Config, ConfigError> {
        let mut config = match &self.config {
            Some(path) => Config::read(path)?,
            None => Config::default(),
        };
        if let Some(registry) = &self.registry {
            config.registry.url = Some(registry.clone());
        }
        if let Some(username) = &self.registry_username {
            config.registry.username = Some(username.clone());
        }
        if let Some(file) = &self.registry_password_file {
            config.registry.password_file = Some(file.clone());
        }
        if let Some(host) = &self.docker_host {
            config.local.docker_host = Some(host.clone());
        }
        if let Some(max) = self.max_concurrent {
            config.builders.max_concurrent = max;
        }
        Ok(config)
    }
}

impl ServiceArgs {
    /// Applies the options to `config`.
    pub fn apply(&self, config: &mut Config) {
        let core = &mut config.core;
        core.listen = self.listen.unwrap_or(core.listen);
        if let Some(url) = &self.public_url {
            core.public_url = Some(url.clone());
        }
        if let Some(folder) = &self.data_dir {
            core.data_dir.clone_from(folder);
        }
    }
}
