//! From `stagely.yaml` to the jobs of a run.

#![expect(clippy::unwrap_used, reason = "the allowance for tests does not reach their helpers")]

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use proptest::prelude::*;
use stagely::core::plan::{Base, Plan, PlanContext, PlanError, plan};
use stagely_manifest::{Manifest, parse};
use stagely_protocol::{Arch, CommitSha, Emulation, Platform};
use stagely_state::ids::{EnvironmentId, JobId, ProjectId, RunId};
use stagely_state::{
    Environment, GoodImage, JobKind, MachineSize, PlannedJob, Project, SkipReason, UsedImage,
    VariantName,
};

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
struct PlanInputs {
    registry: &'static str,
    project: Project,
    environment: Environment,
    commit: CommitSha,
    branch: Option<&'static str>,
    pull_request: Option<u64>,
    from_fork: bool,
    is_default_branch: bool,
    push: bool,
    only_builds: Vec<String>,
    good_images: BTreeMap<VariantName, GoodImage>,
    base: Option<Base>,
}

impl PlanInputs {
    fn pull_request() -> Self {
        let project = ProjectId::from_bits(1);
        Self {
            registry: "registry.internal",
            project: Project::new(project, "shop".into(), String::new()),
            environment: Environment::new(EnvironmentId::from_bits(2), project, "pr-7".into()),
            commit: "a".repeat(40).parse().unwrap(),
            branch: Some("feature/new-api"),
            pull_request: Some(7),
            from_fork: false,
            is_default_branch: false,
            push: true,
            only_builds: Vec::new(),
            good_images: BTreeMap::new(),
            base: None,
        }
    }

    /// A commit of `main`, and what differs from it and from every image's commit.
    fn compared(mut self, changed: &[(&CommitSha, &[&str])]) -> Self {
        let paths = |paths: &[&str]| paths.iter().map(|path| (*path).to_owned()).collect();
        let changed =
            changed.iter().map(|(commit, changed)| ((*commit).clone(), paths(changed))).collect();
        self.base = Some(Base { name: "main".into(), commit: commit('b'), changed });
        self
    }

    /// A good image of `main`, of `commit`.
    fn with_image(mut self, variant: &str, commit: &CommitSha) -> Self {
        let digest = format!("sha256:{}", "d".repeat(64));
        let tag = format!("registry.internal/shop/main:{variant}");
        let image = GoodImage {
            run: RunId::from_bits(5),
            commit: commit.clone(),
            image: format!("{tag}.5").parse().unwrap(),
            digest: digest.parse().unwrap(),
            tag: tag.parse().unwrap(),
            with_set: false,
        };
        self.good_images.insert(variant.into(), image);
        self
    }

    fn of(&self, text: &str) -> Plan {
        let manifest =
            parse("stagely.yaml", text.as_bytes()).unwrap_or_else(|problems| panic!("{problems}"));
        self.plan(&manifest).unwrap()
    }

    fn plan(&self, manifest: &Manifest) -> Result<Plan, PlanError> {
        let context = PlanContext {
            registry: self.registry,
            project: &self.project,
            environment: &self.environment,
            run: RunId::from_bits(3),
            commit: &self.commit,
            branch: self.branch,
            is_default_branch: self.is_default_branch,
            push: self.push,
            pull_request: self.pull_request,
            from_fork: self.from_fork,
            only_builds: &self.only_builds,
            good_images: &self.good_images,
            base: self.base.as_ref(),
        };
        let mut ids = 0;
        plan(manifest, &context, &mut || {
            ids += 1;
            JobId::from_bits(ids)
        })
    }

