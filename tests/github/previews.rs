//! Previews of pull requests: what GitHub shows of them, and the commands and the label.

use stagely::api::{RunStatus, RunView};
use stagely_test_support::wait::eventually;

use crate::conversation::{Conversation, WEB};
use crate::fake::PullRequest;
use crate::fake::people::{STRANGER, WRITER};
use crate::fake::world::FaultKind;
use crate::machines::Job;

/// A preview of one container.
const PREVIEW: &str = "\
builds: { app: { context: . } }
preview: { image: app, port: 8080 }
";

const BY_LABEL: &str = "\
builds: { app: { context: . } }
preview: { image: app, port: 8080, on: label }
";

impl Conversation {
    /// Builds the head of a pull request, and returns its DEPLOY.
    async fn is_built_for(&self, pull: &PullRequest, generation: u64) -> Job {
        self.machines.build_of(&self.github.head(pull)).await.succeeds().await;
        self.machines.deployment(generation).await
    }

    /// Waits until the deployments of a pull request have these last states, the oldest first.
    async fn deployments_are(&self, pull: &PullRequest, states: &[&str]) {
        eventually(&format!("the deployments of {pull:?} are {states:?}"), async || {
            let shown = self.github.deployments(pull);
            let last = shown
                .iter()
                .map(|deployment| deployment.statuses.last().map_or("", |status| &*status.state));
            last.eq(states.iter().copied()).then_some(())
        })
        .await;
    }

    async fn comments(&self, pull: &PullRequest, text: &str) {
        self.github.comments(pull, WRITER, text).await;
    }

    /// The key in the comment.
    async fn key(&self, pull: &PullRequest) -> String {
        let comment = self.comment_says(pull, "?stagely-access=").await;
        let (_, rest) = comment.body.split_once("?stagely-access=").unwrap();
        rest.split(')').next().unwrap().to_owned()
    }
}

#[tokio::test]
async fn a_preview_is_deployed_updated_put_to_sleep_woken_and_ended() {
    let conversation = Conversation::start_with("preview", PREVIEW, "").await;
    let pull = conversation.opened("shop").await;
    let first = conversation.github.head(&pull);
    let deploy = conversation.is_built_for(&pull, 1).await;
    conversation.status_is(&first, "stagely/preview", "pending").await;
    conversation.deployments_are(&pull, &["in_progress"]).await;
    deploy.serves();
    conversation.comment_says(&pull, "🟢").await;
    conversation.status_is(&first, "stagely/preview", "success").await;
    conversation.deployments_are(&pull, &["success"]).await;

    // The comment opens the preview. The rest of GitHub has its address without the key.
    let key = conversation.key(&pull).await;
    let status = conversation.github.statuses(&first)["stagely/preview"].clone();
    let deployment = conversation.github.deployments(&pull).remove(0);
    assert!(deployment.is_transient, "{deployment:?}");
    let url = deployment.statuses.last().unwrap().environment_url.clone();
    assert_eq!(status.target_url, url);
    assert!(url.contains("://pr-1-") && !url.contains(&key), "{url}");

    // An update that fails, and one that does not.
    conversation.github.pushes(&pull, &[("change", "two")]).await;
    let second = conversation.github.head(&pull);
    let update = conversation.is_built_for(&pull, 2).await;
    conversation.comment_says(&pull, &format!("while commit `{}`", &second[..12])).await;
    assert_eq!(update.machine, deploy.machine, "it is updated in place");
    update.is_not_healthy("the service `web` ended with exit code 3; its last line: no database");
    let comment = conversation.comment_says(&pull, "❌ The deployment of commit").await;
    for text in [&first[..12], &second[..12], "exit code 3"] {
        assert!(comment.body.contains(text), "no {text} in {}", comment.body);
    }
    let failed = conversation.status_is(&second, "stagely/preview", "failure").await;
    assert!(failed.contains("exit code 3"), "{failed}");
    conversation.deployments_are(&pull, &["success", "failure"]).await;
    conversation.github.pushes(&pull, &[("change", "three")]).await;
    let third = conversation.github.head(&pull);
    conversation.is_built_for(&pull, 3).await.serves();
    conversation.comment_says(&pull, &format!("shows commit `{}`.", &third[..12])).await;
    conversation.deployments_are(&pull, &["inactive", "failure", "success"]).await;

    conversation.comments(&pull, "/stagely preview sleep").await;
    conversation.comment_says(&pull, "💤").await;
    deploy.machine_is_gone().await;
    conversation.deployments_are(&pull, &["inactive", "failure", "inactive"]).await;
    conversation.comments(&pull, "/stagely preview").await;
    let wake = conversation.machines.deployment(4).await;
    conversation.deployments_are(&pull, &["inactive", "failure", "in_progress"]).await;
    wake.serves();
    conversation.comment_says(&pull, "🟢").await;
    conversation.deployments_are(&pull, &["inactive", "failure", "success"]).await;
    assert_eq!(conversation.key(&pull).await, key, "old links open it");

    conversation.comments(&pull, "/stagely preview extend 3d").await;
    conversation.comment_says(&pull, "It stays at least until").await;
    conversation.comments(&pull, "/stagely preview reset").await;
    let reset = conversation.machines.deployment(5).await;
    assert_eq!(reset.message["fresh"], true);
    reset.serves();
    conversation.comment_says(&pull, "`/stagely preview reset` by").await;

    conversation.github.closes(&pull).await;
    conversation.comment_says(&pull, "ended with the pull request").await;
    reset.machine_is_gone().await;
    conversation.deployments_are(&pull, &["inactive", "failure", "inactive"]).await;
    let log = std::fs::read_to_string(conversation.core.path("core.log")).unwrap();
    assert!(!log.contains(&key), "the key is in the log");
    conversation.ends().await;
}

