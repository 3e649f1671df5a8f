//! From the opening of a pull request to its end.

use stagely::api::RunStatus;
use stagely_test_support::wait::eventually;

use crate::conversation::{Conversation, END_LIMIT, TWO_PLATFORMS, WEB};

#[tokio::test]
async fn a_pull_request_is_built_and_its_comment_and_statuses_show_the_result() {
    let conversation = Conversation::start("opened").await;

    let pull = conversation.opened("add-login").await;
    let head = conversation.github.head(&pull);
    let build = conversation.machines.build_of(&head).await;
    conversation.status_is(&head, "stagely", "pending").await;
    build.succeeds().await;

    let comment = conversation.comment_says(&pull, "✅").await;
    let run = conversation
        .run_when(&pull, "it completes", |run| run.status == RunStatus::Completed)
        .await;
    let digest = run.jobs[0].digest.as_ref().unwrap().to_string();
    assert!(comment.body.contains(&digest[..19]), "{}", comment.body);
    assert!(comment.body.contains("linux/"), "{}", comment.body);
    conversation.status_is(&head, "stagely", "success").await;
    let statuses = conversation.github.statuses(&head);
    assert_eq!(statuses.len(), 2, "{statuses:#?}");
    // Each link leads to a page of core.
    for status in statuses.values() {
        let page = reqwest::get(&status.target_url).await.unwrap();
        assert!(page.status().is_success(), "{}: {}", status.target_url, page.status());
    }
    conversation.ends().await;
}

#[tokio::test]
async fn a_failed_build_is_reported_with_its_step_and_its_last_lines() {
    let conversation = Conversation::start("failed").await;

    let pull = conversation.opened("break-it").await;
    let build = conversation.machines.build_of(&conversation.github.head(&pull)).await;
    let lines: Vec<String> = (1..=40).map(|line| format!("line {line} of the build")).collect();
    build.prints(&lines.iter().map(String::as_str).collect::<Vec<_>>());
    build.fails("RUN make", 2);

    let comment = conversation.comment_says(&pull, "❌ Build failed [View Logs](").await;
    for text in ["line 11 of the build", "line 40 of the build"] {
        assert!(comment.body.contains(text), "no {text:?} in {}", comment.body);
    }
    assert!(!comment.body.contains("line 10 of the build"), "{}", comment.body);
    conversation.status_is(&conversation.github.head(&pull), "stagely", "failure").await;
    conversation.ends().await;
}

#[tokio::test]
async fn of_two_pushes_within_a_second_only_the_last_one_is_shown() {
    let conversation = Conversation::start("pushed-twice").await;
    let pull = conversation.opened("hurry").await;
    let first = conversation.machines.build_of(&conversation.github.head(&pull)).await;

    conversation.github.pushes(&pull, &[("change", "two")]).await;
    let second = conversation.github.head(&pull);
    conversation.github.pushes(&pull, &[("change", "three")]).await;
    let third = conversation.github.head(&pull);
    let took = first.machine_is_gone().await;

    assert!(took < END_LIMIT, "the older machine was ended after {took:?}");
    // A late report of the older build changes nothing.
    first.succeeds().await;
    conversation.machines.build_of(&third).await.succeeds().await;
    let comment = conversation.comment_says(&pull, "✅").await;
    assert!(comment.body.contains(&third[..7]), "{}", comment.body);
    // The image is pushed before its run has ended.
    conversation.status_is(&third, "stagely", "success").await;
    let runs = conversation.runs(&pull).await;
    assert_eq!(runs[0].status, RunStatus::Completed);
    assert!(runs[1..].iter().all(|run| run.status == RunStatus::Cancelled), "{runs:#?}");
    assert_ne!(
        conversation.github.statuses(&second).get("stagely").map(|status| &*status.state),
        Some("success")
    );
    conversation.ends().await;
}

#[tokio::test]
async fn a_push_while_the_merge_is_running_ends_the_merge() {
    let conversation = Conversation::start_with("merging", TWO_PLATFORMS, "").await;
    let pull = conversation.opened("two-at-once").await;
    for build in conversation.machines.jobs_of(&conversation.github.head(&pull), "BUILD", 2).await {
        build.succeeds().await;
    }
    let merge = conversation.machines.merge().await;

    conversation.github.pushes(&pull, &[("change", "two")]).await;
    let took = merge.machine_is_gone().await;

    assert!(took < END_LIMIT, "the merge's machine was ended after {took:?}");
    conversation.machines.jobs_of(&conversation.github.head(&pull), "BUILD", 2).await;
    conversation.github.closes(&pull).await;
    conversation.ends().await;
}

