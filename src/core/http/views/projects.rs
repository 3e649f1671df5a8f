//! Projects.

use stagely_state::Project;

use crate::api::ProjectView;
use crate::core::secrets::SecretStore;

pub(in crate::core::http) fn project(secrets: &SecretStore, project: &Project) -> ProjectView {
    let link = project.github.as_ref();
    ProjectView {
        id: project.id,
        name: project.name.clone(),
        repository: project.repository.clone(),
        github: link.map(|link| link.repository.to_string()),
        forks: link.map(|link| link.forks),
        max_concurrent: project.max_concurrent,
        configured: link.is_some_and(|link| link.is_configured),
        // A token that cannot be opened counts too.
        has_token: !matches!(secrets.project_token(project.id), Ok(None)),
    }
}
