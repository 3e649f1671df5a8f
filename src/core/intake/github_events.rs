//! Makes an event of GitHub's news: which project and environment the news is about, and which run it starts.

mod head;
mod ignored;

#[cfg(test)]
mod tests;

use stagely_protocol::CommitSha;
use stagely_state::{
    Command, CommandKind, Environment, Event, Head, HeadSource, PreviewCommand, Project, Trigger,
};

use self::head::{HeadChange, branch_moved, pull_request_moved};
use crate::config::GithubConfig;
use crate::core::github::webhook::event::WebhookEvent;
use crate::core::github::{PullRequest, Repository};
use crate::core::records::Records;

pub(crate) use ignored::Ignored;

/// The label with which a pull request gets a preview although `on` of `stagely.yaml` is not `pull_requests`.
pub(crate) const PREVIEW_LABEL: &str = "stagely-preview";

/// Makes the event of a delivery.
///
/// # Errors
/// [`Ignored`].
pub(crate) fn event(
    records: &Records,
    config: &GithubConfig,
    news: &WebhookEvent,
) -> Result<Event, Ignored> {
    match news {
        WebhookEvent::Ping => Err(Ignored::Ping),
        WebhookEvent::Irrelevant(reason) => Err(reason.clone().into()),
        WebhookEvent::HeadMoved { repository, pull_request, is_push, before } => {
            let project = linked(records, repository)?;
            let head = Head {
                commit: pull_request.head.clone(),
                before: before.clone(),
                at: pull_request.updated_at,
                is_first: !is_push && pull_request.updated_at == pull_request.created_at,
            };
            let trigger = if *is_push { Trigger::PrSynchronized } else { Trigger::PrOpened };
            let change = HeadChange { head, trigger, source: HeadSource::Delivery };
            pull_request_moved(records, config, project, repository, pull_request, change)
        }
        WebhookEvent::PullRequestClosed { repository, pull_request } => {
            let project = linked(records, repository)?;
            let environment = built(records, project, pull_request.number)?.id;
            let at = pull_request.closed_at.unwrap_or(pull_request.updated_at);
            Ok(Event::PullRequestClosed { environment, at })
        }
        WebhookEvent::Labeled { repository, pull_request, label, sender } => {
            let project = linked(records, repository)?;
            if label.eq_ignore_ascii_case(PREVIEW_LABEL) {
                return preview_labeled(records, config, project, repository, pull_request, sender);
            }
            if !label.eq_ignore_ascii_case(&config.approval_label) {
                return Err(Ignored::OtherLabel);
            }
            if !pull_request.is_from_fork {
                return Err(Ignored::LabelWithoutFork);
            }
            let environment = built(records, project, pull_request.number)?.id;
            let command = Command {
                comment: None,
                author: sender.clone(),
                kind: CommandKind::Approve { commit: Some(pull_request.head.to_string()) },
                at: pull_request.updated_at,
                is_late: false,
            };
            Ok(Event::CommandGiven { environment, command })
        }
        WebhookEvent::Unlabeled { repository, pull_request, label } => {
            let project = linked(records, repository)?;
            if !label.eq_ignore_ascii_case(PREVIEW_LABEL) {
                return Err(Ignored::OtherLabel);
            }
            let environment = built(records, project, pull_request.number)?.id;
            Ok(Event::PreviewLabelRemoved { environment })
        }
        WebhookEvent::BranchPushed { repository, head, before, at } => {
            let project = linked(records, repository)?;
            let head =
                Head { commit: head.clone(), before: before.clone(), at: *at, is_first: false };
            branch_moved(records, project, repository, head)
        }
        WebhookEvent::Commanded { repository, number, comment, author, command, at } => {
            let project = linked(records, repository)?;
            let kind = command.clone()?;
            let environment = built(records, project, *number)?.id;
            let (comment, author) = (Some(*comment), author.clone());
            let command = Command { comment, author, kind, at: *at, is_late: false };
            Ok(Event::CommandGiven { environment, command })
        }
    }
}

/// Makes the event of the label of previews. The delivery of the opening may come later.
fn preview_labeled(
    records: &Records,
    config: &GithubConfig,
    project: &Project,
    repository: &Repository,
    pull_request: &PullRequest,
    sender: &str,
) -> Result<Event, Ignored> {
    let Ok(environment) = built(records, project, pull_request.number) else {
        let (commit, at) = (pull_request.head.clone(), pull_request.updated_at);
        let head = Head { commit, before: None, at, is_first: false };
        let change = HeadChange { head, trigger: Trigger::PrOpened, source: HeadSource::Delivery };
        return pull_request_moved(records, config, project, repository, pull_request, change);
    };
    let command = Command {
        comment: None,
        author: sender.to_owned(),
        kind: CommandKind::Preview { action: PreviewCommand::Start },
        at: pull_request.updated_at,
        is_late: false,
    };
    Ok(Event::CommandGiven { environment: environment.id, command })
}

/// Makes the event of a delivery that was read long after it was sent.
///
/// # Errors
/// [`Ignored`].
pub(crate) fn late_event(
    records: &Records,
    config: &GithubConfig,
    news: &WebhookEvent,
) -> Result<Event, Ignored> {
    let mut event = event(records, config, news)?;
    if let Event::CommandGiven { command, .. } = &mut event {
        command.is_late = true;
    }
    Ok(event)
}

/// Makes the event of an open pull request in GitHub's list. `believed` is the head that core knew before it
/// asked for the list.
///
/// # Errors
/// [`Ignored`].
pub(crate) fn listed(
    records: &Records,
    config: &GithubConfig,
    repository: &Repository,
    pull_request: &PullRequest,
    believed: Option<CommitSha>,
) -> Result<Event, Ignored> {
    let project = linked(records, repository)?;
    let trigger = if believed.is_some() { Trigger::PrSynchronized } else { Trigger::PrOpened };
    let (commit, at) = (pull_request.head.clone(), pull_request.updated_at);
    // A push may have followed within the second in which the pull request was opened.
    let head = Head { commit, before: None, at, is_first: false };
    let change = HeadChange { head, trigger, source: HeadSource::Listing { believed } };
    pull_request_moved(records, config, project, repository, pull_request, change)
}

/// The project of `repository`.
fn linked<'a>(records: &'a Records, repository: &Repository) -> Result<&'a Project, Ignored> {
    let full_name = &repository.full_name;
    let is_linked = |project: &&Project| {
        project.github.as_ref().is_some_and(|link| link.repository.is(full_name.as_str()))
    };
    let project = records.projects.values().find(is_linked);
    project.ok_or_else(|| Ignored::NoProject(full_name.clone()))
}

/// The environment of a pull request that was built before.
fn built<'a>(
    records: &'a Records,
    project: &Project,
    number: u64,
) -> Result<&'a Environment, Ignored> {
    let is_wanted = |environment: &&Environment| {
        environment.project == project.id && environment.pull_request == Some(number)
    };
    records.environments.values().find(is_wanted).ok_or(Ignored::NothingBuilt(number))
}
