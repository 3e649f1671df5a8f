//! The `[[projects]]` tables.

use std::collections::BTreeSet;
use std::num::NonZeroU32;
use std::path::PathBuf;

use secrecy::SecretString;
use serde::Deserialize;
use stagely_state::{ForkPolicy, GithubRepository, Name};

use super::error::ConfigError;
use super::secrets::read_secret;

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct ProjectConfig {
    /// `owner/name` of the repository at GitHub.
    pub github: GithubRepository,
    /// The project's name. Default: derived from the repository's.
    #[serde(default)]
    pub name: Option<String>,
    /// A file with a token for this repository alone. Default: the credentials of `[github]`.
    #[serde(default)]
    pub token_file: Option<PathBuf>,
    /// The policy for pull requests from forks: `approval`, `never` or `known-contributors`. Default:
    /// `approval`.
    #[serde(default)]
    pub forks: ForkPolicy,
    /// The most machines at once. Default: no limit of its own.
    #[serde(default)]
    pub max_concurrent: Option<NonZeroU32>,
}

impl ProjectConfig {
    /// Reads the repository's own token; `None` if it has none.
    ///
    /// # Errors
    /// [`ConfigError`], naming the setting.
    pub fn token(&self) -> Result<Option<SecretString>, ConfigError> {
        let path = self.token_file.as_deref();
        path.map(|path| read_secret("projects.token-file", path)).transpose()
    }
}

/// Checks names, and that no name and no repository is given twice.
pub(super) fn check(projects: &[ProjectConfig]) -> Result<(), ConfigError> {
    let wrong = |key, problem| Err(ConfigError::Value { key, problem });
    let (mut names, mut repositories) = (BTreeSet::new(), BTreeSet::new());
    for project in projects {
        if !repositories.insert(project.github.as_str().to_ascii_lowercase()) {
            return wrong("projects.github", format!("{} is given twice", project.github));
        }
        let Some(name) = &project.name else { continue };
        if let Err(error) = name.parse::<Name>() {
            return wrong("projects.name", error.problem);
        }
        if !names.insert(name) {
            return wrong("projects.name", format!("{name} is given twice"));
        }
    }
    Ok(())
}
