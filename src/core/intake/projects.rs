//! Links repositories at GitHub to projects: a known one or a new one.

use std::num::NonZeroU32;

use stagely_state::{ForkPolicy, GithubLink, GithubRepository, Project};
use thiserror::Error;
use url::Url;

use super::fields::{InvalidRequest, check_name};
use super::names;
use crate::core::records::Records;

/// A repository whose pull requests are to be built.
#[derive(Clone, Debug)]
pub(crate) struct LinkProject {
    pub(crate) repository: GithubRepository,
    /// Where it is cloned from.
    pub(crate) clone_url: Url,
    /// The project's name. `None`: the known project's name, or one made from the repository's.
    pub(crate) name: Option<String>,
    pub(crate) forks: ForkPolicy,
    pub(crate) max_concurrent: Option<NonZeroU32>,
    /// Whether the configuration file names it.
    pub(crate) is_configured: bool,
}

/// A repository is not linked.
#[derive(Debug, Error)]
pub(crate) enum LinkError {
    #[error(transparent)]
    Conflict(#[from] LinkConflict),
    #[error(transparent)]
    Invalid(#[from] InvalidRequest),
}

/// The project that is in the way.
#[derive(Debug, Error)]
pub(crate) enum LinkConflict {
    #[error("{repository} is the project {name} already; use that name")]
    OtherName { repository: GithubRepository, name: String },
    #[error("{name} is the project of {repository}")]
    OtherRepository { name: String, repository: GithubRepository },
    #[error("stagely.toml has the project {name}; change it there")]
    Configured { name: String },
    #[error("{name} is the project of another repository; use another name")]
    NameTaken { name: String },
}

/// The changed project of a repository: the one that is linked to it, the one with its clone address, or a
/// new one.
///
/// # Errors
/// [`LinkError`].
pub(crate) fn link(records: &Records, wanted: LinkProject) -> Result<Project, LinkError> {
    if let Some(name) = &wanted.name {
        check_name("name", name)?;
    }
    let github = &wanted.repository;
    let is_linked = |project: &&Project| {
        project.github.as_ref().is_some_and(|link| link.repository.is(github.as_str()))
    };
    let has_address =
        |project: &&Project| same_address(&project.repository, wanted.clone_url.as_str());
    let known = records.projects.values().find(is_linked);
    let known = known.or_else(|| records.projects.values().find(has_address));
    let Some(known) = known else { return new_project(records, wanted) };
    if let Some(name) = &wanted.name
        && *name != known.name
    {
        let (repository, name) = (github.clone(), known.name.clone());
        return Err(LinkConflict::OtherName { repository, name }.into());
    }
    if let Some(link) = &known.github {
        if !link.repository.is(github.as_str()) {
            let (name, repository) = (known.name.clone(), link.repository.clone());
            return Err(LinkConflict::OtherRepository { name, repository }.into());
        }
        if link.is_configured && !wanted.is_configured {
            return Err(LinkConflict::Configured { name: known.name.clone() }.into());
        }
    }
    let max_concurrent = wanted.max_concurrent;
    Ok(Project { github: Some(wanted.link()), max_concurrent, ..known.clone() })
}

fn new_project(records: &Records, wanted: LinkProject) -> Result<Project, LinkError> {
    let name = wanted.name.clone();
    let project = names::new_project(records, &wanted.clone_url, name).ok_or_else(|| {
        let name = wanted.name.clone().unwrap_or_default();
        LinkConflict::NameTaken { name }
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

/// Whether both addresses are of the same repository. GitHub ignores case and a final `.git`.
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
    fn a_repository_has_one_project_also_if_it_was_built_before_it_was_linked() {
        let new = link(&Records::default(), wanted("acme/shop")).unwrap();
        assert_eq!(
            (&*new.name, &*new.repository),
            ("acme-shop", "https://github.com/acme/shop.git")
        );

        let address = "https://github.com/Acme/Shop".to_owned();
        let built = Project::new(ProjectId::from_bits(1), "shop".to_owned(), address.clone());
        let linked = link(&with(built), wanted("acme/shop")).unwrap();
        assert_eq!((linked.id, &*linked.name), (ProjectId::from_bits(1), "shop"));
        assert_eq!(linked.repository, address);

        let strict = LinkProject { forks: ForkPolicy::Never, ..wanted("ACME/shop") };
        let changed = link(&with(linked), strict).unwrap();
        assert_eq!(changed.id, ProjectId::from_bits(1));
        assert_eq!(changed.github.unwrap().forks, ForkPolicy::Never);
    }

    #[test]
    fn names_are_unique_and_configured_projects_are_changed_in_the_file() {
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
