//! Opening, closing and cleaning up environments.

use super::*;

const ENVIRONMENT: EnvironmentId = EnvironmentId::from_bits(1);
const DELETE: Effect = Effect::CleanUp { environment: ENVIRONMENT };

/// A run of one build that is at work on a machine, in an environment with cache refs of its own.
fn running(core: &mut Core, refs: &[&str]) -> (RunId, JobId, MachineId) {
    let run = core.request(1);
    let build = core.build(Arch::Amd64);
    let mut plan = PlannedRun::new("c".repeat(40).parse().unwrap(), vec![build.clone()]);
    plan.own_cache_refs = refs.iter().map(|cache| cache.parse().unwrap()).collect();
    core.step(Event::RunPlanned { run, plan: Ok(plan) });
    let machine = core.launched(build.id);
    core.connect(machine, &[]);
    (run, build.id, machine)
}

fn close(core: &mut Core) -> Vec<Effect> {
    core.step(Event::EnvironmentClosed { environment: ENVIRONMENT })
}

fn deleted(core: &mut Core, refs: &[&str]) -> Vec<Effect> {
    let refs = refs.iter().map(|cache| cache.parse().unwrap()).collect();
    core.step(Event::CleanedUp { environment: ENVIRONMENT, refs })
}

fn refs(core: &Core) -> Vec<String> {
    core.state.environments[&ENVIRONMENT].cache_refs.iter().map(ToString::to_string).collect()
}

const ONE: &str = "registry/cache:app.pr-1";
const OTHER: &str = "registry/cache:web.pr-1";

#[test]
fn closing_an_environment_cancels_its_runs_and_deletes_its_caches_once_nobody_writes_them() {
    let mut core = amd64(1);
    let (run, _, machine) = running(&mut core, &[ONE]);

    assert_eq!(close(&mut core), [Effect::Terminate { machine }]);
    let reason = CancelReason::EnvironmentClosed;
    assert_eq!(core.run_state(run), &RunState::Cancelled { reason });

    assert_eq!(core.step(Event::MachineGone { machine, taken_back: false }), [DELETE]);
    assert_eq!(deleted(&mut core, &[ONE]), []);
    assert_eq!(refs(&core), [""; 0]);
    assert!(core.state.outbox.is_empty());
}

#[test]
fn caches_are_deleted_after_the_export_has_ended() {
    let mut core = amd64(1);
    let (_, job, machine) = running(&mut core, &[ONE]);
    core.report_early(machine, job, 1);
    assert_eq!(close(&mut core), []);
    core.report(machine, job, 1, PUSHED);

    assert_eq!(core.step(Event::MachineGone { machine, taken_back: false }), [DELETE]);
}

#[test]
fn an_environment_without_caches_of_its_own_has_nothing_to_delete() {
    let mut core = amd64(1);
    core.request(1);

    assert_eq!(close(&mut core), []);

    assert!(core.state.environments[&ENVIRONMENT].state.is_closed());
    assert!(core.state.outbox.is_empty());
}

#[test]
fn a_new_run_opens_the_environment_and_keeps_its_caches() {
    let mut core = amd64(1);
    let (_, job, machine) = running(&mut core, &[ONE]);
    core.report(machine, job, 1, PUSHED);
    core.step(Event::MachineGone { machine, taken_back: false });
    assert_eq!(close(&mut core), [DELETE]);

    core.request(1);
    assert_eq!(deleted(&mut core, &[]), [], "it was open again when the deletion began");

    assert!(!core.state.environments[&ENVIRONMENT].state.is_closed());
    assert_eq!(refs(&core), [ONE]);
}

#[test]
fn a_cache_that_is_written_during_a_clean_up_is_deleted_by_the_next() {
    let mut core = amd64(1);
    let (_, job, machine) = running(&mut core, &[ONE]);
    core.report(machine, job, 1, PUSHED);
    core.step(Event::MachineGone { machine, taken_back: false });
    close(&mut core);
    let (_, _, machine) = running(&mut core, &[ONE, OTHER]);
    deleted(&mut core, &[ONE]);
    assert_eq!(refs(&core), [ONE, OTHER], "the new run may have written both");
    close(&mut core);

    assert_eq!(core.step(Event::MachineGone { machine, taken_back: false }), [DELETE]);
    assert_eq!(deleted(&mut core, &[ONE]), [DELETE], "the other was not named");
    assert_eq!(deleted(&mut core, &[OTHER]), []);
}

#[test]
fn a_machine_that_returns_after_a_clean_up_has_it_repeated() {
    let mut core = amd64(1);
    let (_, _, machine) = running(&mut core, &[ONE]);
    close(&mut core);
    assert_eq!(core.step(Event::MachineGone { machine, taken_back: false }), [DELETE]);
    assert_eq!(deleted(&mut core, &[ONE]), []);

    let found = core.step(Event::MachineLaunched { machine, placement: None });
    assert_eq!(found, [Effect::Terminate { machine }]);
    assert_eq!(core.step(Event::MachineGone { machine, taken_back: false }), [DELETE]);
    assert_eq!(deleted(&mut core, &[ONE]), []);
    assert_eq!(refs(&core), [""; 0]);
}

