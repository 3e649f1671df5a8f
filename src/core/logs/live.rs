//! The newest lines of followed logs, as viewers get them: encoded once for all viewers of a log, and read from no disk.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use axum::extract::ws::Utf8Bytes;
use stagely_protocol::{LogLine, cut_line};
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;

use super::{LogId, lock};
use crate::api::{FollowMessage, FollowedLine};

/// Most batches that a viewer may be behind. One that is further behind reads from the store.
const BATCHES_MAX: usize = 8;

/// The longest encoded batch, in bytes: one of our agent, which holds at most 256 KiB of text. Viewers read larger ones
/// from the store.
const ENCODED_BYTES_MAX: usize = 384 * 1024;

/// The senders of each followed log.
#[derive(Clone, Debug, Default)]
pub(super) struct Followed(Arc<Mutex<HashMap<LogId, broadcast::Sender<Committed>>>>);

/// Lines that are stored and can be read.
#[derive(Clone, Debug)]
pub(super) struct Committed {
    /// The number of the first line.
    pub(super) first: u64,
    /// The number of the line after them.
    pub(super) end: u64,
    /// The lines as viewers get them.
    pub(super) message: Option<Utf8Bytes>,
}

impl Followed {
    pub(super) fn follow(&self, log: LogId) -> LiveLines {
        let mut followed = lock(&self.0);
        followed.retain(|_, sender| sender.receiver_count() > 0);
        let sender = followed.entry(log).or_insert_with(|| broadcast::Sender::new(BATCHES_MAX));
        LiveLines(sender.subscribe())
    }

    /// The message for viewers of `lines`, if there are viewers, and if the lines are stored as they are.
    pub(super) fn encode(
        &self,
        log: LogId,
        first: Option<u64>,
        lines: &[LogLine<'_>],
    ) -> Option<Utf8Bytes> {
        let first = first?;
        let text_bytes: usize = lines.iter().map(|line| line.data.len()).sum();
        let is_followed =
            || lock(&self.0).get(&log).is_some_and(|sender| sender.receiver_count() > 0);
        if text_bytes > ENCODED_BYTES_MAX || !is_followed() {
            return None;
        }
        let lines = lines.iter().map(|line| {
            let data = Cow::Borrowed(&*line.data);
            let is_whole = matches!(cut_line(&line.data), Cow::Borrowed(_));
            is_whole.then_some(FollowedLine { t: line.t, stream: line.stream, data })
        });
        let lines = lines.collect::<Option<_>>()?;
        let message = FollowMessage::Lines { attempt: log.number(), first, lines };
        let json = serde_json::to_string(&message).expect("a message has string keys");
        (json.len() <= ENCODED_BYTES_MAX).then(|| json.into())
    }

    pub(super) fn notify(&self, committed: impl IntoIterator<Item = (LogId, Committed)>) {
        let followed = lock(&self.0);
        for (log, committed) in committed {
            if let Some(sender) = followed.get(&log) {
                // Without a receiver nobody follows it any more.
                let _ = sender.send(committed);
            }
        }
    }
}

/// Notifies of lines of one log that are stored from its creation on.
#[derive(Debug)]
pub struct LiveLines(broadcast::Receiver<Committed>);

/// Further lines of a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NewLines {
    /// The message with the lines that follow, and the number of the line after them.
    Encoded { message: Utf8Bytes, end: u64 },
    /// They are in the store.
    Stored,
}

impl LiveLines {
    /// Waits for lines with the number `next` and higher. Cancel safe.
    pub async fn after(&mut self, next: u64) -> NewLines {
        loop {
            match self.0.recv().await {
                Ok(Committed { end, .. }) if end <= next => {}
                Ok(Committed { first, end, message: Some(message) }) if first == next => {
                    return NewLines::Encoded { message, end };
                }
                Ok(_) | Err(RecvError::Lagged(_)) => return NewLines::Stored,
                // The store is closed.
                Err(RecvError::Closed) => std::future::pending().await,
            }
        }
    }
}
