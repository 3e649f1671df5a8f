//! Logs for readers: as plain text, and over a WebSocket.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::ws::{Message, Utf8Bytes, WebSocket};
use futures_util::stream;
use stagely_protocol::ErrorChain;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::timeout;
use tracing::warn;

use super::{ApiError, ApiState};
use crate::api::{FollowMessage, FollowedLine};
use crate::core::logs::{LiveLines, LogError, LogId, LogStore, NewLines, StoredLine};
use crate::core::records::Records;

/// Most lines that are read from the store at a time for one reader.
const PAGE_LINES: usize = 2_000;

/// The most readers of stored lines at a time. One that reads slowly holds a page of half a MiB, and what its connection
/// buffers.
const READERS_MAX: usize = 256;

/// How long a viewer waits for other readers. Viewers of new lines hold no memory of their own.
const READER_WAIT: Duration = Duration::from_secs(10);

/// Limits how many read stored lines. Pages may be open to everybody, so they have a limit of their own. Clones share the
/// limits.
#[derive(Clone, Debug)]
pub(crate) struct LogReaders {
    api: Arc<Semaphore>,
    pages: Arc<Semaphore>,
}

/// A reader, until the value is dropped.
pub(super) type LogReader = OwnedSemaphorePermit;

impl Default for LogReaders {
    fn default() -> Self {
        let limit = || Arc::new(Semaphore::new(READERS_MAX));
        Self { api: limit(), pages: limit() }
    }
}

impl LogReaders {
    /// # Errors
    /// Too many read over the API at the moment.
    pub(super) fn api(&self) -> Result<LogReader, ApiError> {
        entered(&self.api)
    }

    /// # Errors
    /// Too many read pages at the moment.
    pub(super) fn page(&self) -> Result<LogReader, ApiError> {
        entered(&self.pages)
    }

    async fn viewer(&self) -> Result<LogReader, Gone> {
        let entered = timeout(READER_WAIT, Arc::clone(&self.api).acquire_owned()).await;
        entered.ok().and_then(Result::ok).ok_or(Gone)
    }
}

fn entered(limit: &Arc<Semaphore>) -> Result<LogReader, ApiError> {
    Arc::clone(limit).try_acquire_owned().map_err(|_| ApiError::too_many_log_readers())
}

/// The lines of a log from number `from` on, as `shown` shows each.
///
/// Pages are read as fast as the client takes them, so a long log is never in memory as a whole. An error breaks off the
/// transfer, because an incomplete log must not look complete.
pub(super) fn text(
    logs: &LogStore,
    reader: LogReader,
    log: impl Into<LogId>,
    from: u64,
    shown: fn(&str) -> Cow<'_, str>,
) -> Body {
    let (logs, log) = (logs.clone(), log.into());
    Body::from_stream(stream::try_unfold(from, move |from| {
        // The body has the reader until it is dropped.
        let _ = &reader;
        let logs = logs.clone();
        async move {
            let (first, lines) = logs.read(log, from, PAGE_LINES).await.inspect_err(
                |error| warn!(%log, error = %ErrorChain(error), "a log cannot be read"),
            )?;
            let next = first + lines.len() as u64;
            Ok::<_, LogError>((!lines.is_empty()).then(|| (text_of(&lines, shown), next)))
        }
    }))
}

fn text_of(lines: &[StoredLine], shown: fn(&str) -> Cow<'_, str>) -> Bytes {
    let mut text = String::new();
    for line in lines {
        text.push_str(&shown(&line.data));
        text.push('\n');
    }
    text.into()
}

/// The connection of somebody who follows a log.
pub(super) struct LogViewer {
    pub(super) api: ApiState,
    pub(super) socket: WebSocket,
}

/// The viewer has disconnected, or core is stopping.
pub(super) struct Gone;

impl LogViewer {
    /// Sends the lines of a log from number `next` on until `is_over` says that there will be no more.
    pub(super) async fn send_log(
        &mut self,
        log: LogId,
        mut next: u64,
        is_over: impl Fn(&Records) -> bool,
    ) -> Result<(), Gone> {
        let mut changes = self.api.records.changes();
        let mut live = self.api.logs.follow(log);
        loop {
            changes.mark_unchanged();
            // Checked before the lines are read, so that all lines of an ended log are in the store.
            let over = is_over(&self.api.records.read());
            next = self.send_stored(log, next).await?;
            if over {
                return Ok(());
            }
            next = self.send_live(next, &mut live, &mut changes, &is_over).await?;
        }
    }

    /// Sends new lines as long as they need not be read, and the log may go on. Returns the number of the following
    /// line.
    async fn send_live(
        &mut self,
        mut next: u64,
        live: &mut LiveLines,
        changes: &mut watch::Receiver<u64>,
        is_over: &impl Fn(&Records) -> bool,
    ) -> Result<u64, Gone> {
        let mut pings = self.api.sockets.pings();
        loop {
            tokio::select! {
                lines = live.after(next) => match lines {
                    NewLines::Encoded { message, end } => {
                        self.send_text(message).await?;
                        next = end;
                    }
                    NewLines::Stored => return Ok(next),
                },
                notified = changes.changed() => {
                    notified.map_err(|_| Gone)?;
                    if is_over(&self.api.records.read()) {
                        return Ok(next);
                    }
                }
                _ = pings.tick() => {
                    self.socket.send(Message::Ping(Bytes::new())).await.map_err(|_| Gone)?;
                }
                // The viewer sends nothing, so any other message ends the connection.
                received = self.socket.recv() => {
                    if !matches!(received, Some(Ok(Message::Pong(_) | Message::Ping(_)))) {
                        return Err(Gone);
                    }
                }
                () = self.api.sockets.stop.cancelled() => return Err(Gone),
            }
        }
    }

    /// Sends the stored lines from `next` on. Returns the number of the following line.
    async fn send_stored(&mut self, log: LogId, mut next: u64) -> Result<u64, Gone> {
        let _reader = self.api.log_readers.viewer().await?;
        loop {
            let (first, lines) =
                self.api.logs.read(log, next, PAGE_LINES).await.map_err(|error| {
                    warn!(%log, error = %ErrorChain(&error), "a log cannot be read");
                    Gone
                })?;
            if lines.is_empty() {
                return Ok(next);
            }
            next = first + lines.len() as u64;
            let lines = lines
                .into_iter()
                .map(|line| FollowedLine { t: line.t, stream: line.stream, data: line.data.into() })
                .collect();
            self.send(&FollowMessage::Lines { attempt: log.number(), first, lines }).await?;
        }
    }

    pub(super) async fn send(&mut self, message: &FollowMessage<'_>) -> Result<(), Gone> {
        let json = serde_json::to_string(message).expect("a message has string keys");
        self.send_text(json.into()).await
    }

    async fn send_text(&mut self, json: Utf8Bytes) -> Result<(), Gone> {
        self.socket.send(Message::Text(json)).await.map_err(|_| Gone)
    }

    pub(super) async fn close(&mut self) {
        let _ = self.socket.send(Message::Close(None)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn further_readers_are_refused_until_another_one_ends() {
        let readers = LogReaders::default();
        let mut reading: Vec<_> = (0..READERS_MAX).map(|_| readers.api().unwrap()).collect();
        assert!(readers.api().is_err());
        assert!(readers.viewer().await.is_err());
        assert!(readers.page().is_ok());
        reading.pop();
        assert!(readers.api().is_ok());
        assert!(readers.viewer().await.is_ok());
    }
}
