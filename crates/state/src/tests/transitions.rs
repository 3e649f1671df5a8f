//! Which transitions are legal.

use super::*;

/// The events of `events` that apply to `state`.
fn apply<S: Clone, E: Clone, T>(
    state: &S,
    events: &[E],
    transition: impl Fn(S, E) -> Result<S, T>,
) -> Vec<usize> {
    let applies = |index: &usize| transition(state.clone(), events[*index].clone()).is_ok();
    (0..events.len()).filter(applies).collect()
}

#[test]
fn a_run_takes_only_its_legal_transitions() {
    let (at, reason) = (Timestamp(1), CancelReason::Requested);
    let error = PlanFailure { reason: FailureReason::Manifest, message: String::new() };
    let events = [
        RunEvent::Approved,
        RunEvent::PlanningBegan { at },
        RunEvent::PlanningDeferred { until: at },
        RunEvent::PlanningResumed,
        RunEvent::Planned,
        RunEvent::PlanFailed(error),
        RunEvent::JobsCompleted,
        RunEvent::JobFailed,
        RunEvent::Cancelled { reason },
    ];
    let legal = |state: RunState| apply(&state, &events, RunState::transition);

    assert_eq!(legal(RunState::AwaitingApproval), [0, 8]);
    assert_eq!(legal(RunState::Pending), [1, 8]);
    assert_eq!(legal(RunState::Planning { since: at }), [2, 4, 5, 8]);
    assert_eq!(legal(RunState::Deferred { until: at }), [3, 8]);
    assert_eq!(legal(RunState::Building), [6, 7, 8]);
    for end in
        [RunState::Completed, RunState::Failed { plan_error: None }, RunState::Cancelled { reason }]
    {
        assert!(legal(end).is_empty());
    }
}

#[test]
fn a_job_takes_only_its_legal_transitions() {
    let (machine, until) = (MachineId::from_bits(1), Timestamp(1));
    let failed = JobEvent::Failed(JobFailure {
        reason: FailureReason::DiskFull,
        message: String::new(),
        exit_code: None,
    });
    let events = [
        JobEvent::MachineFound { machine },
        JobEvent::Started { deadline: until },
        JobEvent::AttemptLost,
        JobEvent::PostponementOver,
        JobEvent::Completed { digest: None },
        JobEvent::Reused { digest: None },
        failed.clone(),
        JobEvent::Cancelled,
        JobEvent::CapacityMissing { retry_at: until },
    ];
    let legal = |state: JobState| apply(&state, &events, JobState::transition);

    assert_eq!(legal(JobState::Queued { attempt: 1 }), [0, 5, 6, 7]);
    assert_eq!(legal(JobState::Postponed { attempt: 1, until }), [0, 3, 6, 7]);
    assert_eq!(legal(JobState::Provisioning { attempt: 1, machine }), [1, 2, 4, 6, 7, 8]);
    let running = JobState::Running { attempt: 1, machine, deadline: until };
    assert_eq!(legal(running.clone()), [2, 4, 6, 7]);
    let failed = running.transition(failed).unwrap();
    for end in [JobState::Completed { digest: None }, failed, JobState::Cancelled] {
        assert!(legal(end).is_empty());
    }
}

#[test]
fn a_lost_attempt_is_followed_by_the_next_and_missing_capacity_by_the_same() {
    let first = JobState::Provisioning { attempt: 1, machine: MachineId::from_bits(1) };
    let lost = first.clone().transition(JobEvent::AttemptLost).unwrap();
    assert_eq!(lost, JobState::Queued { attempt: 2 });
    let retry_at = Timestamp(7);
    let postponed = first.transition(JobEvent::CapacityMissing { retry_at }).unwrap();
    assert_eq!(postponed, JobState::Postponed { attempt: 1, until: retry_at });
}

