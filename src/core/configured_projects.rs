//! Links the projects of `stagely.toml` at the start of core.

use anyhow::Context as _;
use stagely_state::ids::ProjectId;
use stagely_state::{Event, Project};
use tokio::task::spawn_blocking;

use super::intake::Intake;
use super::intake::projects::LinkProject;
use super::orchestrator::Events;
use super::records::SharedRecords;
use super::secrets::SecretStore;
use crate::config::Config;

/// Links the projects in the configuration, and unlinks those that are no longer in it.
///
/// # Errors
/// A token that cannot be read, a name that is taken, or a store that fails.
pub(super) async fn link(
    config: &Config,
    records: &SharedRecords,
    events: &Events,
    intake: &Intake,
    secrets: &SecretStore,
) -> anyhow::Result<()> {
    for project in removed_projects(config, records) {
        forget_token(secrets, project).await?;
        events.store(Event::ProjectRemoved { project }).await?;
    }
    for project in &config.projects {
        // The token is read again for each use. A token that cannot be read is reported now.
        project.token()?;
        let wanted = LinkProject {
            repository: project.github.clone(),
            clone_url: config.github.clone_address(&project.github),
            name: project.name.clone(),
            forks: project.forks,
            max_concurrent: project.max_concurrent,
            is_configured: true,
        };
        let linked = intake.link(wanted).await;
        let (linked, _) = linked.with_context(|| format!("[[projects]] {}", project.github))?;
        forget_token(secrets, linked.id).await?;
    }
    Ok(())
}

/// The projects that an earlier configuration named and this one does not.
fn removed_projects(config: &Config, records: &SharedRecords) -> Vec<ProjectId> {
    let is_removed = |project: &&Project| {
        let link = project.github.as_ref().filter(|link| link.is_configured);
        link.is_some_and(|link| {
            let mut named = config.projects.iter();
            !named.any(|named| named.github.is(link.repository.as_str()))
        })
    };
    let records = records.read();
    records.projects.values().filter(is_removed).map(|project| project.id).collect()
}

/// Deletes the token that a project has from the API, because the configuration takes precedence.
async fn forget_token(secrets: &SecretStore, project: ProjectId) -> anyhow::Result<()> {
    let secrets = secrets.clone();
    let forget = move || {
        if matches!(secrets.project_token(project), Ok(None)) {
            return Ok(());
        }
        secrets.set_project_token(project, None)
    };
    Ok(spawn_blocking(forget).await??)
}
