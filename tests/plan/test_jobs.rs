//! The test jobs of a run.

use std::collections::BTreeSet;

use stagely::core::plan::Plan;
use stagely_protocol::{Arch, Shard};
use stagely_state::{
    MachineSize, PlannedJob, SkipReason, Test, TestMachine, UsedImage, WantedTests,
};

use crate::fixtures::{PlanInputs, REQUESTED_AT, names};

const BUILDS: &str = "\
builds:
  web: {context: .}
  tools:
    context: .
    platforms: [linux/amd64, linux/arm64]
";

const PREVIEW: &str = "preview: {image: web, port: 80}\n";

const TESTS: &str = "\
test:
  unit: {image: web, command: [make, check]}
  e2e:
    image: tools
    command: [npx, playwright, test]
    machine: large
    shards: 3
    retries: 1
    env: {BASE: '${PREVIEW_URL}/app', COMMIT: '${COMMIT_HASH}'}
    secrets: [KEY]
    junit: ['results/*.xml']
    artifacts: ['report/**']
    comment_images: ['shots/*.png']
";

fn of(inputs: &PlanInputs, parts: &[&str]) -> Plan {
    inputs.of(&parts.concat())
}

fn tests(plan: &Plan) -> Vec<(&PlannedJob, &Test)> {
    plan.jobs.iter().filter_map(|job| Some((job, job.kind.test()?))).collect()
}

#[test]
fn each_shard_is_a_job_that_waits_for_the_preview() {
    let plan = of(&PlanInputs::pull_request(), &[BUILDS, PREVIEW, TESTS]);
    let tests = tests(&plan);
    let names: Vec<_> = tests.iter().map(|(job, _)| &*job.name).collect();
    assert_eq!(names, ["test/unit", "test/e2e/1", "test/e2e/2", "test/e2e/3"]);
    let id = |name: &str| plan.jobs.iter().find(|job| job.name == name).unwrap().id;
    let (job, test) = tests[2];
    assert_eq!(job.needs, [id("tools_merge"), id("deploy")]);
    assert_eq!((&*job.build, job.size), ("e2e", MachineSize::Large));
    assert_eq!(test.shard, Shard { index: 2, total: 3 });
    assert_eq!(test.image, UsedImage::Job { job: id("tools_merge") });
    assert_eq!((test.on, test.preview_of), (TestMachine::Tester, Some(REQUESTED_AT)));
    assert_eq!(test.env.0["BASE"], "http://pr-7-shop.localhost:7780/app");
    assert_eq!(test.env.0["COMMIT"], "a".repeat(40));
    assert_eq!((test.retries, &test.secrets[..]), (1, &["KEY".to_owned()][..]));
    let ids: BTreeSet<_> = plan.jobs.iter().map(|job| job.id).collect();
    assert_eq!(ids.len(), plan.jobs.len());
    let stagely_state::JobKind::Test { arch, .. } = &tests[0].0.kind else { panic!() };
    assert_eq!(*arch, Some(Arch::Amd64));
    let stagely_state::JobKind::Test { arch, .. } = &job.kind else { panic!() };
    assert_eq!(*arch, None, "its image is for both");
}

#[test]
fn without_a_preview_a_test_needs_its_image_alone() {
    let unit = "test: {unit: {image: web}, lint: {image: docker.io/library/node:24}}\n";
    let plan = of(&PlanInputs::pull_request(), &[BUILDS, unit]);
    let tests = tests(&plan);
    assert_eq!(tests[0].0.needs.len(), 1);
    assert_eq!((tests[0].1.preview_of, tests[1].1.preview_of), (None, None));
    assert!(tests[1].0.needs.is_empty());
    assert!(matches!(&tests[1].1.image, UsedImage::Image { .. }));
}

#[test]
fn a_run_without_its_preview_skips_the_tests_of_it() {
    let by_label = "preview: {image: web, port: 80, on: label}\n";
    let plan = of(&PlanInputs::pull_request(), &[BUILDS, by_label, TESTS]);
    assert!(tests(&plan).is_empty());
    let skipped: Vec<_> = plan.skipped.iter().map(|skipped| &skipped.reason).collect();
    assert_eq!(skipped, [&SkipReason::NoPreview, &SkipReason::NoPreview]);
}

#[test]
fn only_runs_of_all_builds_are_tested() {
    let one = PlanInputs { only_builds: vec!["web".into()], ..PlanInputs::pull_request() };
    let unit = "test: {unit: {image: web}}\n";
    assert_eq!(names(&of(&one, &[BUILDS, unit]).jobs), ["web"]);
    let without = PlanInputs { wanted_tests: WantedTests::None, ..PlanInputs::pull_request() };
    let plan = of(&without, &[BUILDS, PREVIEW, TESTS]);
    assert!(tests(&plan).is_empty() && plan.skipped.is_empty(), "{plan:?}");
    let warm_up = PlanInputs { push: false, ..PlanInputs::pull_request() };
    assert!(tests(&of(&warm_up, &[BUILDS, unit])).is_empty());
}

#[test]
fn tests_of_forks_get_no_secrets() {
    let fork = PlanInputs { from_fork: true, ..PlanInputs::pull_request() };
    let plan = of(&fork, &[BUILDS, PREVIEW, TESTS]);
    assert!(tests(&plan).iter().all(|(_, test)| test.secrets.is_empty()));
}
