//! One job of an agent, as the session sees it: its task, its spool, and what is sent and not acknowledged.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use stagely_protocol::WireId;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::spool::{LineBatch, Spool, SpoolError};

/// A waiting line is sent after this time, even if its batch is not full.
const BATCH_DELAY: Duration = Duration::from_millis(50);

/// The most unacknowledged batches of one job. Core acknowledges after a commit of some milliseconds; sixteen
/// full batches keep it busy for that time.
const UNACKNOWLEDGED_BATCHES_MAX: usize = 16;

pub(super) struct JobHandle {
    pub(super) spool: Arc<Spool>,
    pub(super) cancel: CancellationToken,
    pub(super) task: Option<JoinHandle<()>>,
    /// Nothing of the job is sent any more, and its spool is removed when it has ended.
    pub(super) is_discarded: bool,
    /// The STATUS that was sent on this connection and is not acknowledged.
    pub(super) unacknowledged_status: Option<SentStatus>,
    /// When the first line that waits now was seen.
    waiting_since: Option<Instant>,
    /// For each batch that was sent and is not acknowledged, the number of the line after it.
    unacknowledged_batches: VecDeque<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SentStatus {
    /// The image is pushed, and another STATUS follows.
    Pushed,
    Final,
}

impl JobHandle {
    pub(super) fn new(
        spool: Arc<Spool>,
        cancel: CancellationToken,
        task: Option<JoinHandle<()>>,
    ) -> Self {
        Self {
            spool,
            cancel,
            task,
            is_discarded: false,
            unacknowledged_status: None,
            waiting_since: None,
            unacknowledged_batches: VecDeque::new(),
        }
    }

    /// Forgets what was sent on the connection before this one.
    pub(super) fn reset_connection(&mut self) {
        self.unacknowledged_status = None;
        self.unacknowledged_batches.clear();
        self.waiting_since = None;
    }

    /// Stops a job that core does not want any more.
    pub(super) fn discard(&mut self) {
        self.is_discarded = true;
        self.cancel.cancel();
    }

    /// Stops a job whose log cannot be sent, and makes `error` its end.
    pub(super) fn abandon_log(&mut self, error: &SpoolError) {
        self.cancel.cancel();
        self.spool.abandon_log(error);
    }

    /// Removes the spool if the job is discarded and has ended. Returns whether it did.
    pub(super) fn remove_if_discarded(&self) -> bool {
        let is_over = self.is_discarded && self.spool.is_finished();
        if is_over {
            self.spool.remove();
        }
        is_over
    }

    /// Core has stored all lines below `lines`.
    pub(super) fn acknowledge(&mut self, lines: u64) {
        while self.unacknowledged_batches.front().is_some_and(|&end| end <= lines) {
            self.unacknowledged_batches.pop_front();
        }
        self.spool.acknowledge(lines);
    }

    /// The next batch, if it is due and the window has space for it.
    pub(super) fn batch_due(&mut self, job_id: &WireId, now: Instant) -> Option<LineBatch> {
        if self.spool.waiting() == 0 {
            self.waiting_since = None;
            return None;
        }
        let since = *self.waiting_since.get_or_insert(now);
        let is_due = now >= since + BATCH_DELAY || self.spool.is_batch_due();
        if !is_due || self.is_window_full() {
            return None;
        }
        self.waiting_since = None;
        match self.spool.next_batch() {
            Ok(batch) => {
                let end = batch.as_ref().map(|batch| batch.first + batch.count);
                self.unacknowledged_batches.extend(end);
                batch
            }
            Err(error) => {
                self.abandon_log(&error);
                let error = anyhow::Error::new(error);
                tracing::error!(job = %job_id, "cannot read this job's log back: {error:#}");
                None
            }
        }
    }

    /// When the lines that wait are due although their batch is not full.
    pub(super) fn next_batch_at(&self) -> Option<Instant> {
        let since = self.waiting_since.filter(|_| !self.is_window_full());
        since.map(|since| since + BATCH_DELAY)
    }

    fn is_window_full(&self) -> bool {
        self.unacknowledged_batches.len() >= UNACKNOWLEDGED_BATCHES_MAX
    }
}
