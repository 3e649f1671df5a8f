//! Builds whose image would be wrong without a word, if they were passed to `BuildKit` as they are.

use std::fs;
use std::os::unix::fs::symlink;

use stagely::api::{JobStatus, RunStatus};
use stagely_test_core::{Core, job};

use crate::STAGELY;

#[tokio::test]
async fn secrets_are_left_out_as_the_ignore_file_of_the_asked_name_says() {
    let core = Core::start(STAGELY, "ignored-secrets", "").await;
    let app = core.repository.path.join("app");
    fs::create_dir_all(app.join("secrets")).unwrap();
    symlink("../docker/app", app.join("Dockerfile")).unwrap();
    let dockerfile = format!("FROM busybox\nCOPY . /app\nRUN : {}; ! ls /app/secrets\n", core.name);
    let files = [
        ("docker/app", &*dockerfile),
        ("app/Dockerfile.dockerignore", "secrets\n"),
        ("app/secrets/key", "a key"),
        ("stagely.yaml", "builds: { app: { context: app } }\n"),
    ];

    let run = core.run_of(&files).await;
    let run = core.ended(run).await;

    assert_eq!(run.status, RunStatus::Completed, "{run:#?}");
    core.finish().await;
}

#[tokio::test]
async fn a_stage_keeps_its_name_and_names_that_docker_refuses_are_not_passed() {
    let core = Core::start(STAGELY, "own-stages", "").await;
    let needed = format!("FROM busybox\nRUN : {}; touch /needed\n", core.name);
    let app = format!(
        "FROM busybox AS base\nRUN : {}; touch /own\nFROM base\nRUN ls /own && ! ls /needed\n",
        core.name
    );
    let clash = format!("FROM base AS base\nRUN : {}; ls /needed\n", core.name);
    let manifest = "builds:\n  base: { context: needed }\n  Tools_: { context: needed }\n  \
        lang: { context: needed, matrix: { OF: [c++] } }\n  \
        app: { context: app, depends_on: [base, Tools_, lang] }\n  \
        clash: { context: clash, depends_on: [base] }\n";
    let files = [
        ("needed/Dockerfile", &*needed),
        ("app/Dockerfile", &*app),
        ("clash/Dockerfile", &*clash),
        ("stagely.yaml", manifest),
    ];

    let run = core.run_of(&files).await;
    let run = core.ended(run).await;

    let (app, clash) = (job(&run, "app"), job(&run, "clash"));
    assert_eq!(app.status, JobStatus::Completed, "{run:#?}");
    assert!(app.warnings[0].starts_with("`base` is a stage of the Dockerfile"), "{app:#?}");
    assert_eq!(app.warnings.len(), 1, "{app:#?}");
    assert_eq!(clash.attempt, 1, "{clash:#?}");
    let message = clash.error.as_deref().unwrap_or_default();
    assert!(message.contains("both for a stage and for the build `base`"), "{clash:#?}");
    core.finish().await;
}

#[tokio::test]
async fn images_of_another_platform_are_noticed() {
    let core = Core::start(STAGELY, "other-platform", "").await;
    // The mirror has this image for AMD64 alone, and BuildKit takes it all the same.
    let based = format!("FROM debian:13-slim\nLABEL name={}\n", core.name);
    let own = format!("FROM --platform=linux/amd64 busybox\nLABEL name={}\n", core.name);
    let manifest = "builds:\n  based: { context: based, platforms: [linux/arm64] }\n  \
        own: { context: own, platforms: [linux/arm64] }\n";
    let files =
        [("based/Dockerfile", &*based), ("own/Dockerfile", &*own), ("stagely.yaml", manifest)];

    let run = core.run_of(&files).await;
    let run = core.ended(run).await;

    let (based, own) = (job(&run, "based"), job(&run, "own"));
    assert_eq!(based.status, JobStatus::Completed, "{run:#?}");
    let warning =
        "the base image debian:13-slim is for linux/amd64, and this build is for linux/arm64";
    assert!(based.warnings.iter().any(|text| text.starts_with(warning)), "{based:#?}");
    let warning =
        "the Dockerfile sets the platform of its last stage to linux/amd64, and this build";
    assert!(own.warnings.iter().any(|text| text.starts_with(warning)), "{own:#?}");
    core.finish().await;
}
