//! One WebSocket connection to core.

use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::SplitStream;
use futures_util::{SinkExt as _, StreamExt as _};
use stagely_protocol::{AgentMessage, CONNECT_PATH, ErrorChain, MESSAGE_BYTES_MAX};
use thiserror::Error;
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{self, Message, Utf8Bytes};
use url::Url;

use crate::websocket::{self, ConnectError, Socket};

/// How long one write may take. If core reads nothing for this time, the connection is lost.
const WRITE_LIMIT: Duration = Duration::from_secs(30);

/// How long a clean close may take.
const CLOSE_LIMIT: Duration = Duration::from_secs(1);

/// Core sends little. The library's default is 128 KiB, allocated for as long as the connection lasts.
const READ_BUFFER_BYTES: usize = 4 * 1024;

/// The most messages that wait for the socket. A full LOG batch has up to 2 MiB, so the queue holds at most 64 MB.
const QUEUED_MESSAGES_MAX: usize = 32;

/// The part of the queue that log batches leave to answers and heartbeats.
const RESERVED_MESSAGES: usize = 8;

/// The connection can no longer be used.
#[derive(Debug, Error)]
#[error("the connection to core is lost")]
pub(super) struct ConnectionLost;

/// An open connection. Sending never waits, because a task of its own writes.
pub(super) struct Connection {
    incoming: SplitStream<Socket>,
    outgoing: mpsc::Sender<Message>,
    writer: JoinHandle<()>,
    last_received: Instant,
}

impl Connection {
    /// Connects to core. `wake` is notified when the queue has free slots again.
    pub(super) async fn open(core: &Url, wake: Arc<Notify>) -> Result<Self, ConnectError> {
        let config = WebSocketConfig::default()
            .max_message_size(Some(MESSAGE_BYTES_MAX))
            .max_frame_size(Some(MESSAGE_BYTES_MAX))
            .read_buffer_size(READ_BUFFER_BYTES);
        let socket = websocket::connect(core, CONNECT_PATH, Vec::new(), config).await?;
        let (sink, incoming) = socket.split();
        let (outgoing, queue) = mpsc::channel(QUEUED_MESSAGES_MAX);
        let writer = tokio::spawn(write(sink, queue, wake));
        Ok(Self { incoming, outgoing, writer, last_received: Instant::now() })
    }

    /// The next text message. `None`: the connection is lost. Cancel-safe.
    pub(super) async fn next(&mut self) -> Option<Utf8Bytes> {
        while let Some(message) = self.incoming.next().await {
            self.last_received = Instant::now();
            match message {
                Ok(Message::Text(text)) => return Some(text),
                Ok(Message::Close(_)) => return None,
                // The library answers pings.
                Ok(_) => {}
                Err(error) => {
                    tracing::warn!(error = %ErrorChain(&error), "the connection to core failed");
                    return None;
                }
            }
        }
        None
    }

    /// When something last arrived, pongs included.
    pub(super) const fn last_received(&self) -> Instant {
        self.last_received
    }

    /// The number of log batches that may be sent now.
    pub(super) fn free_slots(&self) -> usize {
        self.outgoing.capacity().saturating_sub(RESERVED_MESSAGES)
    }

    pub(super) fn send(&mut self, message: &AgentMessage<'_>) -> Result<(), ConnectionLost> {
        self.send_text(message.to_json())
    }

    pub(super) fn send_text(&mut self, text: String) -> Result<(), ConnectionLost> {
        self.enqueue(Message::text(text))
    }

    pub(super) fn ping(&mut self) -> Result<(), ConnectionLost> {
        self.enqueue(Message::Ping(bytes::Bytes::new()))
    }

    /// A full queue counts as a lost connection: core has not read for a long time.
    fn enqueue(&mut self, message: Message) -> Result<(), ConnectionLost> {
        self.outgoing.try_send(message).map_err(|_| ConnectionLost)
    }

    /// Sends the queued messages, and closes the connection.
    pub(super) async fn close(mut self) {
        let (closed, _) = mpsc::channel(1);
        self.outgoing = closed;
        let _ = timeout(CLOSE_LIMIT, &mut self.writer).await;
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.writer.abort();
    }
}

async fn write(
    mut sink: impl futures_util::Sink<Message, Error = tungstenite::Error> + Unpin,
    mut queue: mpsc::Receiver<Message>,
    wake: Arc<Notify>,
) {
    while let Some(message) = queue.recv().await {
        let send = async {
            sink.feed(message).await?;
            while let Ok(message) = queue.try_recv() {
                sink.feed(message).await?;
            }
            sink.flush().await
        };
        match timeout(WRITE_LIMIT, send).await {
            Ok(Ok(())) => wake.notify_one(),
            // The reader notices the lost connection, or the queue becomes full.
            Ok(Err(_)) | Err(_) => return,
        }
    }
    let _ = sink.close().await;
}
