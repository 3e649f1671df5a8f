//! What a run or a job waits for while an effect repeats a request that failed. The waits are not stored: after a restart
//! core makes the request again.

use std::time::Duration;

use stagely_state::{Effect, Event, Timestamp};

use super::clock::now;
use super::records::{Records, SharedRecords};
use super::retry;
use super::wait::{Wait, Waiter};

impl Waiter {
    /// Whose wait it is while the effect repeats a request.
    fn of(effect: &Effect, records: &Records) -> Option<Self> {
        match effect {
            Effect::Plan { run } => Some(Self::Run(*run)),
            Effect::Launch { machine } => {
                records.machines.get(machine)?.requested_for.map(Self::Job)
            }
            Effect::Assign { attempt, .. } => Some(Self::Job(attempt.job)),
            Effect::Tag { environment, variant } => {
                Some(Self::Run(records.environments.get(environment)?.images.get(variant)?.run))
            }
            Effect::Terminate { .. }
            | Effect::CleanUp { .. }
            | Effect::CheckCommand { .. }
            | Effect::Report { .. }
            | Effect::Cancel { .. }
            | Effect::Sleep { .. }
            | Effect::Retire { .. }
            | Effect::Disconnect { .. } => None,
        }
    }

    fn is_open(self, records: &Records) -> bool {
        match self {
            Self::Run(run) => records.runs.get(&run).is_some_and(|run| !run.state.is_final()),
            Self::Job(job) => records.jobs.get(&job).is_some_and(|job| !job.state.is_final()),
        }
    }
}

/// Performs an effect, and shows the waits between its tries in `records`. The effect ends at `give_up_at` at the latest,
/// if that is known.
pub(super) async fn shown(
    records: &SharedRecords,
    effect: &Effect,
    give_up_at: Option<Timestamp>,
    performed: impl Future<Output = Option<Event>>,
) -> Option<Event> {
    let waiter = Waiter::of(effect, &records.read());
    let Some(waiter) = waiter else { return performed.await };
    let shared = records.clone();
    let note = move |error: String, wait: Duration| {
        note(&shared, waiter, error, now().after(wait), give_up_at);
    };
    let event = retry::observed(note, performed).await;
    // The planning of a deferred run goes on later, with the same wait.
    let is_waiting = records.read().waits.contains_key(&waiter);
    if is_waiting && !matches!(event, Some(Event::PlanDeferred { .. })) {
        records.write(|records| drop(records.waits.remove(&waiter)));
    }
    event
}

/// Shows that `waiter` waits until `retry_at`, because its last try failed with `reason`, and gives up at `give_up_at`.
pub(super) fn note(
    records: &SharedRecords,
    waiter: Waiter,
    reason: String,
    retry_at: Timestamp,
    give_up_at: Option<Timestamp>,
) {
    records.write(|records| {
        let mut waits = std::mem::take(&mut records.waits);
        // Deferred runs may have been cancelled.
        waits.retain(|waiter, _| waiter.is_open(records));
        let first =
            Wait { reason: String::new(), since: now(), tries: 0, retry_at: None, give_up_at };
        let wait = waits.entry(waiter).or_insert(first);
        (wait.reason, wait.retry_at) = (reason, Some(retry_at));
        wait.tries += 1;
        records.waits = waits;
    });
}

/// Shows that the `work` of `waiter` takes long, until `give_up_at` at the latest, unless its failures are shown.
pub(super) fn note_slow(
    records: &SharedRecords,
    waiter: Waiter,
    work: &str,
    give_up_at: Timestamp,
) {
    records.write(|records| {
        let reason = work.to_owned();
        let give_up_at = Some(give_up_at);
        let slow = Wait { reason, since: now(), tries: 0, retry_at: None, give_up_at };
        records.waits.entry(waiter).or_insert(slow);
    });
}
