//! Layer caches: which runs write them, why a step misses, and when they are deleted.

use serde_json::{Value, json};
use stagely::api::{EnvironmentView, JobView, RunStatus, RunView, WarmUpView};
use stagely_protocol::MissCause;
use stagely_test_core::{Core, job};
use stagely_test_support::engine::PrivateEngine;
use stagely_test_support::git::TOKEN;
use stagely_test_support::wait::eventually;

use crate::STAGELY;

const APP: &str = "builds: { app: { context: . } }\n";

/// An image of two steps, the second of which copies `app.txt`.
fn dockerfile(core: &Core) -> String {
    format!("FROM busybox\nRUN : {}; echo slow\nCOPY app.txt /\nRUN cat /app.txt\n", core.name)
}

async fn pull_request(core: &Core, branch: &str, number: u64, from_fork: bool) -> RunView {
    let mut request = core.request();
    request.reference = Some(branch.to_owned());
    request.pull_request = Some(number);
    request.from_fork = from_fork;
    let run = core.run(request).await;
    core.ended(run).await
}

fn all_cached(job: &JobView) -> bool {
    !job.steps.is_empty() && job.cached_steps == job.steps.len()
}

#[tokio::test]
async fn pull_requests_read_the_shared_cache_write_their_own_and_lose_it_when_they_close() {
    let core = Core::start(STAGELY, "caches", "").await;
    let dockerfile = dockerfile(&core);
    let files = [("Dockerfile", &*dockerfile), ("app.txt", "one"), ("stagely.yaml", APP)];
    let run = core.run_of(&files).await;
    let run = core.ended(run).await;
    assert_eq!(run.status, RunStatus::Completed, "{run:#?}");
    let shared = core.registry.digest(&core.cache("app")).await.expect("the shared cache");

    core.commit_to("change", &[("app.txt", "two")]);
    let forked = pull_request(&core, "change", 8, true).await;
    assert_eq!(forked.status, RunStatus::Completed, "{forked:#?}");
    assert_eq!(core.registry.digest(&core.cache("app.pr-8")).await, None);
    let ours = pull_request(&core, "change", 7, false).await;
    assert_eq!(ours.environment, "pr-7");
    assert!(core.registry.digest(&core.cache("app.pr-7")).await.is_some());
    assert_eq!(core.registry.digest(&core.cache("app")).await.as_ref(), Some(&shared));
    // The first step came from the shared cache, and the changed file is named.
    for run in [&forked, &ours] {
        let app = job(run, "app");
        assert!(app.steps[0].cached, "{app:#?}");
    }
    let miss = job(&forked, "app").cache_miss.clone().expect("a step was built");
    assert!(miss.step.contains("COPY app.txt"), "{miss:?}");
    let MissCause::Files { count: 1, files } = miss.cause else { panic!("{miss:?}") };
    assert_eq!(files[0].path, "app.txt");
    let log = core.log(job(&forked, "app")).await;
    assert!(log.contains("app.txt (changed)"), "{log}");

    // Only the cache of the closed pull request is deleted.
    let all: Vec<EnvironmentView> = core.get("/environments").await;
    let pr = all.iter().find(|environment| environment.name == "pr-7").expect("the environment");
    assert_eq!(pr.pull_request, Some(7));
    let _: Value = core.post(&format!("/environments/{}/close", pr.id), json!({})).await;
    eventually("the cache of the pull request is gone", async || {
        core.registry.digest(&core.cache("app.pr-7")).await.is_none().then_some(())
    })
    .await;
    assert_eq!(core.registry.digest(&core.cache("app")).await, Some(shared));
    core.finish().await;
}

#[tokio::test]
async fn the_same_commit_again_builds_nothing() {
    let core = Core::start(STAGELY, "unchanged", "").await;
    let dockerfile = dockerfile(&core);
    let files = [("Dockerfile", &*dockerfile), ("app.txt", "one"), ("stagely.yaml", APP)];
    let first = core.run_of(&files).await;
    let first = core.ended(first).await;
    let again = core.run(core.request()).await;
    let again = core.ended(again).await;

    assert!(!all_cached(job(&first, "app")), "{first:#?}");
    let app = job(&again, "app");
    assert!(all_cached(app) && app.cache_miss.is_none(), "{app:#?}");
    assert_eq!(app.digest, job(&first, "app").digest);
    // The image was pushed before its cache.
    let log = core.log(job(&first, "app")).await;
    let place = |text: &str| log.find(text).unwrap_or_else(|| panic!("no {text:?} in {log}"));
    assert!(place("pushed ") < place("Cache exported"), "{log}");
    core.finish().await;
}

/// `BuildKit` lost layers of a cache at random, so one round proves little; `scripts/bench cache` counts many.
#[tokio::test]
async fn a_step_whose_inputs_did_not_change_is_cached_on_an_empty_engine() {
    let mut engine = PrivateEngine::start().await;
    let settings = format!("[local]\ndocker-host = \"{}\"", engine.host());
    let core = Core::start(STAGELY, "empty-engine", &settings).await;
    let dockerfile = format!(
        "FROM busybox AS build\nWORKDIR /src\nCOPY library ./\nRUN : {}; head -c 100000 /dev/urandom >made\n\
         COPY application ./\nRUN cat application made >app\nFROM busybox\nCOPY --from=build /src/app /\n",
        core.name
    );
    let files = [
        ("Dockerfile", &*dockerfile),
        ("library", "one"),
        ("application", "one"),
        ("stagely.yaml", APP),
    ];
    let run = core.run_of(&files).await;
    assert_eq!(core.ended(run).await.status, RunStatus::Completed);
    for round in ["two", "three", "four"] {
        engine.replace().await;
        let run = core.run_of(&[("application", round)]).await;
        let run = core.ended(run).await;
        let app = job(&run, "app");
        let cached = app.steps.iter().filter(|step| step.name.contains("] RUN "));
        let cached: Vec<bool> = cached.map(|step| step.cached).collect();
        assert_eq!(cached, [true, false], "round {round}: {app:#?}");
    }
    core.finish().await;
}

#[tokio::test]
async fn a_warm_up_fills_the_cache_and_pushes_no_image() {
    let settings = "warm-up = { schedule = \"0 3 * * *\", projects = [\"some-project\"] }";
    let core = Core::start(STAGELY, "warm-up", settings).await;
    let schedule: WarmUpView = core.get("/warm-up").await;
    assert!(schedule.next_due_at.is_some(), "{schedule:?}");
    // A run that fails early creates the project.
    let failed = core.run_of(&[("stagely.yaml", "builds: {}\n")]).await;
    core.ended(failed).await;
    let dockerfile = dockerfile(&core);
    core.repository.commit(&[
        ("Dockerfile", &*dockerfile),
        ("app.txt", "one"),
        ("stagely.yaml", APP),
    ]);

    let body = json!({ "clone_token": TOKEN });
    let warm: RunView = core.post(&format!("/projects/{}/warm-ups", core.name), body).await;
    let warm = core.ended(warm.id).await;

    assert_eq!(warm.status, RunStatus::Completed, "{warm:#?}");
    assert_eq!(job(&warm, "app").digest, None, "{warm:#?}");
    assert!(core.registry.digest(&core.cache("app")).await.is_some());
    assert_eq!(core.registry.digest(&core.image("default", "app-amd64")).await, None);
    assert_eq!(
        core.registry.digest(job(&warm, "app").image.as_ref().unwrap().as_str()).await,
        None
    );
    let run = core.run(core.request()).await;
    let run = core.ended(run).await;
    assert!(all_cached(job(&run, "app")), "{run:#?}");
    core.finish().await;
}
