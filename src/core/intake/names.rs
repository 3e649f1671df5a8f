//! Projects and environments by name. Names become parts of image references.

use sha2::{Digest as _, Sha256};
use stagely_protocol::CommitSha;
use stagely_state::ids::{EnvironmentId, ProjectId};
use stagely_state::{Environment, NAME_CHARS_MAX, Name, Project};
use url::Url;

use super::fields::{InvalidRequest, check_name, invalid};
use crate::core::clock::new_id;
use crate::core::records::Records;

/// The name in `{registry}/{project}/cache`, where layer caches are; images of an environment are at
/// `{registry}/{project}/{environment}`.
const CACHE: &str = "cache";
/// The environment of runs that name no branch, tag or commit.
pub(crate) const DEFAULT_ENVIRONMENT: &str = "default";
/// The environment of runs that name a commit.
const COMMITS: &str = "commits";
/// The environment of pull request 7 is `pr-7`. A branch called `pr-7` gets another name, so that they do not
/// share caches and images.
const PULL_REQUEST: &str = "pr-";

/// The known project of `repository`, or a new one.
pub(super) fn project(
    records: &Records,
    repository: &Url,
    wanted: Option<&str>,
) -> Result<Project, InvalidRequest> {
    let by_repository =
        records.projects.values().find(|project| project.repository == repository.as_str());
    let Some(wanted) = wanted else {
        return Ok(by_repository.cloned().unwrap_or_else(|| {
            let name = free_name(records, Name::nearest(&repository_name(repository)).as_str());
            Project::new(new_id::<ProjectId>(), name, repository.to_string())
        }));
    };
    check_name("project", wanted)?;
    match records.projects.values().find(|project| project.name == wanted) {
        // The address may differ: the repository moved, or a folder is served at another port.
        Some(known) => Ok(known.clone()),
        None => Ok(Project::new(new_id::<ProjectId>(), wanted.to_owned(), repository.to_string())),
    }
}

/// A new project of `repository`; `None` if the wanted name is taken.
pub(super) fn new_project(
    records: &Records,
    repository: &Url,
    name: Option<String>,
) -> Option<Project> {
    let name = match name {
        Some(name) if records.projects.values().any(|known| known.name == name) => return None,
        Some(name) => name,
        None => free_name(records, Name::nearest(&repository_name(repository)).as_str()),
    };
    Some(Project::new(new_id::<ProjectId>(), name, repository.to_string()))
}

/// `owner/repository` of `https://host/owner/repository.git`.
fn repository_name(repository: &Url) -> String {
    let path = repository.path().trim_matches('/');
    path.strip_suffix(".git").unwrap_or(path).to_owned()
}

/// `name`, or `name` with the first free number. Two projects of one name would mix their images and caches.
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

/// The known environment called `name`, or a new one.
pub(super) fn environment(
    records: &Records,
    project: &Project,
    name: String,
    pull_request: Option<u64>,
) -> Result<Environment, InvalidRequest> {
    let known = records
        .environments
        .values()
        .find(|found| found.project == project.id && found.name == name);
    let Some(known) = known else {
        let new = Environment::new(new_id::<EnvironmentId>(), project.id, name);
        return Ok(Environment { pull_request, ..new });
    };
    if pull_request.is_some() && known.pull_request != pull_request {
        let problem = match known.pull_request {
            Some(other) => format!("{name} is that of pull request {other}; name another"),
            None => format!("{name} is there already, for no pull request; name another"),
        };
        return Err(invalid("environment", problem));
    }
    Ok(known.clone())
}

/// The name of a run's environment.
pub(super) fn environment_name(
    wanted: Option<&str>,
    pull_request: Option<u64>,
    reference: Option<&str>,
) -> Result<String, InvalidRequest> {
    if let Some(wanted) = wanted {
        check_name("environment", wanted)?;
        if wanted == CACHE {
            return Err(invalid("environment", "`cache` is where the project's layer caches lie"));
        }
        if let Some(number) = pull_request_of(wanted)
            && pull_request.map(|number| number.to_string()).as_deref() != Some(number)
        {
            let problem =
                format!("{wanted} is that of pull request {number}; give pull_request, too");
            return Err(invalid("environment", problem));
        }
        // The caches of an environment have its name, and the caches of a pull request are those of `pr-7`.
        if let Some(number) = pull_request
            && wanted != format!("{PULL_REQUEST}{number}")
        {
            let problem = format!(
                "pull request {number} has the environment {PULL_REQUEST}{number}; leave this out"
            );
            return Err(invalid("environment", problem));
        }
        return Ok(wanted.to_owned());
    }
    if let Some(number) = pull_request {
        return Ok(format!("{PULL_REQUEST}{number}"));
    }
    let Some(reference) = reference else { return Ok(DEFAULT_ENVIRONMENT.to_owned()) };
    if reference.parse::<CommitSha>().is_ok() {
        return Ok(COMMITS.to_owned());
    }
    Ok(environment_of(reference.strip_prefix("refs/heads/").unwrap_or(reference)))
}

/// The environment's name for a branch, or for a tag that begins with `refs/tags/`. A reference that is no valid
/// name is changed to one and gets a hash, so that no two references push over each other's images.
pub(crate) fn environment_of(reference: &str) -> String {
    let name = Name::nearest(reference.strip_prefix("refs/tags/").unwrap_or(reference));
    let mut name = String::from(name);
    if name == reference && !is_taken(&name) {
        return name;
    }
    let hash = Sha256::digest(reference.as_bytes());
    let mark = format!("-{:02x}{:02x}{:02x}{:02x}", hash[0], hash[1], hash[2], hash[3]);
    name.truncate(NAME_CHARS_MAX - mark.len());
    name.truncate(name.trim_end_matches('-').len());
    name + &mark
}

/// Whether the name is reserved: no branch may have it.
fn is_taken(name: &str) -> bool {
    [CACHE, DEFAULT_ENVIRONMENT, COMMITS].contains(&name) || pull_request_of(name).is_some()
}

/// The number of the pull request whose environment has this name.
fn pull_request_of(name: &str) -> Option<&str> {
    let number = name.strip_prefix(PULL_REQUEST)?;
    let is_number = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then_some(number)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn named(reference: &str) -> String {
        environment_name(None, None, Some(reference)).unwrap()
    }

    #[test]
    fn an_environment_has_the_name_of_its_branch_if_that_is_a_valid_name() {
        for branch in ["main", "release-2", "pr-7a"] {
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
            "pr-7",
            "é",
            "ü",
            &long[..200],
            &long,
        ];

        let names: BTreeSet<String> = references.iter().map(|reference| named(reference)).collect();

        assert_eq!(names.len(), references.len(), "{names:?}");
        for name in names {
            check_name("environment", &name).unwrap();
            assert!(!is_taken(&name), "{name}");
        }
    }

    #[test]
    fn the_environment_of_a_pull_request_is_named_after_its_number() {
        let of = |wanted| environment_name(wanted, Some(7), Some("feature"));
        for wanted in [None, Some("pr-7")] {
            assert_eq!(of(wanted).unwrap(), "pr-7");
        }
        assert_eq!(of(Some("mine")).unwrap_err().field, "environment");
        for pull_request in [None, Some(8)] {
            let error = environment_name(Some("pr-7"), pull_request, None).unwrap_err();
            assert_eq!(error.field, "environment", "{error}");
        }
    }
}
