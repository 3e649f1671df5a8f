//! One command through a tunnel: its input in one direction, its output and its end in the other.

use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use bollard::container::LogOutput;
use bollard::errors::Error as EngineError;
use bytes::{BufMut as _, Bytes, BytesMut};
use futures_util::stream::{BoxStream, SplitSink, SplitStream};
use futures_util::{SinkExt as _, StreamExt as _};
use stagely_protocol::{EXEC_STDERR, EXEC_STDOUT, ExecCommand, TUNNEL_BYTES_MAX, TunnelMessage};
use tokio::io::{AsyncWrite, AsyncWriteExt as _};
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_tungstenite::tungstenite::{self, Message};

use crate::preview::{CommandControl, Previews, RunningCommand};
use crate::websocket::Socket;

/// Pieces of input that wait until the command reads them, each of at most [`TUNNEL_BYTES_MAX`].
const INPUTS_MAX: usize = 16;

/// The interval of pings. Proxies close connections that are silent for longer.
const PING_INTERVAL: Duration = Duration::from_secs(20);

/// How long core may take to accept the answer to EXEC, or the end of the tunnel.
const SEND_LIMIT: Duration = Duration::from_secs(30);

/// Runs a command until it ends or core closes the tunnel.
pub(super) async fn exec(mut socket: Socket, previews: Arc<Previews>, command: ExecCommand) {
    let preview = command.preview_id.clone();
    let started = previews.exec(command).await;
    let answer = match &started {
        Ok(_) => TunnelMessage::Opened,
        Err(error) => TunnelMessage::Refused { message: error.to_string() },
    };
    let sent = timeout(SEND_LIMIT, socket.send(Message::text(answer.to_json()))).await;
    let (Ok(Ok(())), Ok(command)) = (sent, started) else {
        let _ = timeout(SEND_LIMIT, socket.close(None)).await;
        return;
    };
    tracing::info!(%preview, "a command runs in a preview");
    let RunningCommand { output, input, control } = command;
    let (mut sink, source) = socket.split();
    let (received, waiting) = mpsc::channel(INPUTS_MAX);
    let has_ended = tokio::select! {
        // Core has closed the tunnel.
        () = receive(source, received, &control) => false,
        () = to_command(waiting, input) => false,
        sent = to_core(&mut sink, output) => sent.is_ok(),
    };
    if has_ended {
        let exited = TunnelMessage::Exited { code: control.exit_code().await };
        let _ = timeout(SEND_LIMIT, sink.send(Message::text(exited.to_json()))).await;
    } else {
        control.hang_up().await;
    }
    let _ = timeout(SEND_LIMIT, sink.close()).await;
}

/// Reads the tunnel until it ends. Dropping `inputs` ends the input of the command.
async fn receive(
    mut source: SplitStream<Socket>,
    inputs: mpsc::Sender<Bytes>,
    control: &CommandControl,
) {
    let mut inputs = Some(inputs);
    while let Some(Ok(message)) = source.next().await {
        match message {
            Message::Binary(data) => {
                // Waits while the command reads nothing and the queue is full.
                if let Some(open) = &inputs
                    && open.send(data).await.is_err()
                {
                    inputs = None;
                }
            }
            Message::Text(text) => match TunnelMessage::parse(&text) {
                Ok(TunnelMessage::End) => inputs = None,
                Ok(TunnelMessage::Resize(size)) => control.resize(size).await,
                Ok(_) | Err(_) => return,
            },
            Message::Close(_) => return,
            Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => {}
        }
    }
}

/// Writes input to the command. Ends only when it is dropped: the end of the input is not that of the command.
async fn to_command(mut inputs: mpsc::Receiver<Bytes>, mut command: impl AsyncWrite + Unpin) {
    while let Some(data) = inputs.recv().await {
        if command.write_all(&data).await.is_err() || command.flush().await.is_err() {
            // A command may end its input before its output. The rest is dropped.
            drop(inputs);
            return pending().await;
        }
    }
    let _ = command.shutdown().await;
    pending::<()>().await;
}

/// Forwards output until there is no more. Pings notice that core has closed a tunnel that is not read because the command
/// reads nothing.
async fn to_core(
    sink: &mut SplitSink<Socket, Message>,
    mut output: BoxStream<'static, Result<LogOutput, EngineError>>,
) -> Result<(), tungstenite::Error> {
    let mut pings = interval(PING_INTERVAL);
    pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let piece = tokio::select! {
            piece = output.next() => piece,
            _ = pings.tick() => {
                sink.send(Message::Ping(Bytes::new())).await?;
                continue;
            }
        };
        let (stream, bytes) = match piece {
            Some(Ok(LogOutput::StdOut { message } | LogOutput::Console { message })) => {
                (EXEC_STDOUT, message)
            }
            Some(Ok(LogOutput::StdErr { message })) => (EXEC_STDERR, message),
            Some(Ok(LogOutput::StdIn { .. })) => continue,
            Some(Err(_)) | None => return Ok(()),
        };
        for part in bytes.chunks(TUNNEL_BYTES_MAX - 1) {
            sink.send(Message::Binary(tagged(stream, part))).await?;
        }
    }
}

fn tagged(stream: u8, part: &[u8]) -> Bytes {
    let mut bytes = BytesMut::with_capacity(part.len() + 1);
    bytes.put_u8(stream);
    bytes.extend_from_slice(part);
    bytes.freeze()
}
