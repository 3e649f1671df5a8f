//! Makes a run of a new head: of a pull request, or of the default branch.

use stagely_state::ids::RunId;
use stagely_state::{
    Approval, Environment, Event, ForkPolicy, GithubRun, Head, HeadSource, Project, Run, Trigger,
};

use super::PREVIEW_LABEL;
use super::ignored::Ignored;
use crate::config::GithubConfig;
use crate::core::clock::{new_id, now};
use crate::core::github::{PullRequest, PullRequestState, Repository};
use crate::core::intake::fields::check_reference;
use crate::core::intake::names::{environment, environment_of};
use crate::core::records::Records;

pub(super) struct HeadChange {
    pub(super) head: Head,
    pub(super) trigger: Trigger,
    pub(super) source: HeadSource,
}

pub(super) fn pull_request_moved(
    records: &Records,
    config: &GithubConfig,
    project: &Project,
    repository: &Repository,
    pull_request: &PullRequest,
    change: HeadChange,
) -> Result<Event, Ignored> {
    match pull_request.state {
        PullRequestState::Closed => return Err(Ignored::ClosedPullRequest),
        PullRequestState::Draft if !config.drafts => return Err(Ignored::Draft),
        PullRequestState::Draft | PullRequestState::Open => {}
    }
    check_reference("base", &pull_request.base_branch)?;
    check_reference("branch", &pull_request.head_branch)?;
    let approval = approval(project, pull_request)?;
    let number = pull_request.number;
    let environment = environment(records, project, format!("pr-{number}"), Some(number))?;
    let is_label = |label: &String| label.eq_ignore_ascii_case(PREVIEW_LABEL);
    let is_labeled = pull_request.labels.iter().any(is_label);
    let run = Run {
        trigger: change.trigger,
        requested_ref: Some(pull_request.head.to_string()),
        branch: Some(pull_request.head_branch.clone()),
        base: Some(pull_request.base_branch.clone()),
        from_fork: pull_request.is_from_fork,
        with_preview: is_labeled.then_some(true),
        github: Some(github_run(repository)),
        ..new_run(project, &environment)
    };
    let run = run.with_approval(approval);
    let HeadChange { head, source, .. } = change;
    Ok(Event::HeadMoved { run: Box::new(run), environment, head, source })
}

pub(super) fn branch_moved(
    records: &Records,
    project: &Project,
    repository: &Repository,
    head: Head,
) -> Result<Event, Ignored> {
    let branch = &repository.default_branch;
    check_reference("branch", branch)?;
    let environment = environment(records, project, environment_of(branch), None)?;
    let run = Run {
        trigger: Trigger::Push,
        requested_ref: Some(head.commit.to_string()),
        branch: Some(branch.clone()),
        github: Some(github_run(repository)),
        ..new_run(project, &environment)
    };
    let source = HeadSource::Delivery;
    Ok(Event::HeadMoved { run: Box::new(run), environment, head, source })
}

fn new_run(project: &Project, environment: &Environment) -> Run {
    Run::new(new_id::<RunId>(), environment, project.repository.clone(), now())
}

fn github_run(repository: &Repository) -> GithubRun {
    let default_branch = repository.default_branch.clone();
    GithubRun { default_branch, is_private: repository.is_private }
}

fn approval(project: &Project, pull_request: &PullRequest) -> Result<Approval, Ignored> {
    let policy = project.github.as_ref().map_or(ForkPolicy::Never, |link| link.forks);
    match policy {
        _ if !pull_request.is_from_fork => Ok(Approval::NotNeeded),
        ForkPolicy::Never => Err(Ignored::Fork),
        ForkPolicy::KnownContributors if pull_request.is_known_contributor => {
            Ok(Approval::NotNeeded)
        }
        ForkPolicy::KnownContributors | ForkPolicy::Approval => Ok(Approval::Awaited),
    }
}
