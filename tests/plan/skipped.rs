//! Builds that are skipped, and the images that stand in for them.

use stagely::core::plan::Plan;
use stagely_state::{JobKind, SkipReason, UsedImage};

use crate::fixtures::{CHAIN, PlanInputs, commit, good, names, uses};

/// Each skipped variant, with a short form of its reason.
fn skipped(plan: &Plan) -> Vec<(String, String)> {
    let reason = |reason: &SkipReason| match reason {
        SkipReason::PathsUnchanged { base, image, .. } => format!("{base} {image}"),
        SkipReason::Branch { branch } => format!("branch {}", branch.as_deref().unwrap_or("?")),
        SkipReason::NoImage { build } => format!("no image of {build}"),
        SkipReason::NoPreview => "no preview".to_owned(),
    };
    plan.skipped
        .iter()
        .map(|skipped| (skipped.variant.to_string(), reason(&skipped.reason)))
        .collect()
}

#[test]
fn a_build_is_skipped_if_none_of_its_inputs_changed() {
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

    // The build that it depends on is skipped, and its image is used.
    let plan = inputs(&["app/x"], &["app/x"]).of(CHAIN);
    assert_eq!(names(&plan.jobs), ["app_amd64", "app_arm64", "app_merge", "docs"]);
    assert_eq!(uses(&plan.jobs[0])["base"], UsedImage::Image { image: good().parse().unwrap() });
    assert!(plan.jobs[0].needs.is_empty());

    let base_of = ["Base_amd64", "Base_arm64", "Base_merge"];
    let all = [&base_of[..], &["app_amd64", "app_arm64", "app_merge", "docs"]].concat();
    // A file or submodule of the build that it depends on has changed, or a file that counts for all builds.
    for change in ["base/x", "base/lib/", "stagely.yaml", ".gitmodules"] {
        assert_eq!(names(&inputs(&[change], &[]).of(CHAIN).jobs), all, "{change}");
    }
    // Its image was built at an older commit than the base, and its own files or those of `Base` have changed since.
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
fn other_branches_skip_a_build_and_those_that_lack_its_image() {
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
        assert!(foreign.of(text).jobs.is_empty(), "its author chooses the name of its branch");
    }
    let plan = on(Some("x")).with_image("lib", &commit('b')).of(text);
    assert_eq!(names(&plan.jobs), ["app", "end"]);
    assert_eq!(uses(&plan.jobs[0])["lib"], UsedImage::Image { image: good().parse().unwrap() });
}

#[test]
fn a_warm_up_pushes_nothing_and_uses_existing_images() {
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
