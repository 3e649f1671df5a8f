//! Pull requests from forks: nothing is done for a commit before somebody who may write agrees to it.

use stagely::api::RunStatus;
use stagely_test_support::wait::POLL;

use crate::conversation::{Conversation, WEB};
use crate::fake::PullRequest;
use crate::fake::people::{STRANGER, WRITER};

async fn opened_from_fork(it: &Conversation) -> PullRequest {
    let pull = it.github.opens_from_fork(WEB, "gift", &[("change", "one")]).await;
    it.comment_says(&pull, "/stagely approve").await;
    pull
}

#[tokio::test]
async fn a_fork_waits_and_gets_neither_machine_nor_token_before_it_is_approved() {
    let it = Conversation::start("fork").await;
    let pull = opened_from_fork(&it).await;
    tokio::time::sleep(POLL * 10).await;
    assert!(it.machines.all().is_empty());
    assert!(it.github.world().clones.is_empty(), "something of the fork was cloned");

    it.github.comments(&pull, STRANGER, "/stagely approve").await;
    it.comment_says(&pull, "was not followed").await;
    assert!(it.machines.all().is_empty(), "a stranger approved it");
    it.github.comments(&pull, "octo-reader", "/stagely approve").await;
    it.comment_says(&pull, "reader was not followed").await;
    assert!(it.machines.all().is_empty(), "a reader approved it");

    it.github.comments(&pull, WRITER, "/stagely approve").await;
    let build = it.machines.build_of(&it.github.head(&pull)).await;

    // Even approved it writes no cache that others read, and no secret of the project is given to it.
    let config = &build.message["build_config"];
    assert!(config["cache_to"].is_null(), "{config:#}");
    assert!(config["secrets"].as_object().is_none_or(serde_json::Map::is_empty), "{config:#}");
    build.succeeds().await;
    it.comment_says(&pull, "✅").await;
    it.ends().await;
}

#[tokio::test]
async fn an_approval_is_for_that_commit_and_not_for_the_next() {
    let it = Conversation::start("fork-push").await;
    let pull = opened_from_fork(&it).await;
    it.github.comments(&pull, WRITER, "/stagely approve").await;
    it.is_built(&pull).await;

    it.github.pushes(&pull, &[("change", "something else")]).await;

    let head = it.github.head(&pull);
    it.comment_says(&pull, &head[..7]).await;
    tokio::time::sleep(POLL * 10).await;
    assert_eq!(it.machines.all().len(), 1, "a commit was built that nobody has approved");
    let run = it.runs(&pull).await.remove(0);
    let (status, text) = it.post(&format!("/runs/{}/approve", run.id), serde_json::json!({})).await;
    assert!(status.is_success(), "{status} {text}");
    it.machines.build_of(&head).await.succeeds().await;
    it.run_when(&pull, "it completes", |run| run.status == RunStatus::Completed).await;
    it.ends().await;
}

#[tokio::test]
async fn a_label_of_somebody_who_may_write_approves() {
    let it = Conversation::start("fork-label").await;
    let pull = opened_from_fork(&it).await;
    it.github.attaches(&pull, "bug", WRITER).await;
    it.github.attaches(&pull, "stagely-approve", "octo-reader").await;
    tokio::time::sleep(POLL * 10).await;
    assert!(it.machines.all().is_empty());

    it.github.attaches(&pull, "stagely-approve", WRITER).await;

    it.is_built(&pull).await;
    it.ends().await;
}

#[tokio::test]
async fn people_who_may_write_cancel_and_rebuild_by_comments() {
    let it = Conversation::start("commands").await;
    let pull = it.opened("talk").await;
    let build = it.machines.build_of(&it.github.head(&pull)).await;

    it.github.comments(&pull, STRANGER, "/stagely cancel").await;
    it.comment_says(&pull, "was not followed").await;
    assert!(build.has_machine(), "a stranger cancelled it");
    it.github.comments(&pull, "octo-admin", "/stagely cancel").await;
    build.machine_is_gone().await;
    it.run_when(&pull, "it is cancelled", |run| run.status == RunStatus::Cancelled).await;

    let written = it.github.comments(&pull, WRITER, "/stagely rebuild").await;
    let builds = it.machines.jobs_of(&it.github.head(&pull), "BUILD", 2).await;
    builds.last().unwrap().succeeds().await;
    it.comment_says(&pull, "✅").await;
    // A comment that comes once more is followed once.
    it.github.redelivers(&written.delivery.unwrap()).await;
    tokio::time::sleep(POLL * 10).await;
    assert_eq!(it.runs(&pull).await.len(), 2);
    it.ends().await;
}