#[test]
fn a_machine_that_returns_during_a_clean_up_makes_it_outdated() {
    let mut core = amd64(1);
    let (_, _, machine) = running(&mut core, &[ONE]);
    close(&mut core);
    assert_eq!(core.step(Event::MachineGone { machine, taken_back: false }), [DELETE]);

    let found = core.step(Event::MachineLaunched { machine, placement: None });
    assert_eq!(found, [Effect::Terminate { machine }]);
    assert_eq!(core.step(Event::MachineGone { machine, taken_back: false }), []);

    assert_eq!(deleted(&mut core, &[ONE]), [DELETE], "it may have been written since");
    assert_eq!(deleted(&mut core, &[ONE]), []);
    assert_eq!(refs(&core), [""; 0]);
}

#[test]
fn an_environment_is_not_forgotten_before_its_caches_are_gone() {
    let mut core = amd64(1);
    let (run, job, machine) = running(&mut core, &[ONE]);
    core.report(machine, job, 1, PUSHED);
    core.step(Event::MachineGone { machine, taken_back: false });

    let effects = core.step(Event::Forgotten {
        runs: vec![run],
        machines: vec![machine],
        deliveries: Vec::new(),
    });

    assert_eq!(effects, [DELETE], "its last run is forgotten");
    assert!(core.state.environments[&ENVIRONMENT].state.is_closed());
    assert_eq!(refs(&core), [ONE]);
    deleted(&mut core, &[ONE]);

    assert!(core.state.environments.is_empty(), "no record of the environment is left");
}

#[test]
fn an_environment_stays_open_until_its_last_run_is_forgotten() {
    let mut core = amd64(1);
    let (run, job, machine) = running(&mut core, &[ONE]);
    core.report(machine, job, 1, PUSHED);
    core.step(Event::MachineGone { machine, taken_back: false });
    let last = core.request(1);

    assert_eq!(
        core.step(Event::Forgotten {
            runs: vec![run],
            machines: Vec::new(),
            deliveries: Vec::new()
        }),
        []
    );

    assert!(!core.state.environments[&ENVIRONMENT].state.is_closed());
    core.cancel(last);
    assert_eq!(
        core.step(Event::Forgotten {
            runs: vec![last],
            machines: Vec::new(),
            deliveries: Vec::new()
        }),
        [DELETE]
    );
}

#[test]
fn an_environment_without_runs_is_removed_when_its_last_tag_is_moved() {
    let mut core = amd64(1);
    let run = core.request(1);
    let build =
        PlannedJob { tag: Some("registry/app:latest".parse().unwrap()), ..core.build(Arch::Amd64) };
    core.plan(run, std::slice::from_ref(&build));
    let machine = core.launched(build.id);
    core.connect(machine, &[]);
    core.report(machine, build.id, 1, pushed("a"));
    core.cancel(run);
    core.step(Event::Forgotten { runs: vec![run], machines: Vec::new(), deliveries: Vec::new() });
    assert!(core.state.environments.contains_key(&ENVIRONMENT), "its tag is being moved");

    let (environment, variant) = (ENVIRONMENT, VariantName::from("app"));
    core.step(Event::ImageTagged { environment, variant, digest: digest("a"), result: Ok(()) });

    assert!(core.state.environments.is_empty());
}

#[test]
fn the_pull_request_is_that_of_the_newest_request() {
    let mut core = amd64(1);
    core.request(1);
    let project = Project::new(ProjectId::from_bits(1), String::new(), String::new());
    let mut environment = Environment::new(ENVIRONMENT, project.id, String::new());
    environment.pull_request = Some(7);
    let run = Run::new(RunId::from_bits(core.id()), &environment, String::new(), core.now);
    core.step(Event::RunRequested { run: Box::new(run), project, environment });

    assert_eq!(core.state.environments[&ENVIRONMENT].pull_request, Some(7));
}

#[test]
fn an_outdated_clean_up_removes_no_ref_from_the_record() {
    let mut core = amd64(1);
    let (_, job, machine) = running(&mut core, &[ONE]);
    core.report(machine, job, 1, PUSHED);
    core.step(Event::MachineGone { machine, taken_back: false });
    close(&mut core);
    let (_, job, machine) = running(&mut core, &[ONE]);
    core.report(machine, job, 1, PUSHED);
    core.step(Event::MachineGone { machine, taken_back: false });
    close(&mut core);

    assert_eq!(deleted(&mut core, &[ONE]), [DELETE], "the second run has written it anew");

    assert_eq!(deleted(&mut core, &[ONE]), []);
    assert_eq!(refs(&core), [""; 0]);
}
