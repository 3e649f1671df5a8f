//! The wire between agents and core: JSON text messages over one WebSocket, each with a `type`.
//!
//! This module and its children are the wire's only home. Unknown fields are ignored; an unknown
//! `type` is a [`ParseError::UnknownType`], which the receiver answers with ERROR. LOG is parsed
//! without copying its lines, because core reads a million of them a second.

pub mod agent_config;
pub mod paths;

mod cache;
mod failure;
mod messages;
mod steps;
mod values;

use std::borrow::Cow;

pub use agent_config::AgentConfig;

pub use cache::{
    CHANGED_FILES_MAX, CacheMiss, ChangedFile, FINGERPRINT_BYTES_MAX, FileChange, Fingerprint,
    MissCause,
};
pub use failure::{CloneProblem, FailureReason, RegistryProblem};
pub use messages::{
    AgentMessage, Build, BuildArgs, BuildConfig, Cancel, CloneContext, CoreMessage, ErrorMessage,
    Heartbeat, Hello, HelloAck, Interrupted, Log, LogAck, LogLine, Merge, Notice, ParseError,
    RegistryAuth, ResumedJob, RunningJob, Status, StatusAck, StatusState, Step, Stream, SystemInfo,
    Terminate, expose_secret,
};
pub use steps::slow_down;
pub use values::{Arch, CommitSha, Digest, Emulation, ImageRef, InvalidValue, Platform, WireId};

/// The environment variable that every process of an agent carries, with the agent's id. An agent that takes
/// over a machine finds by it what a killed one has left.
pub const MACHINE_VARIABLE: &str = "STAGELY_MACHINE";

/// Has the core's id in the environment of every process that a core on the same host has started.
pub const CORE_VARIABLE: &str = "STAGELY_CORE";

/// The path of the agent WebSocket below core's base address.
pub const CONNECT_PATH: &str = "/v1/agent/connect";

/// The longest line kept whole, in bytes; a longer one is cut and marked with [`CUT_MARK`].
pub const LINE_BYTES_MAX: usize = 64 * 1024;

/// Ends a line that was cut at [`LINE_BYTES_MAX`].
pub const CUT_MARK: &str = " [line cut]";

/// `line`, cut between two characters and marked if it is longer than [`LINE_BYTES_MAX`].
pub fn cut_line(line: &str) -> Cow<'_, str> {
    if line.len() <= LINE_BYTES_MAX {
        return line.into();
    }
    let end = line.floor_char_boundary(LINE_BYTES_MAX - CUT_MARK.len());
    format!("{}{CUT_MARK}", &line[..end]).into()
}

/// The most lines in one LOG batch.
pub const BATCH_LINES_MAX: usize = 1_000;

/// The most text in one LOG batch, in bytes, before JSON escaping.
pub const BATCH_BYTES_MAX: usize = 256 * 1024;

/// The largest message either side accepts, in bytes. A full batch of lines whose every byte is
/// escaped (`\u0001`, six bytes for one) and one line over the limit still fit.
pub const MESSAGE_BYTES_MAX: usize = 2 * 1024 * 1024;
