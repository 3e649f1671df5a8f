//! The secrets of projects that deployments and tests need.

use anyhow::Context as _;
use stagely_protocol::Secrets;
use stagely_state::ids::JobId;
use stagely_state::{JobKind, Project};
use thiserror::Error;
use tokio::task::spawn_blocking;

use crate::core::records::{Records, SharedRecords};
use crate::core::secrets::SecretStore;

/// Secrets that a deployment or a test needs are not set.
#[derive(Debug, Error)]
#[error("secrets of the project are not set: {}; set them with {}", names.join(", "), self.commands())]
pub(super) struct MissingSecrets {
    pub(super) project: String,
    pub(super) names: Vec<String>,
}

impl MissingSecrets {
    fn commands(&self) -> String {
        let command = |name| format!("`stagely secret set {} {name}`", self.project);
        self.names.iter().map(command).collect::<Vec<_>>().join(", ")
    }
}

/// Opens the secrets that the services of a deploy job get, or the command of a test job.
///
/// # Errors
/// [`MissingSecrets`] if some are not set.
pub(super) async fn open(
    records: &SharedRecords,
    secrets: &SecretStore,
    job: JobId,
) -> anyhow::Result<Secrets> {
    let Some((project, names)) = needed(&records.read(), job)? else {
        return Ok(Secrets::default());
    };
    let (secrets, id, wanted) = (secrets.clone(), project.id, names.clone());
    let values = spawn_blocking(move || secrets.open_project_secrets(id, &wanted)).await??;
    let missing = names.into_iter().filter(|name| !values.contains_key(name));
    let missing: Vec<String> = missing.collect();
    if !missing.is_empty() {
        return Err(MissingSecrets { project: project.name, names: missing }.into());
    }
    Ok(Secrets(values))
}

/// The project of a deploy or test job, and the names of the secrets that it gets. Forks get none.
fn needed(records: &Records, job: JobId) -> anyhow::Result<Option<(Project, Vec<String>)>> {
    let Some(job) = records.jobs.get(&job) else { return Ok(None) };
    let names = match &job.kind {
        JobKind::Deploy { deployment, .. } => &deployment.secrets,
        JobKind::Test { test, .. } => &test.secrets,
        JobKind::Build { .. } | JobKind::Merge { .. } => return Ok(None),
    };
    let Some(run) = records.runs.get(&job.run) else { return Ok(None) };
    if run.from_fork || names.is_empty() {
        return Ok(None);
    }
    let project = records.projects.get(&run.project).context("the run has no project")?;
    Ok(Some((project.clone(), names.clone())))
}
