//! Core → agent: answers to HELLO, LOG and STATUS, and the end of jobs and sessions.

use serde::{Deserialize, Serialize};

use crate::WireId;

/// `HELLO_ACK`: the session is open.
#[derive(Debug, Serialize, Deserialize)]
pub struct HelloAck {
    /// Seconds between heartbeats. Core ends a session after three intervals without a message.
    pub heartbeat_interval: u64,
    /// The jobs of HELLO that are still wanted.
    #[serde(default)]
    pub jobs: Vec<ResumedJob>,
    /// The seconds left until the machine's lease ends; absent if it has no lease.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease_seconds: Option<u64>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ResumedJob {
    pub job_id: WireId,
    /// The number of the first line that core has not stored.
    pub next_line: u64,
}

/// `LOG_ACK`: lines are in the store.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LogAck {
    pub job_id: WireId,
    /// How many lines are stored: the number of the first line that core has not stored.
    pub lines: u64,
}

/// `STATUS_ACK`: a STATUS is in the store.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct StatusAck {
    pub job_id: WireId,
    /// The seconds left until the machine's lease ends. The STATUS may have changed the lease.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease_seconds: Option<u64>,
}

/// CANCEL: stop a job, and report STATUS `cancelled`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Cancel {
    pub job_id: WireId,
    /// A sentence for the log.
    #[serde(default)]
    pub reason: String,
}

/// TERMINATE: stop all work, clean up and exit.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Terminate {
    /// A sentence for the log.
    #[serde(default)]
    pub reason: String,
    /// The agent exits after this many seconds at the latest, even if work is left. 0: no limit.
    #[serde(default)]
    pub grace: u64,
}
