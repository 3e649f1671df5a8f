//! The deploy job of a run.

use stagely::core::plan::{Plan, PlanError};
use stagely_manifest::parse;
use stagely_protocol::Arch;
use stagely_state::{Deployment, JobKind, SkipReason, UsedImage};

use crate::fixtures::{PlanInputs, PreviewInputs, commit, names};

const BUILDS: &str = "\
builds:
  web: {context: .}
  worker:
    context: .
    dockerfile: worker.Dockerfile
    platforms: [linux/amd64, linux/arm64]
";

const COMPOSE: &str = "\
preview:
  compose: compose.yaml
  images: {site: web}
  endpoints:
    site: {service: site, port: 8080}
    mail: {service: mail, port: 8025}
  env:
    URL: ${PREVIEW_URL}/a
    HOST: ${PREVIEW_HOST}
    MAIL: ${PREVIEW_URL_MAIL}
    COMMIT: ${COMMIT_HASH}
  secrets: [KEY]
  reset_when: ['db/**']
";

fn deployment(plan: &Plan) -> (Option<Arch>, &Deployment) {
    let kinds = plan.jobs.iter().map(|job| &job.kind);
    let mut deployments = kinds.filter_map(|kind| match kind {
        JobKind::Deploy { arch, deployment } => Some((*arch, &**deployment)),
        JobKind::Build { .. } | JobKind::Merge { .. } | JobKind::Test { .. } => None,
    });
    deployments.next().expect("a deploy job")
}

fn is_deployed(inputs: &PlanInputs, text: &str) -> bool {
    inputs.of(text).jobs.iter().any(|job| job.kind.is_deploy())
}

#[test]
fn a_deployment_needs_all_images_and_knows_its_addresses() {
    let plan = PlanInputs::pull_request().of(&format!("{BUILDS}{COMPOSE}"));

    let deploy = plan.jobs.last().unwrap();
    assert_eq!(names(&plan.jobs).last(), Some(&"deploy"));
    let last_jobs: Vec<_> = plan.jobs.iter().filter(|job| job.tag.is_some()).collect();
    assert_eq!(deploy.needs, last_jobs.iter().map(|job| job.id).collect::<Vec<_>>());
    let (arch, deployment) = deployment(&plan);
    assert_eq!(arch, Some(Arch::Amd64), "`web` is for AMD64 alone");
    assert_eq!(deployment.images.keys().collect::<Vec<_>>(), ["site"]);
    assert_eq!(deployment.default_images.keys().collect::<Vec<_>>(), ["web", "worker"]);
    let hosts: Vec<_> = deployment.endpoints.iter().map(|endpoint| &endpoint.host).collect();
    let port = ":7780";
    assert_eq!(
        hosts,
        [
            &Some(format!("pr-7-shop.localhost{port}")),
            &Some(format!("pr-7-shop-mail.localhost{port}"))
        ]
    );
    let env = &deployment.env.0;
    assert_eq!(env["URL"], format!("http://pr-7-shop.localhost{port}/a"));
    assert_eq!(env["HOST"], "pr-7-shop.localhost");
    assert_eq!(env["MAIL"], format!("http://pr-7-shop-mail.localhost{port}"));
    assert_eq!(env["COMMIT"], "a".repeat(40));
    assert_eq!(deployment.secrets, ["KEY"]);
    assert_eq!(deployment.reset_when, ["db/**"]);
}

#[test]
fn a_preview_of_one_image_runs_on_any_of_its_platforms() {
    let text = format!("{BUILDS}preview: {{image: worker, port: 80}}\n");
    let plan = PlanInputs::pull_request().of(&text);
    let (arch, deployment) = deployment(&plan);
    assert_eq!(arch, None);
    assert_eq!(deployment.images.keys().collect::<Vec<_>>(), ["app"]);
    assert!(deployment.default_images.is_empty());
}

#[test]
fn forks_get_no_secrets() {
    let inputs = PlanInputs { from_fork: true, ..PlanInputs::pull_request() };
    let plan = inputs.of(&format!("{BUILDS}{COMPOSE}"));
    assert!(deployment(&plan).1.secrets.is_empty());
}

#[test]
fn which_runs_have_a_preview() {
    let text = |on: &str| format!("{BUILDS}{COMPOSE}  on: {on}\n  branches: ['release-*']\n");
    let pull_request = PlanInputs::pull_request;
    let requested = || PreviewInputs { requested: Some(true) };
    assert!(is_deployed(&pull_request(), &text("pull_requests")));
    for on in ["label", "manual"] {
        assert!(!is_deployed(&pull_request(), &text(on)));
        let asked = PlanInputs { preview: requested(), ..pull_request() };
        assert!(is_deployed(&asked, &text(on)));
    }
    let refused = PreviewInputs { requested: Some(false) };
    let refusing = PlanInputs { preview: refused, ..pull_request() };
    assert!(!is_deployed(&refusing, &text("pull_requests")));
    let branch = |branch| PlanInputs { pull_request: None, branch, ..pull_request() };
    assert!(is_deployed(&branch(Some("release-1")), &text("manual")));
    assert!(!is_deployed(&branch(Some("main")), &text("pull_requests")));
    let posing = PlanInputs { branch: Some("release-1"), ..pull_request() };
    assert!(!is_deployed(&posing, &text("manual")), "a pull request chooses its branch's name");
    let warm_up = PlanInputs { push: false, preview: requested(), ..pull_request() };
    assert!(!is_deployed(&warm_up, &text("pull_requests")));
    let one = PlanInputs { only_builds: vec!["web".into()], ..pull_request() };
    assert!(!is_deployed(&one, &text("pull_requests")));
}

#[test]
fn an_image_that_is_not_built_stands_in_or_the_preview_is_skipped() {
    let text = format!(
        "builds:\n  web: {{context: ., only_branches: [main]}}\n  worker: {{context: ., dockerfile: w}}\n{COMPOSE}"
    );
    let inputs = PlanInputs::pull_request();

    let skipped = inputs.of(&text).skipped;
    let reason = SkipReason::NoImage { build: "web".to_owned() };
    assert!(skipped.iter().any(|build| build.reason == reason), "{skipped:?}");

    let plan = inputs.with_image("web", &commit('c')).of(&text);
    let UsedImage::Image { image } = &deployment(&plan).1.images["site"] else {
        panic!("{plan:?}")
    };
    assert!(image.as_str().contains("@sha256:"), "{image}");
}

#[test]
fn the_images_of_a_preview_have_a_platform_in_common() {
    let text = "\
builds:
  a: {context: ., platforms: [linux/amd64]}
  b: {context: ., platforms: [linux/arm64], dockerfile: b}
preview:
  compose: compose.yaml
  images: {one: a, two: b}
  endpoints: {web: {service: one, port: 80}}
";
    let error = PlanInputs::pull_request()
        .plan(&parse("stagely.yaml", text.as_bytes()).unwrap())
        .unwrap_err();
    let builds = vec!["a".to_owned(), "b".to_owned()];
    assert_eq!(error, PlanError::NoCommonPlatform { builds });
}
