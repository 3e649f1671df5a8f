//! Attempts.

use stagely_protocol::{CacheMiss, MissCause};

use super::*;

#[test]
fn an_agent_that_returns_with_its_job_goes_on_with_it() {
    let mut core = amd64(1);
    let (_, job, machine) = core.running();
    core.disconnect(machine);
    core.wait(Duration::from_secs(119));

    assert_eq!(core.connect(machine, &[(job, 1)]), []);

    assert!(matches!(core.job_state(job), JobState::Running { attempt: 1, .. }));
}

#[test]
fn the_end_of_an_older_session_does_not_disconnect_a_reconnected_agent() {
    let mut core = amd64(1);
    let (_, job, machine) = core.running();
    let older = core.session;
    core.connect(machine, &[(job, 1)]);

    core.step(Event::AgentDisconnected { machine, session: older });

    assert!(core.state.machines[&machine].connected);
    core.disconnect(machine);
    assert!(!core.state.machines[&machine].connected);
}

#[test]
fn an_agent_that_stays_away_too_long_loses_its_job_and_its_machine() {
    let mut core = amd64(1);
    let (_, job, machine) = core.running();
    core.disconnect(machine);

    assert_eq!(core.wait(Duration::from_mins(2)), [Effect::Terminate { machine }]);

    assert_eq!(core.job_state(job), &JobState::Queued { attempt: 2 });
}

#[test]
fn an_agent_that_returns_without_the_job_it_had_begun_has_lost_it() {
    let mut core = amd64(1);
    let (_, job, machine) = core.running();
    core.disconnect(machine);

    assert_eq!(core.connect(machine, &[]), [Effect::Terminate { machine }]);

    assert_eq!(core.job_state(job), &JobState::Queued { attempt: 2 });
}

#[test]
fn restarts_of_agents_use_up_no_attempt_until_there_are_too_many() {
    let mut core = without_provider();
    let (_, job, machine) = core.running_on_registered();
    for attempt in 1..=4 {
        core.connect(machine, &[]);
        core.start(machine, job, attempt + 1);
        assert!(matches!(core.job_state(job), JobState::Running { .. }), "{attempt}");
    }

    core.connect(machine, &[]);

    assert_eq!(core.failure(job), &FailureReason::MachineLost);
    assert_eq!(core.state.jobs[&job].lost_attempts.len(), 4);
}

#[test]
fn a_restart_does_not_take_the_place_of_an_attempt_that_failed() {
    let mut core = without_provider();
    let (_, job, machine) = core.running_on_registered();
    for attempt in 1..=2 {
        core.report(machine, job, attempt, failed(FailureReason::DiskFull));
    }
    core.start(machine, job, 3);
    core.connect(machine, &[]);
    assert!(matches!(core.job_state(job), JobState::Provisioning { attempt: 4, .. }));

    core.report(machine, job, 4, failed(FailureReason::DiskFull));

    assert_eq!(core.failure(job), &FailureReason::DiskFull);
}

#[test]
fn a_fault_of_stagely_itself_is_not_tried_again() {
    let mut core = without_provider();
    let (_, job, machine) = core.running_on_registered();
    core.report(machine, job, 1, failed(FailureReason::Internal));
    assert_eq!(core.failure(job), &FailureReason::Internal);
    assert!(core.state.jobs[&job].lost_attempts.is_empty());
}

#[test]
fn an_agent_that_missed_its_job_gets_it_again() {
    let mut core = amd64(1);
    let (_, jobs) = core.run(1, 1);
    let machine = core.launched(jobs[0]);
    let assign = Effect::Assign { machine, attempt: attempt(jobs[0], 1) };
    let assigned = core.connect(machine, &[]);
    assert_eq!(assigned, [assign]);
    core.disconnect(machine);

    assert_eq!(core.connect(machine, &[]), assigned);
}

#[test]
fn an_agent_may_connect_before_the_provider_has_answered() {
    let mut core = amd64(1);
    let (_, jobs) = core.run(1, 1);
    let machine = core.machine_of(jobs[0]);
    core.connect(machine, &[]);

    assert_eq!(core.step(Event::MachineLaunched { machine, placement: None }), []);

    assert_eq!(core.machine_state(machine), MachineState::Busy { attempt: attempt(jobs[0], 1) });
    assert!(core.state.outbox.is_empty());
}

#[test]
fn an_agent_that_reports_only_the_end_completes_its_job() {
    let mut core = amd64(1);
    let (run, jobs) = core.run(1, 1);
    let machine = core.launched(jobs[0]);
    core.connect(machine, &[]);

    core.report(machine, jobs[0], 1, PUSHED);

    assert_eq!(core.run_state(run), &RunState::Completed);
}

#[test]
fn a_late_report_of_an_older_attempt_on_the_same_machine_changes_nothing() {
    let mut core = without_provider();
    let (run, job, machine) = core.running_on_registered();
    core.report(machine, job, 1, failed(FailureReason::DiskFull));
    assert!(matches!(core.job_state(job), JobState::Provisioning { attempt: 2, .. }));

    core.report(machine, job, 1, failed(FailureReason::DiskFull));
    core.start(machine, job, 1);
    assert!(matches!(core.job_state(job), JobState::Provisioning { attempt: 2, .. }));

    core.report(machine, job, 2, PUSHED);
    assert_eq!(core.run_state(run), &RunState::Completed);
}

#[test]
fn a_transient_failure_is_tried_again_until_the_attempts_are_used_up() {
    let mut core = without_provider();
    let (_, job, machine) = core.running_on_registered();
    for attempt in 1..=3 {
        core.report(machine, job, attempt, failed(FailureReason::DiskFull));
    }

    assert_eq!(core.failure(job), &FailureReason::DiskFull);
    let lost = [1, 2].map(|attempt| {
        let reason = FailureReason::DiskFull;
        LostAttempt { attempt, message: reason.to_string(), reason }
    });
    assert_eq!(core.state.jobs[&job].lost_attempts, lost);
}

#[test]
fn the_users_own_failure_is_not_tried_again() {
    let mut core = amd64(1);
    let (run, job, machine) = core.running();

    assert_eq!(core.report(machine, job, 1, users_fault()), [Effect::Terminate { machine }]);

    assert_eq!(core.run_state(run), &RunState::Failed { plan_error: None });
}

#[test]
fn an_agent_that_is_shut_down_has_not_cancelled_the_run() {
    let mut core = amd64(1);
    let (_, job, machine) = core.running();

    core.report(machine, job, 1, JobOutcome::Cancelled);

    assert_eq!(core.job_state(job), &JobState::Queued { attempt: 2 });
}

#[test]
fn what_missed_the_cache_is_that_of_the_newest_attempt() {
    let mut core = without_provider();
    let (_, job, machine) = core.running_on_registered();
    let miss = CacheMiss { step: "[2/2] RUN make".to_owned(), cause: MissCause::NoCache };
    let outcome = failed(FailureReason::DiskFull);
    let report = JobReport { cache_miss: Some(miss.clone()), ..JobReport::new(outcome) };
    core.step(Event::JobReported { machine, attempt: attempt(job, 1), report });
    assert_eq!(core.state.jobs[&job].cache_miss, None, "it is tried again");

    let report = JobReport { cache_miss: Some(miss.clone()), ..JobReport::new(PUSHED) };
    core.step(Event::JobReported { machine, attempt: attempt(job, 2), report });

    assert_eq!(core.state.jobs[&job].cache_miss, Some(miss));
}
