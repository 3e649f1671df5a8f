//! The jobs of each build, their order, and their build arguments.

use std::time::Duration;

use stagely_protocol::{Arch, Emulation, Platform};
use stagely_state::{JobKind, MachineSize, PlannedJob, UsedImage};

use crate::fixtures::{CHAIN, MATRIX, PlanInputs, cache, names, references, shop, tag, uses};

fn arg(jobs: &[PlannedJob], name: &str) -> String {
    let JobKind::Build { build_args, .. } = &jobs[0].kind else { panic!("a build comes first") };
    build_args.0[name].clone()
}

#[test]
fn a_build_of_one_platform_is_one_job_of_its_name() {
    let jobs = PlanInputs::pull_request().jobs();
    let backend = &jobs[0];
    assert_eq!((&*backend.name, &*backend.build), ("backend", "backend"));
    assert_eq!(backend.size, MachineSize::Large);
    assert_eq!(backend.timeout, Duration::from_mins(45));
    assert!(backend.needs.is_empty());
    let JobKind::Build { platform, context, dockerfile, target, .. } = &backend.kind else {
        panic!("not a build: {backend:?}")
    };
    assert_eq!(*platform, Platform(Arch::Amd64));
    assert_eq!((&**context, &**dockerfile), ("./api", "prod.Dockerfile"));
    assert_eq!(target.as_deref(), Some("runtime"));
}

#[test]
fn a_build_of_several_platforms_ends_in_a_merge_that_waits_for_them() {
    let jobs = PlanInputs::pull_request().jobs();
    assert_eq!(names(&jobs), ["backend", "app_amd64", "app_arm64", "app_merge"]);
    let merge = &jobs[3];
    assert_eq!(merge.needs, [jobs[1].id, jobs[2].id]);
    assert_eq!((merge.size, merge.timeout), (MachineSize::Small, Duration::from_mins(10)));
    let JobKind::Merge { platforms, .. } = &merge.kind else { panic!("not a merge: {merge:?}") };
    assert_eq!(platforms, &[Platform(Arch::Amd64), Platform(Arch::Arm64)]);
}

#[test]
fn each_combination_has_jobs_images_and_caches_of_its_own() {
    let plan = PlanInputs { is_default_branch: true, ..PlanInputs::pull_request() }.of(MATRIX);
    assert_eq!(
        names(&plan.jobs),
        [
            "app-node_version-18_amd64",
            "app-node_version-18_arm64",
            "app-node_version-18_merge",
            "app-node_version-3.10_amd64",
            "app-node_version-3.10_arm64",
            "app-node_version-3.10_merge",
            "tool-os-alpine_amd64",
        ]
    );
    let ten = &plan.jobs[4];
    assert_eq!((&*ten.build, ten.variant.as_str()), ("app", "app-node_version-3.10"));
    let JobKind::Build { build_args, emulation, .. } = &ten.kind else { panic!("{ten:?}") };
    assert_eq!((&*build_args.0["NODE_VERSION"], &*build_args.0["A"]), ("3.10", "b"));
    assert_eq!(*emulation, Emulation::Forbid);
    assert_eq!(references(ten).2, Some(cache("app-node_version-3..10-arm64")));
    assert_eq!(tag(&plan.jobs[5]), Some("pr-7:app-node_version-3.10"));
    assert_eq!(tag(&plan.jobs[6]), Some("pr-7:tool-os-alpine-amd64"));
    assert_eq!(references(&plan.jobs[6]).2, Some(cache("tool-os-alpine")));
}

#[test]
fn a_build_waits_for_the_last_job_of_each_variant_that_it_depends_on() {
    let plan = PlanInputs::pull_request().of(MATRIX);
    let merges = [plan.jobs[2].id, plan.jobs[5].id];
    let tool = &plan.jobs[6];
    assert_eq!(tool.needs, merges);
    let expected = ["app-node_version-18", "app-node_version-3.10"]
        .into_iter()
        .zip(merges)
        .map(|(name, job)| (name.to_owned(), UsedImage::Job { job }));
    assert_eq!(uses(tool), &expected.collect());
}

#[test]
fn a_requested_build_comes_after_the_builds_that_it_depends_on() {
    let inputs = PlanInputs { only_builds: vec!["app".into()], ..PlanInputs::pull_request() };
    let plan = inputs.of(CHAIN);
    let [base, app] =
        ["Base", "app"].map(|name| ["amd64", "arm64", "merge"].map(|job| format!("{name}_{job}")));
    assert_eq!(names(&plan.jobs), [base, app].concat());
    let base = plan.jobs[2].id;
    for job in &plan.jobs[3..5] {
        assert_eq!(job.needs, [base]);
        assert_eq!(uses(job)["base"], UsedImage::Job { job: base });
    }
    assert_eq!(plan.jobs[5].needs, [plan.jobs[3].id, plan.jobs[4].id]);
}

#[test]
fn only_the_requested_builds_are_planned() {
    let jobs = PlanInputs { only_builds: vec!["app".into()], ..PlanInputs::pull_request() }.jobs();
    assert_eq!(names(&jobs), ["app_amd64", "app_arm64", "app_merge"]);
}

#[test]
fn unknown_builds_are_named_with_suggestions() {
    let only_builds = vec!["bakend".into(), "app".into(), "web".into()];
    let error = PlanInputs { only_builds, ..PlanInputs::pull_request() }.plan(&shop()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "unknown builds: `bakend` (did you mean `backend`?), `web`; there are `backend` and `app`"
    );
}

#[test]
fn variables_are_filled_in() {
    let inputs = PlanInputs::pull_request();
    let jobs = inputs.jobs();
    assert_eq!(arg(&jobs, "VERSION"), format!("{}+feature/new-api", "a".repeat(40)));
    assert_eq!(arg(&jobs, "PR"), "7");
    assert_eq!(arg(&jobs, "PROJECT"), inputs.project.id.to_string());
    assert_eq!(arg(&jobs, "LITERAL"), "${BRANCH}");
}

#[test]
fn unknown_values_are_empty() {
    let jobs = PlanInputs { branch: None, pull_request: None, ..PlanInputs::pull_request() }.jobs();
    assert_eq!(arg(&jobs, "VERSION"), format!("{}+", "a".repeat(40)));
    assert_eq!(arg(&jobs, "PR"), "");
}

#[test]
fn the_hash_follows_project_environment_and_commit_and_nothing_else() {
    let hash = |inputs: PlanInputs| arg(&inputs.jobs(), "HASH");
    let first = hash(PlanInputs::pull_request());
    assert!(first.len() == 12 && first.bytes().all(|byte| byte.is_ascii_hexdigit()), "{first}");
    let unchanged = PlanInputs { branch: None, from_fork: true, ..PlanInputs::pull_request() };
    assert_eq!(hash(unchanged), first);
    let commit = "b".repeat(40).parse().unwrap();
    assert_ne!(hash(PlanInputs { commit, ..PlanInputs::pull_request() }), first);
    let mut other = PlanInputs::pull_request();
    other.environment.name = "pr-8".into();
    assert_ne!(hash(other), first);
}
