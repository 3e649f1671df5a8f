//! What is said of a job in the end: its STATUS, and its log's last lines.

use stagely_protocol::{FailureReason, Status, StatusState, Step, WireId};

use super::{JobError, Outcome};
use crate::job_log::JobLog;

/// The longest error message, in bytes. Its end is what counts.
const MESSAGE_BYTES_MAX: usize = 4 * 1024;

/// Writes the log's last lines and gives the STATUS.
pub(super) fn report(job_id: &WireId, result: Result<Outcome, JobError>, log: &JobLog) -> Status {
    match result {
        Ok(outcome) => {
            for line in summary(&outcome) {
                log.say(&line);
            }
            let (artifact_url, digest) = outcome.pushed.unzip();
            Status {
                exit_code: Some(0),
                artifact_url,
                digest,
                steps: outcome.steps,
                warnings: log.warnings(),
                cache_miss: outcome.cache_miss,
                fingerprint: outcome.fingerprint,
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
            log.say(&format!("Failed: {}", sentence(&error)));
            failed(job_id, error, log.warnings())
        }
    }
}

/// The STATUS of a job that has failed.
pub(super) fn failed(job_id: &WireId, error: JobError, warnings: Vec<String>) -> Status {
    let state = match error.reason {
        FailureReason::Cancelled => StatusState::Cancelled,
        _ => StatusState::Failed,
    };
    let exit_code = match error.reason {
        FailureReason::User { exit_code, .. } => Some(exit_code),
        _ => None,
    };
    let from = error.message.len().saturating_sub(MESSAGE_BYTES_MAX);
    let message = error.message[error.message.ceil_char_boundary(from)..].to_owned();
    Status {
        exit_code,
        error: Some(error.reason),
        error_message: Some(message),
        steps: error.steps,
        warnings,
        ..Status::new(job_id.clone(), state)
    }
}

/// The failure in one line.
fn sentence(error: &JobError) -> String {
    match &error.reason {
        reason @ FailureReason::User { step, .. } if !step.is_empty() => reason.to_string(),
        reason @ (FailureReason::Cancelled | FailureReason::Timeout { .. }) => reason.to_string(),
        reason => format!("{reason}: {}", error.message.lines().last().unwrap_or_default()),
    }
}

/// The log's last lines.
fn summary(outcome: &Outcome) -> Vec<String> {
    let cached = outcome.steps.iter().filter(|step| step.cached).count();
    let pushed = match &outcome.pushed {
        Some((image, digest)) => format!("pushed {image} ({digest})"),
        None => "nothing to push".to_owned(),
    };
    let steps = match outcome.steps.len() {
        0 => String::new(),
        steps => format!("{cached} of {steps} steps cached, "),
    };
    let seconds = outcome.duration.as_secs_f64();
    let mut lines: Vec<String> = outcome.steps.iter().map(step_line).collect();
    lines.push(format!("Completed in {seconds:.1}s: {steps}{pushed}"));
    if let Some(miss) = &outcome.cache_miss {
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
    use std::time::Duration;

    use stagely_protocol::{CacheMiss, ChangedFile, FileChange, MissCause};

    use super::*;

    #[test]
    fn the_last_lines_say_what_the_cache_was_good_for() {
        let step = |name: &str, cached| Step { name: name.to_owned(), seconds: 1.04, cached };
        let digest = format!("sha256:{}", "0".repeat(64));
        let mut outcome = Outcome {
            pushed: Some(("r/a:b".parse().unwrap(), digest.parse().unwrap())),
            duration: Duration::from_millis(12_345),
            steps: vec![step("[2/3] RUN a", true), step("[3/3] RUN b", false)],
            ..Outcome::default()
        };
        let line = format!("Completed in 12.3s: 1 of 2 steps cached, pushed r/a:b ({digest})");
        assert_eq!(summary(&outcome), ["  cached  [2/3] RUN a", "    1.0s  [3/3] RUN b", &*line]);

        let change = FileChange::Changed;
        let files = vec![ChangedFile { path: "src/main.c".to_owned(), change }];
        outcome.cache_miss = Some(CacheMiss {
            step: "[3/5] COPY src ./src".to_owned(),
            cause: MissCause::Files { count: 1, files },
        });
        assert_eq!(
            summary(&outcome)[3],
            "First step that was not cached: [3/5] COPY src ./src: copied files are not what they \
             were: src/main.c (changed)"
        );
        let nothing = Outcome::default();
        assert_eq!(summary(&nothing), ["Completed in 0.0s: nothing to push"]);
    }

    #[test]
    fn a_long_message_keeps_its_end() {
        let message = format!("{}the end", "ü".repeat(MESSAGE_BYTES_MAX));
        let error = JobError { reason: FailureReason::Internal, message, steps: Vec::new() };
        let message = failed(&"job_1".parse().unwrap(), error, Vec::new()).error_message.unwrap();
        assert!(message.ends_with("the end") && message.len() <= MESSAGE_BYTES_MAX);
    }
}
