//! The references that jobs push, the caches that they read and write, and the names in them.

use std::collections::BTreeSet;

use proptest::prelude::*;
use stagely::core::plan::PlanError;
use stagely_manifest::parse;

use crate::fixtures::{PlanInputs, cache, references, shop, tag};

/// The id of the planned run, as a part of tags.
const RUN: &str = "00000000000000000000000003";

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
    // Even if its branch has the name of the default branch.
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
fn an_environments_own_cache_never_has_the_name_of_a_shared_one() {
    let text = |values| format!("builds: {{py: {{context: ., matrix: {{V: [{values}]}}}}}}");
    let mut inputs = PlanInputs::pull_request();
    inputs.environment.name = "10".into();
    let own = references(&inputs.of(&text("3")).jobs[0]).2;
    assert_eq!(own, Some(cache("py-v-3.10")));
    let shared = PlanInputs { is_default_branch: true, ..inputs }.of(&text("3.10"));
    assert_eq!(references(&shared.jobs[0]).2, Some(cache("py-v-3..10")));
}

#[test]
fn names_that_do_not_fit_a_reference_are_refused() {
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
