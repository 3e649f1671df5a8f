//! The deployments of an environment at GitHub: which commits its preview shows, and is to show.
//!
//! Each commit has one. The environment is transient, and GitHub makes earlier deployments of such an environment not
//! inactive by itself.

use std::collections::BTreeMap;

use stagely_protocol::CommitSha;
use stagely_state::{
    DeploymentState, DeploymentStatus, JobState, PreviewState, PublishedDeployment,
};

use super::markdown::{cut, one_line};
use super::statuses::DESCRIPTION_CHARS_MAX;
use super::view::ReportView;

/// The next request that brings GitHub closer to the records.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum DeploymentWrite {
    Create { commit: CommitSha },
    SetStatus { id: u64, status: DeploymentStatus },
}

/// The first difference between the records and `published`.
pub(crate) fn next_write(
    view: &ReportView<'_>,
    published: &[PublishedDeployment],
) -> Option<DeploymentWrite> {
    let wanted = wanted(view);
    for (commit, status) in &wanted {
        let known = published.iter().find(|known| known.commit == *commit);
        match known {
            // Nothing has to be created to be inactive.
            None if status.state == DeploymentState::Inactive => {}
            None => return Some(DeploymentWrite::Create { commit: commit.clone() }),
            Some(known) if known.status.as_ref() != Some(status) => {
                return Some(DeploymentWrite::SetStatus { id: known.id, status: status.clone() });
            }
            Some(_) => {}
        }
    }
    let mut others = published.iter().filter(|known| !wanted.contains_key(&known.commit));
    others.find(|known| !is_over(known)).map(|known| {
        let status = inactive("Ended", view.run_url());
        DeploymentWrite::SetStatus { id: known.id, status }
    })
}

/// Notes that the status of the deployment `id` was set, and forgets the deployments that stay as they are.
pub(crate) fn note_status(
    view: Option<&ReportView<'_>>,
    published: &mut Vec<PublishedDeployment>,
    id: u64,
    status: DeploymentStatus,
) {
    if let Some(known) = published.iter_mut().find(|known| known.id == id) {
        known.status = Some(status);
    }
    let wanted = view.map(wanted).unwrap_or_default();
    published.retain(|known| wanted.contains_key(&known.commit) || !is_over(known));
}

/// Whether nothing of it is shown as active.
fn is_over(deployment: &PublishedDeployment) -> bool {
    let state = deployment.status.as_ref().map(|status| status.state);
    match state {
        None | Some(DeploymentState::InProgress | DeploymentState::Success) => false,
        Some(DeploymentState::Failure | DeploymentState::Error | DeploymentState::Inactive) => true,
    }
}

/// The statuses by commit. All other deployments of the environment are to be inactive.
fn wanted(view: &ReportView<'_>) -> BTreeMap<CommitSha, DeploymentStatus> {
    let mut wanted = BTreeMap::new();
    let Some(preview) = view.preview().filter(|_| view.run.github.is_some()) else { return wanted };
    if let Some(shown) = &preview.shown {
        let log_url = view.page("runs", &shown.run);
        let status = match preview.state {
            PreviewState::Live { .. } | PreviewState::Updating { .. } => Some(DeploymentStatus {
                state: DeploymentState::Success,
                description: "Live".to_owned(),
                log_url,
                environment_url: view.preview_url().map(String::from),
            }),
            PreviewState::Archiving { wakes: true, .. } => {
                Some(in_progress("Moves to another machine", log_url))
            }
            PreviewState::Archiving { wakes: false, .. } | PreviewState::Asleep => {
                Some(inactive("Asleep", log_url))
            }
            PreviewState::Deploying { .. }
            | PreviewState::Waking { .. }
            | PreviewState::Ending
            | PreviewState::Ended
            | PreviewState::Failed { .. } => None,
        };
        wanted.extend(status.map(|status| (shown.commit.clone(), status)));
    }
    if let Some(job) = preview.state.job()
        && let Some(commit) = view.commit_of(job)
    {
        let status = in_progress("Deploying", view.job_url(job));
        wanted.entry(commit.clone()).or_insert(status);
    }
    if let Some((commit, status)) = failure(view)
        && !preview.state.is_over()
    {
        wanted.entry(commit).or_insert(status);
    }
    wanted
}

/// The failed deployment of the run.
fn failure(view: &ReportView<'_>) -> Option<(CommitSha, DeploymentStatus)> {
    let job = view.deploy_job()?;
    let JobState::Failed(failure) = &job.state else { return None };
    let is_users = view.is_users_job(job);
    let state = if is_users { DeploymentState::Failure } else { DeploymentState::Error };
    // A deployment that did not begin has none at GitHub.
    let began = job.attempt > 0;
    let status = without_url(state, &failure.reason.to_string(), view.job_url(job.id));
    began.then_some((view.commit()?, status))
}

fn in_progress(description: &str, log_url: String) -> DeploymentStatus {
    without_url(DeploymentState::InProgress, description, log_url)
}

fn inactive(description: &str, log_url: String) -> DeploymentStatus {
    without_url(DeploymentState::Inactive, description, log_url)
}

fn without_url(state: DeploymentState, description: &str, log_url: String) -> DeploymentStatus {
    let description = cut(&one_line(description), DESCRIPTION_CHARS_MAX);
    DeploymentStatus { state, description, log_url, environment_url: None }
}
