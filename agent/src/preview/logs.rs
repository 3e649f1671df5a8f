//! The logs of the services of this machine's previews, on their way from the engine to core.
//!
//! The engine keeps what the services write, so lines wait there while core is away or slow, and nothing is spooled: memory
//! holds a few batches. For each container the time of the last line that core has stored is on disk, a few seconds late at
//! most. After a killed agent the next one sends the lines of these seconds again.

mod queue;
mod reader;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bollard::Docker;
use stagely_protocol::{AgentMessage, LogAck, ResumedJob, Stream, WireId, service_log_id};
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use self::queue::{LineQueue, QueuedLine};
use self::reader::Reader;
use super::containers::ServiceContainer;
use super::folder::PreviewFolder;
use super::masked_values::MaskedValues;
use crate::mask::Masker;

/// A waiting line is sent after this time, even if its batch is not full.
const BATCH_DELAY: Duration = Duration::from_millis(200);

/// The times of stored lines are written to disk at most so often.
const POSITIONS_INTERVAL: Duration = Duration::from_secs(1);

/// The logs of all previews of this machine.
#[derive(Debug)]
pub(super) struct ServiceLogs {
    /// Notified when there is something to send.
    wake: Arc<Notify>,
    /// Notified when a queue has space.
    space: Notify,
    shared: Mutex<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    logs: BTreeMap<WireId, PreviewLog>,
    /// The lines that core has of each log, as it said in the last `HELLO_ACK`.
    resumed: BTreeMap<WireId, u64>,
}

/// The log of one preview.
#[derive(Debug)]
struct PreviewLog {
    folder: PreviewFolder,
    generation: u64,
    masker: Masker,
    /// One for each deployment whose lines core has not stored; the last one grows.
    queues: Vec<LineQueue>,
    readers: BTreeMap<String, RunningReader>,
    /// The time of the last line of each container that was queued.
    queued: BTreeMap<String, String>,
    /// The same of lines that core has stored.
    stored: BTreeMap<String, String>,
    /// Whether `stored` differs from what is on disk.
    has_changed: bool,
    written_at: Option<Instant>,
}

#[derive(Debug)]
struct RunningReader {
    task: AbortOnDropHandle<()>,
    /// Of the container.
    started_at: String,
}

impl ServiceLogs {
    pub(super) fn new(wake: Arc<Notify>) -> Arc<Self> {
        Arc::new(Self { wake, space: Notify::new(), shared: Mutex::default() })
    }

