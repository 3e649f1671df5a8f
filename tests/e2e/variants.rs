//! Builds in several variants, builds that depend on others, and skipped builds.

use stagely::api::{JobStatus, RunStatus};
use stagely_test_core::{Core, job};

use crate::STAGELY;

#[tokio::test]
async fn a_matrix_makes_a_job_and_a_tag_a_combination() {
    let core = Core::start(STAGELY, "matrix", "").await;
    let dockerfile = format!(
        "FROM busybox\nARG NODE_VERSION\nARG FLAVOUR=plain\n\
         RUN : {}; echo version=$NODE_VERSION flavour=$FLAVOUR\n",
        core.name
    );
    let manifest = "builds:\n  app:\n    context: .\n    matrix:\n      NODE_VERSION: [18, 20, 22]\n      \
        exclude: [{ NODE_VERSION: 20 }]\n      include: [{ NODE_VERSION: 24, FLAVOUR: slim }]\n";
    let run = core.run_of(&[("Dockerfile", &*dockerfile), ("stagely.yaml", manifest)]).await;
    let run = core.ended(run).await;

    assert_eq!(run.status, RunStatus::Completed, "{run:#?}");
    let names: Vec<&str> = run.jobs.iter().map(|job| job.name.as_str()).collect();
    let expected = [
        "app-node_version-18_amd64",
        "app-node_version-22_amd64",
        "app-node_version-24-flavour-slim_amd64",
    ];
    assert_eq!(names, expected);
    let says = ["version=18 flavour=plain", "version=22 flavour=plain", "version=24 flavour=slim"];
    for (job, says) in run.jobs.iter().zip(says) {
        assert!(core.log(job).await.contains(says), "{job:#?}");
        let tag = core.image("default", &format!("{}-amd64", job.variant));
        assert_eq!(core.registry.digest(&tag).await.as_deref(), Some(job.digest_text()));
    }
    core.finish().await;
}

#[tokio::test]
async fn a_build_uses_the_image_of_another_build_of_the_same_run() {
    let core = Core::start(STAGELY, "depends", "").await;
    let base = format!("FROM busybox\nRUN : {}; uname -m > /made-of\n", core.name);
    let app = format!(
        "FROM base\nARG STAGELY_IMAGE_BASE\nRUN : {}; read made < /made-of; echo on=$made \
         image=$STAGELY_IMAGE_BASE\n",
        core.name
    );
    let manifest = "builds:\n  \
        app: { context: app, depends_on: [base], platforms: [linux/amd64, linux/arm64] }\n  \
        base: { context: base, platforms: [linux/amd64, linux/arm64] }\n";
    let files =
        [("app/Dockerfile", &*app), ("base/Dockerfile", &*base), ("stagely.yaml", manifest)];
    core.repository.commit(&files);
    // A request for this build alone also makes the build that it depends on.
    let mut request = core.request();
    request.builds = vec!["app".to_owned()];
    let run = core.run(request).await;
    let run = core.ended(run).await;

    assert_eq!(run.status, RunStatus::Completed, "{run:#?}");
    let base = job(&run, "base_merge");
    for (name, arch) in [("app_amd64", "x86_64"), ("app_arm64", "aarch64")] {
        let app = job(&run, name);
        assert!(app.started_at >= base.ended_at, "{run:#?}");
        let log = core.log(app).await;
        assert!(log.contains(&format!("on={arch}")), "{log}");
        assert!(log.contains(base.digest_text()), "{log}");
    }
    core.finish().await;
}

#[tokio::test]
async fn a_build_whose_paths_did_not_change_is_skipped_and_its_last_image_stands_in() {
    let core = Core::start(STAGELY, "paths", "").await;
    let (api, web) = (
        format!("FROM busybox\nCOPY . /api\nRUN : {}\n", core.name),
        format!("FROM busybox\nCOPY . /web\nRUN : {}\n", core.name),
    );
    let manifest = "builds:\n  api: { context: api, paths: [\"api/**\"] }\n  \
        web: { context: web, paths: [\"web/**\"], depends_on: [api] }\n  \
        release: { context: web, only_branches: [\"release/*\"] }\n";
    let files = [("api/Dockerfile", &*api), ("web/Dockerfile", &*web), ("stagely.yaml", manifest)];
    let main = core.run_of(&files).await;
    let main = core.ended(main).await;
    assert_eq!(main.status, RunStatus::Completed, "{main:#?}");
    let skipped: Vec<&str> = main.skipped.iter().map(|build| build.build.as_str()).collect();
    assert_eq!(skipped, ["release"], "{main:#?}");

    // Only `web` changes, so `api` is skipped.
    core.commit_to("feature", &[("web/page", "new")]);
    let mut request = core.request();
    request.reference = Some("feature".to_owned());
    let feature = core.run(request).await;
    let feature = core.ended(feature).await;
    assert_eq!(feature.status, RunStatus::Completed, "{feature:#?}");
    let names: Vec<&str> = feature.jobs.iter().map(|job| job.name.as_str()).collect();
    assert_eq!(names, ["web"], "{feature:#?}");
    let api = feature.skipped.iter().find(|build| build.build == "api").expect("it says so");
    let stands_in = api.image.as_ref().expect("an image").as_str();
    assert!(stands_in.ends_with(job(&main, "api").digest_text()), "{api:?}");

    // `api` changes, so the build that depends on it is made as well.
    core.commit_to("feature", &[("api/code", "new")]);
    let mut request = core.request();
    request.reference = Some("feature".to_owned());
    let feature = core.run(request).await;
    let feature = core.ended(feature).await;
    let built: Vec<&str> = feature.jobs.iter().map(|job| job.name.as_str()).collect();
    assert_eq!(built, ["api", "web"], "{feature:#?}");
    assert!(feature.jobs.iter().all(|job| job.status == JobStatus::Completed), "{feature:#?}");

    // A branch without changes needs no machine.
    core.commit_to("nothing", &[("README", "words")]);
    let mut request = core.request();
    request.reference = Some("nothing".to_owned());
    let nothing = core.run(request).await;
    let nothing = core.ended(nothing).await;
    assert_eq!((nothing.status, nothing.jobs.len()), (RunStatus::Completed, 0), "{nothing:#?}");
    core.finish().await;
}
