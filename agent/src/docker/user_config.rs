//! The configuration of Docker that the user of this process has: `config.json`, contexts and plugins.

use std::env;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::{Map, Value};

/// The folder of the user's Docker configuration; `None` if the user has no home folder.
pub(super) fn folder() -> Option<PathBuf> {
    let named = env::var_os("DOCKER_CONFIG").filter(|path| !path.is_empty());
    named.map(PathBuf::from).or_else(|| env::home_dir().map(|home| home.join(".docker")))
}

/// The parts of `config.json` that builds depend on.
#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct ConfigFile {
    pub(super) current_context: Option<String>,
    /// The logins that stand in the file itself, by registry.
    pub(super) auths: Map<String, Value>,
    /// The program that stores all other logins.
    pub(super) creds_store: Option<String>,
    /// The programs that store the logins of single registries.
    pub(super) cred_helpers: Map<String, Value>,
    /// The proxies that builds and containers get as variables.
    pub(super) proxies: Value,
}

impl ConfigFile {
    /// Reads the file in `folder`. A file that Docker cannot read means nothing, as to Docker.
    pub(super) fn read(folder: &Path) -> Self {
        let Ok(text) = std::fs::read(folder.join("config.json")) else { return Self::default() };
        serde_json::from_slice(&text).unwrap_or_else(|error| {
            tracing::warn!(%error, "the user's Docker configuration cannot be read");
            Self::default()
        })
    }
}
