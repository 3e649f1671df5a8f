//! The arrows of the life cycles.

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
fn only_the_arrows_of_a_run_can_be_taken() {
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
fn a_refused_transition_returns_state_and_event() {
    let error = RunState::Completed.transition(RunEvent::Planned).unwrap_err();

    assert_eq!((&error.state, &error.event), (&RunState::Completed, &RunEvent::Planned));
    assert_eq!(error.to_string(), "Planned does not apply to Completed");
}
