//! The output of `docker buildx build`: log lines, the pushed digest, and the error.

use std::path::Path;
use std::process::ExitStatus;
use std::time::Duration;

use stagely_protocol::{Digest, FailureReason, ImageRef, RegistryProblem, Stream};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use super::super::abandoned;
use super::super::classify::{build_failure, missing_login, push_advice};
use super::super::progress::{FailedStep, OutputItem, Progress, RawJsonDecoder};
use super::arguments::invocation;
use super::{BuildError, BuildOutcome, BuildRequest};
use crate::job_log::JobLog;
use crate::process::ProcessError;

/// A `buildx` that gets SIGTERM exits when the engine has ended the build, or after 3 s.
const ENGINE_STOP_TIME: Duration = Duration::from_millis(2_500);

/// The error of a `buildx` whose build has succeeded and that has not received the whole report 3 s later, because
/// the machine is too busy.
const REPORT_LOST: &str = "failed to receive status: rpc error: code = Canceled";

/// The number of last lines of the client that are kept to find the cause of a failure.
const CLIENT_LINES_MAX: usize = 60;

/// The client's error, without the part of the Dockerfile that the client prints before it.
fn client_error(text: &str) -> &str {
    text.rfind("\nERROR: ").map_or(text, |at| &text[at..])
}

/// Converts the command's output into log lines, and keeps the parts that an error message needs.
pub(super) struct BuildOutput<'a> {
    log: &'a JobLog,
    /// Gets the outcome as soon as the image is pushed. The output after that is not logged.
    pushed: Option<oneshot::Sender<BuildOutcome>>,
    is_pushed: bool,
    stdout: RawJsonDecoder,
    /// `buildx` writes the status reports to its standard error.
    stderr: RawJsonDecoder,
    progress: Progress,
    /// The last lines of the client, masked.
    client_lines: Vec<String>,
}

impl<'a> BuildOutput<'a> {
    pub(super) fn new(log: &'a JobLog, pushed: Option<oneshot::Sender<BuildOutcome>>) -> Self {
        Self {
            log,
            pushed,
            is_pushed: false,
            stderr: RawJsonDecoder::default(),
            progress: Progress::new(log.masker().clone()),
            stdout: RawJsonDecoder::default(),
            client_lines: Vec::new(),
        }
    }

    /// Runs the command to its end. If it is stopped, no step of it goes on.
    pub(super) async fn run(
        &mut self,
        request: &BuildRequest,
        metadata: &Path,
        stop: &CancellationToken,
    ) -> Result<ExitStatus, ProcessError> {
        let (grace, log) = (request.docker.grace, self.log);
        let result = invocation(request, metadata)
            .run(grace, stop, |stream, bytes| self.push(stream, bytes))
            .await;
        self.finish();
        if let Err(ProcessError::Stopped { stopped_at, .. }) = result
            && stopped_at.elapsed() >= ENGINE_STOP_TIME.min(grace)
        {
            abandoned::kill_steps(self.progress.running_vertexes(), stopped_at, log).await;
        }
        result
    }

    fn push(&mut self, stream: Stream, bytes: &[u8]) {
        let mut items = Vec::new();
        match stream {
            Stream::Stdout => self.stdout.push(bytes, &mut items),
            Stream::Stderr => self.stderr.push(bytes, &mut items),
        }
        self.apply(items);
    }

    fn finish(&mut self) {
        let (mut items, mut lines) = (Vec::new(), Vec::new());
        self.stdout.finish(&mut items);
        self.stderr.finish(&mut items);
        self.apply(items);
        self.progress.finish(&mut lines);
        self.log_lines(&lines);
        self.warn_of_clipping();
    }

    fn log_lines(&self, lines: &[(Stream, String)]) {
        if !self.is_pushed {
            self.log.append_masked(lines);
        }
    }

