//! Numbered lines of one deployment until core has stored them.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use stagely_protocol::{BATCH_BYTES_MAX, BATCH_LINES_MAX, Log, LogLine, Stream, WireId};
use tokio::time::Instant;

/// The most lines that wait or are not acknowledged.
const LINES_MAX: usize = 4 * BATCH_LINES_MAX;

/// The most text of them, in bytes.
const BYTES_MAX: usize = 4 * BATCH_BYTES_MAX;

/// A line that core has not stored.
#[derive(Debug)]
pub(super) struct QueuedLine {
    pub(super) container: Arc<str>,
    /// When the engine got it, in the engine's words.
    pub(super) time: Box<str>,
    /// The same in milliseconds since the Unix epoch.
    pub(super) t: u64,
    pub(super) stream: Stream,
    pub(super) text: String,
}

#[derive(Debug)]
pub(super) struct LineQueue {
    /// The `job_id` in LOG.
    id: WireId,
    /// The number of the first line. `None` until core has said how many lines it has.
    first: Option<u64>,
    lines: VecDeque<QueuedLine>,
    bytes: usize,
    /// How many of `lines` were sent in this session.
    sent: usize,
    /// When the first line that waits now was queued or seen.
    waiting_since: Option<Instant>,
}

impl LineQueue {
    pub(super) const fn new(id: WireId, first: Option<u64>) -> Self {
        Self { id, first, lines: VecDeque::new(), bytes: 0, sent: 0, waiting_since: None }
    }

    pub(super) const fn id(&self) -> &WireId {
        &self.id
    }

    pub(super) fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    pub(super) fn is_full(&self) -> bool {
        self.lines.len() >= LINES_MAX || self.bytes >= BYTES_MAX
    }

    /// Whether a line was not sent yet.
    pub(super) fn has_waiting(&self) -> bool {
        self.sent < self.lines.len()
    }

    pub(super) fn is_batch_full(&self) -> bool {
        self.lines.len() - self.sent >= BATCH_LINES_MAX
    }

    pub(super) fn push(&mut self, line: QueuedLine) {
        self.bytes += line.text.len();
        self.lines.push_back(line);
    }

