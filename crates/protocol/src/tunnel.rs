//! A tunnel: one WebSocket for each connection that core forwards to an endpoint of a preview.
//!
//! The agent opens it and waits. Core sends [`TunnelMessage::Open`] as text once it has a connection, and the agent
//! answers with `OPENED` or `REFUSED`. Then binary messages of at most [`TUNNEL_BYTES_MAX`] bytes carry the bytes of both
//! directions. A side that has no more bytes sends `END`, and the other direction goes on. Closing the WebSocket ends both.
//!
//! Instead of `OPEN` core may send [`TunnelMessage::Exec`]. Binary messages then carry the input of a command in one direction,
//! and its output in the other, with [`EXEC_STDOUT`] or [`EXEC_STDERR`] as their first byte, until `EXITED`. Core's API carries
//! the same messages to the client.

use serde::{Deserialize, Serialize};

use crate::{ParseError, WireId};

/// The path of tunnels, relative to core's base address.
pub const TUNNEL_PATH: &str = "/v1/agent/tunnel";

/// The header of a tunnel's request that names the machine. Its token is the bearer token of the request.
pub const MACHINE_HEADER: &str = "x-stagely-machine";

/// The most bytes of a binary message.
pub const TUNNEL_BYTES_MAX: usize = 64 * 1024;

/// An agent keeps so many tunnels open that wait for a connection.
pub const TUNNELS_IDLE: usize = 4;

/// The most tunnels of one machine.
pub const TUNNELS_MAX: usize = 256;

/// The first byte of a binary message with standard output, or with all output of a command that has a terminal.
pub const EXEC_STDOUT: u8 = 1;

/// The first byte of a binary message with standard error.
pub const EXEC_STDERR: u8 = 2;

/// A command in the container of a preview's service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecCommand {
    pub preview_id: WireId,
    pub service: String,
    pub command: Vec<String>,
    /// The size of its terminal; absent if it has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub terminal: Option<TerminalSize>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TerminalSize {
    pub columns: u16,
    pub rows: u16,
}

/// A text message of a tunnel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "SCREAMING_SNAKE_CASE")]
pub enum TunnelMessage {
    /// Core → agent: connect to this endpoint.
    Open { preview_id: WireId, endpoint: String },
    /// Core → agent: run this command.
    Exec(ExecCommand),
    /// Agent → core: the endpoint accepted the connection, or the command runs.
    Opened,
    /// Agent → core: the tunnel cannot be used for this connection.
    Refused {
        /// A sentence for people.
        message: String,
    },
    /// The sender has no more bytes.
    End,
    /// Core → agent: the terminal of the command has another size.
    Resize(TerminalSize),
    /// Agent → core: the command has ended, and all output was sent.
    Exited { code: i64 },
}

impl TunnelMessage {
    /// Reads one text message.
    ///
    /// # Errors
    /// [`ParseError::Malformed`].
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        Ok(serde_json::from_str(text)?)
    }

    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("a message has string keys")
    }
}
