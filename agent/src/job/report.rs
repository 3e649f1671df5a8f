//! The end of a job: its final STATUS, and the last lines of its log.

use std::time::Duration;

use stagely_protocol::{
    CacheMiss, Digest, EndpointAddress, FailureReason, Fingerprint, ImageRef, Status, StatusState,
    Step, WireId,
};

use super::cache_export::CacheExporter;
use super::error::{JobError, end_of};
use super::test_report::{TestReport, counts};
use crate::job_log::JobLog;

/// The longest error message, in bytes. A longer one loses its beginning.
const MESSAGE_BYTES_MAX: usize = 4 * 1024;

/// The result of a job that succeeded.
#[derive(Default)]
pub(super) struct JobOutput {
    /// The image in the registry; `None`: the job pushes none.
    pub(super) pushed: Option<(ImageRef, Digest)>,
    pub(super) duration: Duration,
    pub(super) steps: Vec<Step>,
    pub(super) cache_miss: Option<CacheMiss>,
    pub(super) fingerprint: Option<Fingerprint>,
    /// The layer cache that is being exported.
    pub(super) cache_exporter: Option<CacheExporter>,
    /// The endpoints of a preview.
    pub(super) endpoints: Vec<EndpointAddress>,
    /// Of a test.
    pub(super) test: Option<TestReport>,
}

/// Writes the last lines of the log and returns the final STATUS.
pub(super) fn report(job_id: &WireId, result: Result<JobOutput, JobError>, log: &JobLog) -> Status {
    match result {
        Ok(output) => {
            for line in summary(&output) {
                log.info(&line);
            }
            let (artifact_url, digest) = output.pushed.unzip();
            let TestReport { results, artifacts } = output.test.unwrap_or_default();
            Status {
                tests: results,
                artifacts,
                exit_code: Some(0),
                artifact_url,
                digest,
                steps: output.steps,
                warnings: log.warnings(),
                cache_miss: output.cache_miss,
                fingerprint: output.fingerprint,
                endpoints: output.endpoints,
                ..Status::new(job_id.clone(), StatusState::Completed)
            }
        }
        Err(mut error) => {
            error.message = match error.reason {
                FailureReason::Cancelled | FailureReason::Timeout { .. } => {
                    error.reason.to_string()
                }
                _ => log.masker().mask(&error.message),
            };
            log.info(&format!("Failed: {}", failure_line(&error)));
            failed(job_id, error, log.warnings())
        }
    }
}

/// The final STATUS of a failed job.
pub(super) fn failed(job_id: &WireId, error: JobError, warnings: Vec<String>) -> Status {
    let state = match error.reason {
        FailureReason::Cancelled => StatusState::Cancelled,
        _ => StatusState::Failed,
    };
    let exit_code = match error.reason {
        FailureReason::User { exit_code, .. } | FailureReason::Test { exit_code, .. } => {
            Some(exit_code)
        }
        _ => None,
    };
    let message = end_of(&error.message, MESSAGE_BYTES_MAX).into_owned();
    let TestReport { results, artifacts } = error.test.map(|report| *report).unwrap_or_default();
    Status {
        tests: results,
        artifacts,
        exit_code,
        error: Some(error.reason),
        error_message: Some(message),
        steps: error.steps,
        warnings,
        ..Status::new(job_id.clone(), state)
    }
}

/// The failure as one line of the log.
fn failure_line(error: &JobError) -> String {
    match &error.reason {
        reason @ FailureReason::User { step, .. } if !step.is_empty() => reason.to_string(),
        // Of a failed test the log has the names or the last lines.
        reason @ (FailureReason::Cancelled
        | FailureReason::Timeout { .. }
        | FailureReason::Test { .. }) => reason.to_string(),
        reason => format!("{reason}: {}", error.message.lines().last().unwrap_or_default()),
    }
}

/// The last lines of a successful job's log.
fn summary(output: &JobOutput) -> Vec<String> {
    let cached = output.steps.iter().filter(|step| step.cached).count();
    let serves = |EndpointAddress { name, address }: &_| format!("{name} at {address}");
    let pushed = match &output.pushed {
        Some((image, digest)) => format!("pushed {image} ({digest})"),
        None if !output.endpoints.is_empty() => {
            let endpoints: Vec<_> = output.endpoints.iter().map(serves).collect();
            format!("serving {}", endpoints.join(", "))
        }
        None => match &output.test {
            Some(TestReport { results: Some(results), .. }) => counts(results),
            Some(TestReport { results: None, .. }) => "the test passed".to_owned(),
            None => "nothing to push".to_owned(),
        },
    };
    let steps = match output.steps.len() {
        0 => String::new(),
        steps => format!("{cached} of {steps} steps cached, "),
    };
    let seconds = output.duration.as_secs_f64();
    let mut lines: Vec<String> = output.steps.iter().map(step_line).collect();
    lines.push(format!("Completed in {seconds:.1}s: {steps}{pushed}"));
    if let Some(miss) = &output.cache_miss {
        lines.push(format!("First step that was not cached: {}: {}", miss.step, miss.cause));
    }
    lines
}

fn step_line(step: &Step) -> String {
    let took = if step.cached { "cached".to_owned() } else { format!("{:.1}s", step.seconds) };
    format!("{took:>8}  {}", step.name)
}

#[cfg(test)]
mod tests {
    use stagely_protocol::{CacheMiss, ChangedFile, FileChange, MissCause};

    use super::*;

    #[test]
    fn the_last_lines_list_the_steps_and_the_first_cache_miss() {
        let step = |name: &str, cached| Step { name: name.to_owned(), seconds: 1.04, cached };
        let digest = format!("sha256:{}", "0".repeat(64));
        let mut output = JobOutput {
            pushed: Some(("r/a:b".parse().unwrap(), digest.parse().unwrap())),
            duration: Duration::from_millis(12_345),
            steps: vec![step("[2/3] RUN a", true), step("[3/3] RUN b", false)],
            ..JobOutput::default()
        };
        let line = format!("Completed in 12.3s: 1 of 2 steps cached, pushed r/a:b ({digest})");
        assert_eq!(summary(&output), ["  cached  [2/3] RUN a", "    1.0s  [3/3] RUN b", &*line]);

        let change = FileChange::Changed;
        let files = vec![ChangedFile { path: "src/main.c".to_owned(), change }];
        output.cache_miss = Some(CacheMiss {
            step: "[3/5] COPY src ./src".to_owned(),
            cause: MissCause::Files { count: 1, files },
        });
        assert_eq!(
            summary(&output)[3],
            "First step that was not cached: [3/5] COPY src ./src: copied files are not what they \
             were: src/main.c (changed)"
        );
        let nothing = JobOutput::default();
        assert_eq!(summary(&nothing), ["Completed in 0.0s: nothing to push"]);
    }

    #[test]
    fn a_long_message_keeps_its_end() {
        let message = format!("{}the end", "ü".repeat(MESSAGE_BYTES_MAX));
        let error = JobError::with_message(FailureReason::Internal, message);
        let message = failed(&"job_1".parse().unwrap(), error, Vec::new()).error_message.unwrap();
        assert!(message.starts_with('…') && message.ends_with("the end"));
        assert!(message.len() <= MESSAGE_BYTES_MAX, "{}", message.len());
    }
}
