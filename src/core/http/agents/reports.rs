//! Converts an agent's reports into events. Lists and texts are cut to the limits of the records.

use stagely_protocol::{
    CHANGED_FILES_MAX, COMMENT_IMAGES_MAX, CacheMiss, ChangedFile, CloneProblem, FailureReason,
    MissCause, Preview, ServiceState, Status, StatusState, Step, StoredArtifacts, SystemInfo,
    TestResults, is_artifact_path,
};
use stagely_state::ids::MachineId;
use stagely_state::{Attempt, Event, JobFailure, JobOutcome, JobReport};

use crate::core::previews::PreviewReport;

// All sizes are in bytes, because a run's records may stay in memory.
const ERROR_BYTES_MAX: usize = 8_000;
const STEPS_MAX: usize = 1_000;
const STEP_BYTES_MAX: usize = 1_000;
const WARNINGS_MAX: usize = 100;
const WARNING_BYTES_MAX: usize = 2_000;
/// All texts of a list together.
const LIST_BYTES_MAX: usize = 64_000;
/// What stays of each text of a list that is too long.
const BYTES_AT_LEAST: usize = 40;
const MISS_NAMES_MAX: usize = 100;
const MISS_BYTES_MAX: usize = 1_000;
const SYSTEM_BYTES_MAX: usize = 256;
const EMULATED_MAX: usize = 32;
const SERVICES_MAX: usize = 100;
const SERVICE_BYTES_MAX: usize = 256;

const NEW_TOKEN: &str = "; a new run (a push, or `stagely rebuild`) renews the token";

/// Adds to the failure of a preview that was to start again what to do if the token of its run is no longer valid.
pub(super) fn advise_new_token(status: &mut Status) {
    let refused = FailureReason::Clone { problem: CloneProblem::Authentication };
    if status.error.as_ref() == Some(&refused) {
        let message = status.error_message.take().unwrap_or_else(|| refused.to_string());
        let message = cut(message, ERROR_BYTES_MAX - NEW_TOKEN.len());
        status.error_message = Some(message + NEW_TOKEN);
    }
}

pub(super) fn status_event(machine: MachineId, attempt: Attempt, status: Status) -> Event {
    let outcome = match status.state {
        StatusState::Running => return Event::JobStarted { machine, attempt },
        StatusState::Completed => JobOutcome::Completed { digest: status.digest },
        StatusState::Cancelled => JobOutcome::Cancelled,
        StatusState::Failed => {
            let exit_code = status.exit_code;
            // A simple agent reports an exit code alone: that of the build, so the failure is the user's.
            let reason = status.error.unwrap_or_else(|| match exit_code {
                Some(exit_code) => FailureReason::User { step: String::new(), exit_code },
                None => FailureReason::Internal,
            });
            let message = status.error_message.unwrap_or_else(|| reason.to_string());
            let message = cut(message, ERROR_BYTES_MAX);
            JobOutcome::Failed(JobFailure { reason: cut_reason(reason), message, exit_code })
        }
    };
    let report = JobReport {
        outcome,
        steps: cut_steps(status.steps),
        warnings: cut_warnings(status.warnings),
        cache_miss: status.cache_miss.map(cut_cache_miss),
        exporting_cache: status.exporting_cache,
        results: status.tests.map(TestResults::bounded),
        artifacts: status.artifacts.map(cut_artifacts),
    };
    Event::JobReported { machine, attempt, report }
}

/// Only paths that an archive may have stay. A test's files have any names.
fn cut_artifacts(mut artifacts: StoredArtifacts) -> StoredArtifacts {
    artifacts.comment_images.retain(|path| is_artifact_path(path));
    artifacts.comment_images.truncate(COMMENT_IMAGES_MAX);
    artifacts
}

/// Why the data of a preview was not archived.
pub(super) fn archive_problem(preview: &Preview) -> Option<String> {
    let problem = cut(preview.messages.join("; "), ERROR_BYTES_MAX);
    (!problem.is_empty()).then_some(problem)
}

/// Cuts names more where all of them together are long.
fn cut_steps(steps: Vec<Step>) -> Vec<Step> {
    let mut budget = TextBudget::new(STEP_BYTES_MAX);
    let steps = steps.into_iter().take(STEPS_MAX);
    let cut_step = |step: Step| {
        // Not every agent's clock goes forward, and not every number is a time.
        let seconds = if step.seconds.is_finite() { step.seconds.max(0.0) } else { 0.0 };
        Step { name: budget.cut(step.name), seconds, ..step }
    };
    steps.map(cut_step).collect()
}

fn cut_warnings(warnings: Vec<String>) -> Vec<String> {
    let mut budget = TextBudget::new(WARNING_BYTES_MAX);
    warnings.into_iter().take(WARNINGS_MAX).map(|warning| budget.cut(warning)).collect()
}

/// Cuts texts one after the other, so that all of them together stay small.
struct TextBudget {
    each_max: usize,
    left: usize,
}

