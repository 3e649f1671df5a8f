//! Rebuilds that reuse completed jobs.

use super::*;

struct Pair {
    builds: [PlannedJob; 2],
    merge: PlannedJob,
}

impl Pair {
    /// Names as in every plan of the same file; the images are each run's own.
    fn planned(core: &mut Core, run: RunId) -> Self {
        let image = |name: &str| format!("registry/{name}:{run}").parse().unwrap();
        let mut builds = [core.build(Arch::Amd64), core.build(Arch::Arm64)];
        for (build, name) in builds.iter_mut().zip(["app_amd64", "app_arm64"]) {
            build.name = name.to_owned();
            *build.kind.image_mut().unwrap() = image(name);
        }
        let mut merge = core.merge(&[&builds[0], &builds[1]]);
        merge.name = "app_merge".to_owned();
        merge.tag = Some("registry/app:latest".parse().unwrap());
        *merge.kind.image_mut().unwrap() = image("app");
        let pair = Self { builds, merge };
        let [one, other] = pair.builds.clone();
        core.plan(run, &[one, other, pair.merge.clone()]);
        pair
    }
}

/// Reports `outcome` of a job that has a machine.
fn end(core: &mut Core, job: &PlannedJob, outcome: JobOutcome) {
    let machine = core.machine_of(job.id);
    core.step(Event::MachineLaunched { machine, placement: None });
    if core.state.machines[&machine].system_info.is_none() {
        core.connect(machine, &[]);
    }
    core.report(machine, job.id, 1, outcome);
}

/// A run of two platforms of which the second failed.
fn half_done(core: &mut Core) -> (RunId, Pair) {
    let run = core.request(1);
    let pair = Pair::planned(core, run);
    end(core, &pair.builds[0], pushed("a"));
    end(core, &pair.builds[1], users_fault());
    assert_eq!(core.run_state(run), &RunState::Failed { plan_error: None });
    (run, pair)
}

fn rebuild(core: &mut Core, reuses: RunId) -> (RunId, Pair) {
    let original = core.state.runs[&reuses].original();
    let run = core.request_as(1, |run| {
        run.trigger = Trigger::Rebuild;
        run.rebuilds = Some(original);
        run.reuses = Some(reuses);
    });
    let pair = Pair::planned(core, run);
    (run, pair)
}

#[test]
fn completed_jobs_are_reused_and_failed_ones_run_again() {
    let mut core = both(5);
    let (first, old) = half_done(&mut core);

    let (_, new) = rebuild(&mut core, first);

    let reused = &core.state.jobs[&new.builds[0].id];
    assert_eq!(reused.state, JobState::Completed { digest: Some(digest("a")) });
    assert_eq!(reused.reused_from, Some(old.builds[0].id));
    assert_eq!(reused.kind.image(), old.builds[0].kind.image(), "it is where it was pushed");
    assert!(matches!(core.job_state(new.builds[1].id), JobState::Provisioning { .. }));
    assert_eq!(core.job_state(new.merge.id), &JobState::Queued { attempt: 1 });
}

#[test]
fn a_job_that_is_reused_twice_names_the_job_that_was_built() {
    let mut core = both(5);
    let (first, old) = half_done(&mut core);
    let (second, new) = rebuild(&mut core, first);
    end(&mut core, &new.builds[1], users_fault());

    let (_, newest) = rebuild(&mut core, second);

    assert_eq!(core.state.jobs[&newest.builds[0].id].reused_from, Some(old.builds[0].id));
}

#[test]
fn a_run_with_only_reused_jobs_completes_when_its_tag_is_moved() {
    let mut core = both(5);
    let (first, _) = half_done(&mut core);
    let (second, new) = rebuild(&mut core, first);
    end(&mut core, &new.builds[1], pushed("b"));
    end(&mut core, &new.merge, pushed("c"));
    let answer = Event::ImageTagged {
        environment: EnvironmentId::from_bits(1),
        variant: "app".into(),
        digest: digest("c"),
        result: Ok(()),
    };
    core.step(answer.clone());
    assert_eq!(core.run_state(second), &RunState::Completed);

    let (third, newest) = rebuild(&mut core, second);
    assert!(matches!(core.job_state(newest.merge.id), JobState::Completed { .. }));
    assert_eq!(core.run_state(third), &RunState::Building, "its tag is yet to be moved");
    core.step(answer);

    assert_eq!(core.run_state(third), &RunState::Completed);
}

