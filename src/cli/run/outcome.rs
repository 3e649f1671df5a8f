//! How a run ended: the table, and the exit code.

use std::fmt::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use stagely_agent::protocol::{Digest, FailureReason};

use super::display::duration_of;
use crate::api::{JobKindView, JobStatus, JobView, RunStatus, RunView};
use crate::cli::table::table;

/// What the exit codes of `stagely run` mean, for its help.
pub const EXIT_CODES: &str = "\
Exit codes:
  0    every build completed
  1    a build failed or ran into its limit, or stagely.yaml is not valid
  2    the command line is wrong
  3    the run failed and the builds are not at fault: registry, repository, machine
  4    nothing could be started, or core was lost
  130  the run was cancelled";

/// The exit code of a command that could not do its work at all.
pub const EXIT_UNUSABLE: u8 = 4;

/// The exit code of a cancelled run: 128 + SIGINT.
pub const EXIT_CANCELLED: u8 = 130;

/// The exit code of `run`.
pub fn exit_code(run: &RunView) -> ExitCode {
    ExitCode::from(match run.status {
        RunStatus::Completed => 0,
        RunStatus::Cancelled => EXIT_CANCELLED,
        RunStatus::Pending | RunStatus::Building => EXIT_UNUSABLE,
        RunStatus::Failed => {
            let mut reasons =
                run.jobs.iter().filter_map(|job| job.reason.as_ref()).chain(&run.reason);
            if reasons.any(is_the_builds) { 1 } else { 3 }
        }
    })
}

/// Whether a change to what is built would have helped.
const fn is_the_builds(reason: &FailureReason) -> bool {
    matches!(
        reason,
        FailureReason::User { .. } | FailureReason::Timeout { .. } | FailureReason::Manifest
    )
}

/// The end of a run, for people.
pub fn report(run: &RunView) -> String {
    let mut text = String::new();
    if !run.jobs.is_empty() {
        let _ = writeln!(text, "{}\n", jobs_table(&run.jobs));
    }
    for job in &run.jobs {
        for warning in &job.warnings {
            let _ = writeln!(text, "warning: {}: {warning}", job.name);
        }
    }
    for image in images(run) {
        let _ = writeln!(text, "{image}");
    }
    for job in run.jobs.iter().filter(|job| job.status == JobStatus::Failed) {
        if let Some(error) = &job.error {
            let _ = writeln!(text, "{} failed: {error}", job.name);
        }
        if job.attempt > 0 {
            let _ = writeln!(text, "  its log: stagely logs {}", job.id);
        }
    }
    if let Some(error) = &run.error {
        let _ = writeln!(text, "{error}");
    }
    let time = run.ended_at.map(|ended| seconds(ended.since(run.created_at))).unwrap_or_default();
    let _ = write!(text, "Run {} {} after {time}", run.id, run.status.as_str());
    text
}

/// The images that the run is about: an index stands for the images that it joins.
fn images(run: &RunView) -> Vec<String> {
    let is_joined = |job: &&JobView| {
        let mut merges = run.jobs.iter().filter(|job| job.kind == JobKindView::Merge);
        job.kind == JobKindView::Merge || !merges.any(|merge| merge.build == job.build)
    };
    let named = |job: &JobView| Some(format!("{}@{}", job.image, job.digest.as_ref()?));
    run.jobs.iter().filter(is_joined).filter_map(named).collect()
}

/// The jobs of a run as a table.
fn jobs_table(jobs: &[JobView]) -> String {
    let rows = jobs.iter().map(|job| {
        [
            job.name.clone(),
            platforms(job),
            job.status.as_str().to_owned(),
            job.digest.as_ref().map(short).unwrap_or_default(),
            duration_of(job).map(seconds).unwrap_or_default(),
            cached(job),
        ]
    });
    table(["JOB", "PLATFORM", "STATUS", "DIGEST", "TIME", "CACHED"], rows)
}

/// The platforms of a job's image.
pub fn platforms(job: &JobView) -> String {
    job.platforms.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// How many of a build's steps came from a cache: `3 of 5`.
pub fn cached(job: &JobView) -> String {
    if job.steps.is_empty() {
        return String::new();
    }
    let cached = job.steps.iter().filter(|step| step.cached).count();
    format!("{cached} of {} steps", job.steps.len())
}

/// A digest that people can compare: `sha256:` and 12 digits.
fn short(digest: &Digest) -> String {
    digest.as_str().chars().take("sha256:".len() + 12).collect()
}

/// `4.2s`, `3m 7s`.
pub fn seconds(time: Duration) -> String {
    if time < Duration::from_mins(1) {
        return format!("{:.1}s", time.as_secs_f64());
    }
    humantime::format_duration(Duration::from_secs(time.as_secs())).to_string()
}
