//! Who writes to GitHub next. GitHub takes few writes, so where many wait, those go first whose readers
//! wait for nothing more; and of each environment there is a pause between two writes.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use stagely_state::ids::EnvironmentId;
use stagely_state::{RunState, Told};
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep_until};

use crate::core::records::SharedRecords;

/// Writes of one kind that are under way at once: enough that one slow answer does not hold up all, and
/// few, since what is under way is not overtaken any more.
const AT_ONCE: usize = 3;

/// Times of writes that are kept before those that are over are looked for.
const TIMES_MAX: usize = 1_000;

/// What all reports share. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Reporting {
    inner: Arc<Mutex<Inner>>,
    /// Comments and statuses have budgets of their own, and do not wait for each other.
    comments: Arc<Gate>,
    statuses: Arc<Gate>,
}

#[derive(Debug, Default)]
struct Inner {
    /// When each environment was written last.
    written: HashMap<EnvironmentId, Instant>,
    /// What GitHub was told although a part was refused.
    told: HashMap<EnvironmentId, Told>,
}

impl Reporting {
    /// Reads from `records` who is to go first.
    pub(crate) fn new(records: &SharedRecords) -> Self {
        let gate = || Arc::new(Gate { records: records.clone(), inner: Mutex::default() });
        Self { inner: Arc::default(), comments: gate(), statuses: gate() }
    }

    /// Waits until `interval` has passed since the environment was written.
    pub(super) async fn pause(&self, environment: EnvironmentId, interval: Duration) {
        let written = lock(&self.inner).written.get(&environment).copied();
        if let Some(written) = written {
            sleep_until(written + interval).await;
        }
    }

    /// Notes that the environment was written just now, or may have been: what fails has cost GitHub a
    /// request, too, and may be there all the same.
    pub(super) fn wrote(&self, environment: EnvironmentId, interval: Duration) {
        let now = Instant::now();
        let written = &mut lock(&self.inner).written;
        if written.len() >= TIMES_MAX {
            written.retain(|_, at| now.duration_since(*at) < interval);
        }
        written.insert(environment, now);
    }

    pub(crate) fn remember(&self, environment: EnvironmentId, told: Option<Told>) {
        let all = &mut lock(&self.inner).told;
        match told {
            Some(told) => all.insert(environment, told),
            None => all.remove(&environment),
        };
    }

    pub(super) fn remembered(&self, environment: EnvironmentId) -> Option<Told> {
        lock(&self.inner).told.get(&environment).cloned()
    }

    /// Waits for its turn to write the environment's comment.
    pub(super) async fn comment_turn(&self, environment: EnvironmentId) -> Turn {
        Gate::turn(&self.comments, environment).await
    }

    /// Waits for its turn to write a status of the environment's commit.
    pub(super) async fn status_turn(&self, environment: EnvironmentId) -> Turn {
        Gate::turn(&self.statuses, environment).await
    }
}

/// Lets some through at once.
#[derive(Debug)]
struct Gate {
    records: SharedRecords,
    inner: Mutex<Turns>,
}

#[derive(Debug, Default)]
struct Turns {
    under_way: usize,
    /// In the order in which they came.
    waiting: Vec<(EnvironmentId, oneshot::Sender<Turn>)>,
}

/// Leave to write. The next one's begins when it is dropped.
#[derive(Debug)]
pub(super) struct Turn(Option<Arc<Gate>>);

impl Gate {
    async fn turn(gate: &Arc<Self>, environment: EnvironmentId) -> Turn {
        let turn = {
            let mut turns = lock(&gate.inner);
            if turns.under_way < AT_ONCE {
                turns.under_way += 1;
                return Turn(Some(Arc::clone(gate)));
            }
            let (sender, turn) = oneshot::channel();
            turns.waiting.push((environment, sender));
            turn
        };
        turn.await.expect("who waits is never forgotten")
    }

    /// Hands the turn on.
    fn pass_on(gate: &Arc<Self>) {
        loop {
            let next = {
                let mut turns = lock(&gate.inner);
                let urgent = turns.waiting.iter().position(|(it, _)| gate.is_urgent(*it));
                if turns.waiting.is_empty() {
                    turns.under_way -= 1;
                    return;
                }
                turns.waiting.remove(urgent.unwrap_or(0)).1
            };
            match next.send(Turn(Some(Arc::clone(gate)))) {
                Ok(()) => return,
                // Who waited has gone.
                Err(mut turn) => turn.0 = None,
            }
        }
    }

    /// Whether the readers of what is told of the environment wait for nothing more of core.
    fn is_urgent(&self, environment: EnvironmentId) -> bool {
        let records = self.records.read();
        let run = records.environments.get(&environment).and_then(|it| it.report.run);
        let run = run.and_then(|run| records.runs.get(&run));
        run.is_some_and(|run| run.state.is_final() || run.state == RunState::AwaitingApproval)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if let Some(gate) = self.0.take() {
            Gate::pass_on(&gate);
        }
    }
}

fn lock<T>(inner: &Mutex<T>) -> MutexGuard<'_, T> {
    inner.lock().unwrap_or_else(PoisonError::into_inner)
}
