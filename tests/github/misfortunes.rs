//! GitHub that is away, slow, or loses its answers; deliveries that are lost; a core that is killed.

use std::time::Duration;

use stagely::api::RunStatus;
use stagely_test_support::wait::eventually;

use crate::conversation::{Conversation, WEB};
use crate::fake::people::Opened;
use crate::fake::world::FaultKind;

const COMMENTING: &str = "POST /repos/{owner}/{repo}/issues/{issue_number}/comments";

#[tokio::test]
async fn a_core_that_is_killed_before_its_comment_is_known_writes_one_all_the_same() {
    let mut it = Conversation::start("killed").await;
    // Written, and core dies while it waits for the answer.
    it.github.fails(COMMENTING, 1, FaultKind::Slow(Duration::from_millis(500)));
    let pull = it.opened("last-words").await;
    let build = it.machines.build_of(&it.github.head(&pull)).await;
    eventually("the comment is asked for", async || {
        (!it.github.requests("/statuses/").is_empty()).then_some(())
    })
    .await;
    it.core_restarts().await;
    build.succeeds().await;
    it.run_when(&pull, "it completes", |run| run.status == RunStatus::Completed).await;
    // Between the commit of the end and its comment.
    it.core_restarts().await;

    it.comment_says(&pull, "✅").await;
    assert_eq!(it.github.reports(&pull).len(), 1);
    it.status_is(&it.github.head(&pull), "stagely", "success").await;
    it.ends().await;
}

#[tokio::test]
async fn a_comment_whose_answer_is_lost_is_found_again() {
    for (name, fault) in [("lost", FaultKind::Lost), ("lost-502", FaultKind::DoneBut(502))] {
        let it = Conversation::start(name).await;
        it.github.fails(COMMENTING, 1, fault);
        let pull = it.opened("once").await;
        it.is_built(&pull).await;
        it.comment_says(&pull, "✅").await;
        assert_eq!(it.github.reports(&pull).len(), 1);
        it.ends().await;
    }
}

#[tokio::test]
async fn a_comment_that_somebody_deletes_is_written_again() {
    let it = Conversation::start("deleted").await;
    let pull = it.opened("tidy").await;
    let build = it.machines.build_of(&it.github.head(&pull)).await;
    let comment = it.comment_says(&pull, "").await;
    it.github.deletes_comment(comment.id);
    build.succeeds().await;
    it.comment_says(&pull, "✅").await;
    it.ends().await;
}

#[tokio::test]
async fn while_github_answers_502_builds_go_on_and_all_is_told_later() {
    let it = Conversation::start("away").await;
    let first = it.opened("first").await;
    let build = it.machines.build_of(&it.github.head(&first)).await;
    it.github.is_down_with(502);
    build.succeeds().await;
    it.run_when(&first, "it completes", |run| run.status == RunStatus::Completed).await;
    eventually("core has asked in vain", async || {
        it.github.requests("").iter().any(|seen| seen.status == 502).then_some(())
    })
    .await;
    // Webhooks are answered in milliseconds meanwhile.
    let begun = tokio::time::Instant::now();
    let second = it.opened("second").await;
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    assert_eq!(it.github.world().deliveries.last().unwrap().status, 202);

    it.github.recovers();

    it.comment_says(&first, "✅").await;
    it.is_built(&second).await;
    it.comment_says(&second, "✅").await;
    it.ends().await;
}

#[tokio::test]
async fn what_was_delivered_while_core_was_down_is_found_at_its_start() {
    let mut it = Conversation::start("down").await;
    let known = it.opened("known").await;
    it.is_built(&known).await;
    it.core.crash();
    it.github.pushes(&known, &[("change", "while it was down")]).await;
    let failed = it.opened("failed-delivery").await;
    assert_eq!(it.github.world().deliveries.last().unwrap().status, 502);
    // And one that GitHub has no record of.
    let silent = it.github.prepares(WEB, "no-delivery", &[("change", "3")], Opened::default());

    it.core.launch().await;

    for pull in [&known, &failed, &silent] {
        it.is_built(pull).await;
        it.comment_says(pull, "✅").await;
    }
    assert_eq!(it.runs(&failed).await.len(), 1);
    it.ends().await;
}

#[tokio::test]
async fn limits_are_respected_and_shown() {
    let it = Conversation::start("limits").await;
    let pull = it.opened("slowly").await;
    let build = it.machines.build_of(&it.github.head(&pull)).await;
    it.comment_says(&pull, "").await;
    it.github.fails("", 1, FaultKind::Secondary { retry_after: Duration::from_secs(4) });
    build.succeeds().await;

    let health = eventually("the next allowed time is shown", async || {
        let health = it.health().await;
        (!health["blocked_until"].is_null()).then_some(health)
    })
    .await;

    assert!(health["remaining"].is_number(), "{health}");
    it.comment_says(&pull, "✅").await;
    let refused = it.github.requests("").iter().find(|it| it.status == 403).unwrap().at;
    let allowed = refused + Duration::from_secs(4);
    let requests = it.github.requests("");
    // One may have been on its way.
    let known = refused + Duration::from_millis(300);
    let early: Vec<_> = requests.iter().filter(|it| it.at > known && it.at < allowed).collect();
    assert!(early.is_empty(), "asked before it was allowed: {early:#?}");
    it.ends().await;
}

#[tokio::test]
async fn when_the_hours_requests_are_used_up_core_waits_for_the_next() {
    let it = Conversation::start("used-up").await;
    let pull = it.opened("patience").await;
    let build = it.machines.build_of(&it.github.head(&pull)).await;
    it.comment_says(&pull, "").await;
    it.github.allows_only(0, Duration::from_secs(5));
    build.succeeds().await;
    it.run_when(&pull, "it completes", |run| run.status == RunStatus::Completed).await;
    it.comment_says(&pull, "✅").await;
    let refused = it.github.requests("").iter().filter(|it| it.status == 403).count();
    assert!(refused <= 2, "{refused} requests although none was allowed");
    it.ends().await;
}
