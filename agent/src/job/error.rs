//! Why a job failed: the reason for core, and the message for people.

use std::borrow::Cow;
use std::io;

use stagely_protocol::paths::PathError;
use stagely_protocol::{ErrorChain, FailureReason, RegistryProblem, Step};

use super::test_report::TestReport;
use crate::docker::{BuildError, EmulationError, LoginError, MergeError};
use crate::git::CloneError;
use crate::process::ProcessError;

#[derive(Debug)]
pub(super) struct JobError {
    pub(super) reason: FailureReason,
    /// Masked when it is reported.
    pub(super) message: String,
    /// The steps that ended before the failure.
    pub(super) steps: Vec<Step>,
    /// What is known of a test that failed.
    pub(super) test: Option<Box<TestReport>>,
}

impl JobError {
    /// A failure with a message of the agent's own.
    pub(super) fn with_message(reason: FailureReason, message: impl Into<String>) -> Self {
        Self { reason, message: message.into(), steps: Vec::new(), test: None }
    }

    /// A failure whose message is `error` and its causes.
    pub(super) fn new(reason: FailureReason, error: &(dyn std::error::Error + 'static)) -> Self {
        Self::with_message(reason, ErrorChain(error).to_string())
    }

    /// A failed file operation; `operation` says what could not be done.
    pub(super) fn io(operation: &str, error: &io::Error) -> Self {
        let reason = match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => FailureReason::DiskFull,
            _ => FailureReason::Internal,
        };
        Self::with_message(reason, format!("{operation}: {error}"))
    }

    /// Whether a new login may help: the registry refused the user name or the password, or it said 403, as some
    /// registries do when a login has expired.
    pub(super) fn may_be_an_expired_login(&self) -> bool {
        match self.reason {
            FailureReason::Registry { problem: RegistryProblem::Authentication } => true,
            FailureReason::Registry { problem: RegistryProblem::Refused } => {
                self.message.contains("403 Forbidden")
            }
            _ => false,
        }
    }

    /// Whether a further attempt on this machine may succeed: the registry did not answer.
    pub(super) const fn is_transient(&self) -> bool {
        matches!(self.reason, FailureReason::Registry { problem: RegistryProblem::Unavailable })
    }
}

/// The text, or at most `bytes_max` bytes from its end behind a mark: the cause of a failure is usually at the end.
pub(super) fn end_of(text: &str, bytes_max: usize) -> Cow<'_, str> {
    const MARK: &str = "…";
    if text.len() <= bytes_max {
        return Cow::Borrowed(text);
    }
    let start = text.ceil_char_boundary(text.len() + MARK.len() - bytes_max);
    Cow::Owned(format!("{MARK}{}", &text[start..]))
}

impl From<CloneError> for JobError {
    fn from(error: CloneError) -> Self {
        Self::new(error.reason(), &error)
    }
}

impl From<PathError> for JobError {
    fn from(error: PathError) -> Self {
        let reason = match error {
            PathError::Io { .. } => FailureReason::Internal,
            PathError::Absolute(_)
            | PathError::Outside(_)
            | PathError::NoContext(_)
            | PathError::NotAFolder(_)
            | PathError::NoDockerfile { .. }
            | PathError::NoComposeFile(_) => {
                FailureReason::User { step: String::new(), exit_code: 1 }
            }
        };
        Self::new(reason, &error)
    }
}

impl From<LoginError> for JobError {
    fn from(error: LoginError) -> Self {
        Self::new(error.reason(), &error)
    }
}

impl From<EmulationError> for JobError {
    fn from(error: EmulationError) -> Self {
        let reason = match &error {
            EmulationError::Process(ProcessError::Spawn { .. }) | EmulationError::Inspect(_) => {
                FailureReason::Engine
            }
            EmulationError::Process(_) => FailureReason::Internal,
            EmulationError::Impossible { .. } | EmulationError::Disabled { .. } => {
                FailureReason::Emulation
            }
        };
        Self::new(reason, &error)
    }
}

impl From<BuildError> for JobError {
    fn from(error: BuildError) -> Self {
        let reason = error.reason();
        match error {
            BuildError::Failed { message, steps, .. }
            | BuildError::LoginMissing { message, steps, .. } => {
                Self { steps, ..Self::with_message(reason, message) }
            }
            BuildError::Process(_) | BuildError::ReportLost { .. } | BuildError::NoDigest => {
                Self::new(reason, &error)
            }
        }
    }
}

impl From<MergeError> for JobError {
    fn from(error: MergeError) -> Self {
        Self::new(error.reason(), &error)
    }
}
