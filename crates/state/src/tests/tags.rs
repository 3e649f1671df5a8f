//! Run-independent references: only the environment's newest run moves them.

use super::*;

const ENVIRONMENT: EnvironmentId = EnvironmentId::from_bits(1);

fn tag() -> Effect {
    Effect::Tag { environment: ENVIRONMENT, variant: "app".into() }
}

/// A run of one build whose image gets a tag, at work on a machine of its own.
fn tagged_run(core: &mut Core, change: impl FnOnce(&mut Run)) -> (RunId, JobId, MachineId) {
    let run = core.request_as(1, change);
    let build =
        PlannedJob { tag: Some("registry/app:latest".parse().unwrap()), ..core.build(Arch::Amd64) };
    core.plan(run, std::slice::from_ref(&build));
    let machine = core.launched(build.id);
    core.connect(machine, &[]);
    (run, build.id, machine)
}

fn tags(effects: &[Effect]) -> usize {
    effects.iter().filter(|effect| **effect == tag()).count()
}

fn tagged(core: &mut Core, digit: &str, result: Result<(), String>) -> Vec<Effect> {
    let (environment, variant) = (ENVIRONMENT, VariantName::from("app"));
    core.step(Event::ImageTagged { environment, variant, digest: digest(digit), result })
}

fn image(core: &Core) -> Option<&GoodImage> {
    core.state.environments[&ENVIRONMENT].images.get("app")
}

#[test]
fn a_run_ends_when_the_reference_names_its_image() {
    let mut core = amd64(1);
    let (run, job, machine) = tagged_run(&mut core, |_| {});

    let effects = core.report(machine, job, 1, pushed("a"));
    assert_eq!(tags(&effects), 1);
    assert_eq!(core.run_state(run), &RunState::Building);
    let good = image(&core).unwrap();
    assert_eq!((good.run, &good.digest), (run, &digest("a")));

    tagged(&mut core, "a", Ok(()));
    assert_eq!(core.run_state(run), &RunState::Completed);
    assert!(!core.state.outbox.values().any(|effect| *effect == tag()));
}

#[test]
fn an_image_says_that_its_caller_set_arguments_when_its_run_is_forgotten() {
    let mut core = amd64(1);
    let set_names = BTreeSet::from(["VERSION".to_owned()]);
    let (run, job, machine) = tagged_run(&mut core, |run| run.set_names = set_names);
    core.report(machine, job, 1, pushed("a"));
    tagged(&mut core, "a", Ok(()));
    core.request(1);

    core.step(Event::Forgotten { runs: vec![run], machines: Vec::new(), deliveries: Vec::new() });

    assert!(!core.state.runs.contains_key(&run));
    assert!(image(&core).unwrap().with_set);
}

#[test]
fn an_older_run_that_completes_later_moves_nothing() {
    let mut core = amd64(2);
    let (older, job, machine) = tagged_run(&mut core, |_| {});
    let (newer, newer_job, newer_machine) = tagged_run(&mut core, |_| {});
    core.report(newer_machine, newer_job, 1, pushed("b"));
    tagged(&mut core, "b", Ok(()));

    let effects = core.report(machine, job, 1, pushed("a"));

    assert_eq!(tags(&effects), 0);
    assert_eq!(core.run_state(older), &RunState::Completed);
    assert_eq!(image(&core).unwrap().run, newer);
    let [warning] = &core.state.jobs[&job].warnings[..] else { panic!("one warning") };
    assert!(warning.contains("registry/app:latest was not moved"), "{warning}");
    assert!(core.state.jobs[&newer_job].warnings.is_empty());
}

#[test]
fn an_older_run_moves_nothing_from_the_moment_a_newer_one_is_requested() {
    let mut core = amd64(2);
    let (_, job, machine) = tagged_run(&mut core, |_| {});
    core.request(1);

    assert_eq!(tags(&core.report(machine, job, 1, pushed("a"))), 0);

    assert_eq!(image(&core), None);
}

#[test]
fn a_warm_up_moves_no_reference_and_gets_no_warning() {
    let mut core = amd64(2);
    tagged_run(&mut core, |_| {});
    let (_, job, machine) = tagged_run(&mut core, |run| run.trigger = Trigger::WarmUp);

    assert_eq!(tags(&core.report(machine, job, 1, pushed("a"))), 0);

    assert!(core.state.jobs[&job].warnings.is_empty());
}

#[test]
fn a_warm_up_is_no_newer_run() {
    let mut core = amd64(2);
    let (run, job, machine) = tagged_run(&mut core, |_| {});
    core.request_as(1, |run| run.trigger = Trigger::WarmUp);

    assert_eq!(tags(&core.report(machine, job, 1, pushed("a"))), 1);

    assert_eq!(core.state.environments[&ENVIRONMENT].newest_run, Some(run));
}

/// A rebuild of `repeated`, as a request makes it.
fn rebuilt_run(core: &mut Core, repeated: RunId) -> (RunId, JobId, MachineId) {
    let original = core.state.runs[&repeated].original();
    tagged_run(core, |run| {
        run.trigger = Trigger::Rebuild;
        run.rebuilds = Some(original);
    })
}

