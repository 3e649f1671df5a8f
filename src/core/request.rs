//! Turns a request for a run into its records: which project it belongs to, and which environment.

use sha2::{Digest as _, Sha256};
use stagely_agent::protocol::CommitSha;
use thiserror::Error;
use url::Url;

use super::effects::RunSecrets;
use super::orchestrator::now;
use super::records::Records;
use super::state::{Environment, Project, Run};
use crate::api::CreateRun;
use crate::ids::{EnvironmentId, ProjectId, RunId};

/// The longest name of a project or environment. Both become parts of image references.
const NAME_CHARS_MAX: usize = 100;
/// The most build arguments that a request may set.
const SET_MAX: usize = 128;
/// The longest text of any field.
const TEXT_BYTES_MAX: usize = 4 * 1024;

/// Images of an environment lie at `{registry}/{project}/{environment}`, layer caches at
/// `{registry}/{project}/cache`.
const CACHE: &str = "cache";
/// The environment of runs that name no branch, tag or commit.
pub const DEFAULT_ENVIRONMENT: &str = "default";
/// The environment of runs that name a commit.
const COMMITS: &str = "commits";

/// A request that cannot be served.
#[derive(Debug, Error)]
#[error("{field}: {problem}")]
pub struct InvalidRequest {
    /// The field.
    pub field: &'static str,
    /// What is wrong and what to do.
    pub problem: String,
}

fn invalid(field: &'static str, problem: impl Into<String>) -> InvalidRequest {
    InvalidRequest { field, problem: problem.into() }
}

/// The records that a request makes.
#[derive(Debug)]
pub struct RequestedRun {
    /// The run.
    pub run: Run,
    /// Its project, new or known.
    pub project: Project,
    /// Its environment, new or known.
    pub environment: Environment,
    /// What goes to the store sealed.
    pub secrets: RunSecrets,
}

/// Checks a request and makes its records.
///
/// # Errors
/// [`InvalidRequest`], naming the field.
pub fn run(records: &Records, create: CreateRun) -> Result<RequestedRun, InvalidRequest> {
    let repository = repository(&create.repository)?;
    if let Some(reference) = &create.reference {
        check_reference(reference)?;
    }
    check_builds_and_set(&create)?;
    let project = project(records, &repository, create.project.as_deref())?;
    let name = environment_name(create.environment.as_deref(), create.reference.as_deref())?;
    let environment = environment(records, &project, name);
    let run = Run {
        requested_ref: create.reference,
        only_builds: create.builds,
        base: create.base,
        from_fork: create.from_fork,
        set_names: create.set.keys().cloned().collect(),
        ..Run::new(RunId::random(), &environment, repository.to_string(), now())
    };
    let secrets = RunSecrets { clone_token: create.clone_token, set: create.set };
    Ok(RequestedRun { run, project, environment, secrets })
}

