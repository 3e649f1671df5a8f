//! Merges run on a builder of the same build if one is still there.

use super::*;

#[test]
fn the_last_builder_to_finish_takes_the_merge_over() {
    let mut core = both(2);
    let TwoPlatforms { run, builds, machines, merge } = TwoPlatforms::begun(&mut core);
    assert_eq!(
        core.report(machines[0], builds[0], 1, PUSHED),
        [Effect::Terminate { machine: machines[0] }]
    );

    let effects = core.report(machines[1], builds[1], 1, PUSHED);

    let machine = machines[1];
    assert_eq!(effects, [Effect::Assign { machine, attempt: attempt(merge, 1) }]);
    assert_eq!(core.state.jobs[&merge].took_over, Some(builds[1]));
    assert_eq!(core.report(machine, merge, 1, PUSHED), [Effect::Terminate { machine }]);
    assert_eq!(core.run_state(run), &RunState::Completed);
    assert_eq!(core.state.machines.len(), 2, "none was launched for the merge");
}

#[test]
fn a_builder_merges_while_it_exports_and_is_kept_until_both_have_ended() {
    let mut core = both(2);
    let TwoPlatforms { builds, machines, merge, .. } = TwoPlatforms::begun(&mut core);
    core.report(machines[0], builds[0], 1, PUSHED);
    core.report_early(machines[1], builds[1], 1);
    let machine = machines[1];
    assert_eq!(core.machine_of(merge), machine);

    core.report(machine, merge, 1, PUSHED);
    let job = builds[1];
    assert_eq!(core.machine_state(machine), MachineState::Busy { attempt: attempt(job, 1) });

    assert_eq!(core.report(machine, job, 1, PUSHED), [Effect::Terminate { machine }]);
}

#[test]
fn a_merge_outlasts_the_export_beside_it() {
    let mut core = both(2);
    let TwoPlatforms { builds, machines, merge, .. } = TwoPlatforms::begun(&mut core);
    core.report(machines[0], builds[0], 1, PUSHED);
    core.report_early(machines[1], builds[1], 1);
    let machine = machines[1];

    assert_eq!(core.wait(Duration::from_mins(10)), [], "the export's time is over");
    assert_eq!(core.exporting(machine), None);
    assert_eq!(core.machine_of(merge), machine);

    let lease = core.state.machines[&machine].lease_until.unwrap();
    assert!(lease >= core.state.jobs[&merge].assigned_at.unwrap().after(TIMEOUT));
}

#[test]
fn an_exporting_builder_takes_the_merge_when_the_last_one_is_lost_right_after_its_report() {
    let mut core = both(2);
    let TwoPlatforms { builds, machines, merge, .. } = TwoPlatforms::begun(&mut core);
    core.report_early(machines[0], builds[0], 1);
    core.disconnect(machines[1]);

    core.report(machines[1], builds[1], 1, PUSHED);

    assert_eq!(core.machine_of(merge), machines[0]);
    assert_eq!(core.state.jobs[&merge].took_over, Some(builds[0]));
    assert_eq!(core.machine_state(machines[1]), MachineState::Terminating);
}

#[test]
fn a_machine_is_launched_for_a_merge_only_if_no_builder_is_left() {
    let mut core = both(4);
    let TwoPlatforms { builds, machines, merge, .. } = TwoPlatforms::begun(&mut core);
    core.report(machines[0], builds[0], 1, PUSHED);
    core.disconnect(machines[1]);

    core.report(machines[1], builds[1], 1, PUSHED);

    let machine = core.machine_of(merge);
    assert!(!machines.contains(&machine));
    assert_eq!(core.state.jobs[&merge].took_over, None);
}

#[test]
fn a_merge_does_not_wait_for_minutes_for_a_builder_that_left_before_it_began() {
    let mut core = both(4);
    let TwoPlatforms { builds, machines, merge, .. } = TwoPlatforms::begun(&mut core);
    core.report(machines[0], builds[0], 1, PUSHED);
    core.report(machines[1], builds[1], 1, PUSHED);
    core.disconnect(machines[1]);
    assert_eq!(core.wait(Duration::from_secs(9)), []);

    let effects = core.wait(Duration::from_secs(1));

    assert!(effects.contains(&Effect::Terminate { machine: machines[1] }), "{effects:?}");
    assert!(matches!(core.job_state(merge), JobState::Provisioning { attempt: 2, .. }));
    assert_ne!(core.machine_of(merge), machines[1]);
    assert_eq!(core.state.jobs[&merge].took_over, None);
}

#[test]
fn a_merge_without_attempts_left_or_already_begun_waits_for_the_reconnect_grace() {
    for (max_attempts, begins) in [(1, false), (3, true)] {
        let mut core = both(4);
        core.state.limits.max_attempts = max_attempts;
        let TwoPlatforms { builds, machines, merge, .. } = TwoPlatforms::begun(&mut core);
        core.report(machines[0], builds[0], 1, PUSHED);
        core.report(machines[1], builds[1], 1, PUSHED);
        if begins {
            core.start(machines[1], merge, 1);
        }
        core.disconnect(machines[1]);

        assert_eq!(core.wait(Duration::from_secs(119)), []);

        assert_eq!(core.machine_of(merge), machines[1]);
    }
}

#[test]
fn a_registered_builder_merges_before_it_is_free_for_others() {
    let mut core = without_provider();
    let TwoPlatforms { builds: [one, other], machines: [first, last], merge, .. } =
        TwoPlatforms::begun_on_registered(&mut core);
    let (_, others) = core.run(2, 1);
    core.report_early(last, other, 1);

    core.report_early(first, one, 1);

    assert_eq!(core.machine_of(merge), first);
    assert_eq!(core.job_state(others[0]), &JobState::Queued { attempt: 1 });
    core.report(first, one, 1, PUSHED);
    core.report(first, merge, 1, PUSHED);
    assert_eq!(core.machine_of(others[0]), first);
}

#[test]
fn merges_of_two_builds_never_share_a_machine() {
    let mut core = both(4);
    let first = TwoPlatforms::begun(&mut core);
    core.report_early(first.machines[0], first.builds[0], 1);
    core.report(first.machines[1], first.builds[1], 1, PUSHED);
    let second = TwoPlatforms::begun(&mut core);
    core.report(first.machines[1], first.merge, 1, PUSHED);
    core.disconnect(second.machines[1]);
    core.report(second.machines[0], second.builds[0], 1, PUSHED);

    core.report(second.machines[1], second.builds[1], 1, PUSHED);

    assert_eq!(core.exporting(first.machines[0]), Some(first.builds[0]), "it is still there");
    let machine = core.job_state(second.merge).machine();
    assert!(machine.is_none_or(|machine| !first.machines.contains(&machine)));
}
