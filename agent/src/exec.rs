//! Runs one BUILD, MERGE, DEPLOY or TEST message with the local engine, without core: `stagely agent exec`.

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use stagely_protocol::{
    CoreMessage, FailureReason, InvalidValue, ParseError, Status, StatusState, Stream, WireId,
};
use thiserror::Error;
use tokio_util::sync::CancellationToken;

use crate::endpoints::Endpoints;
use crate::job::{self, JobRequest, JobSettings};
use crate::job_log::LineSink;
use crate::preview::{PreviewSettings, Previews};
use crate::spool::SpoolError;

/// Time between SIGTERM and SIGKILL for child processes. Short, because a person waits at a terminal.
const GRACE: Duration = Duration::from_secs(5);

/// The exit code of a job that reached its time limit, as in `timeout(1)`.
pub const EXIT_TIMEOUT: u8 = 124;

/// The exit code of a build whose own exit code lies outside 1 to 123.
pub const EXIT_OTHER_USER_FAILURE: u8 = 125;

/// The exit code of a cancelled job: 128 + SIGINT.
pub const EXIT_CANCELLED: u8 = 130;

/// The exit code of every failure that is not the build's own: `EX_SOFTWARE`.
pub const EXIT_FAILURE: u8 = 70;

/// Why a message cannot be run.
#[derive(Debug, Error)]
pub enum ExecError {
    /// The file cannot be read, or the work folder cannot be created.
    #[error("cannot use {path}")]
    Io {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{path} holds no message")]
    Parse {
        path: PathBuf,
        #[source]
        source: ParseError,
    },
    #[error("{path} holds none of BUILD, MERGE, DEPLOY and TEST")]
    NotAJob { path: PathBuf },
    /// The agent's own id is invalid, which is a bug.
    #[error(transparent)]
    Id(#[from] InvalidValue),
}

/// Runs the message in `message_file` and returns the exit code.
///
/// The log goes to standard output line by line, and the last line is the STATUS, as JSON. When `stop` fires the
/// job is cancelled. A preview serves until then, and is removed. The exit code is 0 for a completed job, the exit code of the step or the test (1 to 123) if
/// that failed, and otherwise one of this module's constants.
///
/// # Errors
/// [`ExecError`], before the job starts.
pub async fn exec(
    message_file: &Path,
    docker_host: Option<String>,
    stop: CancellationToken,
) -> Result<u8, ExecError> {
    let request = read_request(message_file)?;
    let folder = tempfile::Builder::new().prefix("stagely-exec-").tempdir();
    let folder = folder.map_err(|source| ExecError::Io { path: std::env::temp_dir(), source })?;
    let machine: WireId = format!("exec_{}", std::process::id()).parse()?;
    let previews = PreviewSettings {
        machine: machine.clone(),
        work_dir: folder.path().to_owned(),
        docker_host: docker_host.clone(),
        grace: GRACE,
        core: None,
        endpoints: Endpoints::default(),
    };
    let previews = Previews::new(previews, Arc::default());
    let is_deployment = matches!(request, JobRequest::Deploy(_));
    let settings = JobSettings {
        previews: Arc::clone(&previews),
        machine,
        work_dir: folder.path().to_owned(),
        docker_host,
        user_logins: false,
        grace: GRACE,
        registry_retry_limit: job::REGISTRY_RETRY_LIMIT,
    };
    let status = job::run(request, &settings, Arc::new(Terminal), &stop).await;
    print(serde_json::to_string(&status).as_deref().unwrap_or_default());
    if is_deployment {
        if status.state == StatusState::Completed {
            stop.cancelled().await;
        }
        previews.remove_all().await;
    }
    Ok(exit_code(&status))
}

fn read_request(path: &Path) -> Result<JobRequest, ExecError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| ExecError::Io { path: path.to_owned(), source })?;
    match CoreMessage::parse(&text) {
        Ok(CoreMessage::Build(build)) => Ok(JobRequest::Build(build)),
        Ok(CoreMessage::Merge(merge)) => Ok(JobRequest::Merge(merge)),
        Ok(CoreMessage::Deploy(deploy)) => Ok(JobRequest::Deploy(deploy)),
        Ok(CoreMessage::Test(job)) => Ok(JobRequest::Test(job)),
        Ok(_) => Err(ExecError::NotAJob { path: path.to_owned() }),
        Err(source) => Err(ExecError::Parse { path: path.to_owned(), source }),
    }
}

fn exit_code(status: &Status) -> u8 {
    match (status.state, &status.error) {
        (StatusState::Completed, _) => 0,
        (
            _,
            Some(FailureReason::User { exit_code, .. } | FailureReason::Test { exit_code, .. }),
        ) => match u8::try_from(*exit_code) {
            Ok(code @ 1..=123) => code,
            _ => EXIT_OTHER_USER_FAILURE,
        },
        (_, Some(FailureReason::Timeout { .. })) => EXIT_TIMEOUT,
        (StatusState::Cancelled, _) => EXIT_CANCELLED,
        _ => EXIT_FAILURE,
    }
}

/// Prints lines to standard output.
struct Terminal;

impl LineSink for Terminal {
    fn append(&self, lines: &[(Stream, String)]) -> Result<(), SpoolError> {
        for (_, line) in lines {
            print(line);
        }
        Ok(())
    }
}

fn print(line: &str) {
    // A closed standard output does not stop the build.
    let _ = writeln!(io::stdout(), "{line}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_of_failure_has_an_exit_code() {
        let code = |state, error| {
            exit_code(&Status { error, ..Status::new("job_1".parse().unwrap(), state) })
        };
        let user = |exit_code| Some(FailureReason::User { step: String::new(), exit_code });
        assert_eq!(code(StatusState::Completed, None), 0);
        assert_eq!(code(StatusState::Failed, user(42)), 42);
        assert_eq!(code(StatusState::Failed, user(255)), 125);
        assert_eq!(code(StatusState::Failed, user(0)), 125);
        let test = |exit_code| Some(FailureReason::Test { failed: 2, exit_code });
        assert_eq!(code(StatusState::Failed, test(3)), 3);
        assert_eq!(code(StatusState::Failed, test(0)), 125);
        let timeout = FailureReason::Timeout { limit_seconds: 1 };
        assert_eq!(code(StatusState::Failed, Some(timeout)), 124);
        assert_eq!(code(StatusState::Cancelled, Some(FailureReason::Cancelled)), 130);
        assert_eq!(code(StatusState::Failed, Some(FailureReason::Engine)), 70);
    }
}
