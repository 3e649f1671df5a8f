//! Projects of repositories at GitHub: which record a repository has, or gets.

use std::num::NonZeroU32;

use stagely_state::{ForkPolicy, GithubLink, GithubRepository, Project};
use thiserror::Error;
use url::Url;

use super::fields::{InvalidRequest, check_name};
use super::names;
use crate::core::records::Records;

/// A repository at GitHub that is to be listened to.
#[derive(Clone, Debug)]
pub(crate) struct LinkProject {
    /// The repository.
    pub(crate) repository: GithubRepository,
    /// Where it is cloned from.
    pub(crate) clone_url: Url,
    /// The project's name. `None`: the one it has, or made of the repository's.
    pub(crate) name: Option<String>,
    /// What becomes of pull requests from forks.
    pub(crate) forks: ForkPolicy,
    /// Most machines at once.
    pub(crate) max_concurrent: Option<NonZeroU32>,
    /// Whether the configuration file says so.
    pub(crate) is_configured: bool,
}

/// Why a repository gets no project.
#[derive(Debug, Error)]
pub(crate) enum LinkError {
    /// Something else is in the way.
    #[error("{0}")]
    Conflict(String),
    /// The request cannot be.
    #[error(transparent)]
    Invalid(#[from] InvalidRequest),
}

/// The project of a repository as it is to be: the one that listens to it, the one that was built from its
/// address, or a new one.
///
/// # Errors
/// [`LinkError`].
pub(crate) fn link(records: &Records, wanted: LinkProject) -> Result<Project, LinkError> {
    if let Some(name) = &wanted.name {
        check_name("name", name)?;
    }
    let github = &wanted.repository;
    let listens =
        |it: &&Project| it.github.as_ref().is_some_and(|link| link.repository.is(github.as_str()));
    let has_address = |it: &&Project| same_address(&it.repository, wanted.clone_url.as_str());
    let known = records.projects.values().find(listens);
    let known = known.or_else(|| records.projects.values().find(has_address));
    let Some(known) = known else { return new_project(records, wanted) };
    if let Some(name) = &wanted.name
        && *name != known.name
    {
        let problem = format!("{github} is the project {} already; use that name", known.name);
        return Err(LinkError::Conflict(problem));
    }
    if let Some(link) = &known.github {
        if !link.repository.is(github.as_str()) {
            let problem = format!("{} is the project of {}", known.name, link.repository);
            return Err(LinkError::Conflict(problem));
        }
        if link.is_configured && !wanted.is_configured {
            let problem = format!("stagely.toml has the project {}; change it there", known.name);
            return Err(LinkError::Conflict(problem));
        }
    }
    let max_concurrent = wanted.max_concurrent;
    Ok(Project { github: Some(wanted.link()), max_concurrent, ..known.clone() })
}

fn new_project(records: &Records, wanted: LinkProject) -> Result<Project, LinkError> {
    let name = wanted.name.clone();
    let project = names::new_project(records, &wanted.clone_url, name).ok_or_else(|| {
        let name = wanted.name.clone().unwrap_or_default();
        LinkError::Conflict(format!(
            "{name} is the project of another repository; use another name"
        ))
    })?;
    let max_concurrent = wanted.max_concurrent;
    Ok(Project { github: Some(wanted.link()), max_concurrent, ..project })
}

impl LinkProject {
    fn link(self) -> GithubLink {
        let Self { repository, forks, is_configured, .. } = self;
        GithubLink { repository, forks, is_configured }
    }
}

/// Whether both addresses are of the same repository: GitHub regards neither case nor `.git`.
fn same_address(one: &str, other: &str) -> bool {
    let plain = |address: &str| {
        let address = address.trim_end_matches('/').to_ascii_lowercase();
        address.strip_suffix(".git").map(str::to_owned).unwrap_or(address)
    };
    plain(one) == plain(other)
}

#[cfg(test)]
mod tests {
    use stagely_state::ids::ProjectId;

    use super::*;

    fn wanted(repository: &str) -> LinkProject {
        LinkProject {
            repository: repository.parse().unwrap(),
            clone_url: format!("https://github.com/{repository}.git").parse().unwrap(),
            name: None,
            forks: ForkPolicy::Approval,
            max_concurrent: None,
            is_configured: false,
        }
    }

    fn named(repository: &str, name: &str) -> LinkProject {
        LinkProject { name: Some(name.to_owned()), ..wanted(repository) }
    }

    fn with(project: Project) -> Records {
        let mut records = Records::default();
        records.projects.insert(project.id, project);
        records
    }

    #[test]
    fn a_repository_has_one_project_whoever_built_it_first() {
        let new = link(&Records::default(), wanted("acme/shop")).unwrap();
        assert_eq!(
            (&*new.name, &*new.repository),
            ("acme-shop", "https://github.com/acme/shop.git")
        );

        let address = "https://github.com/Acme/Shop".to_owned();
        let built = Project::new(ProjectId::from_bits(1), "shop".to_owned(), address.clone());
        let adopted = link(&with(built), wanted("acme/shop")).unwrap();
        assert_eq!((adopted.id, &*adopted.name), (ProjectId::from_bits(1), "shop"));
        assert_eq!(adopted.repository, address);

        let strict = LinkProject { forks: ForkPolicy::Never, ..wanted("ACME/shop") };
        let changed = link(&with(adopted), strict).unwrap();
        assert_eq!(changed.id, ProjectId::from_bits(1));
        assert_eq!(changed.github.unwrap().forks, ForkPolicy::Never);
    }

    #[test]
    fn no_two_repositories_share_a_name_and_the_file_has_the_last_word() {
        let shop = link(&Records::default(), named("acme/shop", "shop")).unwrap();
        let error = link(&with(shop.clone()), named("acme/other", "shop")).unwrap_err();
        assert!(error.to_string().contains("another repository"), "{error}");
        let error = link(&with(shop.clone()), named("acme/shop", "web")).unwrap_err();
        assert!(error.to_string().contains("shop already"), "{error}");
        assert!(matches!(
            link(&Records::default(), named("acme/shop", "A B")),
            Err(LinkError::Invalid(_))
        ));
        let configured = LinkProject { is_configured: true, ..wanted("acme/shop") };
        let configured = link(&with(shop), configured).unwrap();
        let error = link(&with(configured), wanted("acme/shop")).unwrap_err();
        assert!(error.to_string().contains("stagely.toml"), "{error}");
    }
}