    /// Failed builds need the warning most: people read their logs.
    fn warn_of_clipping(&self) {
        if self.progress.is_clipped() && !self.is_pushed {
            self.log.warn(
                "the Docker engine dropped a part of this log; set BUILDKIT_STEP_LOG_MAX_SIZE=-1 and \
                 BUILDKIT_STEP_LOG_MAX_SPEED=-1 in the environment of dockerd to keep all of it",
            );
        }
    }

    /// Passes the outcome on if the image is pushed.
    fn report_pushed(&mut self) {
        if self.pushed.is_none() || self.progress.pushed_digest().is_none() {
            return;
        }
        let mut lines = Vec::new();
        self.progress.finish(&mut lines);
        self.log_lines(&lines);
        self.warn_of_clipping();
        self.is_pushed = true;
        if let Some(pushed) = self.pushed.take() {
            let outcome = self.outcome(self.progress.pushed_digest().cloned());
            // Nobody waits for a build that is being stopped.
            let _ = pushed.send(outcome);
        }
    }

    pub(super) fn outcome(&self, digest: Option<Digest>) -> BuildOutcome {
        BuildOutcome {
            digest,
            steps: self.progress.steps(),
            base_images: self.progress.base_images(),
            has_imported_cache: self.progress.has_imported_cache(),
        }
    }

    fn apply(&mut self, items: Vec<OutputItem>) {
        let mut lines = Vec::new();
        for item in items {
            match item {
                OutputItem::Status(status) => self.progress.apply(status, &mut lines),
                OutputItem::Text(text) => {
                    let text = self.log.masker().mask(&text);
                    self.client_lines.push(text.clone());
                    self.progress.push_client_line(text, &mut lines);
                }
            }
        }
        let excess = self.client_lines.len().saturating_sub(CLIENT_LINES_MAX);
        self.client_lines.drain(..excess);
        self.log_lines(&lines);
        self.report_pushed();
    }

    /// Why the cache was not exported, if it was not.
    pub(super) fn export_error(&self) -> Option<BuildError> {
        let message = self.progress.cache_export_error()?.to_owned();
        let reason = match build_failure("exporting cache", &message) {
            // The message is unknown, but only the registry can refuse a cache.
            FailureReason::Internal => {
                FailureReason::Registry { problem: RegistryProblem::Unavailable }
            }
            reason => reason,
        };
        Some(BuildError::Failed { reason, message, steps: self.progress.steps() })
    }

    /// Why the command that was to push `image` failed.
    pub(super) fn into_error(self, exit_code: Option<i32>, image: &ImageRef) -> BuildError {
        let text = self.client_lines.join("\n");
        let is_report_lost = text.contains(REPORT_LOST);
        if (is_report_lost || self.progress.is_cut_off()) && !self.is_pushed {
            self.log.warn(
                "this machine was too busy to pass on all output of this build: a part of its log \
                 is missing",
            );
        }
        if is_report_lost {
            return BuildError::ReportLost { steps: self.progress.steps() };
        }
        let failed = self.progress.failed_step().unwrap_or_default();
        let FailedStep { name, error, mut tail } = failed;
        let cause = if error.is_empty() { client_error(&text) } else { &error };
        let (reason, advice) = (build_failure(&name, cause), push_advice(&name, cause, image));
        let last_text = self.client_lines.last().cloned().unwrap_or_else(|| match exit_code {
            Some(code) => format!("buildx ended with exit code {code}"),
            None => "buildx was killed".to_owned(),
        });
        tail.push(if error.is_empty() { last_text } else { format!("{name}: {error}") });
        tail.extend(advice);
        let steps = self.progress.steps();
        let Some(registry) = missing_login(&name, &error) else {
            return BuildError::Failed { reason, message: tail.join("\n"), steps };
        };
        tail.push(format!(
            "{registry} needs a login for this image: `docker login {registry}` on this machine, for `stagely run`; \
             core itself logs in to its own registry alone"
        ));
        BuildError::LoginMissing { registry, message: tail.join("\n"), steps }
    }
}
