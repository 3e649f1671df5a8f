//! The webhook: which deliveries it accepts, and its answers to all of GitHub's own examples.

use crate::conversation::{Conversation, WEB};
use crate::fake::Forged;
use crate::fake::description::all_deliveries;
use crate::fake::people::{Opened, WRITER};

#[tokio::test]
async fn a_delivery_without_a_valid_signature_is_refused_and_changes_nothing() {
    let conversation = Conversation::start("forged").await;
    let pull = conversation.github.prepares(WEB, "evil", &[("change", "1")], Opened::default());
    let payload = conversation.github.pull_payload(&pull, "opened", WRITER);
    let forgeries =
        [Forged::None, Forged::OtherSecret, Forged::OtherBody, Forged::NoHex, Forged::OldAlgorithm];
    for forged in forgeries {
        let (status, text) =
            conversation.github.posts_forged("pull_request", &payload, forged).await;
        assert!(status == 401 || status == 403, "{forged:?}: {status} {text}");
    }
    assert!(conversation.runs(&pull).await.is_empty());
    conversation.ends().await;
}

#[tokio::test]
async fn a_repeated_delivery_counts_once() {
    let conversation = Conversation::start("replayed").await;
    let pull = conversation.opened("echo").await;
    let delivery = conversation.github.world().deliveries.last().unwrap().clone();
    for _ in 0..3 {
        assert_eq!(conversation.github.redelivers(&delivery).await.status, 202);
    }
    conversation.is_built(&pull).await;
    let repeated = conversation.github.redelivers(&delivery).await;
    assert!(repeated.answer.contains("repeated"), "{repeated:?}");
    assert_eq!(conversation.runs(&pull).await.len(), 1);
    assert_eq!(conversation.machines.all().len(), 1);
    conversation.ends().await;
}

#[tokio::test]
async fn a_push_that_is_overtaken_by_the_next_is_not_built() {
    let conversation = Conversation::start("overtaken").await;
    let pull = conversation.opened("race").await;
    let second = conversation.github.pushes_silently(&pull, &[("change", "two")]);
    let third = conversation.github.pushes_silently(&pull, &[("change", "three")]);
    conversation.github.delivers("pull_request", third).await;
    conversation.github.delivers("pull_request", second).await;
    conversation.is_built(&pull).await;
    let newest = conversation.runs(&pull).await.remove(0);
    assert_eq!(newest.commit.unwrap().as_str(), conversation.github.head(&pull));
    conversation.ends().await;
}

#[tokio::test]
async fn every_example_of_a_delivery_is_accepted_or_refused_with_a_reason() {
    let conversation = Conversation::start("examples").await;
    let mut count = 0;
    for event in all_deliveries() {
        let name = event["name"].as_str().unwrap();
        for example in event["examples"].as_array().unwrap() {
            let answer = conversation.github.delivers(name, example.clone()).await.unwrap();
            let is_clear = answer.status == 202 || (400..500).contains(&answer.status);
            assert!(is_clear, "{name}: {}: {example}", answer.status);
            count += 1;
        }
    }
    assert!(count > 300, "only {count} examples");
    // No project has their repository.
    assert!(conversation.machines.all().is_empty());
    conversation.ends().await;
}
