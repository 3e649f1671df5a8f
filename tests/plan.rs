//! From `stagely.yaml` to the jobs of a run.

#![expect(clippy::unwrap_used, reason = "the allowance for tests does not reach their helpers")]

use std::collections::BTreeSet;
use std::time::Duration;

use proptest::prelude::*;
use stagely::core::plan::{PlanContext, PlanError, plan};
use stagely::core::state::{Environment, JobKind, MachineSize, PlannedJob, Project};
use stagely::ids::{EnvironmentId, JobId, ProjectId};
use stagely::manifest::{Manifest, parse};
use stagely_agent::protocol::{Arch, CommitSha, Platform};

const SHOP: &str = "\
builds:
  backend:
    context: ./api
    dockerfile: prod.Dockerfile
    machine: large
    target: runtime
    timeout: 45m
    cache_from: [registry.internal/base:cache]
    build_args:
      VERSION: ${COMMIT_HASH}+${BRANCH}
      PR: '${PR_NUMBER}'
      PROJECT: ${PROJECT_ID}
      HASH: ${STAGELY_HASH}
      LITERAL: $${BRANCH}
  app:
    context: .
    platforms: [linux/amd64, linux/arm64]
";

/// What a plan is made from; tests change what they are about.
struct Given {
    registry: &'static str,
    project: Project,
    environment: Environment,
    commit: CommitSha,
    branch: Option<&'static str>,
    pull_request: Option<u64>,
    from_fork: bool,
    only_builds: Vec<String>,
}

impl Given {
    fn pull_request() -> Self {
        let project = ProjectId::from_bits(1);
        Self {
            registry: "registry.internal",
            project: Project { id: project, name: "shop".into(), repository: String::new() },
            environment: Environment::new(EnvironmentId::from_bits(2), project, "pr-7".into()),
            commit: "a".repeat(40).parse().unwrap(),
            branch: Some("feature/new-api"),
            pull_request: Some(7),
            from_fork: false,
            only_builds: Vec::new(),
        }
    }

    fn plan(&self, manifest: &Manifest) -> Result<Vec<PlannedJob>, PlanError> {
        let context = PlanContext {
            registry: self.registry,
            project: &self.project,
            environment: &self.environment,
            commit: &self.commit,
            branch: self.branch,
            pull_request: self.pull_request,
            from_fork: self.from_fork,
            only_builds: &self.only_builds,
        };
        let mut ids = 0;
        plan(manifest, &context, &mut || {
            ids += 1;
            JobId::from_bits(ids)
        })
    }

    fn jobs(&self) -> Vec<PlannedJob> {
        self.plan(&shop()).unwrap()
    }
}

fn shop() -> Manifest {
    parse("stagely.yaml", SHOP.as_bytes()).unwrap()
}

fn names(jobs: &[PlannedJob]) -> Vec<&str> {
    jobs.iter().map(|job| &*job.name).collect()
}

/// The image, the places of the cache, and where the cache goes.
fn references(job: &PlannedJob) -> (String, Vec<String>, Option<String>) {
    match &job.kind {
        JobKind::Build { image, cache_from, cache_to, .. } => (
            image.to_string(),
            cache_from.iter().map(ToString::to_string).collect(),
            cache_to.as_ref().map(ToString::to_string),
        ),
        JobKind::Merge { image, .. } => (image.to_string(), Vec::new(), None),
    }
}

fn arg(jobs: &[PlannedJob], name: &str) -> String {
    let JobKind::Build { build_args, .. } = &jobs[0].kind else { panic!("a build comes first") };
    build_args.0[name].clone()
}

#[test]
fn a_build_of_one_platform_is_one_job_of_its_name() {
    let jobs = Given::pull_request().jobs();
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
    let jobs = Given::pull_request().jobs();
    assert_eq!(names(&jobs), ["backend", "app_amd64", "app_arm64", "app_merge"]);
    let merge = &jobs[3];
    assert_eq!(merge.needs, [jobs[1].id, jobs[2].id]);
    assert_eq!((merge.size, merge.timeout), (MachineSize::Small, Duration::from_mins(10)));
    let JobKind::Merge { platforms, .. } = &merge.kind else { panic!("not a merge: {merge:?}") };
    assert_eq!(platforms, &[Platform(Arch::Amd64), Platform(Arch::Arm64)]);
}

#[test]
fn references_name_project_environment_build_and_arch() {
    let jobs = Given::pull_request().jobs();
    let cache = |tag: &str| format!("registry.internal/shop/cache:{tag}");
    assert_eq!(
        references(&jobs[0]),
        (
            "registry.internal/shop/pr-7:backend-amd64".into(),
            vec![cache("backend"), "registry.internal/base:cache".into()],
            Some(cache("backend")),
        )
    );
    assert_eq!(
        references(&jobs[2]),
        (
            "registry.internal/shop/pr-7:app-arm64".into(),
            vec![cache("app-arm64")],
            Some(cache("app-arm64")),
        )
    );
    assert_eq!(references(&jobs[3]).0, "registry.internal/shop/pr-7:app");
}

