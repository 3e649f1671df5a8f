//! Runs that succeed.

use std::fs;
use std::path::Path;

use stagely::api::{JobKindView, JobStatus, RunStatus};
use stagely_test_core::{Core, job, numbers};
use stagely_test_support::breakpoint::Breakpoint;
use stagely_test_support::files::files_below;

use crate::STAGELY;

/// `examples/monorepo`, whose services stop at `breakpoint`.
fn monorepo(core: &Core, breakpoint: &Breakpoint) {
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/monorepo");
    for file in files_below(&example) {
        let target = core.repository.path.join(file.strip_prefix(&example).unwrap());
        fs::create_dir_all(target.parent().unwrap()).unwrap();
        fs::copy(&file, &target).unwrap();
        if file.ends_with("Dockerfile") {
            let step = format!("RUN : {}; {}\n", core.name, breakpoint.command());
            let text = fs::read_to_string(&file).unwrap() + &step;
            fs::write(target, text).unwrap();
        }
    }
}

#[tokio::test]
async fn three_services_are_built_at_the_same_time_and_two_platforms_joined() {
    let core = Core::start(STAGELY, "monorepo", "").await;
    let breakpoint = Breakpoint::new();
    monorepo(&core, &breakpoint);

    let run = core.run_of(&[]).await;
    // Only if all builds run at the same time do all reach the breakpoint: api, web, and worker twice.
    breakpoint.reached_by(4).await;
    assert_eq!(core.view(run).await.live_machines, 4);
    breakpoint.resume();
    let run = core.ended(run).await;

    assert_eq!(run.status, RunStatus::Completed, "{run:#?}");
    let names: Vec<&str> = run.jobs.iter().map(|job| job.name.as_str()).collect();
    assert_eq!(names, ["api", "worker_amd64", "worker_arm64", "worker_merge", "web"]);
    assert!(run.jobs.iter().all(|job| job.attempt == 1 && job.digest.is_some()), "{run:#?}");
    let image = &job(&run, "worker_merge").image.as_ref().unwrap().to_string();
    let index = core.registry.manifest(image);
    let platforms =
        index["manifests"].as_array().unwrap().iter().map(|manifest| &manifest["platform"]);
    let arches: Vec<_> =
        platforms.map(|platform| platform["architecture"].as_str().unwrap()).collect();
    assert_eq!(arches, ["amd64", "arm64"], "{index:#}");

    // A second run of the commit finds every layer in the cache, so no build reaches the breakpoint.
    let again = core.run(core.request()).await;
    let again = core.ended(again).await;
    assert_eq!(again.status, RunStatus::Completed, "{again:#?}");
    for job in again.jobs.iter().filter(|job| job.kind == JobKindView::Build) {
        let cached = job.steps.iter().filter(|step| step.cached).count();
        assert!(cached > 0, "{job:#?}");
    }
    core.finish().await;
}

#[tokio::test]
async fn a_viewer_gets_the_stored_lines_then_the_new_ones_and_then_the_end() {
    let core = Core::start(STAGELY, "viewer", "").await;
    let (first, second) = (Breakpoint::new(), Breakpoint::new());
    let dockerfile = format!(
        "FROM busybox\nRUN : {}; echo one; {}; echo two; {}; echo three\n",
        core.name,
        first.command(),
        second.command()
    );
    let manifest = "builds: { app: { context: . } }\n";
    let run = core.run_of(&[("Dockerfile", &*dockerfile), ("stagely.yaml", manifest)]).await;
    first.reached().await;
    let app = core.view(run).await.jobs.remove(0);
    core.log_has(&app, " one").await;

    // A viewer that connects during the build gets the stored lines first and the new lines after them.
    let mut viewer = core.follow(app.id, "").await;
    let mut seen = viewer.lines_until(" one").await;
    first.resume();
    seen.extend(viewer.lines_until(" two").await);
    second.reached().await;
    second.resume();
    let (rest, end) = viewer.rest().await;
    seen.extend(rest);
    assert_eq!(end, JobStatus::Completed);
    assert!(seen.iter().any(|line| line.ends_with(" three")), "{seen:#?}");

    // The stored log has the same lines, as a whole and in parts.
    let log = core.log(&app).await;
    assert_eq!(log.lines().collect::<Vec<_>>(), seen);
    let path = format!("/api/v1/jobs/{}/logs?from=3", app.id);
    let (_, part) = core.call(Some(&core.admin_token()), reqwest::Method::GET, &path, None).await;
    assert_eq!(part.lines().collect::<Vec<_>>(), seen[3..]);
    let path = format!("/api/v1/jobs/{}/logs?from=1000000", app.id);
    let after = core.call(Some(&core.admin_token()), reqwest::Method::GET, &path, None).await;
    assert_eq!(after, (reqwest::StatusCode::OK, String::new()));
    assert_eq!(core.follow(app.id, "").await.rest().await, (seen.clone(), end));
    assert_eq!(core.follow(app.id, "?from=5").await.rest().await, (seen.split_off(5), end));
    core.ended(run).await;
    core.finish().await;
}