#[test]
fn the_rebuild_of_an_older_run_moves_nothing_back() {
    let mut core = amd64(3);
    let (older, ..) = tagged_run(&mut core, |_| {});
    let (newer, newer_job, newer_machine) = tagged_run(&mut core, |_| {});

    let (again, job, machine) = rebuilt_run(&mut core, older);

    assert_eq!(tags(&core.report(machine, job, 1, pushed("a"))), 0);
    assert_eq!(core.run_state(again), &RunState::Completed, "its image has its own reference");
    assert_eq!(tags(&core.report(newer_machine, newer_job, 1, pushed("b"))), 1);
    assert_eq!(image(&core).unwrap().run, newer);
}

#[test]
fn the_rebuild_of_the_newest_run_is_the_newest_and_so_is_one_of_that() {
    let mut core = amd64(4);
    let (first, ..) = tagged_run(&mut core, |_| {});
    let newest = |core: &Core| core.state.environments[&ENVIRONMENT].newest_run;

    let (second, ..) = rebuilt_run(&mut core, first);
    assert_eq!(newest(&core), Some(second));
    let (third, ..) = rebuilt_run(&mut core, second);
    assert_eq!(newest(&core), Some(third));
    let (fourth, job, machine) = rebuilt_run(&mut core, first);

    assert_eq!(newest(&core), Some(fourth), "all are of the same commit");
    assert_eq!(tags(&core.report(machine, job, 1, pushed("a"))), 1);
}

#[test]
fn one_tag_is_moved_at_a_time_and_the_newest_run_is_last() {
    let mut core = amd64(2);
    let (older, job, machine) = tagged_run(&mut core, |_| {});
    core.report(machine, job, 1, pushed("a"));
    core.step(Event::MachineGone { machine, taken_back: false });
    let (newer, job, machine) = tagged_run(&mut core, |_| {});

    assert_eq!(tags(&core.report(machine, job, 1, pushed("b"))), 0, "one is under way");
    assert_eq!(core.run_state(older), &RunState::Completed, "its image was replaced");

    assert_eq!(tagged(&mut core, "a", Ok(())), [tag()]);
    assert_eq!(core.run_state(newer), &RunState::Building);
    assert_eq!(tagged(&mut core, "b", Ok(())), []);
    assert_eq!(core.run_state(newer), &RunState::Completed);
}

#[test]
fn a_tag_that_cannot_be_moved_is_a_warning() {
    let mut core = amd64(2);
    let (run, job, machine) = tagged_run(&mut core, |_| {});
    core.report(machine, job, 1, pushed("a"));

    tagged(&mut core, "a", Err("no answer".to_owned()));

    assert_eq!(core.run_state(run), &RunState::Completed);
    let [warning] = &core.state.jobs[&job].warnings[..] else { panic!("one warning") };
    assert!(warning.contains("registry/app:latest") && warning.contains("no answer"), "{warning}");
}

#[test]
fn a_failed_tag_of_an_older_image_gives_no_warning() {
    let mut core = amd64(2);
    let (_, job, machine) = tagged_run(&mut core, |_| {});
    core.report(machine, job, 1, pushed("a"));
    core.step(Event::MachineGone { machine, taken_back: false });
    let (_, job, machine) = tagged_run(&mut core, |_| {});
    core.report(machine, job, 1, pushed("b"));

    assert_eq!(tagged(&mut core, "a", Err("no answer".to_owned())), [tag()]);

    assert!(core.state.jobs[&job].warnings.is_empty());
}

#[test]
fn the_tag_of_a_cancelled_run_is_moved_all_the_same_and_the_run_does_not_change() {
    let mut core = amd64(2);
    let (run, job, machine) = tagged_run(&mut core, |_| {});
    core.report(machine, job, 1, pushed("a"));
    core.cancel(run);
    assert!(core.state.outbox.values().any(|effect| *effect == tag()));

    tagged(&mut core, "a", Err("no answer".to_owned()));

    assert_eq!(core.run_state(run), &RunState::Cancelled { reason: CancelReason::Requested });
    assert!(core.state.jobs[&job].warnings.is_empty());
}

#[test]
fn without_a_digest_nothing_is_tagged() {
    let mut core = amd64(2);
    let (run, job, machine) = tagged_run(&mut core, |_| {});

    assert_eq!(tags(&core.report(machine, job, 1, PUSHED)), 0);

    assert_eq!(core.run_state(run), &RunState::Completed);
    assert_eq!(image(&core), None);
}

#[test]
fn an_outcome_of_an_effect_that_is_not_in_the_outbox_changes_nothing() {
    let mut core = amd64(2);
    let (_, job, machine) = tagged_run(&mut core, |_| {});
    core.report(machine, job, 1, pushed("a"));
    tagged(&mut core, "a", Ok(()));

    assert_eq!(tagged(&mut core, "b", Ok(())), []);
}

#[test]
fn a_crash_between_the_last_image_and_its_tag_forgets_neither() {
    let mut core = amd64(2);
    let (run, job, machine) = tagged_run(&mut core, |_| {});
    core.report(machine, job, 1, pushed("a"));

    core.restart();

    assert_eq!(core.run_state(run), &RunState::Building);
    assert!(core.state.outbox.values().any(|effect| *effect == tag()));
    tagged(&mut core, "a", Ok(()));
    assert_eq!(core.run_state(run), &RunState::Completed);
}