#[test]
fn a_merge_runs_again_if_one_of_its_builds_does() {
    let mut core = both(5);
    let (first, _) = half_done(&mut core);
    let (second, new) = rebuild(&mut core, first);
    end(&mut core, &new.builds[1], pushed("b"));
    end(&mut core, &new.merge, pushed("c"));
    // What a build that changed its name looks like.
    let old = new.builds[0].id;
    core.state.change_job(old, |job| "other".clone_into(&mut job.name));

    let (_, newest) = rebuild(&mut core, second);

    assert!(matches!(core.job_state(newest.builds[0].id), JobState::Provisioning { .. }));
    assert!(matches!(core.job_state(newest.builds[1].id), JobState::Completed { .. }));
    assert_eq!(core.job_state(newest.merge.id), &JobState::Queued { attempt: 1 });
}

#[test]
fn no_job_is_reused_of_another_commit_or_without_a_digest() {
    let mut core = both(5);
    let (first, old) = half_done(&mut core);
    core.state.change_run(first, |run| run.commit = Some("d".repeat(40).parse().unwrap()));
    let (second, new) = rebuild(&mut core, first);
    assert!(matches!(core.job_state(new.builds[0].id), JobState::Provisioning { .. }));
    core.cancel(second);
    core.state.change_run(first, |run| run.commit = Some("c".repeat(40).parse().unwrap()));
    core.state.change_job(old.builds[0].id, |job| job.state = JobState::Completed { digest: None });

    let (_, new) = rebuild(&mut core, first);

    assert!(core.state.jobs[&new.builds[0].id].reused_from.is_none());
}

/// A run of `base` and of `app`, which uses the images given and that of `base`.
fn planned_on(core: &mut Core, run: RunId, image: &str) -> [PlannedJob; 2] {
    let (mut base, mut app) = (core.build(Arch::Amd64), core.build(Arch::Amd64));
    "base".clone_into(&mut base.name);
    "app".clone_into(&mut app.name);
    app.needs = vec![base.id];
    let JobKind::Build { uses, .. } = &mut app.kind else { unreachable!() };
    uses.insert("base".to_owned(), UsedImage::Job { job: base.id });
    uses.insert("tools".to_owned(), UsedImage::Image { image: image.parse().unwrap() });
    core.plan(run, &[app.clone(), base.clone()]);
    [base, app]
}

#[test]
fn a_build_is_reused_only_if_it_uses_the_same_images() {
    let mut core = amd64(5);
    let first = core.request(1);
    let [base, app] = planned_on(&mut core, first, "registry/tools:1");
    end(&mut core, &base, pushed("a"));
    end(&mut core, &app, pushed("b"));
    let again = |core: &mut Core, image: &str| {
        let run = core.request_as(1, |run| run.reuses = Some(first));
        planned_on(core, run, image).map(|job| core.state.jobs[&job.id].reused_from)
    };

    let same = again(&mut core, "registry/tools:1");
    let other = again(&mut core, "registry/tools:2");

    assert_eq!(same, [Some(base.id), Some(app.id)]);
    assert_eq!(other, [Some(base.id), None]);
}

#[test]
fn a_build_that_pushes_no_image_is_never_reused() {
    let mut core = both(5);
    let (first, _) = half_done(&mut core);
    let run = core.request_as(1, |run| run.reuses = Some(first));
    let mut build = core.build(Arch::Amd64);
    "app_amd64".clone_into(&mut build.name);
    let JobKind::Build { push, .. } = &mut build.kind else { unreachable!() };
    *push = false;

    core.plan(run, std::slice::from_ref(&build));

    assert!(matches!(core.job_state(build.id), JobState::Provisioning { .. }));
}

#[test]
fn a_plan_without_jobs_completes_the_run_at_once() {
    let mut core = amd64(1);
    let run = core.request(1);

    core.plan(run, &[]);

    assert_eq!(core.run_state(run), &RunState::Completed);
}
