//! Follows a run and the logs of all its jobs, as one sequence of updates.

use std::collections::BTreeSet;
use std::future::ready;

use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::api::{FollowedLine, LogRange, RunView};
use crate::client::{Client, ClientError, LogEvent};
use crate::ids::{JobId, RunId};

/// Updates that may wait for the display. Beyond it core is not read from.
const WAITING_MAX: usize = 64;

/// Something to show.
#[derive(Debug)]
pub(super) enum Update {
    /// The run has changed.
    Run(Box<RunView>),
    /// A job said more.
    Lines {
        /// The job.
        job: JobId,
        /// Which of its attempts.
        attempt: u32,
        /// What it said.
        lines: Vec<FollowedLine>,
    },
    /// The run has ended and every line of its logs was returned. Its machines may still be there.
    Over,
}

/// Follows one run. Ends with the value.
#[derive(Debug)]
pub(super) struct Watch {
    client: Client,
    updates: mpsc::Receiver<Result<Update, ClientError>>,
    sender: mpsc::Sender<Result<Update, ClientError>>,
    followed: BTreeSet<JobId>,
    /// Ends when the run has ended and its machines are gone.
    run: JoinSet<()>,
    /// Each ends with its job.
    logs: JoinSet<()>,
    has_ended: bool,
    told_over: bool,
}

impl Watch {
    /// Begins to follow `run`.
    pub(super) fn start(client: Client, run: RunId) -> Self {
        let (sender, updates) = mpsc::channel(WAITING_MAX);
        let mut tasks = JoinSet::new();
        tasks.spawn(send_run(client.clone(), run, sender.clone()));
        Self {
            client,
            updates,
            sender,
            followed: BTreeSet::new(),
            run: tasks,
            logs: JoinSet::new(),
            has_ended: false,
            told_over: false,
        }
    }

    /// The next update; `None` when the run has ended, its machines are gone, and every line of its
    /// logs was returned. May be dropped and called again.
    ///
    /// # Errors
    /// [`ClientError`], when core cannot be followed any more.
    pub(super) async fn next(&mut self) -> Result<Option<Update>, ClientError> {
        loop {
            tokio::select! {
                // What was sent before the last task ended is returned first.
                biased;
                Some(update) = self.updates.recv() => {
                    let update = update?;
                    if let Update::Run(run) = &update {
                        self.follow_new_jobs(run);
                        self.has_ended = run.status.is_final();
                    }
                    return Ok(Some(update));
                }
                Some(_) = self.logs.join_next() => {}
                () = ready(()), if self.has_ended && !self.told_over && self.logs.is_empty() => {
                    self.told_over = true;
                    return Ok(Some(Update::Over));
                }
                ended = self.run.join_next(), if self.logs.is_empty() => {
                    if ended.is_none() {
                        return Ok(None);
                    }
                }
            }
        }
    }

    fn follow_new_jobs(&mut self, run: &RunView) {
        for job in run.jobs.iter().map(|job| job.id) {
            if self.followed.insert(job) {
                self.logs.spawn(send_log(self.client.clone(), job, self.sender.clone()));
            }
        }
    }
}

type Updates = mpsc::Sender<Result<Update, ClientError>>;

async fn send_run(client: Client, run: RunId, updates: Updates) {
    let mut follower = client.follow_run(run);
    while let Some(next) = follower.next().await.transpose() {
        let is_over = next.is_err();
        if updates.send(next.map(|run| Update::Run(Box::new(run)))).await.is_err() || is_over {
            return;
        }
    }
}

async fn send_log(client: Client, job: JobId, updates: Updates) {
    let mut follower = client.follow_log(job, LogRange { attempt: Some(1), from: None });
    while let Some(next) = follower.next().await.transpose() {
        let update = match next {
            Ok(LogEvent::Lines { attempt, lines }) => Ok(Update::Lines { job, attempt, lines }),
            Ok(LogEvent::End(_)) => return,
            Err(error) => Err(error),
        };
        let is_over = update.is_err();
        if updates.send(update).await.is_err() || is_over {
            return;
        }
    }
}
