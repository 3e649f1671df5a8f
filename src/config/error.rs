//! Why a configuration cannot be used.

use std::path::PathBuf;

use stagely_provider::settings::SettingError;
use thiserror::Error;

/// A configuration that cannot be used.
#[derive(Debug, Error)]
pub enum ConfigError {
    #[error("cannot read {path}")]
    Read {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    /// The file is not valid for this version. The source names line and column.
    #[error("{path} is not a configuration that this version understands")]
    Parse {
        path: PathBuf,
        #[source]
        source: Box<toml::de::Error>,
    },
    /// A file named by a setting cannot be read.
    #[error("{key} names {path}, which cannot be read")]
    SecretFile {
        key: &'static str,
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    /// A setting has an invalid value.
    #[error("{key}: {problem}")]
    Value { key: &'static str, problem: String },
}

impl From<SettingError> for ConfigError {
    fn from(SettingError { key, problem }: SettingError) -> Self {
        Self::Value { key, problem }
    }
}