    fn jobs(&self) -> Vec<PlannedJob> {
        self.plan(&shop()).unwrap().jobs
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

/// The id of the run that is planned, as a part of tags.
const RUN: &str = "00000000000000000000000003";

fn cache(tag: &str) -> String {
    format!("registry.internal/shop/cache:{tag}")
}

fn tag(job: &PlannedJob) -> Option<&str> {
    job.tag.as_ref().map(|tag| tag.as_str().strip_prefix("registry.internal/shop/").unwrap())
}

#[test]
fn each_run_pushes_references_of_its_own_and_its_last_jobs_have_one_for_all_runs() {
    let jobs = PlanInputs::pull_request().jobs();
    let pushed: Vec<_> = jobs.iter().map(|job| references(job).0).collect();
    let image = |tag: &str| format!("registry.internal/shop/pr-7:{tag}.{RUN}");
    assert_eq!(
        pushed,
        [image("backend-amd64"), image("app-amd64"), image("app-arm64"), image("app")]
    );
    let tags: Vec<_> = jobs.iter().map(tag).collect();
    assert_eq!(tags, [Some("pr-7:backend-amd64"), None, None, Some("pr-7:app")]);
}

#[test]
fn an_environment_fills_a_cache_of_its_own_and_reads_the_shared_one() {
    let plan = PlanInputs::pull_request().plan(&shop()).unwrap();
    let (_, from, to) = references(&plan.jobs[0]);
    let own = cache("backend.pr-7");
    assert_eq!(from, [&*own, &*cache("backend"), "registry.internal/base:cache"]);
    assert_eq!(to, Some(own.clone()));
    let (_, from, to) = references(&plan.jobs[2]);
    assert_eq!(from, [cache("app-arm64.pr-7"), cache("app-arm64")]);
    assert_eq!(to, Some(cache("app-arm64.pr-7")));
    let own_refs: Vec<_> = plan.own_cache_refs.iter().map(ToString::to_string).collect();
    assert_eq!(own_refs, [cache("app-amd64.pr-7"), cache("app-arm64.pr-7"), own]);
}

#[test]
fn the_default_branch_and_warm_ups_fill_the_shared_cache() {
    for (is_default_branch, push) in [(true, true), (false, false)] {
        let plan =
            PlanInputs { is_default_branch, push, ..PlanInputs::pull_request() }.plan(&shop());
        let plan = plan.unwrap();
        let (_, from, to) = references(&plan.jobs[0]);
        assert_eq!(from, [&*cache("backend"), "registry.internal/base:cache"]);
        assert_eq!(to, Some(cache("backend")));
        assert!(plan.own_cache_refs.is_empty());
    }
}

#[test]
fn a_fork_reads_caches_and_never_writes_them() {
    // Also where somebody takes its branch for the default one.
    for is_default_branch in [false, true] {
        let inputs =
            PlanInputs { from_fork: true, is_default_branch, ..PlanInputs::pull_request() };
        let plan = inputs.plan(&shop()).unwrap();
        let (_, from, to) = references(&plan.jobs[0]);
        assert_eq!(from[0], cache("backend"));
        assert_eq!(to, None);
        assert!(plan.own_cache_refs.is_empty());
    }
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
fn what_is_not_known_is_empty() {
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

#[test]
fn only_the_requested_builds_are_planned() {
    let jobs = PlanInputs { only_builds: vec!["app".into()], ..PlanInputs::pull_request() }.jobs();
    assert_eq!(names(&jobs), ["app_amd64", "app_arm64", "app_merge"]);
}

#[test]
fn unknown_builds_are_named_with_what_was_meant() {
    let only_builds = vec!["bakend".into(), "app".into(), "web".into()];
    let error = PlanInputs { only_builds, ..PlanInputs::pull_request() }.plan(&shop()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "unknown builds: `bakend` (did you mean `backend`?), `web`; there are `backend` and `app`"
    );
}

#[test]
fn names_that_make_no_reference_are_refused() {
    for name in ["", "Shop", "a/b", "a b", "-a", "a--b", "é"] {
        let mut inputs = PlanInputs::pull_request();
        inputs.project.name = name.into();
        assert!(matches!(inputs.plan(&shop()), Err(PlanError::BadName { what: "project", .. })));
    }
    let mut inputs = PlanInputs::pull_request();
    inputs.environment.name = "cache".into();
    assert!(matches!(inputs.plan(&shop()), Err(PlanError::ReservedName)));
    let inputs = PlanInputs { registry: "--evil", ..PlanInputs::pull_request() };
    assert!(matches!(inputs.plan(&shop()), Err(PlanError::BadRegistry(_))));
}

fn commit(digit: char) -> CommitSha {
    digit.to_string().repeat(40).parse().unwrap()
}

/// Each skipped variant, with its reason in a word.
fn skipped(plan: &Plan) -> Vec<(String, String)> {
    let reason = |reason: &SkipReason| match reason {
        SkipReason::PathsUnchanged { base, image, .. } => format!("{base} {image}"),
        SkipReason::Branch { branch } => format!("branch {}", branch.as_deref().unwrap_or("?")),
        SkipReason::NoImage { build } => format!("no image of {build}"),
    };
    plan.skipped
        .iter()
        .map(|skipped| (skipped.variant.to_string(), reason(&skipped.reason)))
        .collect()
}

/// A good image of `main`, by digest.
fn good() -> String {
    format!("registry.internal/shop/main@sha256:{}", "d".repeat(64))
}

fn uses(job: &PlannedJob) -> &BTreeMap<String, UsedImage> {
    let JobKind::Build { uses, .. } = &job.kind else { panic!("not a build: {job:?}") };
    uses
}

const MATRIX: &str = "\
builds:
  app:
    context: .
    platforms: [linux/amd64, linux/arm64]
    emulation: forbid
    build_args: {A: b}
    matrix: {NODE_VERSION: [18, 3.10]}
  tool: {context: ., matrix: {OS: [Alpine]}, depends_on: [app]}
";

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

const CHAIN: &str = "\
builds:
  app: {context: app, paths: [app], depends_on: [Base], platforms: [linux/amd64, linux/arm64]}
  Base: {context: base, paths: [base], platforms: [linux/amd64, linux/arm64]}
  docs: {context: docs}
";

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
fn a_build_is_skipped_if_nothing_that_it_is_made_of_changed() {
    let (base, old) = (commit('b'), commit('c'));
    let inputs = |since_base: &[&str], since_old: &[&str]| {
        PlanInputs::pull_request()
            .with_image("app", &old)
            .with_image("Base", &base)
            .compared(&[(&base, since_base), (&old, since_old)])
    };

    let plan = inputs(&["docs/x"], &["docs/y"]).of(CHAIN);
    assert_eq!(names(&plan.jobs), ["docs"]);
    let reason = format!("main {}", good());
    assert_eq!(skipped(&plan), [("Base".into(), reason.clone()), ("app".into(), reason)]);

    // What it depends on is skipped: its image is used.
    let plan = inputs(&["app/x"], &["app/x"]).of(CHAIN);
    assert_eq!(names(&plan.jobs), ["app_amd64", "app_arm64", "app_merge", "docs"]);
    assert_eq!(uses(&plan.jobs[0])["base"], UsedImage::Image { image: good().parse().unwrap() });
    assert!(plan.jobs[0].needs.is_empty());

    let base_of = ["Base_amd64", "Base_arm64", "Base_merge"];
    let all = [&base_of[..], &["app_amd64", "app_arm64", "app_merge", "docs"]].concat();
    // What it depends on changed, a submodule in it too; so did what counts for all.
    for change in ["base/x", "base/lib/", "stagely.yaml", ".gitmodules"] {
        assert_eq!(names(&inputs(&[change], &[]).of(CHAIN).jobs), all, "{change}");
    }
    // Its image is older than the base, or than what it depends on.
    for change in ["app/x", "base/x"] {
        let plan = inputs(&[], &[change]).of(CHAIN);
        assert_eq!(names(&plan.jobs), ["app_amd64", "app_arm64", "app_merge", "docs"], "{change}");
    }
}

#[test]
fn builds_that_cannot_be_compared_or_have_no_image_are_made() {
    let base = commit('b');
    let text = "builds: {a: {context: ., paths: [a], matrix: {X: [1, 2]}}}";
    let one = || PlanInputs::pull_request().with_image("a-x-1", &base);
    let both = || one().with_image("a-x-2", &base);
    let count = |inputs: PlanInputs| inputs.of(text).jobs.len();
    assert_eq!(count(both().compared(&[(&base, &["b"])])), 0);
    assert_eq!(count(one().compared(&[(&base, &["b"])])), 2);
    assert_eq!(count(both().compared(&[])), 2);
    assert_eq!(count(both()), 2);
    let asked = PlanInputs { only_builds: vec!["a".into()], ..both() };
    assert_eq!(count(asked.compared(&[(&base, &[])])), 2);
}

#[test]
fn no_environments_own_cache_is_what_all_share_at_another_commit() {
    let text = |values| format!("builds: {{py: {{context: ., matrix: {{V: [{values}]}}}}}}");
    let mut inputs = PlanInputs::pull_request();
    inputs.environment.name = "10".into();
    let own = references(&inputs.of(&text("3")).jobs[0]).2;
    assert_eq!(own, Some(cache("py-v-3.10")));
    let shared = PlanInputs { is_default_branch: true, ..inputs }.of(&text("3.10"));
    assert_eq!(references(&shared.jobs[0]).2, Some(cache("py-v-3..10")));
}

#[test]
fn other_branches_skip_a_build_and_what_has_no_image_of_it() {
    let text = "builds:\n  lib: {context: ., only_branches: [main, release/*]}\n  \
                app: {context: ., depends_on: [lib]}\n  end: {context: ., depends_on: [app]}\n";
    let on = |branch| PlanInputs { branch, pull_request: None, ..PlanInputs::pull_request() };
    for branch in ["main", "release/1"] {
        assert_eq!(names(&on(Some(branch)).of(text).jobs), ["lib", "app", "end"]);
    }
    for (branch, reason) in [(None, "branch ?"), (Some("x/main"), "branch x/main")] {
        let plan = on(branch).of(text);
        assert!(plan.jobs.is_empty());
        let expected = [("lib", reason), ("app", "no image of lib"), ("end", "no image of app")];
        assert_eq!(skipped(&plan), expected.map(|(name, reason)| (name.into(), reason.into())));
    }
    let fork = PlanInputs { from_fork: true, ..on(Some("main")) };
    let pull_request = PlanInputs { pull_request: Some(7), ..on(Some("main")) };
    for foreign in [fork, pull_request] {
        assert!(foreign.of(text).jobs.is_empty(), "whoever makes it names its branch");
    }
    let plan = on(Some("x")).with_image("lib", &commit('b')).of(text);
    assert_eq!(names(&plan.jobs), ["app", "end"]);
    assert_eq!(uses(&plan.jobs[0])["lib"], UsedImage::Image { image: good().parse().unwrap() });
}

#[test]
fn a_warm_up_pushes_nothing_and_uses_what_is_there() {
    let inputs = PlanInputs { push: false, ..PlanInputs::pull_request() };
    let plan = inputs.of(CHAIN);
    assert_eq!(names(&plan.jobs), ["Base_amd64", "Base_arm64", "docs"]);
    assert_eq!(skipped(&plan), [("app".into(), "no image of Base".into())]);

    let inputs =
        PlanInputs { push: false, ..PlanInputs::pull_request() }.with_image("Base", &commit('b'));
    let plan = inputs.compared(&[(&commit('b'), &[])]).of(CHAIN);
    assert_eq!(names(&plan.jobs), ["Base_amd64", "Base_arm64", "app_amd64", "app_arm64", "docs"]);
    for job in &plan.jobs {
        let JobKind::Build { push, cache_to, .. } = &job.kind else { panic!("{job:?}") };
        assert!(!push && job.tag.is_none() && job.needs.is_empty() && cache_to.is_some());
    }
    assert!(matches!(uses(&plan.jobs[2])["base"], UsedImage::Image { .. }));
}

#[test]
fn the_longest_names_fit_a_tag() {
    let name = "n".repeat(94);
    let mut inputs = PlanInputs::pull_request();
    inputs.environment.name = "e".repeat(100);
    let plan = inputs
        .of(&format!("builds: {{{name}: {{context: ., platforms: [linux/amd64, linux/arm64]}}}}"));
    for job in &plan.jobs {
        let (image, _, cache) = references(job);
        for reference in [Some(image), cache].into_iter().flatten() {
            let (_, tag) = reference.rsplit_once(':').unwrap();
            assert!(tag.len() <= 128, "{tag}");
        }
    }
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
            let jobs = PlanInputs::pull_request().plan(&manifest).unwrap().jobs;
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