#[test]
fn a_machine_takes_only_its_legal_transitions() {
    let attempt = attempt(JobId::from_bits(1), 1);
    let events = [
        MachineEvent::Launched,
        MachineEvent::Assigned { attempt },
        MachineEvent::Released { stopping: None },
        MachineEvent::TerminationRequested,
        MachineEvent::Gone,
    ];
    let legal = |state: MachineState| apply(&state, &events, MachineState::transition);

    assert_eq!(legal(MachineState::Requested), [0, 1, 3, 4]);
    assert_eq!(legal(MachineState::Booting), [1, 3, 4]);
    assert_eq!(legal(MachineState::Ready), [1, 2, 3, 4]);
    assert_eq!(legal(MachineState::Busy { attempt }), [1, 2, 3, 4]);
    assert_eq!(legal(MachineState::Terminating), [3, 4]);
    assert_eq!(legal(MachineState::Terminated), [3, 4], "a list may still have it");
}

#[test]
fn an_environment_takes_only_its_legal_transitions() {
    use {Cleanup as C, ClosedBy as B, EnvironmentEvent as E, EnvironmentState as S};
    let events = [
        E::Opened { is_cleaning_up: false },
        E::Closed { by: B::Request },
        E::CleanupInvalidated,
        E::CleanedUp,
    ];
    let legal = |state: S| apply(&state, &events, S::transition);

    assert_eq!(legal(S::OPEN), [0, 1], "no clean-up of an open environment begins");
    assert_eq!(legal(S::Open { cleanup: C::Outdated }), [0, 1, 3]);
    for cleanup in [C::Valid, C::Outdated] {
        assert_eq!(legal(S::Closed { by: B::Request, cleanup }), [0, 1, 2, 3]);
    }
}

#[test]
fn an_outdated_clean_up_stays_outdated_until_it_has_ended() {
    use {Cleanup as C, ClosedBy as B, EnvironmentEvent as E, EnvironmentState as S};
    let opened = S::closed(B::Request).transition(E::Opened { is_cleaning_up: true }).unwrap();
    assert_eq!(opened, S::Open { cleanup: C::Outdated });

    let closed = opened.transition(E::Closed { by: B::Github }).unwrap();
    assert_eq!(closed, S::Closed { by: B::Github, cleanup: C::Outdated });
    assert_eq!(closed.transition(E::CleanedUp).unwrap(), S::closed(B::Github));
}

#[test]
fn a_request_does_not_hide_that_github_closed_an_environment() {
    use {ClosedBy as B, EnvironmentEvent as E, EnvironmentState as S};
    let of = |first, then| S::closed(first).transition(E::Closed { by: then }).unwrap();

    assert_eq!(of(B::Github, B::Request), S::closed(B::Github));
    assert_eq!(of(B::Request, B::Github), S::closed(B::Github));
}

#[test]
fn an_export_is_shortened_by_its_machines_end_and_stops_once() {
    use {ExportEvent as E, ExportState as S};
    let running = S::Running { deadline: Timestamp(5) };
    let reclaimed = |at| E::MachineReclaimed { at: Timestamp(at) };

    let shortened = S::Running { deadline: Timestamp(3) };
    assert_eq!(running.transition(reclaimed(3)), Ok(Some(shortened)));
    assert_eq!(running.transition(reclaimed(7)), Ok(Some(running)));
    let stop = E::StopRequested { at: Timestamp(9) };
    let stopping = S::Stopping { since: Timestamp(9) };
    assert_eq!(running.transition(stop), Ok(Some(stopping)));
    assert_eq!(stopping.transition(reclaimed(3)), Ok(Some(stopping)));
    assert!(stopping.transition(stop).is_err());
    for end in [E::Ended, E::Abandoned] {
        assert_eq!([running.transition(end), stopping.transition(end)], [Ok(None), Ok(None)]);
    }
}

#[test]
fn an_illegal_transition_returns_state_and_event() {
    let error = RunState::Completed.transition(RunEvent::Planned).unwrap_err();

    let text = error.to_string();
    assert_eq!((*error.state, *error.event), (RunState::Completed, RunEvent::Planned));
    assert_eq!(text, "Planned does not apply to Completed");
}
