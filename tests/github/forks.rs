//! Pull requests from forks: core does nothing for a commit before somebody with write permission approves it.

use stagely::api::{RunStatus, RunView};
use stagely_state::Approval;

use crate::conversation::{Conversation, WEB};
use crate::fake::PullRequest;
use crate::fake::people::{STRANGER, WRITER};

async fn opened_from_fork(conversation: &Conversation) -> PullRequest {
    let pull = conversation.github.opens_from_fork(WEB, "gift", &[("change", "one")]).await;
    conversation.comment_says(&pull, "/stagely approve").await;
    pull
}

#[tokio::test]
async fn a_fork_waits_and_gets_neither_machine_nor_token_before_it_is_approved() {
    let conversation = Conversation::start("fork").await;
    let pull = opened_from_fork(&conversation).await;

    conversation.github.comments(&pull, STRANGER, "/stagely approve").await;
    conversation.comment_says(&pull, "was not followed").await;
    assert!(conversation.machines.all().is_empty(), "a stranger approved it");
    conversation.github.comments(&pull, "octo-reader", "/stagely approve").await;
    conversation.comment_says(&pull, "reader was not followed").await;
    assert!(conversation.machines.all().is_empty(), "a reader approved it");
    assert!(conversation.github.world().clones.is_empty(), "something of the fork was cloned");

    conversation.github.comments(&pull, WRITER, "/stagely approve").await;
    let build = conversation.machines.build_of(&conversation.github.head(&pull)).await;

    // Even an approved build writes no cache that others read, and gets no secret of the project.
    let config = &build.message["build_config"];
    assert!(config["cache_to"].is_null(), "{config:#}");
    assert!(config["secrets"].as_object().is_none_or(serde_json::Map::is_empty), "{config:#}");
    build.succeeds().await;
    conversation.comment_says(&pull, "✅").await;
    conversation.ends().await;
}

#[tokio::test]
async fn an_approval_is_for_that_commit_and_not_for_the_next() {
    let conversation = Conversation::start("fork-push").await;
    let pull = opened_from_fork(&conversation).await;
    conversation.github.comments(&pull, WRITER, "/stagely approve").await;
    conversation.is_built(&pull).await;

    conversation.github.pushes(&pull, &[("change", "something else")]).await;

    let head = conversation.github.head(&pull);
    conversation.comment_says(&pull, &head[..7]).await;
    let awaits = |run: &RunView| run.approval == Approval::Awaited;
    let run = conversation.run_when(&pull, "it awaits approval", awaits).await;
    assert_eq!(conversation.machines.all().len(), 1, "a commit was built that nobody has approved");
    let (status, text) =
        conversation.post(&format!("/runs/{}/approve", run.id), serde_json::json!({})).await;
    assert!(status.is_success(), "{status} {text}");
    conversation.machines.build_of(&head).await.succeeds().await;
    conversation.run_when(&pull, "it completes", |run| run.status == RunStatus::Completed).await;
    conversation.ends().await;
}

#[tokio::test]
async fn a_label_of_somebody_who_may_write_approves() {
    let conversation = Conversation::start("fork-label").await;
    let pull = opened_from_fork(&conversation).await;
    conversation.github.attaches(&pull, "bug", WRITER).await;
    conversation.github.attaches(&pull, "stagely-approve", "octo-reader").await;
    conversation.comment_says(&pull, "reader was not followed").await;
    assert!(conversation.machines.all().is_empty());

    conversation.github.attaches(&pull, "stagely-approve", WRITER).await;

    conversation.is_built(&pull).await;
    conversation.ends().await;
}

#[tokio::test]
async fn people_who_may_write_cancel_and_rebuild_by_comments() {
    let conversation = Conversation::start("commands").await;
    let pull = conversation.opened("talk").await;
    let build = conversation.machines.build_of(&conversation.github.head(&pull)).await;

    conversation.github.comments(&pull, STRANGER, "/stagely cancel").await;
    conversation.comment_says(&pull, "was not followed").await;
    assert!(build.has_machine(), "a stranger cancelled it");
    conversation.github.comments(&pull, "octo-admin", "/stagely cancel").await;
    build.machine_is_gone().await;
    conversation.run_when(&pull, "it is cancelled", |run| run.status == RunStatus::Cancelled).await;

    let written = conversation.github.comments(&pull, WRITER, "/stagely rebuild").await;
    let builds = conversation.machines.jobs_of(&conversation.github.head(&pull), "BUILD", 2).await;
    builds.last().unwrap().succeeds().await;
    conversation.comment_says(&pull, "✅").await;
    // A repeated delivery is ignored.
    let repeated = conversation.github.redelivers(&written.delivery.unwrap()).await;
    assert!(repeated.answer.contains("repeated"), "{repeated:?}");
    assert_eq!(conversation.runs(&pull).await.len(), 2);
    conversation.ends().await;
}