#[tokio::test]
async fn a_pull_request_that_is_closed_leaves_no_machine_no_tag_and_no_cache() {
    let conversation = Conversation::start("closed").await;
    let pull = conversation.opened("short-lived").await;
    let run = conversation.is_built(&pull).await;
    let image = run.jobs[0].image.as_ref().unwrap().to_string();
    let moved = run.jobs[0].tag.as_ref().unwrap().to_string();
    let registry = conversation.core.registry.clone();
    assert!(registry.digest(&image).await.is_some());
    let cache = conversation.machines.all()[0].message["build_config"]["cache_to"]
        .as_str()
        .unwrap()
        .to_owned();
    assert!(registry.digest(&cache).await.is_some());
    conversation.github.pushes(&pull, &[("change", "two")]).await;
    let build = conversation.machines.build_of(&conversation.github.head(&pull)).await;

    conversation.github.closes(&pull).await;

    let took = build.machine_is_gone().await;
    assert!(took < END_LIMIT, "its machine was ended after {took:?}");
    for reference in [&image, &moved, &cache] {
        eventually(&format!("{reference} is gone"), async || {
            registry.digest(reference).await.is_none().then_some(())
        })
        .await;
    }
    conversation.ends().await;
}

#[tokio::test]
async fn a_draft_is_built_when_it_is_ready() {
    let conversation = Conversation::start("draft").await;
    let opened = crate::fake::people::Opened { is_draft: true, ..Default::default() };
    let pull = conversation.github.opens_as(WEB, "unfinished", &[("change", "one")], opened).await;
    conversation.github.pushes(&pull, &[("change", "two")]).await;
    assert!(conversation.runs(&pull).await.is_empty());

    conversation.github.is_ready(&pull).await;

    conversation.is_built(&pull).await;
    conversation.comment_says(&pull, "✅").await;
    conversation.ends().await;
}

#[tokio::test]
async fn a_force_push_and_a_reopening_are_built_too() {
    let conversation = Conversation::start("again").await;
    let pull = conversation.opened("anew").await;
    conversation.is_built(&pull).await;
    conversation.github.force_pushes(&pull, &[("change", "replaced")]).await;
    conversation.is_built(&pull).await;
    conversation.github.closes(&pull).await;
    conversation.github.reopens(&pull).await;
    conversation.run_when(&pull, "it is open again", |run| !run.status.is_final()).await;
    conversation.github.closes(&pull).await;
    conversation.ends().await;
}

#[tokio::test]
async fn a_push_to_the_default_branch_is_built_and_fills_the_shared_cache() {
    let conversation = Conversation::start("main").await;

    let commit = conversation.github.pushes_to_main(WEB, &[("change", "merged")]).await;

    let build = conversation.machines.build_of(&commit).await;
    let cache = build.message["build_config"]["cache_to"].as_str().unwrap().to_owned();
    assert!(cache.ends_with(&format!("{}/cache:app", conversation.project)), "{cache}");
    build.succeeds().await;
    conversation.status_is(&commit, "stagely", "success").await;
    conversation.ends().await;
}

#[tokio::test]
async fn an_invalid_manifest_is_reported_with_line_and_column_until_it_is_fixed() {
    let conversation = Conversation::start("broken").await;

    let broken = "builds:\n  app: { context: ., platfroms: [linux/amd64] }\n";
    let pull = conversation.github.opens(WEB, "typo", &[("stagely.yaml", broken)]).await;

    let comment = conversation.comment_says(&pull, "platfroms").await;
    assert!(comment.body.contains("stagely.yaml:2:"), "{}", comment.body);
    conversation.status_is(&conversation.github.head(&pull), "stagely", "failure").await;
    conversation.github.pushes(&pull, &[("stagely.yaml", crate::conversation::MANIFEST)]).await;
    conversation.is_built(&pull).await;
    let comment = conversation.comment_says(&pull, "✅").await;
    assert!(!comment.body.contains("platfroms"), "{}", comment.body);
    conversation.ends().await;
}
