//! Exports of layer caches after the image was reported.

use super::*;

const EXPORT: Duration = Duration::from_mins(10);

#[test]
fn a_job_completes_before_its_cache_is_exported_and_its_machine_is_kept_until_then() {
    let mut core = amd64(1);
    let (run, job, machine) = core.running();

    assert_eq!(core.report_early(machine, job, 1), []);
    assert_eq!(core.run_state(run), &RunState::Completed);
    assert_eq!(core.exporting(machine), Some(job));
    assert_eq!(core.machine_state(machine), MachineState::Busy { attempt: attempt(job, 1) });

    assert_eq!(core.report(machine, job, 1, PUSHED), [Effect::Terminate { machine }]);
    assert_eq!(core.exporting(machine), None);
}

#[test]
fn the_first_report_may_come_twice_and_does_not_end_the_export() {
    let mut core = amd64(1);
    let (_, job, machine) = core.running();
    core.report_early(machine, job, 1);

    assert_eq!(core.report_early(machine, job, 1), []);

    assert_eq!(core.exporting(machine), Some(job));
}

#[test]
fn an_export_that_fails_leaves_the_job_completed() {
    let mut core = amd64(1);
    let (run, job, machine) = core.running();
    core.report_early(machine, job, 1);

    core.report(machine, job, 1, failed(FailureReason::DiskFull));

    assert_eq!(core.job_state(job), &JobState::Completed { digest: None });
    assert_eq!(core.run_state(run), &RunState::Completed);
    assert_eq!(core.machine_state(machine), MachineState::Terminating);
}

#[test]
fn a_failed_job_exports_nothing() {
    let mut core = amd64(1);
    let (_, job, machine) = core.running();
    let report = JobReport { exporting_cache: true, ..JobReport::new(users_fault()) };

    let effects = core.step(Event::JobReported { machine, attempt: attempt(job, 1), report });

    assert_eq!(effects, [Effect::Terminate { machine }]);
}

#[test]
fn an_agent_that_returns_with_its_export_goes_on_and_one_without_it_has_ended_it() {
    let mut core = amd64(1);
    let (_, job, machine) = core.running();
    core.report_early(machine, job, 1);
    core.disconnect(machine);

    assert_eq!(core.connect(machine, &[(job, 1)]), []);
    assert_eq!(core.exporting(machine), Some(job));

    core.disconnect(machine);
    assert_eq!(core.connect(machine, &[]), [Effect::Terminate { machine }]);
    assert_eq!(core.exporting(machine), None);
}

#[test]
fn an_export_has_a_limit_and_a_lease_that_covers_it() {
    let mut core = amd64(1);
    core.state.limits.lease = Duration::ZERO;
    core.state.limits.cache_export = Duration::from_hours(5);
    let (_, job, machine) = core.running();
    core.report_early(machine, job, 1);
    assert_eq!(core.wait(Duration::from_mins(299)), []);

    assert_eq!(core.wait(Duration::from_mins(1)), [Effect::Terminate { machine }]);
}

#[test]
fn a_registered_machine_that_exports_too_long_is_asked_to_stop_and_then_disconnected() {
    let mut core = without_provider();
    let (_, job, machine) = core.running_on_registered();
    core.report_early(machine, job, 1);
    let (_, next) = core.run(1, 1);
    assert_eq!(core.job_state(next[0]), &JobState::Queued { attempt: 1 }, "it is not free");

    let reason = StopReason::ExportOverrun;
    assert_eq!(core.wait(EXPORT), [Effect::Cancel { machine, attempt: attempt(job, 1), reason }]);
    assert_eq!(core.wait(Duration::from_secs(59)), []);
    assert_eq!(core.wait(Duration::from_secs(1)), [Effect::Disconnect { machine }]);

    let again = core.connect(machine, &[(job, 1)]);
    assert!(
        matches!(again[..], [Effect::Cancel { .. }]),
        "it counts as any other stray: {again:?}"
    );
    core.report(machine, job, 1, JobOutcome::Cancelled);
    assert_eq!(core.machine_of(next[0]), machine);
}

#[test]
fn a_registered_machine_is_free_as_soon_as_its_export_has_ended() {
    let mut core = without_provider();
    let (_, job, machine) = core.running_on_registered();
    core.report_early(machine, job, 1);

    core.report(machine, job, 1, PUSHED);

    assert_eq!(core.machine_state(machine), MachineState::Ready);
}

#[test]
fn an_agent_that_stays_away_loses_its_export_and_a_launched_machine_ends() {
    let mut core = amd64(1);
    let (_, job, machine) = core.running();
    core.report_early(machine, job, 1);
    core.disconnect(machine);

    assert_eq!(core.wait(Duration::from_mins(2)), [Effect::Terminate { machine }]);

    assert_eq!(core.exporting(machine), None);
}

#[test]
fn an_image_reported_by_a_stray_does_not_free_a_machine_that_goes_on_exporting() {
    let mut core = without_provider();
    let (run, job, machine) = core.running_on_registered();
    core.cancel(run);

    core.report_early(machine, job, 1);
    assert_eq!(core.machine_state(machine), MachineState::Busy { attempt: attempt(job, 1) });

    core.report(machine, job, 1, JobOutcome::Cancelled);
    assert_eq!(core.machine_state(machine), MachineState::Ready);
}

#[test]
fn a_cancelled_run_ends_the_exports_of_its_completed_jobs_too() {
    let mut core = both(5);
    let TwoPlatforms { run, builds, machines, .. } = TwoPlatforms::begun(&mut core);
    core.report_early(machines[0], builds[0], 1);

    let effects = core.cancel(run);

    for machine in machines {
        assert!(effects.contains(&Effect::Terminate { machine }), "{effects:?}");
    }
    assert_eq!(core.exporting(machines[0]), None);
}

#[test]
fn a_cancelled_run_asks_a_registered_machine_to_stop_its_export() {
    let mut core = without_provider();
    let machine = core.registered_machine(Arch::Amd64);
    core.connect(machine, &[]);
    let (run, jobs) = core.run(1, 2);
    core.start(machine, jobs[0], 1);
    core.report_early(machine, jobs[0], 1);

    let effects = core.cancel(run);

    let (job, reason) = (jobs[0], StopReason::RunCancelled);
    assert_eq!(effects, [Effect::Cancel { machine, attempt: attempt(job, 1), reason }]);
    core.report(machine, job, 1, JobOutcome::Cancelled);
    assert_eq!(core.machine_state(machine), MachineState::Ready);
}

#[test]
fn a_registered_machine_is_not_free_before_both_its_merge_and_its_export_have_stopped() {
    let mut core = without_provider();
    let TwoPlatforms { run, builds: [one, other], machines: [first, machine], merge } =
        TwoPlatforms::begun_on_registered(&mut core);
    core.report(first, one, 1, PUSHED);
    core.report_early(machine, other, 1);

    assert_eq!(core.cancel(run).len(), 2, "the merge and the export");
    core.report(machine, other, 1, JobOutcome::Cancelled);
    assert_ne!(core.machine_state(machine), MachineState::Ready);

    core.report(machine, merge, 1, JobOutcome::Cancelled);
    assert_eq!(core.machine_state(machine), MachineState::Ready);
}
