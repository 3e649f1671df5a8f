//! Secrets in files that settings name, and in the environment.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;

use secrecy::SecretString;
use thiserror::Error;

use super::error::ConfigError;

/// The most of a file that is read. A key of 16,384 bits has 13 KiB.
const FILE_BYTES_MAX: u64 = 64 * 1024;

/// The file of a secret cannot be used. The message follows the word "which".
#[derive(Debug, Error)]
pub(crate) enum SecretFileError {
    #[error("cannot be read: {0}")]
    Read(#[from] io::Error),
    #[error("is empty")]
    Empty,
}

/// Reads the secret in the file at `path`, without the line end behind it.
pub(crate) fn read_secret_file(path: &Path) -> Result<SecretString, SecretFileError> {
    let mut text = String::new();
    File::open(path)?.take(FILE_BYTES_MAX).read_to_string(&mut text)?;
    let secret = text.trim_end_matches(['\r', '\n']);
    if secret.is_empty() {
        return Err(SecretFileError::Empty);
    }
    Ok(SecretString::from(secret))
}

/// Reads the secret in the file at `path`, which the setting `key` names.
pub(super) fn read_secret(key: &'static str, path: &Path) -> Result<SecretString, ConfigError> {
    read_secret_file(path).map_err(|error| match error {
        SecretFileError::Read(source) => {
            ConfigError::SecretFile { key, path: path.to_owned(), source }
        }
        SecretFileError::Empty => {
            ConfigError::Value { key, problem: format!("{} is empty", path.display()) }
        }
    })
}

/// Whether the environment variable is set and not empty.
pub(super) fn has_variable(name: &str) -> bool {
    std::env::var_os(name).is_some_and(|value| !value.is_empty())
}
