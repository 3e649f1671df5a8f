//! Follows a run and the logs of all its jobs, as one sequence of updates.

use std::collections::BTreeSet;
use std::future::ready;

use stagely_state::ids::{JobId, RunId};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::api::{FollowedLine, LogRange, RunView};
use crate::client::{Client, ClientError, LogEvent};

/// The most updates that wait for the display. With more, reading from core pauses.
const WAITING_MAX: usize = 64;

/// A change to show.
#[derive(Debug)]
pub(super) enum Update {
    /// The run has changed.
    Run(Box<RunView>),
    /// A job has further log lines.
    Lines { job: JobId, attempt: u32, lines: Vec<FollowedLine<'static>> },
    /// The run has ended, and its log lines until then were returned. Its machines may still export
    /// caches.
    Ended,
}

/// Follows one run. Dropping the value ends its tasks.
#[derive(Debug)]
pub(super) struct Watch {
    client: Client,
    updates: mpsc::Receiver<Result<Update, ClientError>>,
    sender: mpsc::Sender<Result<Update, ClientError>>,
    followed: BTreeSet<JobId>,
    /// Ends when the run has ended and its machines are terminated.
    run: JoinSet<()>,
    /// Each ends with its job, or after the lines that core had when the run ended.
    logs: JoinSet<()>,
    /// Cancelled when the run has ended.
    ended: CancellationToken,
    is_end_returned: bool,
}

impl Watch {
    /// Starts to follow `run`.
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
            is_end_returned: false,
        }
    }

    /// Returns the next update; `None` once the run has ended, its machines are terminated, and its log
    /// lines were returned. Cancel safe.
    ///
    /// # Errors
    /// [`ClientError`] if the run cannot be followed any longer.
    pub(super) async fn next(&mut self) -> Result<Option<Update>, ClientError> {
        loop {
            tokio::select! {
                // Updates that were sent before the last task ended are returned first.
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
                () = ready(()), if self.is_over() && !self.is_end_returned => {
                    self.is_end_returned = true;
                    return Ok(Some(Update::Ended));
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
