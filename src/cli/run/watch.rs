//! Follows a run and the logs of all its jobs, as one sequence of updates.

use std::collections::BTreeSet;
use std::future::ready;

use stagely_state::ids::{JobId, RunId};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::api::{FollowedLine, LogRange, RunView};
use crate::client::{Client, ClientError, LogEvent};

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
    /// The run has ended, and what its logs said until then was returned. Its machines may still be
    /// there, and export caches.
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
    /// Each ends with its job, or with what was said when the run had ended.
    logs: JoinSet<()>,
    /// Fires when the run has ended.
    ended: CancellationToken,
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
            ended: CancellationToken::new(),
            told_over: false,
        }
    }

    /// The next update; `None` when the run has ended, its machines are gone, and what its logs said
    /// until its end was returned. May be dropped and called again.
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
                        if run.status.is_final() {
                            self.ended.cancel();
                        }
                    }
                    return Ok(Some(update));
                }
                Some(_) = self.logs.join_next() => {}
                () = ready(()), if self.is_over() && !self.told_over => {
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

    fn is_over(&self) -> bool {
        self.ended.is_cancelled() && self.logs.is_empty()
    }

    fn follow_new_jobs(&mut self, run: &RunView) {
        for job in run.jobs.iter().map(|job| job.id) {
            if self.followed.insert(job) {
                let log =
                    send_log(self.client.clone(), job, self.sender.clone(), self.ended.clone());
                self.logs.spawn(log);
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

async fn send_log(client: Client, job: JobId, updates: Updates, ended: CancellationToken) {
    let mut follower = client.follow_log(job, LogRange { attempt: Some(1), from: None });
    let mut has_ended = false;
    loop {
        let next = tokio::select! {
            biased;
            next = follower.next() => next,
            () = ended.cancelled(), if !has_ended => {
                has_ended = true;
                match follower.end_with_stored().await {
                    Ok(()) => continue,
                    Err(error) => Err(error),
                }
            }
        };
        let update = match next {
            Ok(Some(LogEvent::Lines { attempt, lines })) => {
                Ok(Update::Lines { job, attempt, lines })
            }
            Ok(Some(LogEvent::End(_)) | None) => return,
            Err(error) => Err(error),
        };
        let is_over = update.is_err();
        if updates.send(update).await.is_err() || is_over {
            return;
        }
    }
}
