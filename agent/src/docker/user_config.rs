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

/// The addresses of proxies, with their passwords, that builds get from the user's Docker configuration.
pub(crate) fn proxies() -> Vec<String> {
    folder().map(|folder| proxies_of(&ConfigFile::read(&folder))).unwrap_or_default()
}

fn proxies_of(config: &ConfigFile) -> Vec<String> {
    let engines = config.proxies.as_object().into_iter().flatten();
    let settings = engines.filter_map(|(_, settings)| settings.as_object()).flatten();
    settings.filter_map(|(_, value)| value.as_str()).map(str::to_owned).collect()
}

/// The name of the registry at `host` in images and logins. Docker Hub has several hosts.
pub(super) fn registry_name(host: &str) -> String {
    match host.to_ascii_lowercase().as_str() {
        "index.docker.io" | "registry-1.docker.io" => "docker.io".to_owned(),
        host => host.to_owned(),
    }
}

/// Whether the key of a login is for the registry at `host`: `host`, `https://host/v1/`, and for Docker Hub its index.
pub(crate) fn is_same_registry(key: &str, host: &str) -> bool {
    let key = key.trim_start_matches("https://").trim_start_matches("http://");
    let key = key.split('/').next().unwrap_or_default();
    registry_name(key) == registry_name(host)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_login_of_docker_hub_has_many_names() {
        for key in ["docker.io", "https://index.docker.io/v1/", "registry-1.docker.io"] {
            assert!(is_same_registry(key, "docker.io"), "{key}");
        }
        assert!(is_same_registry("https://R.example:5000", "r.example:5000"));
        assert!(!is_same_registry("r.example", "r.example:5000"));
    }

    #[test]
    fn the_proxies_of_all_engines_are_found() {
        let config = r#"{"proxies": {"default": {"httpProxy": "http://a:b@p:1"}, "tcp://e": {"allProxy": "p:2"}}}"#;
        let config = serde_json::from_str(config).unwrap();
        assert_eq!(proxies_of(&config), ["http://a:b@p:1", "p:2"]);
    }
}
