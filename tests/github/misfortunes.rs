//! A GitHub that is down or slow or loses answers, lost deliveries, and a killed core.

use std::time::Duration;

use stagely::api::RunStatus;
use stagely_test_support::wait::eventually;

use crate::conversation::{Conversation, WEB};
use crate::fake::people::Opened;
use crate::fake::world::FaultKind;

const COMMENTING: &str = "POST /repos/{owner}/{repo}/issues/{issue_number}/comments";
const READING: &str = "GET /repos/{owner}/{repo}/contents/{path}";

#[tokio::test]
async fn a_core_that_is_killed_before_its_comment_is_known_writes_one_all_the_same() {
    let mut conversation = Conversation::start("killed").await;
    // GitHub has written the comment, and core is killed while it waits for the answer.
    conversation.github.fails(COMMENTING, 1, FaultKind::Slow(Duration::from_millis(500)));
    let pull = conversation.opened("last-words").await;
    let build = conversation.machines.build_of(&conversation.github.head(&pull)).await;
    eventually("the comment is asked for", async || {
        (!conversation.github.requests("/statuses/").is_empty()).then_some(())
    })
    .await;
    conversation.core_restarts().await;
    build.succeeds().await;
    conversation.run_when(&pull, "it completes", |run| run.status == RunStatus::Completed).await;
    // Core is killed between the transaction of the end and its comment.
    conversation.core_restarts().await;

    conversation.comment_says(&pull, "✅").await;
    assert_eq!(conversation.github.reports(&pull).len(), 1);
    conversation.status_is(&conversation.github.head(&pull), "stagely", "success").await;
    conversation.ends().await;
}

#[tokio::test]
async fn a_run_during_whose_planning_core_is_killed_twice_fails_with_that_reason() {
    let mut conversation = Conversation::start("deadly").await;
    let slow = FaultKind::Slow(Duration::from_mins(5));
    conversation.github.fails(READING, 2, slow);
    let pull = conversation.opened("deadly").await;
    for left in [1, 0] {
        eventually("the file is read", async || {
            let faults = &conversation.github.world().faults;
            (faults.iter().map(|fault| fault.times).sum::<u32>() == left).then_some(())
        })
        .await;
        conversation.core.crash();
        conversation.core.launch().await;
    }

    let run = conversation.run_when(&pull, "it fails", |run| run.status == RunStatus::Failed).await;

    let message = run.error.unwrap();
    assert!(message.contains("core ended unexpectedly twice"), "{message}");
    conversation.comment_says(&pull, "core ended unexpectedly twice").await;
    conversation.ends().await;
}

#[tokio::test]
async fn a_comment_whose_answer_is_lost_is_found_again() {
    for (name, fault) in [("lost", FaultKind::Lost), ("lost-502", FaultKind::DoneBut(502))] {
        let conversation = Conversation::start(name).await;
        conversation.github.fails(COMMENTING, 1, fault);
        let pull = conversation.opened("once").await;
        conversation.is_built(&pull).await;
        conversation.comment_says(&pull, "✅").await;
        assert_eq!(conversation.github.reports(&pull).len(), 1);
        conversation.ends().await;
    }
}

#[tokio::test]
async fn a_comment_that_somebody_deletes_is_written_again() {
    let conversation = Conversation::start("deleted").await;
    let pull = conversation.opened("tidy").await;
    let build = conversation.machines.build_of(&conversation.github.head(&pull)).await;
    let comment = conversation.comment_says(&pull, "").await;
    conversation.github.deletes_comment(comment.id);
    build.succeeds().await;
    conversation.comment_says(&pull, "✅").await;
    conversation.ends().await;
}

#[tokio::test]
async fn while_github_answers_502_builds_go_on_and_all_is_told_later() {
    let conversation = Conversation::start("away").await;
    let first = conversation.opened("first").await;
    let build = conversation.machines.build_of(&conversation.github.head(&first)).await;
    conversation.github.is_down_with(502);
    build.succeeds().await;
    conversation.run_when(&first, "it completes", |run| run.status == RunStatus::Completed).await;
    eventually("core has asked in vain", async || {
        conversation.github.requests("").iter().any(|seen| seen.status == 502).then_some(())
    })
    .await;
    // Meanwhile webhooks are answered in milliseconds.
    let begun = tokio::time::Instant::now();
    let second = conversation.opened("second").await;
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    assert_eq!(conversation.github.world().deliveries.last().unwrap().status, 202);

    conversation.github.recovers();

    conversation.comment_says(&first, "✅").await;
    conversation.is_built(&second).await;
    conversation.comment_says(&second, "✅").await;
    conversation.ends().await;
}

#[tokio::test]
async fn deliveries_that_core_missed_are_found_at_its_start() {
    let mut conversation = Conversation::start("down").await;
    let known = conversation.opened("known").await;
    conversation.is_built(&known).await;
    conversation.core.crash();
    conversation.github.pushes(&known, &[("change", "while it was down")]).await;
    let failed = conversation.opened("failed-delivery").await;
    assert_eq!(conversation.github.world().deliveries.last().unwrap().status, 502);
    // GitHub has no record of this change's delivery.
    let silent =
        conversation.github.prepares(WEB, "no-delivery", &[("change", "3")], Opened::default());

    conversation.core.launch().await;

    for pull in [&known, &failed, &silent] {
        conversation.is_built(pull).await;
        conversation.comment_says(pull, "✅").await;
    }
    assert_eq!(conversation.runs(&failed).await.len(), 1);
    conversation.ends().await;
}

#[tokio::test]
async fn limits_are_respected_and_shown() {
    let conversation = Conversation::start("limits").await;
    let pull = conversation.opened("slowly").await;
    let build = conversation.machines.build_of(&conversation.github.head(&pull)).await;
    conversation.comment_says(&pull, "").await;
    conversation.github.fails("", 1, FaultKind::Secondary { retry_after: Duration::from_secs(4) });
    build.succeeds().await;

    let health = eventually("the next allowed time is shown", async || {
        let health = conversation.health().await;
        (!health["blocked_until"].is_null()).then_some(health)
    })
    .await;

    assert!(health["remaining"].is_number(), "{health}");
    conversation.comment_says(&pull, "✅").await;
    let refused =
        conversation.github.requests("").iter().find(|request| request.status == 403).unwrap().at;
    let allowed = refused + Duration::from_secs(4);
    let requests = conversation.github.requests("");
    // One request may have been under way.
    let known = refused + Duration::from_millis(300);
    let early: Vec<_> =
        requests.iter().filter(|request| request.at > known && request.at < allowed).collect();
    assert!(early.is_empty(), "asked before it was allowed: {early:#?}");
    conversation.ends().await;
}

#[tokio::test]
async fn when_the_hours_requests_are_used_up_core_waits_for_the_next() {
    let conversation = Conversation::start("used-up").await;
    let pull = conversation.opened("rate-limit").await;
    let build = conversation.machines.build_of(&conversation.github.head(&pull)).await;
    conversation.comment_says(&pull, "").await;
    conversation.github.allows_only(0, Duration::from_secs(5));
    build.succeeds().await;
    conversation.run_when(&pull, "it completes", |run| run.status == RunStatus::Completed).await;
    conversation.comment_says(&pull, "✅").await;
    let refused =
        conversation.github.requests("").iter().filter(|request| request.status == 403).count();
    assert!(refused <= 2, "{refused} requests although none was allowed");
    conversation.ends().await;
}
