//! What a run or a job waits for while an effect repeats a request that failed. The waits are not stored: after a restart
//! core makes the request again.

use std::time::Duration;

use stagely_state::ids::{JobId, RunId};
use stagely_state::{Effect, Event, Job, QueueReason, Run, Timestamp};

use super::clock::now;
use super::records::{Records, SharedRecords};
use super::retry;

/// What waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Subject {
    Run(RunId),
    Job(JobId),
}

/// A wait for the next try.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wait {
    /// The error of the last try, or what takes long, for people.
    pub reason: String,
    /// When the first try failed, or when it was seen to take long.
    pub since: Timestamp,
    /// The tries that failed.
    pub tries: u32,
    /// `None` while a try is under way.
    pub retry_at: Option<Timestamp>,
    /// When the job fails if no try succeeds. `None` if it is not known.
    pub give_up_at: Option<Timestamp>,
}

impl Wait {
    /// What a run waits for: a repository, GitHub or a registry that does not answer.
    pub(crate) fn of_run(records: &Records, run: &Run) -> Option<Self> {
        records.waits.get(&Subject::Run(run.id)).filter(|_| !run.state.is_final()).cloned()
    }

    /// What a job waits for: capacity, or a provider that does not answer.
    pub(crate) fn of_job(records: &Records, job: &Job) -> Option<Self> {
        let waits = || records.waits.get(&Subject::Job(job.id)).filter(|_| !job.state.is_final());
        waits().cloned().or_else(|| Self::for_capacity(records, job))
    }

    /// The wait of a job whose last launch found no capacity.
    pub(crate) fn for_capacity(records: &Records, job: &Job) -> Option<Self> {
        let gap = job.missing_capacity.as_ref().filter(|_| !job.state.is_final())?;
        let (retry_at, give_up_at) = match records.queued(job.id).map(|(_, queued)| &queued.reason)
        {
            Some(QueueReason::Capacity { retry_at, give_up_at, .. }) => {
                (Some(*retry_at), Some(*give_up_at))
            }
            _ => (None, None),
        };
        let (reason, tries) = (gap.message.clone(), gap.launches);
        Some(Self { reason, since: gap.since, tries, retry_at, give_up_at })
    }

    /// The wait with times of day, for people: `since 12:00:03 UTC, next try at …, until …: no spot machine`.
    pub(crate) fn text(&self) -> String {
        let next = self.retry_at.map(|at| format!(", next try at {}", time_of_day(at)));
        let end = self.give_up_at.map(|at| format!(", until {}", time_of_day(at)));
        let (next, end) = (next.unwrap_or_default(), end.unwrap_or_default());
        format!("since {}{next}{end}: {}", time_of_day(self.since), self.reason)
    }
}

/// `12:00:03 UTC`.
fn time_of_day(at: Timestamp) -> String {
    let at = i64::try_from(at.0).ok().and_then(|at| jiff::Timestamp::from_millisecond(at).ok());
    at.map(|at| at.strftime("%H:%M:%S UTC").to_string()).unwrap_or_default()
}

impl Subject {
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

/// Performs an effect, and shows the waits between its tries in `records`.
pub(super) async fn shown(
    records: &SharedRecords,
    effect: &Effect,
    performed: impl Future<Output = Option<Event>>,
) -> Option<Event> {
    let subject = Subject::of(effect, &records.read());
    let Some(subject) = subject else { return performed.await };
    let shared = records.clone();
    let note = move |error: String, wait: Duration| {
        note(&shared, subject, error, now().after(wait));
    };
    let event = retry::observed(note, performed).await;
    // The planning of a deferred run goes on later, with the same wait.
    let is_waiting = records.read().waits.contains_key(&subject);
    if is_waiting && !matches!(event, Some(Event::PlanDeferred { .. })) {
        records.write(|records| drop(records.waits.remove(&subject)));
    }
    event
}

/// Shows that `subject` waits until `retry_at`, because its last try failed with `reason`.
pub(super) fn note(records: &SharedRecords, subject: Subject, reason: String, retry_at: Timestamp) {
    records.write(|records| {
        let mut waits = std::mem::take(&mut records.waits);
        // Deferred runs may have been cancelled.
        waits.retain(|subject, _| subject.is_open(records));
        let first = Wait {
            reason: String::new(),
            since: now(),
            tries: 0,
            retry_at: None,
            give_up_at: None,
        };
        let wait = waits.entry(subject).or_insert(first);
        (wait.reason, wait.retry_at) = (reason, Some(retry_at));
        wait.tries += 1;
        records.waits = waits;
    });
}

/// Shows that the work of `subject` goes on until `give_up_at` at the latest. `work` is shown if nothing has failed yet.
pub(super) fn note_slow(
    records: &SharedRecords,
    subject: Subject,
    work: &str,
    give_up_at: Timestamp,
) {
    records.write(|records| {
        let reason = work.to_owned();
        let slow = Wait { reason, since: now(), tries: 0, retry_at: None, give_up_at: None };
        records.waits.entry(subject).or_insert(slow).give_up_at = Some(give_up_at);
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_is_shown_with_its_times_and_its_reason() {
        let wait = Wait {
            reason: "no spot machine".to_owned(),
            since: Timestamp(1_700_000_000_000),
            tries: 2,
            retry_at: Some(Timestamp(1_700_000_030_000)),
            give_up_at: Some(Timestamp(1_700_003_600_000)),
        };
        let text =
            "since 22:13:20 UTC, next try at 22:13:50 UTC, until 23:13:20 UTC: no spot machine";
        assert_eq!(wait.text(), text);
        let tried = Wait { retry_at: None, give_up_at: None, ..wait };
        assert_eq!(tried.text(), "since 22:13:20 UTC: no spot machine");
    }
}