fn repository(text: &str) -> Result<Url, InvalidRequest> {
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

fn check_reference(reference: &str) -> Result<(), InvalidRequest> {
    let bad = reference.is_empty()
        || reference.len() > 255
        || reference.starts_with('-')
        || reference.contains("..")
        || reference.chars().any(|c| c.is_control() || c.is_whitespace() || "~^:?*[\\".contains(c));
    if bad {
        return Err(invalid(
            "ref",
            format!("{reference:?} is not a branch, tag or full commit id"),
        ));
    }
    Ok(())
}

fn check_builds_and_set(create: &CreateRun) -> Result<(), InvalidRequest> {
    if create.builds.len() > SET_MAX || create.builds.iter().any(|build| build.len() > 255) {
        return Err(invalid("builds", "is too long"));
    }
    if create.set.len() > SET_MAX {
        return Err(invalid("set", format!("has more than {SET_MAX} entries")));
    }
    for (name, value) in &create.set {
        use secrecy::ExposeSecret as _;
        let good = !name.is_empty()
            && !name.starts_with(|first: char| first.is_ascii_digit())
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
        if !good {
            let problem = format!("{name:?} is not the name of a build argument");
            return Err(invalid("set", problem));
        }
        if value.expose_secret().len() > 64 * 1024 {
            return Err(invalid("set", format!("the value of {name} is longer than 64 KiB")));
        }
    }
    Ok(())
}

/// The project of `repository`: the one it has already, or a new one.
fn project(
    records: &Records,
    repository: &Url,
    wanted: Option<&str>,
) -> Result<Project, InvalidRequest> {
    let by_repository =
        records.projects.values().find(|project| project.repository == repository.as_str());
    let Some(wanted) = wanted else {
        return Ok(by_repository.cloned().unwrap_or_else(|| Project {
            id: ProjectId::random(),
            name: free_name(records, &slug(&repository_name(repository))),
            repository: repository.to_string(),
        }));
    };
    check_name("project", wanted)?;
    match records.projects.values().find(|project| project.name == wanted) {
        // Also at another address: a repository that moved, or a folder that is served anew.
        Some(known) => Ok(known.clone()),
        None => Ok(Project {
            id: ProjectId::random(),
            name: wanted.to_owned(),
            repository: repository.to_string(),
        }),
    }
}

/// `owner/repository` of `https://host/owner/repository.git`.
fn repository_name(repository: &Url) -> String {
    let path = repository.path().trim_matches('/');
    path.strip_suffix(".git").unwrap_or(path).to_owned()
}

/// Two repositories never share a name: their images and caches would mix.
fn free_name(records: &Records, name: &str) -> String {
    let taken = |name: &str| records.projects.values().any(|project| project.name == name);
    if !taken(name) {
        return name.to_owned();
    }
    (2..=u32::MAX)
        .map(|number| format!("{name}-{number}"))
        .find(|name| !taken(name))
        .expect("fewer projects than numbers")
}

fn environment_name(
    wanted: Option<&str>,
    reference: Option<&str>,
) -> Result<String, InvalidRequest> {
    if let Some(wanted) = wanted {
        check_name("environment", wanted)?;
        if wanted == CACHE {
            return Err(invalid("environment", "`cache` is where the project's layer caches lie"));
        }
        return Ok(wanted.to_owned());
    }
    let Some(reference) = reference else { return Ok(DEFAULT_ENVIRONMENT.to_owned()) };
    if reference.parse::<CommitSha>().is_ok() {
        return Ok(COMMITS.to_owned());
    }
    Ok(environment_of(reference.strip_prefix("refs/heads/").unwrap_or(reference)))
}

/// The environment of a branch, or of a tag in full: its name where that can be one. Any other is made
/// one and marked with the hash of the name, so that no two push over each other's images.
pub fn environment_of(reference: &str) -> String {
    let slug = slug(reference.strip_prefix("refs/tags/").unwrap_or(reference));
    if slug == reference && ![CACHE, DEFAULT_ENVIRONMENT, COMMITS].contains(&&*slug) {
        return slug;
    }
    let hash = Sha256::digest(reference.as_bytes());
    let mark = format!("-{:02x}{:02x}{:02x}{:02x}", hash[0], hash[1], hash[2], hash[3]);
    let mut name = slug;
    name.truncate(NAME_CHARS_MAX - mark.len());
    name.truncate(name.trim_end_matches('-').len());
    name + &mark
}

fn check_name(field: &'static str, name: &str) -> Result<(), InvalidRequest> {
    let slug = slug(name);
    if slug == name {
        return Ok(());
    }
    let problem = format!(
        "{name:?} must be lower-case letters, digits and single dashes, at most \
         {NAME_CHARS_MAX}; {slug:?} would do"
    );
    Err(invalid(field, problem))
}

fn environment(records: &Records, project: &Project, name: String) -> Environment {
    let known = records
        .environments
        .values()
        .find(|found| found.project == project.id && found.name == name);
    known.cloned().unwrap_or_else(|| Environment::new(EnvironmentId::random(), project.id, name))
}

/// A name as a part of image references: lower-case letters, digits and single dashes.
pub fn slug(text: &str) -> String {
    let mut slug = String::new();
    for c in text.chars().flat_map(char::to_lowercase) {
        if c.is_ascii_alphanumeric() {
            slug.push(c);
        } else if !slug.is_empty() && !slug.ends_with('-') {
            slug.push('-');
        }
    }
    slug.truncate(NAME_CHARS_MAX);
    let slug = slug.trim_end_matches('-');
    if slug.is_empty() { "unnamed".to_owned() } else { slug.to_owned() }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn named(reference: &str) -> String {
        environment_name(None, Some(reference)).unwrap()
    }

    #[test]
    fn an_environment_has_the_name_of_its_branch_where_that_can_be_one() {
        for branch in ["main", "release-2", "pr-17"] {
            assert_eq!(named(branch), branch);
            assert_eq!(named(&format!("refs/heads/{branch}")), branch);
        }
    }

    #[test]
    fn no_two_branches_or_tags_share_an_environment() {
        let long = "x".repeat(255);
        let references = [
            "feature-x",
            "feature/x",
            "Feature_X",
            "feature--x",
            "refs/tags/feature-x",
            "refs/tags/feature/x",
            "cache",
            "default",
            "commits",
            "é",
            "ü",
            &long[..200],
            &long,
        ];

        let names: BTreeSet<String> = references.iter().map(|it| named(it)).collect();

        assert_eq!(names.len(), references.len(), "{names:?}");
        for name in names {
            check_name("environment", &name).unwrap();
            assert!(![CACHE, DEFAULT_ENVIRONMENT, COMMITS].contains(&&*name), "{name}");
        }
    }

    #[test]
    fn an_address_that_may_hold_a_token_is_refused_with_where_it_belongs() {
        for end in ["?private_token=abc", "?", "#main"] {
            let error = repository(&format!("https://host/owner/app.git{end}")).unwrap_err();
            assert!(error.problem.contains("clone_token"), "{error}");
            assert!(!error.to_string().contains("abc"), "{error}");
        }
    }
}
