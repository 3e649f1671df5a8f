//! `/jobs/{id}/logs`: parts of logs, and the messages of a followed log.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use stagely_protocol::Stream;
use utoipa::IntoParams;

use super::jobs::JobStatus;

/// `GET /jobs/{id}/logs`: the part of the log.
#[derive(Clone, Debug, Default, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub struct LogRange {
    /// The number of the first line, from 0. Default: 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<u64>,
    /// The number of the attempt. Default: the newest attempt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempt: Option<u32>,
}

/// One message of `GET /jobs/{id}/logs/follow` (WebSocket).
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum FollowMessage<'a> {
    /// Lines of the log, in order, each once.
    Lines {
        /// The attempt of the lines.
        attempt: u32,
        /// The number of the first line.
        first: u64,
        lines: Vec<FollowedLine<'a>>,
    },
    /// The last message: every line was sent, and the job or the requested attempt has ended.
    End {
        /// The job's status. It is not final if only the attempt has ended.
        status: JobStatus,
        /// The job's newest attempt. If an older one was requested, the log continues there.
        attempt: u32,
    },
}

/// One line of a followed log.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct FollowedLine<'a> {
    /// The time at which the agent read the line, in milliseconds since the Unix epoch.
    pub t: u64,
    pub stream: Stream,
    /// The text, including ANSI sequences.
    pub data: Cow<'a, str>,
}
