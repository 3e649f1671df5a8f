//! Core's settings on the command line: the file, and flags and variables over it.

use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::path::PathBuf;

use clap::Args;
use url::Url;

use crate::config::{Config, ConfigError};

/// What `stagely core` and a core inside `stagely run` have in common.
#[derive(Args, Debug, Default)]
pub struct Settings {
    /// Core's configuration, `stagely.toml`; the other options go over it
    #[arg(long, value_name = "FILE", env = "STAGELY_CONFIG", help_heading = "Core")]
    pub config: Option<PathBuf>,
    /// The registry that images go to: HOST:PORT, with a path if images lie below one
    #[arg(long, value_name = "REGISTRY", env = "STAGELY_REGISTRY", help_heading = "Core")]
    pub registry: Option<String>,
    /// The registry's user
    #[arg(long, value_name = "NAME", env = "STAGELY_REGISTRY_USERNAME", help_heading = "Core")]
    pub registry_username: Option<String>,
    /// A file that holds the password of the registry's user
    #[arg(
        long,
        value_name = "FILE",
        env = "STAGELY_REGISTRY_PASSWORD_FILE",
        help_heading = "Core"
    )]
    pub registry_password_file: Option<PathBuf>,
    /// The Docker engine of local builders, unix:///…
    #[arg(long, value_name = "URL", env = "STAGELY_DOCKER_HOST", help_heading = "Core")]
    pub docker_host: Option<String>,
    /// Most builders at once; further jobs wait
    #[arg(long, value_name = "N", env = "STAGELY_MAX_CONCURRENT", help_heading = "Core")]
    pub max_concurrent: Option<NonZeroU32>,
}

/// Where `stagely core` listens and keeps its data.
#[derive(Args, Debug, Default)]
pub struct Place {
    /// Where to listen
    #[arg(long, value_name = "ADDRESS:PORT", env = "STAGELY_LISTEN")]
    pub listen: Option<SocketAddr>,
    /// The address that agents and people reach this core at
    #[arg(long, value_name = "URL", env = "STAGELY_PUBLIC_URL")]
    pub public_url: Option<Url>,
    /// Holds the databases, the key of stored secrets and the first admin token
    #[arg(long, value_name = "FOLDER", env = "STAGELY_DATA_DIR")]
    pub data_dir: Option<PathBuf>,
}

impl Settings {
    /// Reads the file, and puts the options over it.
    ///
    /// # Errors
    /// [`ConfigError`], naming the file and the line or setting.
    pub fn read(&self) -> Result<Config, ConfigError> {
        let mut config = match &self.config {
            Some(path) => Config::read(path)?,
            None => Config::default(),
        };
        if let Some(registry) = &self.registry {
            config.registry.url.clone_from(registry);
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

impl Place {
    /// Puts the options over `config`.
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