#[tokio::test]
async fn arguments_of_the_request_replace_those_of_the_file_and_secrets_are_masked() {
    let core = Core::start(STAGELY, "arguments", "").await;
    let dockerfile = format!(
        "FROM busybox\nARG MODE\nARG HASH\nARG API_TOKEN\n\
         RUN : {}; echo mode=$MODE hash=$HASH token=$API_TOKEN\n",
        core.name
    );
    let manifest = "builds:\n  app:\n    context: .\n    build_args: \
        { MODE: slow, HASH: \"${COMMIT_HASH}\" }\n  unwanted:\n    context: .\n";
    let files = [("Dockerfile", &*dockerfile), ("stagely.yaml", manifest)];
    let commit = core.repository.commit(&files);
    let mut request = core.request();
    request.builds = vec!["app".to_owned()];
    request.set.insert("MODE".to_owned(), "fast".into());
    request.set.insert("API_TOKEN".to_owned(), "t0ken-of-the-caller".into());

    let run = core.run(request).await;
    let run = core.ended(run).await;

    assert_eq!(run.status, RunStatus::Completed, "{run:#?}");
    assert_eq!(run.jobs.len(), 1);
    let log = core.log(&run.jobs[0]).await;
    assert!(log.contains(&format!("mode=fast hash={commit} token=***")), "{log}");
    core.finish().await;
}

/// Whether this host's engine was set up by `scripts/setup`, so that it passes on the whole output of a step.
fn engine_clips_nothing() -> bool {
    let Ok(pid) = fs::read_to_string("/var/run/docker.pid") else { return false };
    let environment = fs::read(format!("/proc/{}/environ", pid.trim())).unwrap_or_default();
    let mut entries = environment.split(|byte| *byte == 0);
    entries.any(|entry| entry == b"BUILDKIT_STEP_LOG_MAX_SIZE=-1")
}

#[tokio::test]
async fn every_line_of_a_long_output_is_stored_or_the_user_is_warned() {
    let core = Core::start(STAGELY, "talkative", "").await;
    let all = 200_000;
    let dockerfile =
        format!("FROM busybox\nRUN : {}; seq {all} | sed 's/$/: a line/'\n", core.name);
    let manifest = "builds: { app: { context: . } }\n";
    let run = core.run_of(&[("Dockerfile", &*dockerfile), ("stagely.yaml", manifest)]).await;
    let run = core.ended(run).await;
    assert_eq!(run.status, RunStatus::Completed, "{run:#?}");
    let app = &run.jobs[0];
    let numbers = numbers(&core, app).await;
    let has_warning = app.warnings.iter().any(|warning| warning.contains("STEP_LOG_MAX_SIZE"));
    if has_warning && !engine_clips_nothing() {
        assert!(numbers.iter().copied().ne(1..=all), "{app:#?}");
    } else {
        assert!(!has_warning, "{app:#?}");
        assert!(numbers.iter().copied().eq(1..=all), "{} lines are stored", numbers.len());
    }
    core.finish().await;
}