    fn shared(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins the log of a deployment, if it has not begun. `is_new`: core has no line of it yet.
    pub(super) fn begin(
        &self,
        preview: &WireId,
        generation: u64,
        values: impl FnOnce() -> MaskedValues,
        folder: PreviewFolder,
        is_new: bool,
    ) {
        let Some(id) = service_log_id(preview, generation) else { return };
        let mut shared = self.shared();
        if shared.logs.get(preview).is_some_and(|log| log.generation == generation) {
            return;
        }
        let Some(masker) = values().masker() else {
            tracing::error!(%preview, "its log is not read, because its secrets cannot be masked");
            return;
        };
        let next = if is_new { Some(0) } else { shared.resumed.get(&id).copied() };
        let queue = LineQueue::new(id, next);
        if let Some(log) = shared.logs.get_mut(preview) {
            // Readers begin anew where they were, with the secrets of this deployment.
            log.readers.clear();
            log.queues.retain(|queue| !queue.is_empty());
            log.queues.push(queue);
            (log.generation, log.masker) = (generation, masker);
            return;
        }
        let stored = folder.log_positions();
        let log = PreviewLog {
            folder,
            generation,
            masker,
            queues: vec![queue],
            readers: BTreeMap::new(),
            queued: stored.clone(),
            stored,
            has_changed: false,
            written_at: None,
        };
        shared.logs.insert(preview.clone(), log);
    }

    /// Reads the logs of these containers from now on, and of no others of the preview.
    pub(super) fn read(
        self: &Arc<Self>,
        engine: &Docker,
        preview: &WireId,
        containers: &[ServiceContainer],
    ) {
        let mut shared = self.shared();
        let Some(log) = shared.logs.get_mut(preview) else { return };
        let is_there = |id: &String| containers.iter().any(|container| container.id == *id);
        log.readers.retain(|id, _| is_there(id));
        log.queued.retain(|id, _| is_there(id));
        log.stored.retain(|id, _| is_there(id));
        log.write_positions(false);
        let names = containers.iter().map(|container| container.service.chars().count());
        let width = names.max().unwrap_or_default();
        for container in containers {
            let is_read = log.readers.get(&container.id).is_some_and(|reader| {
                let has_new_lines =
                    container.is_running() || reader.started_at != container.started_at;
                !(reader.task.is_finished() && has_new_lines)
            });
            if is_read {
                continue;
            }
            let reader = Reader {
                logs: Arc::clone(self),
                preview: preview.clone(),
                container: container.id.clone(),
                prefix: format!("{:width$} | ", container.service),
                after: log.queued.get(&container.id).cloned(),
            };
            let task = tokio::spawn(reader.run(engine.clone(), log.masker.clone()));
            let started_at = container.started_at.clone();
            let reader = RunningReader { task: AbortOnDropHandle::new(task), started_at };
            log.readers.insert(container.id.clone(), reader);
        }
    }

    /// Queues lines of a container, the last of which the engine got at `time`.
    fn append(&self, preview: &WireId, container: &str, time: &str, lines: Vec<(Stream, String)>) {
        let mut shared = self.shared();
        let Some(log) = shared.logs.get_mut(preview) else { return };
        log.queued.insert(container.to_owned(), time.to_owned());
        let Some(queue) = log.queues.last_mut() else { return };
        let t = reader::milliseconds(time);
        let container: Arc<str> = container.into();
        let wakes = !queue.has_waiting();
        for (stream, text) in lines {
            let (container, time) = (Arc::clone(&container), time.into());
            queue.push(QueuedLine { container, time, t, stream, text });
        }
        if wakes || queue.is_batch_full() {
            self.wake.notify_one();
        }
    }

    /// Waits until the preview's queue has space.
    async fn wait_for_space(&self, preview: &WireId) {
        loop {
            let space = self.space.notified();
            let is_full = {
                let shared = self.shared();
                let queue = shared.logs.get(preview).and_then(|log| log.queues.last());
                queue.is_some_and(LineQueue::is_full)
            };
            if !is_full {
                return;
            }
            space.await;
        }
    }

    /// The LOG messages that are due, at most `messages_max`, and when to call again without a wake-up.
    pub(super) fn due(&self, messages_max: usize) -> (Vec<String>, Option<Instant>) {
        let (mut messages, mut next, now) = (Vec::new(), None, Instant::now());
        let mut shared = self.shared();
        for queue in shared.logs.values_mut().flat_map(|log| &mut log.queues) {
            while messages.len() < messages_max
                && let Some(batch) = queue.batch_due(now, BATCH_DELAY)
            {
                messages.push(AgentMessage::Log(batch).to_json());
            }
            next = [next, queue.next_batch_at(BATCH_DELAY)].into_iter().flatten().min();
        }
        // With a full connection the writer wakes us.
        let next = next.filter(|_| messages.len() < messages_max);
        (messages, next)
    }

    /// Core has stored lines. `false`: of no log here.
    pub(super) fn acknowledge(&self, ack: &LogAck) -> bool {
        let mut shared = self.shared();
        for log in shared.logs.values_mut() {
            let Some(queue) = log.queues.iter_mut().find(|queue| *queue.id() == ack.job_id) else {
                continue;
            };
            for line in queue.acknowledge(ack.lines) {
                log.stored.insert(line.container.to_string(), line.time.to_string());
            }
            log.has_changed = true;
            log.write_positions(false);
            let growing = log.queues.pop();
            log.queues.retain(|queue| !queue.is_empty());
            log.queues.extend(growing);
            drop(shared);
            self.space.notify_waiters();
            return true;
        }
        false
    }

    /// A session has opened: goes on where core is.
    pub(super) fn resume(&self, resumed: &[ResumedJob]) {
        let mut shared = self.shared();
        let shared = &mut *shared;
        shared.resumed = resumed.iter().map(|log| (log.job_id.clone(), log.next_line)).collect();
        for log in shared.logs.values_mut() {
            // HELLO names the newest deployment alone. Of those before, what core has acknowledged is known, and it ignores
            // repeated lines.
            for queue in &mut log.queues {
                queue.resume(shared.resumed.get(queue.id()).copied());
            }
        }
        self.space.notify_waiters();
    }

    /// Ends the log of a preview that is gone.
    pub(super) fn remove(&self, preview: &WireId) {
        self.shared().logs.remove(preview);
    }

    /// Reads no more, and writes to disk what core has stored.
    pub(super) fn stop(&self) {
        for log in self.shared().logs.values_mut() {
            log.readers.clear();
            log.write_positions(true);
        }
    }
}

impl PreviewLog {
    /// Writes the times of stored lines to disk, if they have changed, and not too often unless `is_last`.
    fn write_positions(&mut self, is_last: bool) {
        let is_early = self.written_at.is_some_and(|at| at.elapsed() < POSITIONS_INTERVAL);
        if !self.has_changed || is_early && !is_last {
            return;
        }
        (self.has_changed, self.written_at) = (false, Some(Instant::now()));
        if let Err(error) = self.folder.set_log_positions(&self.stored) {
            tracing::warn!(%error, "cannot record which lines of a preview core has");
        }
    }
}