impl TextBudget {
    const fn new(each_max: usize) -> Self {
        Self { each_max, left: LIST_BYTES_MAX }
    }

    fn cut(&mut self, text: String) -> String {
        let text = cut(text, self.each_max.min(self.left.max(BYTES_AT_LEAST)));
        self.left = self.left.saturating_sub(text.len());
        text
    }
}

fn cut(mut text: String, bytes_max: usize) -> String {
    text.truncate(text.floor_char_boundary(bytes_max));
    text
}

fn cut_reason(reason: FailureReason) -> FailureReason {
    match reason {
        FailureReason::User { step, exit_code } => {
            FailureReason::User { step: cut(step, STEP_BYTES_MAX), exit_code }
        }
        FailureReason::DependencyFailed { job } => {
            FailureReason::DependencyFailed { job: cut(job, STEP_BYTES_MAX) }
        }
        reason => reason,
    }
}

fn cut_cache_miss(miss: CacheMiss) -> CacheMiss {
    let cause = match miss.cause {
        MissCause::BuildArgs { names } => {
            let names = names.into_iter().take(MISS_NAMES_MAX);
            MissCause::BuildArgs { names: names.map(|name| cut(name, MISS_BYTES_MAX)).collect() }
        }
        MissCause::BaseImage { was, is } => {
            MissCause::BaseImage { was: cut(was, MISS_BYTES_MAX), is: cut(is, MISS_BYTES_MAX) }
        }
        MissCause::Files { count, files } => {
            let files = files.into_iter().take(CHANGED_FILES_MAX);
            let files = files.map(|file| {
                let path = cut(file.path, MISS_BYTES_MAX);
                ChangedFile { path, change: file.change }
            });
            MissCause::Files { count, files: files.collect() }
        }
        cause @ (MissCause::NoCache
        | MissCause::NotRecorded
        | MissCause::Instruction
        | MissCause::Unknown) => cause,
    };
    CacheMiss { step: cut(miss.step, STEP_BYTES_MAX), cause }
}

pub(super) fn cut_system_info(info: SystemInfo) -> SystemInfo {
    let emulated = info.emulated.into_iter().take(EMULATED_MAX);
    SystemInfo {
        hostname: cut(info.hostname, SYSTEM_BYTES_MAX),
        architecture: info.architecture,
        docker_version: cut(info.docker_version, SYSTEM_BYTES_MAX),
        emulated: emulated.map(|platform| cut(platform, SYSTEM_BYTES_MAX)).collect(),
    }
}

pub(super) fn preview_report(machine: MachineId, preview: Preview) -> PreviewReport {
    let cut_service = |service: ServiceState| ServiceState {
        name: cut(service.name, SERVICE_BYTES_MAX),
        state: cut(service.state, SERVICE_BYTES_MAX),
        health: service.health.map(|health| cut(health, SERVICE_BYTES_MAX)),
        exit_code: service.exit_code,
    };
    PreviewReport {
        machine,
        generation: preview.generation,
        services: preview.services.into_iter().take(SERVICES_MAX).map(cut_service).collect(),
        disk_free_bytes: preview.disk_free_bytes,
        messages: cut_warnings(preview.messages),
    }
}

#[cfg(test)]
mod tests {
    use stagely_protocol::{
        AgentMessage, FINGERPRINT_BYTES_MAX, FileChange, Fingerprint, MESSAGE_BYTES_MAX,
    };

    use super::*;

    #[test]
    fn a_status_whose_fields_all_have_their_longest_values_fits_a_message() {
        let attempt: Attempt = "job_00000000000000000000000001".parse().unwrap();
        let name = "[stage-1 12/34] RUN ".to_owned() + &"x".repeat(380);
        let step = Step { name, seconds: 1.0, cached: false };
        let file = ChangedFile { path: "p".repeat(MISS_BYTES_MAX), change: FileChange::Changed };
        let files = vec![file; CHANGED_FILES_MAX];
        let status = Status {
            error_message: Some("e".repeat(ERROR_BYTES_MAX)),
            steps: vec![step; STEPS_MAX],
            warnings: vec!["w".repeat(WARNING_BYTES_MAX); WARNINGS_MAX],
            cache_miss: Some(CacheMiss {
                step: "s".repeat(STEP_BYTES_MAX),
                cause: MissCause::Files { count: 1_000_000, files },
            }),
            fingerprint: Some(Fingerprint::try_from("/".repeat(FINGERPRINT_BYTES_MAX)).unwrap()),
            ..Status::new(attempt.wire(), StatusState::Completed)
        };
        let json = AgentMessage::Status(status).to_json();
        assert!(json.len() < MESSAGE_BYTES_MAX, "{}", json.len());
    }

