//! The credentials that core sends to GitHub, and the tokens that machines get.

use std::collections::BTreeSet;

use stagely::api::RunStatus;

use crate::conversation::{Conversation, Credentials, MANIFEST, TOKEN, TWO_PLATFORMS, WEB};
use crate::fake::{ENTERPRISE, GitHub};

#[tokio::test]
async fn each_job_gets_a_token_of_its_own_that_only_reads_this_repository() {
    let conversation = Conversation::start_with("tokens", TWO_PLATFORMS, "").await;
    conversation.github.has_repository("acme/other", &[("stagely.yaml", MANIFEST)]);
    let pull = conversation.opened("two").await;

    let builds = conversation.machines.jobs_of(&conversation.github.head(&pull), "BUILD", 2).await;

    let tokens: BTreeSet<String> = builds.iter().map(|job| job.clone_token().unwrap()).collect();
    assert_eq!(tokens.len(), 2, "two jobs share a token");
    for token in &tokens {
        let token = conversation.github.world().tokens[token].clone();
        assert_eq!(token.repositories, [WEB]);
        let mut permissions = token.permissions;
        permissions.remove("metadata");
        let permissions: Vec<_> =
            permissions.iter().map(|(name, level)| (name.as_str(), level.as_str())).collect();
        assert_eq!(permissions, [("contents", "read")]);
    }
    conversation.github.closes(&pull).await;
    conversation.ends().await;
}

#[tokio::test]
async fn a_fine_grained_token_is_enough_without_an_app() {
    let github = GitHub::start_at(ENTERPRISE).await;
    let conversation =
        Conversation::start_at(github, "pat", MANIFEST, "", Credentials::Token).await;
    let pull = conversation.opened("plain").await;
    conversation.is_built(&pull).await;
    let comment = conversation.comment_says(&pull, "✅").await;
    assert_eq!(comment.author, crate::fake::people::WRITER);
    assert!(conversation.github.requests(" /app").is_empty(), "it asked as an app");
    // The build of a fork never gets a person's token.
    let fork = conversation.github.opens_from_fork(WEB, "gift", &[("change", "9")]).await;
    let comment = conversation.comment_says(&fork, "/stagely approve").await;
    // Core writes as somebody who may approve, and its comment names the command.
    let delivery = conversation.github.delivers_comment(&fork, &comment).await;
    assert!(delivery.answer.contains("ignored"), "{delivery:?}");
    let run = conversation.runs(&fork).await.remove(0);
    assert!(run.status == RunStatus::Pending, "it approved the commit itself: {run:?}");
    assert!(conversation.machines.all().iter().all(|job| {
        job.message["context"]["commit_hash"] == conversation.github.head(&pull)
            || job.clone_token().as_deref() != Some(TOKEN)
    }));
    conversation.github.closes(&fork).await;
    conversation.ends().await;
}