    /// The next batch, if it is due.
    pub(super) fn batch_due(&mut self, now: Instant, delay: Duration) -> Option<Log<'_>> {
        let first = self.first?;
        if !self.has_waiting() {
            self.waiting_since = None;
            return None;
        }
        let since = *self.waiting_since.get_or_insert(now);
        if now < since + delay && !self.is_batch_full() && !self.is_full() {
            return None;
        }
        self.waiting_since = None;
        let start = self.sent;
        let mut bytes = 0;
        let waiting = self.lines.range(start..).take(BATCH_LINES_MAX);
        // Also a line that is longer than a batch.
        let batch = waiting.take_while(|line| {
            let is_first = bytes == 0;
            bytes += line.text.len().max(1);
            is_first || bytes <= BATCH_BYTES_MAX
        });
        let lines: Vec<LogLine<'_>> = batch
            .map(|line| LogLine { t: line.t, stream: line.stream, data: Cow::Borrowed(&line.text) })
            .collect();
        self.sent += lines.len();
        Some(Log { job_id: self.id.clone(), first: Some(first + start as u64), lines })
    }

    /// When the lines that wait are due although their batch is not full.
    pub(super) fn next_batch_at(&self, delay: Duration) -> Option<Instant> {
        self.waiting_since.map(|since| since + delay)
    }

    /// Removes the lines below the number `lines`, which core has stored, and returns them.
    pub(super) fn acknowledge(&mut self, lines: u64) -> impl Iterator<Item = QueuedLine> {
        let stored = self.first.map_or(0, |first| lines.saturating_sub(first));
        let stored = usize::try_from(stored).unwrap_or(usize::MAX).min(self.lines.len());
        self.first = self.first.map(|first| first + stored as u64);
        self.sent = self.sent.saturating_sub(stored);
        let removed = self.lines.range(..stored).map(|line| line.text.len()).sum::<usize>();
        self.bytes -= removed;
        self.lines.drain(..stored)
    }

    /// Begins a session, in which core wants the line `next` first, if it says so.
    pub(super) fn resume(&mut self, next: Option<u64>) {
        if let Some(next) = next {
            self.acknowledge(next).for_each(drop);
            // Core may have more lines than a former agent knew of, or fewer.
            self.first = Some(next);
        }
        self.sent = 0;
        self.waiting_since = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queue(first: Option<u64>) -> LineQueue {
        LineQueue::new("prev_1-1".parse().unwrap(), first)
    }

    fn push(queue: &mut LineQueue, texts: &[&str]) {
        for text in texts {
            let (container, time) = ("c".into(), "2026-01-01T00:00:00.000000001Z".into());
            let (t, stream, text) = (1, Stream::Stdout, (*text).to_owned());
            queue.push(QueuedLine { container, time, t, stream, text });
        }
    }

    /// The next batch, also if its time has not come: the number of the first line, and the texts.
    fn batch(queue: &mut LineQueue) -> Option<(u64, Vec<String>)> {
        let batch = queue.batch_due(Instant::now(), Duration::ZERO)?;
        let texts = batch.lines.iter().map(|line| line.data.to_string()).collect();
        Some((batch.first.unwrap(), texts))
    }

    fn texts(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|text| (*text).to_owned()).collect()
    }

    #[test]
    fn lines_are_numbered_and_sent_once_in_a_session() {
        let mut queue = queue(Some(0));
        push(&mut queue, &["a", "b"]);
        assert_eq!(batch(&mut queue), Some((0, texts(&["a", "b"]))));
        assert_eq!(batch(&mut queue), None);
        push(&mut queue, &["c"]);
        assert_eq!(queue.acknowledge(1).count(), 1);
        assert_eq!(batch(&mut queue), Some((2, texts(&["c"]))));

        // The connection broke: core has stored `b`, and its answer was lost.
        queue.resume(Some(2));
        assert_eq!(batch(&mut queue), Some((2, texts(&["c"]))));
        assert_eq!(queue.acknowledge(3).count(), 1);
        assert!(queue.is_empty());
    }

    #[test]
    fn a_new_agent_numbers_its_lines_as_core_says() {
        let mut queue = queue(None);
        push(&mut queue, &["a"]);
        assert_eq!(batch(&mut queue), None);
        queue.resume(Some(700));
        assert_eq!(batch(&mut queue), Some((700, texts(&["a"]))));
        // Core has lost what it had.
        queue.resume(Some(0));
        assert_eq!(batch(&mut queue), Some((0, texts(&["a"]))));
    }

    #[test]
    fn lines_of_a_former_deployment_are_sent_again_from_the_last_acknowledgement() {
        let mut queue = queue(Some(5));
        push(&mut queue, &["a", "b", "c"]);
        batch(&mut queue);
        assert_eq!(queue.acknowledge(6).count(), 1);
        queue.resume(None);
        assert_eq!(batch(&mut queue), Some((6, texts(&["b", "c"]))));
    }

    #[test]
    fn batches_and_the_queue_are_limited() {
        let mut queue = queue(Some(0));
        let long = "x".repeat(BATCH_BYTES_MAX / 2);
        push(&mut queue, &[&long, &long, &long, "end"]);
        assert_eq!(batch(&mut queue).unwrap().1.len(), 2);
        assert_eq!(batch(&mut queue).unwrap().1.len(), 2);
        while !queue.is_full() {
            push(&mut queue, &["short"]);
        }
        assert_eq!(queue.acknowledge(4).count(), 4);
        assert!(!queue.is_full());
        assert_eq!(batch(&mut queue).unwrap().1.len(), BATCH_LINES_MAX);
    }

    #[test]
    fn a_line_waits_for_others() {
        let mut queue = queue(Some(0));
        push(&mut queue, &["a"]);
        let (now, delay) = (Instant::now(), Duration::from_secs(1));
        assert!(queue.batch_due(now, delay).is_none());
        assert_eq!(queue.next_batch_at(delay), Some(now + delay));
        assert!(queue.batch_due(now + delay, delay).is_some());
    }
}