    #[test]
    fn a_refused_token_of_a_wake_is_renewed_by_a_new_run() {
        let attempt: Attempt = "job_00000000000000000000000001".parse().unwrap();
        let failed = |problem, message: Option<&str>| {
            let mut status = Status {
                error: Some(FailureReason::Clone { problem }),
                error_message: message.map(str::to_owned),
                ..Status::new(attempt.wire(), StatusState::Failed)
            };
            advise_new_token(&mut status);
            status.error_message
        };
        for message in [None, Some("https://git.example refused the token, or needs one")] {
            let message = failed(CloneProblem::Authentication, message).unwrap();
            assert!(message.contains(" refused the token"), "{message}");
            assert!(message.ends_with("`stagely rebuild`) renews the token"), "{message}");
        }
        let long = failed(CloneProblem::Authentication, Some(&"ä".repeat(10_000))).unwrap();
        assert!(long.len() <= ERROR_BYTES_MAX && long.ends_with(NEW_TOKEN), "{long}");
        assert_eq!(failed(CloneProblem::Network, None), None);
    }

    #[test]
    fn long_reports_of_cache_misses_are_cut() {
        let long = "ä".repeat(10_000);
        let cut = |cause| cut_cache_miss(CacheMiss { step: long.clone(), cause });

        let file = ChangedFile { path: long.clone(), change: FileChange::Added };
        let files = cut(MissCause::Files { count: 500, files: vec![file; 500] });
        assert_eq!(files.step.len(), STEP_BYTES_MAX);
        let MissCause::Files { count, files } = files.cause else { panic!("{files:?}") };
        assert_eq!((count, files.len()), (500, CHANGED_FILES_MAX));
        assert_eq!(files[0].path.len(), MISS_BYTES_MAX);

        let names = cut(MissCause::BuildArgs { names: vec![long.clone(); 500] });
        let MissCause::BuildArgs { names } = names.cause else { panic!("{names:?}") };
        assert_eq!((names.len(), names[0].len()), (MISS_NAMES_MAX, MISS_BYTES_MAX));

        let base = cut(MissCause::BaseImage { was: long.clone(), is: long.clone() });
        let MissCause::BaseImage { was, is } = base.cause else { panic!("{base:?}") };
        assert_eq!((was.len(), is.len()), (MISS_BYTES_MAX, MISS_BYTES_MAX));
    }

    #[test]
    fn a_report_of_two_megabytes_becomes_small() {
        let attempt: Attempt = "job_00000000000000000000000001".parse().unwrap();
        let long = "\u{1f980}".repeat(250);
        let step = Step { name: long.clone(), seconds: -1.0, cached: false };
        let status = Status {
            steps: vec![step; 2_000],
            warnings: vec![long; 200],
            ..Status::new(attempt.wire(), StatusState::Completed)
        };
        let event = status_event(MachineId::from_bits(1), attempt, status);
        let Event::JobReported { report, .. } = event else { panic!("{event:?}") };
        let steps: usize = report.steps.iter().map(|step| step.name.len()).sum();
        let warnings: usize = report.warnings.iter().map(String::len).sum();
        assert!(steps <= LIST_BYTES_MAX + STEPS_MAX * BYTES_AT_LEAST, "{steps}");
        assert!(warnings <= LIST_BYTES_MAX + WARNINGS_MAX * BYTES_AT_LEAST, "{warnings}");
        assert!(report.steps.iter().all(|step| step.seconds == 0.0 && step.name.len() >= 40));
    }

    #[test]
    fn long_reports_are_cut() {
        let long = "ä".repeat(10_000);
        let step = Step { name: long.clone(), seconds: 1.0, cached: true };
        let attempt: Attempt = "job_00000000000000000000000001".parse().unwrap();
        let status = Status {
            job_id: attempt.wire(),
            state: StatusState::Failed,
            exit_code: Some(1),
            artifact_url: None,
            digest: None,
            error: Some(FailureReason::User { step: long.clone(), exit_code: 1 }),
            error_message: Some(long.clone()),
            steps: vec![step; 2_000],
            warnings: vec![long.clone(); 200],
            ..Status::new(attempt.wire(), StatusState::Failed)
        };
        let event = status_event(MachineId::from_bits(1), attempt, status);
        let Event::JobReported { report, .. } = event else { panic!("{event:?}") };
        assert_eq!((report.steps.len(), report.warnings.len()), (STEPS_MAX, WARNINGS_MAX));
        assert_eq!(report.steps[0].name.len(), STEP_BYTES_MAX);
        assert_eq!(report.warnings[0].len(), WARNING_BYTES_MAX);
        let JobOutcome::Failed(JobFailure { reason, message, .. }) = report.outcome else {
            panic!("failed")
        };
        assert_eq!(message.len(), ERROR_BYTES_MAX);
        let FailureReason::User { step, .. } = reason else { panic!("{reason:?}") };
        assert_eq!(step.len(), STEP_BYTES_MAX);
        let info = cut_system_info(SystemInfo {
            hostname: long.clone(),
            architecture: stagely_protocol::Arch::Amd64,
            docker_version: "26.1.5".to_owned(),
            emulated: vec![long; 100],
        });
        assert_eq!(info.hostname.len(), SYSTEM_BYTES_MAX);
        assert_eq!((&*info.docker_version, info.emulated.len()), ("26.1.5", EMULATED_MAX));
    }
}
