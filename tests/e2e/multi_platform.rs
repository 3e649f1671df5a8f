//! Images of several platforms, and which run's image a tag names.

use stagely::api::{JobStatus, RunStatus};
use stagely_protocol::FailureReason;
use stagely_test_core::{Core, job};
use stagely_test_support::breakpoint::Breakpoint;
use stagely_test_support::git::TOKEN;
use stagely_test_support::wait::eventually;

use crate::STAGELY;

const BOTH: &str = "builds: { app: { context: ., platforms: [linux/amd64, linux/arm64] } }\n";

/// An image that prints its processor.
fn prints_its_processor(core: &Core) -> String {
    format!("FROM busybox\nRUN : {}; uname -m > /arch\nCMD [\"uname\", \"-m\"]\n", core.name)
}

#[tokio::test]
async fn one_image_runs_on_two_kinds_of_processor_and_its_merge_needs_no_machine() {
    let core = Core::start(STAGELY, "two-chips", "").await;
    let dockerfile = prints_its_processor(&core);
    let run = core.run_of(&[("Dockerfile", &*dockerfile), ("stagely.yaml", BOTH)]).await;
    let run = core.ended(run).await;

    assert_eq!(run.status, RunStatus::Completed, "{run:#?}");
    let (amd64, arm64, merge) =
        (job(&run, "app_amd64"), job(&run, "app_arm64"), job(&run, "app_merge"));
    // Exactly one of the platforms is emulated.
    assert_ne!(amd64.emulated, arm64.emulated, "{run:#?}");
    let emulated = if arm64.emulated { arm64 } else { amd64 };
    assert!(emulated.warnings.iter().any(|warning| warning.contains("emulated")), "{emulated:#?}");
    assert!(emulated.slow_down.is_some_and(|times| times > 0.0), "{emulated:#?}");
    assert!(merge.took_over.is_some(), "{merge:#?}");
    assert_eq!(run.saved_machines, 1);

    // The tag that people pull names the index, which has the digests of both images.
    let tag = core.image("default", "app");
    assert_eq!(merge.tag.as_ref().unwrap().as_str(), tag);
    assert_eq!(core.registry.digest(&tag).await.as_deref(), Some(merge.digest_text()));
    let inspected = core.registry.docker(&["manifest", "inspect", "--insecure", &tag]);
    for built in [amd64, arm64] {
        assert!(inspected.contains(built.digest_text()), "{inspected}");
    }
    let shown = core.registry.docker(&["buildx", "imagetools", "inspect", &tag]);
    assert!(shown.contains("linux/amd64") && shown.contains("linux/arm64"), "{shown}");
    for (platform, says) in [("linux/amd64", "x86_64"), ("linux/arm64", "aarch64")] {
        let output =
            core.registry.docker(&["run", "--rm", "--pull=always", "--platform", platform, &tag]);
        assert_eq!(output.trim(), says);
        core.registry.docker(&["image", "rm", "--force", &tag]);
    }
    let stored = core.finish().await;
    assert_eq!(stored.state.machines.len(), 2, "{:#?}", stored.state.machines);
}

#[tokio::test]
async fn a_run_that_ends_after_a_newer_one_moves_no_tag() {
    let core = Core::start(STAGELY, "stale", "").await;
    let breakpoint = Breakpoint::new();
    let old = format!("FROM busybox\nRUN : {}; {}; echo old\n", core.name, breakpoint.command());
    let old = core.run_of(&[("Dockerfile", &*old), ("stagely.yaml", BOTH)]).await;
    breakpoint.reached_by(2).await;
    let new = format!("FROM busybox\nRUN : {}; echo new\n", core.name);
    let new = core.run_of(&[("Dockerfile", &*new)]).await;
    let new = core.ended(new).await;
    assert_eq!(new.status, RunStatus::Completed, "{new:#?}");
    breakpoint.resume();
    let old = core.ended(old).await;

    assert_eq!(old.status, RunStatus::Completed, "{old:#?}");
    let (newer, older) = (job(&new, "app_merge"), job(&old, "app_merge"));
    assert_ne!(newer.digest, older.digest);
    let tag = core.image("default", "app");
    assert_eq!(core.registry.digest(&tag).await.as_deref(), Some(newer.digest_text()));
    // Each run's own reference names its image.
    for merge in [newer, older] {
        let own = merge.image.as_ref().unwrap().as_str();
        assert_eq!(core.registry.digest(own).await.as_deref(), Some(merge.digest_text()));
    }
    core.finish().await;
}

