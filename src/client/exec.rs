//! A command in the container of a preview: its input and its output.

use bytes::Bytes;
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt as _, StreamExt as _};
use stagely_protocol::{
    EXEC_STDERR, EXEC_STDOUT, Stream, TUNNEL_BYTES_MAX, TerminalSize, TunnelMessage,
};
use stagely_state::ids::PreviewId;
use tokio_tungstenite::tungstenite::{self, Message};

use super::connection::{Connection, Socket};
use super::error::ClientError;
use crate::api::ExecRequest;

/// What core says about a command that was not started.
const REFUSED: u16 = 409;

/// The input of a command that runs. Dropping it disconnects.
#[derive(Debug)]
pub struct ExecInput(SplitSink<Socket, Message>);

/// The output of a command that runs.
#[derive(Debug)]
pub struct ExecOutput {
    connection: Connection,
    stream: SplitStream<Socket>,
}

#[derive(Debug)]
pub enum ExecEvent {
    Output { stream: Stream, bytes: Bytes },
    Exited { code: i64 },
}

/// Starts a command.
pub(super) async fn exec(
    connection: Connection,
    id: PreviewId,
    request: &ExecRequest,
) -> Result<(ExecInput, ExecOutput), ClientError> {
    let socket = connection.dial(&format!("previews/{id}/exec")).await?;
    let (mut sink, stream) = socket.split();
    let json = serde_json::to_string(request).expect("a request has string keys");
    sink.send(Message::text(json)).await.map_err(|error| connection.unreachable(error))?;
    let mut output = ExecOutput { connection, stream };
    match output.next_message().await? {
        Message::Text(text) => match TunnelMessage::parse(&text) {
            Ok(TunnelMessage::Opened) => Ok((ExecInput(sink), output)),
            Ok(TunnelMessage::Refused { message }) => Err(refused(message)),
            _ => Err(output.unexpected()),
        },
        _ => Err(output.unexpected()),
    }
}

fn refused(message: String) -> ClientError {
    ClientError::Refused { status: REFUSED, code: "conflict".to_owned(), message }
}

impl ExecInput {
    /// Sends input.
    ///
    /// # Errors
    /// The connection is lost; the output says why.
    pub async fn send(&mut self, bytes: &[u8]) -> Result<(), tungstenite::Error> {
        for part in bytes.chunks(TUNNEL_BYTES_MAX) {
            self.0.send(Message::binary(Bytes::copy_from_slice(part))).await?;
        }
        Ok(())
    }

    /// The input has ended.
    ///
    /// # Errors
    /// The connection is lost; the output says why.
    pub async fn end(&mut self) -> Result<(), tungstenite::Error> {
        self.0.send(Message::text(TunnelMessage::End.to_json())).await
    }

    /// The terminal has another size.
    ///
    /// # Errors
    /// The connection is lost; the output says why.
    pub async fn resize(&mut self, size: TerminalSize) -> Result<(), tungstenite::Error> {
        self.0.send(Message::text(TunnelMessage::Resize(size).to_json())).await
    }
}

impl ExecOutput {
    /// Returns the next output, or the command's end. Cancel safe.
    ///
    /// # Errors
    /// [`ClientError`], also if the connection to the machine is lost.
    pub async fn next(&mut self) -> Result<ExecEvent, ClientError> {
        match self.next_message().await? {
            Message::Binary(bytes) => {
                let stream = match bytes.first() {
                    Some(&EXEC_STDOUT) => Stream::Stdout,
                    Some(&EXEC_STDERR) => Stream::Stderr,
                    _ => return Err(self.unexpected()),
                };
                Ok(ExecEvent::Output { stream, bytes: bytes.slice(1..) })
            }
            Message::Text(text) => match TunnelMessage::parse(&text) {
                Ok(TunnelMessage::Exited { code }) => Ok(ExecEvent::Exited { code }),
                Ok(TunnelMessage::Refused { message }) => Err(refused(message)),
                _ => Err(self.unexpected()),
            },
            _ => Err(self.unexpected()),
        }
    }

    async fn next_message(&mut self) -> Result<Message, ClientError> {
        loop {
            match self.stream.next().await {
                Some(Ok(message @ (Message::Binary(_) | Message::Text(_)))) => return Ok(message),
                Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => {}
                Some(Ok(Message::Close(_))) | None => {
                    let error = tungstenite::Error::ConnectionClosed;
                    return Err(self.connection.unreachable(error));
                }
                Some(Err(error)) => return Err(self.connection.unreachable(error)),
            }
        }
    }

    fn unexpected(&self) -> ClientError {
        self.connection.unexpected("a message of `exec`".to_owned())
    }
}
