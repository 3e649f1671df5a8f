//! Secrets in files that settings name, and in the environment.

use std::path::Path;

use secrecy::SecretString;

use super::error::ConfigError;

/// Reads the secret in the file at `path`, which the setting `key` names.
pub(super) fn read_secret(key: &'static str, path: &Path) -> Result<SecretString, ConfigError> {
    let text = std::fs::read_to_string(path).map_err(|source| ConfigError::SecretFile {
        key,
        path: path.to_owned(),
        source,
    })?;
    let text = text.trim_end_matches(['\r', '\n']);
    if text.is_empty() {
        let problem = format!("{} is empty", path.display());
        return Err(ConfigError::Value { key, problem });
    }
    Ok(SecretString::from(text))
}

/// Whether the environment variable is set and not empty.
pub(super) fn has_variable(name: &str) -> bool {
    std::env::var_os(name).is_some_and(|value| !value.is_empty())
}