#[tokio::test]
async fn however_often_core_is_killed_the_tag_names_the_newest_image() {
    let mut core = Core::start(STAGELY, "killed-tags", "").await;
    let dockerfile = prints_its_processor(&core);
    let files = [("Dockerfile", &*dockerfile), ("stagely.yaml", BOTH)];
    let id = core.run_of(&files).await;
    // From the end of the first build on, core is killed whenever a state has changed.
    let (mut kills, mut seen) = (0, Vec::new());
    loop {
        let view = core.view(id).await;
        if view.status.is_final() {
            break;
        }
        let states: Vec<_> = view.jobs.iter().map(|job| (job.status, job.digest.clone())).collect();
        let has_begun = view.jobs.iter().any(|job| job.status == JobStatus::Completed);
        if has_begun && states != seen {
            core.crash();
            core.launch().await;
            (kills, seen) = (kills + 1, states);
        }
    }
    let run = core.ended(id).await;

    assert!(kills > 0);
    assert_eq!(run.status, RunStatus::Completed, "{run:#?}");
    let merge = job(&run, "app_merge");
    let tag = core.image("default", "app");
    assert_eq!(core.registry.digest(&tag).await.as_deref(), Some(merge.digest_text()));
    core.finish().await;
}

#[tokio::test]
async fn a_build_that_forbids_emulation_fails_where_there_is_no_machine_of_its_kind() {
    let core = Core::start(STAGELY, "forbidden", "").await;
    let foreign = if cfg!(target_arch = "x86_64") { "arm64" } else { "amd64" };
    let manifest = format!(
        "builds: {{ app: {{ context: ., platform: linux/{foreign}, emulation: forbid }} }}\n"
    );
    let files = [("Dockerfile", "FROM busybox\n"), ("stagely.yaml", &*manifest)];
    let run = core.run_of(&files).await;
    let run = core.ended(run).await;

    let app = job(&run, "app");
    assert_eq!((app.status, app.attempt), (JobStatus::Failed, 0), "{app:#?}");
    assert_eq!(app.reason, Some(FailureReason::Emulation), "{app:#?}");
    assert!(app.error.as_ref().unwrap().contains(foreign), "{app:#?}");
    core.finish().await;
}

#[tokio::test]
async fn only_failed_builds_are_made_again() {
    let core = Core::start(STAGELY, "rebuild", "").await;
    let dockerfile = format!(
        "FROM busybox\nARG MODE\nRUN : {}; [ \"$MODE-$(uname -m)\" != broken-aarch64 ]\n",
        core.name
    );
    core.repository.commit(&[("Dockerfile", &*dockerfile), ("stagely.yaml", BOTH)]);
    let mut request = core.request();
    request.set.insert("MODE".to_owned(), "broken".into());
    let first = core.run(request).await;
    let first = core.ended(first).await;
    assert_eq!(first.status, RunStatus::Failed, "{first:#?}");
    assert_eq!(job(&first, "app_amd64").status, JobStatus::Completed, "{first:#?}");

    let body = serde_json::json!({
        "failed": true, "set": { "MODE": "whole" }, "clone_token": TOKEN,
    });
    let second: stagely::api::RunView =
        core.post(&format!("/runs/{}/rebuild", first.id), body).await;
    let second = core.ended(second.id).await;

    assert_eq!(second.status, RunStatus::Completed, "{second:#?}");
    let (reused, before) = (job(&second, "app_amd64"), job(&first, "app_amd64"));
    assert_eq!(
        (reused.reused_from, &reused.digest),
        (Some(before.id), &before.digest),
        "{reused:#?}"
    );
    assert_eq!(job(&second, "app_arm64").attempt, 1, "{second:#?}");
    let tag = core.image("default", "app");
    eventually("the tag names the new index", async || {
        let digest = core.registry.digest(&tag).await;
        (digest.as_deref() == Some(job(&second, "app_merge").digest_text())).then_some(())
    })
    .await;
    core.finish().await;
}