#[test]
fn a_fork_reads_caches_and_never_writes_them() {
    let jobs = Given { from_fork: true, ..Given::pull_request() }.jobs();
    let (_, from, to) = references(&jobs[0]);
    assert_eq!(from[0], "registry.internal/shop/cache:backend");
    assert_eq!(to, None);
}

#[test]
fn variables_are_filled_in() {
    let given = Given::pull_request();
    let jobs = given.jobs();
    assert_eq!(arg(&jobs, "VERSION"), format!("{}+feature/new-api", "a".repeat(40)));
    assert_eq!(arg(&jobs, "PR"), "7");
    assert_eq!(arg(&jobs, "PROJECT"), given.project.id.to_string());
    assert_eq!(arg(&jobs, "LITERAL"), "${BRANCH}");
}

#[test]
fn what_is_not_known_is_empty() {
    let jobs = Given { branch: None, pull_request: None, ..Given::pull_request() }.jobs();
    assert_eq!(arg(&jobs, "VERSION"), format!("{}+", "a".repeat(40)));
    assert_eq!(arg(&jobs, "PR"), "");
}

#[test]
fn the_hash_follows_project_environment_and_commit_and_nothing_else() {
    let hash = |given: Given| arg(&given.jobs(), "HASH");
    let first = hash(Given::pull_request());
    assert!(first.len() == 12 && first.bytes().all(|byte| byte.is_ascii_hexdigit()), "{first}");
    let unchanged = Given { branch: None, from_fork: true, ..Given::pull_request() };
    assert_eq!(hash(unchanged), first);
    let commit = "b".repeat(40).parse().unwrap();
    assert_ne!(hash(Given { commit, ..Given::pull_request() }), first);
    let mut other = Given::pull_request();
    other.environment.name = "pr-8".into();
    assert_ne!(hash(other), first);
}

#[test]
fn only_the_builds_asked_for_are_planned() {
    let jobs = Given { only_builds: vec!["app".into()], ..Given::pull_request() }.jobs();
    assert_eq!(names(&jobs), ["app_amd64", "app_arm64", "app_merge"]);
}

#[test]
fn unknown_builds_are_named_with_what_was_meant() {
    let only_builds = vec!["bakend".into(), "app".into(), "web".into()];
    let error = Given { only_builds, ..Given::pull_request() }.plan(&shop()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "unknown builds: `bakend` (did you mean `backend`?), `web`; there are `backend` and `app`"
    );
}

#[test]
fn names_that_make_no_reference_are_refused() {
    for name in ["", "Shop", "a/b", "a b", "-a", "a--b", "é"] {
        let mut given = Given::pull_request();
        given.project.name = name.into();
        assert!(matches!(given.plan(&shop()), Err(PlanError::BadName { what: "project", .. })));
    }
    let mut given = Given::pull_request();
    given.environment.name = "cache".into();
    assert_eq!(given.plan(&shop()), Err(PlanError::ReservedName));
    let given = Given { registry: "--evil", ..Given::pull_request() };
    assert!(matches!(given.plan(&shop()), Err(PlanError::BadRegistry(_))));
}

proptest! {
    /// Two jobs that push the same reference would overwrite each other.
    #[test]
    fn no_two_jobs_share_a_name_or_a_reference(
        builds in prop::collection::vec(("(a|b|A)([_-](amd64|arm64|merge)){0,2}", 0..3_usize), 1..6)
    ) {
        let platforms = ["[linux/amd64]", "[linux/arm64]", "[linux/amd64, linux/arm64]"];
        let lines: Vec<_> = builds
            .iter()
            .map(|(name, index)| format!("  {name}: {{context: ., platforms: {}}}\n", platforms[*index]))
            .collect();
        let text = lines.concat();
        if let Ok(manifest) = parse("", format!("builds:\n{text}").as_bytes()) {
            let jobs = Given::pull_request().plan(&manifest).unwrap();
            let (mut names, mut images, mut caches) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
            for job in &jobs {
                let (image, _, cache) = references(job);
                prop_assert!(names.insert(job.name.to_lowercase()), "{}", text);
                prop_assert!(images.insert(image), "{}", text);
                prop_assert!(cache.is_none_or(|cache| caches.insert(cache)), "{}", text);
                prop_assert!(job.needs.iter().all(|id| jobs.iter().any(|other| other.id == *id)));
            }
        }
    }
}
