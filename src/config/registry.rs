//! The `[registry]` table.

use std::net::Ipv6Addr;
use std::ops::Not as _;
use std::path::PathBuf;

use secrecy::SecretString;
use serde::Deserialize;

use super::error::ConfigError;
use super::secrets::read_secret;

/// The registry of a core that is given none.
const DEFAULT_URL: &str = "127.0.0.1:5000";

/// The `[registry]` table.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct RegistryConfig {
    /// Host and port, and optionally a path for the images. Default: `127.0.0.1:5000`, and in `stagely run` a registry
    /// that the command starts.
    pub url: Option<String>,
    /// The user. Default: none; core does not log in.
    pub username: Option<String>,
    /// A file with the user's password, read for each job. Default: none.
    pub password_file: Option<PathBuf>,
    /// Whether the registry has no TLS. Docker Engines are then configured for plain HTTP, which they
    /// always use on loopback. Default: false.
    pub insecure: bool,
}

impl RegistryConfig {
    /// Host and port, and the path if there is one.
    pub fn url(&self) -> &str {
        self.url.as_deref().unwrap_or(DEFAULT_URL)
    }

    /// Host and port, without the path.
    pub fn host(&self) -> &str {
        self.url().split_once('/').map_or(self.url(), |(host, _)| host)
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
        check_registry(self.url())
            .map_err(|problem| ConfigError::Value { key: "registry.url", problem })
    }
}

/// The longest path. With the names of project, environment and build a repository has at most 255 characters.
const PATH_CHARS_MAX: usize = 100;

/// Checks the host of a registry, with its port and the path of its images: `registry.example:5000/team`.
///
/// # Errors
/// What is wrong, and what to write instead.
///
/// Source: distribution/reference, `regexp.go`.
pub fn check_registry(url: &str) -> Result<(), String> {
    if url.contains("://") {
        return Err(format!(
            "{url:?} is not a registry; write host:port or host:port/path, without https://"
        ));
    }
    let (host, path) = url.split_once('/').map_or((url, None), |(host, path)| (host, Some(path)));
    check_host(host).map_err(|problem| format!("{url:?} is not a registry: {problem}"))?;
    let Some(path) = path else { return Ok(()) };
    check_path(path).map_err(|problem| format!("{url:?} cannot hold images: {problem}"))
}

fn check_host(host: &str) -> Result<(), String> {
    let (name, port) = match host.rsplit_once(':') {
        Some((name, port)) if !port.ends_with(']') => (name, Some(port)),
        _ => (host, None),
    };
    if port.is_some_and(|port| port.parse::<u16>().is_ok_and(|port| port > 0).not()) {
        return Err("its port is not a number from 1 to 65535".to_owned());
    }
    let is_label = |label: &str| {
        let is_edge = |byte: Option<u8>| byte.is_some_and(|byte| byte.is_ascii_alphanumeric());
        is_edge(label.bytes().next())
            && is_edge(label.bytes().last())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    };
    let address = name.strip_prefix('[').and_then(|name| name.strip_suffix(']'));
    let is_name = match address {
        Some(address) => address.parse::<Ipv6Addr>().is_ok(),
        None => name.split('.').all(is_label),
    };
    if !is_name {
        return Err("write host:port or host:port/path".to_owned());
    }
    // Docker takes any other first part for a repository of Docker Hub.
    if port.is_none() && address.is_none() && !name.contains('.') && name != "localhost" {
        return Err(format!(
            "Docker takes {name:?} for a name at Docker Hub; write {name}:PORT, or the full name"
        ));
    }
    Ok(())
}

fn check_path(path: &str) -> Result<(), String> {
    if path.is_empty() || path.ends_with('/') {
        return Err("it ends with a slash".to_owned());
    }
    if path.contains([':', '@']) {
        return Err("its path has a tag or a digest, which Stagely adds for each image".to_owned());
    }
    if path.chars().any(char::is_uppercase) {
        return Err(format!(
            "names of repositories are in lower case; write {:?}",
            path.to_lowercase()
        ));
    }
    if path.len() > PATH_CHARS_MAX {
        return Err(format!("its path has more than {PATH_CHARS_MAX} characters"));
    }
    match path.split('/').find(|part| !is_path_part(part)) {
        None => Ok(()),
        Some(part) => Err(format!(
            "{part:?} in its path has other characters than letters and digits with single `.`, `_` or `-` between them"
        )),
    }
}

/// Letters and digits with one of `.`, `_`, `__` or any number of `-` between them.
fn is_path_part(part: &str) -> bool {
    let is_letter = |letter: char| letter.is_ascii_lowercase() || letter.is_ascii_digit();
    let is_separator = |separator: &str| {
        matches!(separator, "." | "_" | "__") || separator.bytes().all(|byte| byte == b'-')
    };
    part.starts_with(is_letter)
        && part.ends_with(is_letter)
        && part.split(is_letter).all(is_separator)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registries_that_can_hold_images_are_accepted() {
        for url in [
            "127.0.0.1:5000",
            "localhost",
            "localhost/team",
            "ghcr.io/acme/web",
            "Registry.Example:443/a",
            "registry:5000/team_a/b__c/d--e/f.g",
            "[::1]:5000/team",
            "123456789012.dkr.ecr.eu-central-1.amazonaws.com/stagely",
        ] {
            assert_eq!(check_registry(url), Ok(()), "{url}");
        }
    }

    #[test]
    fn others_are_refused_with_what_to_write() {
        for (url, words) in [
            ("https://ghcr.io/acme", "without https://"),
            ("ghcr.io/Acme", "lower case; write \"acme\""),
            ("HOST/Team", "Docker takes \"HOST\" for a name at Docker Hub"),
            ("registry:5000/Team/Web", "lower case; write \"team/web\""),
            ("team", "write team:PORT"),
            ("acme/web", "write acme:PORT"),
            ("", "write host:port"),
            ("/team", "write host:port"),
            ("ghcr.io/", "ends with a slash"),
            ("ghcr.io/acme/", "ends with a slash"),
            ("ghcr.io/acme//web", "\"\" in its path"),
            ("ghcr.io/acme:latest", "a tag or a digest"),
            ("ghcr.io/a@sha256:00", "a tag or a digest"),
            ("ghcr.io:port/acme", "not a number"),
            ("ghcr.io:0", "not a number"),
            ("ghcr.io:99999", "not a number"),
            ("ghcr.io/-acme", "\"-acme\" in its path"),
            ("ghcr.io/a..b", "\"a..b\" in its path"),
            ("ghcr.io/a___b", "\"a___b\" in its path"),
            ("ghcr.io/a b", "\"a b\" in its path"),
            ("ghcr.io/é", "\"é\" in its path"),
            ("user@ghcr.io/acme", "write host:port"),
            ("my_host:5000", "write host:port"),
        ] {
            let problem = check_registry(url).unwrap_err();
            assert!(problem.contains(words), "{url}: {problem}");
        }
        let long = format!("ghcr.io/{}", "a".repeat(101));
        assert!(check_registry(&long).unwrap_err().contains("more than 100"));
    }
}
