//! Registered machines.

use super::*;

#[test]
fn a_registered_machine_stays_busy_until_its_agent_has_stopped_a_cancelled_job() {
    let mut core = without_provider();
    let (run, job, machine) = core.running_on_registered();
    let (_, next) = core.run(1, 1);
    assert_eq!(
        core.cancel(run),
        [Effect::Cancel { machine, attempt: attempt(job, 1), reason: StopReason::RunCancelled }]
    );
    assert_eq!(core.machine_state(machine), MachineState::Busy { attempt: attempt(job, 1) });

    core.report(machine, job, 1, JobOutcome::Cancelled);

    assert_eq!(core.machine_of(next[0]), machine);
    assert_eq!(core.job_state(job), &JobState::Cancelled);
}

#[test]
fn a_registered_machine_that_does_not_stop_is_disconnected() {
    let mut core = without_provider();
    let (run, job, machine) = core.running_on_registered();
    core.cancel(run);
    assert_eq!(core.wait(Duration::from_mins(1)), [Effect::Disconnect { machine }]);

    let cancel =
        Effect::Cancel { machine, attempt: attempt(job, 1), reason: StopReason::RunCancelled };
    assert_eq!(core.connect(machine, &[(job, 1)]), [cancel], "it still has the job");
    core.disconnect(machine);
    core.connect(machine, &[]);

    assert_eq!(core.machine_state(machine), MachineState::Ready);
}

#[test]
fn a_registered_machine_whose_job_overruns_gets_the_reason_to_stop() {
    let mut core = without_provider();
    let (_, job, machine) = core.running_on_registered();

    let effects = core.wait(Duration::from_mins(31));

    let reason = StopReason::Overrun;
    assert_eq!(effects, [Effect::Cancel { machine, attempt: attempt(job, 1), reason }]);
}

#[test]
fn a_registered_machine_gets_no_job_before_it_has_stopped_its_lost_attempt() {
    let mut core = without_provider();
    let (_, job, machine) = core.running_on_registered();
    core.disconnect(machine);
    core.wait(Duration::from_mins(2));
    assert_eq!(core.job_state(job), &JobState::Queued { attempt: 2 });

    let effects = core.connect(machine, &[(job, 1)]);
    assert_eq!(
        effects,
        [Effect::Cancel { machine, attempt: attempt(job, 1), reason: StopReason::NotWanted }]
    );
    assert_eq!(core.job_state(job), &JobState::Queued { attempt: 2 });

    let effects = core.report(machine, job, 1, JobOutcome::Cancelled);
    assert_eq!(effects, [Effect::Assign { machine, attempt: attempt(job, 2) }]);
}

#[test]
fn a_repeated_report_of_an_older_attempt_does_not_free_a_machine_that_is_still_stopping() {
    let mut core = without_provider();
    let (run, job, machine) = core.running_on_registered();
    core.report(machine, job, 1, failed(FailureReason::DiskFull));
    core.start(machine, job, 2);
    core.cancel(run);

    core.report(machine, job, 1, failed(FailureReason::DiskFull));
    assert_eq!(core.machine_state(machine), MachineState::Busy { attempt: attempt(job, 2) });

    core.report(machine, job, 2, JobOutcome::Cancelled);
    assert_eq!(core.machine_state(machine), MachineState::Ready);
}

#[test]
fn a_registered_machine_is_free_when_its_agent_has_stopped_all_that_it_held() {
    let mut core = without_provider();
    let (run, job, machine) = core.running_on_registered();
    core.report(machine, job, 1, failed(FailureReason::DiskFull));
    core.start(machine, job, 2);
    core.disconnect(machine);
    core.cancel(run);
    core.connect(machine, &[(job, 1), (job, 2)]);

    core.report(machine, job, 1, failed(FailureReason::DiskFull));
    assert_eq!(core.machine_state(machine), MachineState::Busy { attempt: attempt(job, 2) });

    core.report(machine, job, 2, JobOutcome::Cancelled);
    assert_eq!(core.machine_state(machine), MachineState::Ready);
}

#[test]
fn an_agent_of_a_terminating_machine_is_asked_to_stop() {
    let mut core = amd64(1);
    let (run, job, machine) = core.running();
    core.disconnect(machine);
    assert_eq!(core.cancel(run), [Effect::Terminate { machine }]);

    let effects = core.connect(machine, &[(job, 1)]);

    assert_eq!(
        effects,
        [Effect::Cancel { machine, attempt: attempt(job, 1), reason: StopReason::RunCancelled }]
    );
    assert_eq!(core.machine_state(machine), MachineState::Terminating);
}

#[test]
fn an_agent_that_never_begins_loses_the_job() {
    let mut core = without_provider();
    let machine = core.registered_machine(Arch::Amd64);
    core.connect(machine, &[]);
    let (_, jobs) = core.run(1, 1);

    assert_eq!(core.wait(Duration::from_mins(31)), [Effect::Disconnect { machine }]);

    assert_eq!(core.job_state(jobs[0]), &JobState::Queued { attempt: 2 });
}

#[test]
fn the_job_of_an_unregistered_machine_goes_to_another() {
    let mut core = without_provider();
    let (_, job, machine) = core.running_on_registered();

    let effects = core.step(Event::MachineUnregistered { machine });

    assert_eq!(effects, [Effect::Disconnect { machine }]);
    assert_eq!(core.job_state(job), &JobState::Queued { attempt: 2 });
    assert_eq!(core.connect(machine, &[(job, 1)]), [Effect::Disconnect { machine }]);
}
