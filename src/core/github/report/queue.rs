//! The order of writes to GitHub. GitHub allows few writes. Where many wait, reports of ended runs go first,
//! because their readers wait for nothing more; and each environment has a pause between two writes.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use stagely_protocol::CommitSha;
use stagely_state::ids::EnvironmentId;
use stagely_state::{PublishedReport, RunState};
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep_until};

use crate::core::records::SharedRecords;

/// Concurrent writes of one kind: enough that one slow response does not hold up all, and few, because a write
/// that has started cannot be overtaken.
const AT_ONCE: usize = 3;

/// At this many kept times the old ones are dropped.
const TIMES_MAX: usize = 1_000;

/// The state that all reporters share. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct ReportQueue {
    inner: Arc<Mutex<Inner>>,
    /// Comments and statuses have separate rate limits, so they have separate permits.
    comments: Arc<Permits>,
    statuses: Arc<Permits>,
}

#[derive(Debug, Default)]
struct Inner {
    /// The last write of each environment.
    written_at: HashMap<EnvironmentId, Instant>,
    /// The published part of reports of which GitHub refused another part.
    partly_published: HashMap<EnvironmentId, PublishedReport>,
    /// The commits of which GitHub makes no deployment.
    refused_deployments: HashMap<EnvironmentId, CommitSha>,
}

impl ReportQueue {
    /// `records` tell which reports are urgent.
    pub(crate) fn new(records: &SharedRecords) -> Self {
        let permits = || {
            let waiting = Mutex::new(Waiting { free: AT_ONCE, queue: Vec::new() });
            Arc::new(Permits { records: records.clone(), waiting })
        };
        Self { inner: Arc::default(), comments: permits(), statuses: permits() }
    }

    /// Waits until `interval` has passed since the last write of the environment.
    pub(super) async fn pause(&self, environment: EnvironmentId, interval: Duration) {
        let written_at = lock(&self.inner).written_at.get(&environment).copied();
        if let Some(written_at) = written_at {
            sleep_until(written_at + interval).await;
        }
    }

    /// Notes an attempt to write the environment just now. A failed one counts, because it has cost a request
    /// and may have succeeded at GitHub.
    pub(super) fn note_write(&self, environment: EnvironmentId, interval: Duration) {
        let now = Instant::now();
        let written_at = &mut lock(&self.inner).written_at;
        if written_at.len() >= TIMES_MAX {
            written_at.retain(|_, at| now.duration_since(*at) < interval);
        }
        written_at.insert(environment, now);
    }

    /// Keeps the published part of a report, or drops it.
    pub(crate) fn remember(&self, environment: EnvironmentId, part: Option<PublishedReport>) {
        let parts = &mut lock(&self.inner).partly_published;
        match part {
            Some(part) => parts.insert(environment, part),
            None => parts.remove(&environment),
        };
    }

    pub(super) fn remembered(&self, environment: EnvironmentId) -> Option<PublishedReport> {
        lock(&self.inner).partly_published.get(&environment).cloned()
    }

    /// Notes that GitHub makes no deployment of a commit.
    pub(super) fn refuse_deployment(&self, environment: EnvironmentId, commit: CommitSha) {
        let refused = &mut lock(&self.inner).refused_deployments;
        // Those of environments that are gone are not worth an index.
        if refused.len() >= TIMES_MAX {
            refused.clear();
        }
        refused.insert(environment, commit);
    }

    pub(super) fn refused_deployment(&self, environment: EnvironmentId) -> Option<CommitSha> {
        lock(&self.inner).refused_deployments.get(&environment).cloned()
    }

    /// Waits for a permit to write the environment's comment.
    pub(super) async fn comment_permit(&self, environment: EnvironmentId) -> Permit {
        Permits::acquire(&self.comments, environment).await
    }

    /// Waits for a permit to write a status of the environment's commit.
    pub(super) async fn status_permit(&self, environment: EnvironmentId) -> Permit {
        Permits::acquire(&self.statuses, environment).await
    }
}

/// A semaphore whose waiters with an urgent report go first.
#[derive(Debug)]
struct Permits {
    records: SharedRecords,
    waiting: Mutex<Waiting>,
}

#[derive(Debug)]
struct Waiting {
    free: usize,
    /// In the order of arrival.
    queue: Vec<(EnvironmentId, oneshot::Sender<Permit>)>,
}

/// Allows one write. Dropping it lets the next waiter write.
#[derive(Debug)]
pub(super) struct Permit(Option<Arc<Permits>>);

impl Permits {
    async fn acquire(permits: &Arc<Self>, environment: EnvironmentId) -> Permit {
        let permit = {
            let mut waiting = lock(&permits.waiting);
            if waiting.free > 0 {
                waiting.free -= 1;
                return Permit(Some(Arc::clone(permits)));
            }
            let (sender, permit) = oneshot::channel();
            waiting.queue.push((environment, sender));
            permit
        };
        permit.await.expect("a sender leaves the queue only with a permit")
    }

    /// Gives a returned permit to the next waiter.
    fn hand_on(permits: &Arc<Self>) {
        loop {
            let next = {
                let mut waiting = lock(&permits.waiting);
                let is_urgent =
                    |(environment, _): &(EnvironmentId, _)| permits.is_urgent(*environment);
                let urgent = waiting.queue.iter().position(is_urgent);
                if waiting.queue.is_empty() {
                    waiting.free += 1;
                    return;
                }
                waiting.queue.remove(urgent.unwrap_or(0)).1
            };
            match next.send(Permit(Some(Arc::clone(permits)))) {
                Ok(()) => return,
                // The waiter has gone. The unsent permit must not be handed on by its own drop.
                Err(mut permit) => permit.0 = None,
            }
        }
    }

    /// Whether the readers of the environment's report wait for nothing more from core.
    fn is_urgent(&self, environment: EnvironmentId) -> bool {
        let records = self.records.read();
        let environment = records.environments.get(&environment);
        let run = environment.and_then(|environment| environment.report.run);
        let run = run.and_then(|run| records.runs.get(&run));
        run.is_some_and(|run| run.state.is_final() || run.state == RunState::AwaitingApproval)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if let Some(permits) = self.0.take() {
            Permits::hand_on(&permits);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