#[tokio::test]
async fn commands_end_a_preview_and_bring_it_back_without_another_build() {
    let conversation = Conversation::start_with("previewcmd", PREVIEW, "").await;
    let pull = conversation.opened("shop").await;
    let deploy = conversation.is_built_for(&pull, 1).await;
    deploy.serves();
    conversation.comment_says(&pull, "🟢").await;

    conversation.github.comments(&pull, STRANGER, "/stagely preview stop").await;
    conversation.comment_says(&pull, "was not followed").await;
    assert!(deploy.has_machine(), "a stranger ended it");
    conversation.comments(&pull, "/stagely preview stop").await;
    conversation.comment_says(&pull, "⏹ ended. `/stagely preview` brings it back").await;
    deploy.machine_is_gone().await;
    conversation.comments(&pull, "/stagely preview sleep").await;
    conversation.comment_says(&pull, "was not followed&#58; there is no preview").await;

    conversation.comments(&pull, "/stagely preview").await;
    conversation.machines.deployment(2).await.serves();
    conversation.comment_says(&pull, "🟢").await;
    let builds = conversation.machines.all();
    let builds = builds.iter().filter(|job| job.message["type"] == "BUILD").count();
    assert_eq!(builds, 1, "the images were there");
    conversation.github.closes(&pull).await;
    conversation.ends().await;
}

#[tokio::test]
async fn a_label_deploys_and_its_removal_ends_the_preview() {
    let conversation = Conversation::start_with("previewlabel", BY_LABEL, "").await;
    let pull = conversation.opened("shop").await;
    conversation.is_built(&pull).await;
    assert!(conversation.github.deployments(&pull).is_empty());

    conversation.github.attaches(&pull, "stagely-preview", "labeler[bot]").await;
    let deploy = conversation.machines.deployment(1).await;
    deploy.serves();
    conversation.comment_says(&pull, "🟢").await;
    // Later commits have it, too.
    conversation.github.pushes(&pull, &[("change", "two")]).await;
    conversation.is_built_for(&pull, 2).await.serves();
    let head = conversation.github.head(&pull);
    conversation.comment_says(&pull, &format!("shows commit `{}`.", &head[..12])).await;

    conversation.github.detaches(&pull, "stagely-preview", WRITER).await;
    conversation.comment_says(&pull, "⏹ ended").await;
    deploy.machine_is_gone().await;
    conversation.github.pushes(&pull, &[("change", "three")]).await;
    let run = conversation.is_built(&pull).await;
    assert_eq!(run.jobs.len(), 1, "{run:?}");
    conversation.github.closes(&pull).await;
    conversation.ends().await;
}

#[tokio::test]
async fn the_preview_of_a_fork_waits_for_approval() {
    let conversation = Conversation::start_with("previewfork", BY_LABEL, "").await;
    let pull = conversation.github.opens_from_fork(WEB, "gift", &[("change", "one")]).await;
    conversation.comment_says(&pull, "/stagely approve").await;
    conversation.comments(&pull, "/stagely preview").await;
    conversation.comment_says(&pull, "it is deployed when the commit is approved").await;
    assert!(conversation.machines.all().is_empty(), "something of the fork was built");

    conversation.comments(&pull, "/stagely approve").await;
    let deploy = conversation.is_built_for(&pull, 1).await;
    let secrets = &deploy.message["secrets"];
    assert!(secrets.as_object().is_none_or(serde_json::Map::is_empty), "{secrets}");
    deploy.serves();
    conversation.comment_says(&pull, "🟢").await;
    // The next commit waits, and the approved one goes on.
    conversation.github.pushes(&pull, &[("change", "two")]).await;
    let awaits = |run: &RunView| run.status == RunStatus::Pending;
    conversation.run_when(&pull, "it awaits approval", awaits).await;
    conversation.comment_says(&pull, "🟢").await;
    assert!(deploy.has_machine());
    conversation.github.closes(&pull).await;
    conversation.ends().await;
}

#[tokio::test]
async fn a_deployment_whose_answer_is_lost_is_found_again() {
    let conversation = Conversation::start_with("previewlost", PREVIEW, "").await;
    let creation = "POST /repos/{owner}/{repo}/deployments";
    conversation.github.fails(creation, 1, FaultKind::Lost);
    let pull = conversation.opened("shop").await;
    conversation.is_built_for(&pull, 1).await.serves();
    conversation.deployments_are(&pull, &["success"]).await;
    conversation.github.closes(&pull).await;
    conversation.ends().await;
}

#[tokio::test]
async fn an_app_without_the_permission_writes_statuses_alone() {
    let conversation = Conversation::start_with("previewperm", PREVIEW, "").await;
    conversation.github.world().app.permissions.remove("deployments");
    let pull = conversation.opened("shop").await;
    let head = conversation.github.head(&pull);
    conversation.is_built_for(&pull, 1).await.serves();
    conversation.status_is(&head, "stagely/preview", "success").await;
    conversation.comment_says(&pull, "🟢").await;
    conversation.comments(&pull, "/stagely preview sleep").await;
    conversation.comment_says(&pull, "💤").await;
    assert!(conversation.github.deployments(&pull).is_empty());
    let health = conversation.health().await;
    let problem = health["projects"][0]["deployments_problem"].as_str().unwrap().to_owned();
    assert!(problem.contains("permissions requested are not granted"), "{problem}");
    assert!(health["projects"][0]["problem"].is_null(), "{health}");
    conversation.github.closes(&pull).await;
    let log = std::fs::read_to_string(conversation.core.path("core.log")).unwrap();
    assert_eq!(log.matches("no deployments are written").count(), 1, "{log}");
    conversation.ends().await;
}
