//! Checks of single fields of a request.

use std::collections::BTreeMap;

use secrecy::{ExposeSecret as _, SecretString};
use stagely_state::{BranchName, InvalidName, Name, Reference};
use thiserror::Error;
use url::Url;

use crate::api::SECRET_BYTES_MAX;

/// The most entries of a map or a list.
const ENTRIES_MAX: usize = 128;
const TEXT_BYTES_MAX: usize = 4 * 1024;

const ARGUMENT_BYTES_MAX: usize = 64 * 1024;

/// As in `stagely.yaml`.
const SECRET_NAME_CHARS_MAX: usize = 100;

/// A field of a request has a value that cannot be used.
#[derive(Debug, PartialEq, Eq, Error)]
#[error("{field}: {problem}")]
pub(crate) struct InvalidRequest {
    pub(crate) field: &'static str,
    /// What is wrong, and what to do.
    pub(crate) problem: String,
}

pub(super) fn invalid(field: &'static str, problem: impl Into<String>) -> InvalidRequest {
    InvalidRequest { field, problem: problem.into() }
}

pub(super) fn repository(text: &str) -> Result<Url, InvalidRequest> {
    const FIELD: &str = "repository";
    if text.len() > TEXT_BYTES_MAX {
        return Err(invalid(FIELD, "is longer than 4096 bytes"));
    }
    let url: Url = text
        .parse()
        .map_err(|error| invalid(FIELD, format!("is not a URL ({error}); write https://…")))?;
    if !matches!(url.scheme(), "http" | "https" | "git") || url.host().is_none() {
        return Err(invalid(FIELD, "must start with https://, http:// or git://"));
    }
    if url.password().is_some() || !url.username().is_empty() {
        return Err(invalid(FIELD, "holds a user or password; give it as clone_token"));
    }
    // An address is stored and shown, so no token may be in it.
    if url.query().is_some() || url.fragment().is_some() {
        return Err(invalid(
            FIELD,
            "ends in `?…` or `#…`, which no repository needs; give a token as clone_token, and a \
             branch, tag or commit as ref",
        ));
    }
    Ok(url)
}

pub(super) fn check_reference(
    field: &'static str,
    reference: &str,
) -> Result<Reference, InvalidRequest> {
    reference.parse().map_err(|error: InvalidName| invalid(field, error.problem))
}

pub(super) fn check_branch(
    field: &'static str,
    branch: &str,
) -> Result<BranchName, InvalidRequest> {
    branch.parse().map_err(|error: InvalidName| invalid(field, error.problem))
}

pub(super) fn check_builds(builds: &[String]) -> Result<(), InvalidRequest> {
    if builds.len() > ENTRIES_MAX || builds.iter().any(|build| build.len() > 255) {
        return Err(invalid("builds", "is too long"));
    }
    Ok(())
}

/// Refuses build arguments for a fork, because its build runs a stranger's code.
pub(super) fn check_foreign_set(
    from_fork: bool,
    set: &BTreeMap<String, SecretString>,
) -> Result<(), InvalidRequest> {
    if from_fork && !set.is_empty() {
        let problem = "may be secret, and the builds of forks get no secrets: leave it out";
        return Err(invalid("set", problem));
    }
    Ok(())
}

pub(super) fn check_set(set: &BTreeMap<String, SecretString>) -> Result<(), InvalidRequest> {
    if set.len() > ENTRIES_MAX {
        return Err(invalid("set", format!("has more than {ENTRIES_MAX} entries")));
    }
    for (name, value) in set {
        if !is_variable_name(name) {
            let problem = format!("{name:?} is not the name of a build argument");
            return Err(invalid("set", problem));
        }
        if value.expose_secret().len() > ARGUMENT_BYTES_MAX {
            return Err(invalid("set", format!("the value of {name} is longer than 64 KiB")));
        }
    }
    Ok(())
}

fn is_variable_name(name: &str) -> bool {
    !name.is_empty()
        && !name.starts_with(|first: char| first.is_ascii_digit())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

/// Checks the name of a project's secret.
pub(crate) fn check_secret_name(name: &str) -> Result<(), InvalidRequest> {
    if name.len() > SECRET_NAME_CHARS_MAX {
        let problem = format!("is longer than {SECRET_NAME_CHARS_MAX} characters");
        return Err(invalid("secret", problem));
    }
    if !is_variable_name(name) {
        let problem = format!(
            "{name:?} is not the name of an environment variable; use letters, digits and `_`, and begin with \
             none of the digits"
        );
        return Err(invalid("secret", problem));
    }
    Ok(())
}

/// Checks the value of a project's secret, which becomes an environment variable.
pub(crate) fn check_secret_value(value: &SecretString) -> Result<(), InvalidRequest> {
    let value = value.expose_secret();
    if value.is_empty() {
        return Err(invalid("value", "is empty"));
    }
    if value.len() > SECRET_BYTES_MAX {
        return Err(invalid("value", format!("is longer than {} KiB", SECRET_BYTES_MAX / 1024)));
    }
    if value.contains('\0') {
        return Err(invalid(
            "value",
            "has a NUL character, which no environment variable can have",
        ));
    }
    Ok(())
}

pub(super) fn check_name(field: &'static str, name: &str) -> Result<Name, InvalidRequest> {
    name.parse().map_err(|error: InvalidName| invalid(field, error.problem))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_that_may_hold_a_token_is_refused_with_where_it_belongs() {
        for end in ["?private_token=abc", "?", "#main"] {
            let error = repository(&format!("https://host/owner/app.git{end}")).unwrap_err();
            assert!(error.problem.contains("clone_token"), "{error}");
            assert!(!error.to_string().contains("abc"), "{error}");
        }
    }
}
