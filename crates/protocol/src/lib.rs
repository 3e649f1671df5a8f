//! The wire between agents and core: JSON text messages over one WebSocket, each with a `type`.
//!
//! No other code knows the JSON form. Unknown fields are ignored; an unknown `type` is a
//! [`ParseError::UnknownType`], which the receiver answers with ERROR. LOG is parsed without copying
//! its lines, because core reads up to a million of them a second.

pub mod agent_config;
pub mod paths;
pub mod text;

mod archive;
mod artifacts;
mod cache;
mod error_chain;
mod failure;
mod messages;
mod steps;
mod tunnel;
mod values;

use std::borrow::Cow;

pub use agent_config::AgentConfig;

pub use archive::{ARCHIVES_PATH, StoredArchive};
pub use artifacts::{
    ARTIFACT_BYTES_MAX, ARTIFACT_FILES_MAX, ARTIFACT_PIECE_BYTES_MAX, ARTIFACTS_PATH,
    DIGEST_HEADER, OFFSET_HEADER,
};
pub use cache::{
    CHANGED_FILES_MAX, CacheMiss, ChangedFile, FINGERPRINT_BYTES_MAX, FileChange, Fingerprint,
    MissCause,
};
pub use error_chain::ErrorChain;
pub use failure::{CloneProblem, DeployProblem, FailureReason, RegistryProblem};
pub use messages::{
    ARTIFACT_PATH_BYTES_MAX, AgentMessage, Build, BuildArgs, BuildConfig, CASE_LINE_BYTES_MAX,
    CASE_LINES_MAX, CASE_MESSAGE_BYTES_MAX, CASE_NAME_BYTES_MAX, CASES_BYTES_MAX, CASES_MAX,
    COMMENT_IMAGE_BYTES_MAX, COMMENT_IMAGES_MAX, Cancel, CaseOutcome, CloneContext, CoreMessage,
    Deploy, Dial, Endpoint, EndpointAddress, ErrorMessage, HealthCheck, Heartbeat, Hello, HelloAck,
    Interrupted, Log, LogAck, LogLine, Merge, Notice, ParseError, Preview, PreviewState,
    RegistryAuth, ResumedJob, RunningJob, RunningPreview, Secrets, ServiceCommand, ServiceState,
    Shard, Sleep, Status, StatusAck, StatusState, Step, StoredArtifacts, Stream, SystemInfo,
    TEST_REPORT_SECONDS_MAX, Terminate, Test, TestCase, TestResults, TestedPreview,
    UNKNOWN_PREVIEW, expose_secret, is_artifact_path, service_log, service_log_id,
};
pub use steps::slow_down;
pub use tunnel::{
    EXEC_STDERR, EXEC_STDOUT, ExecCommand, MACHINE_HEADER, TUNNEL_BYTES_MAX, TUNNEL_PATH,
    TUNNELS_IDLE, TUNNELS_MAX, TerminalSize, TunnelMessage,
};
pub use values::{
    Arch, CommitSha, Digest, Emulation, ImageRef, InvalidValue, Platform, Submodules, WireId,
};

/// A reference that `stagely run` serves beside a folder's commit: a blob of pairs, each the path of a submodule and
/// the address to fetch it from, every part ended by a NUL. Agents look for it on loopback only.
pub const SUBMODULE_ADDRESSES_REF: &str = "refs/stagely/submodules";

/// Stands for the address of a submodule whose folder stays empty, because the user's Git would not fetch it.
pub const SUBMODULE_LEFT_EMPTY: &str = "";

/// The environment variable that holds the agent's id in each of its processes. A restarted agent finds the processes
/// of a killed one by it.
pub const MACHINE_VARIABLE: &str = "STAGELY_MACHINE";

/// The environment variable that holds core's id in each process that core starts on its own host.
pub const CORE_VARIABLE: &str = "STAGELY_CORE";

/// The path of the agents' WebSocket, relative to core's base address.
pub const CONNECT_PATH: &str = "/v1/agent/connect";

/// A longer line, in bytes, is cut and marked with [`CUT_MARK`].
pub const LINE_BYTES_MAX: usize = 64 * 1024;

/// Ends a line that was cut.
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

/// The largest message that either side accepts, in bytes. A full batch still fits if each byte of its lines is
/// escaped (`\u0001`, six bytes for one), and so does one line over the limit.
pub const MESSAGE_BYTES_MAX: usize = 2 * 1024 * 1024;
