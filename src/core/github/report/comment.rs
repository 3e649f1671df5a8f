//! What the comment on a pull request says: a pure function of the records and of what failed steps said.
//!
//! The same records give the same text, so that nothing is written twice. Therefore nothing here depends
//! on the time of day: only what has ended has a duration.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use stagely_protocol::FailureReason;
use stagely_state::ids::{EnvironmentId, JobId};
use stagely_state::{CancelReason, Job, JobKind, JobState, RunState};

use super::markdown::{code, first_lines, inline, last_lines};
use super::view::{Shown, platforms, seconds, short};

/// GitHub takes 65,536 characters. This is in bytes, and what the sections below may take together.
const BODY_BYTES_MAX: usize = 60_000;

/// The rows of the table, in bytes.
const ROWS_BYTES_MAX: usize = 18_000;

/// What failed steps said, in bytes, all together and each.
const FAILURES_BYTES_MAX: usize = 20_000;
const FAILURE_BYTES_MAX: usize = 6_000;

/// Failures that are shown. All are in the table.
pub(crate) const FAILURES_MAX: usize = 10;

/// What is wrong with stagely.yaml, in bytes.
const PROBLEMS_BYTES_MAX: usize = 10_000;

/// Warnings, in bytes.
const WARNINGS_BYTES_MAX: usize = 5_000;

/// The references of images, in bytes.
const IMAGES_BYTES_MAX: usize = 5_000;

/// Words of other people's in one place, in characters.
const WORDS_CHARS_MAX: usize = 300;

/// What failed jobs said last, as far as it is known.
pub(crate) type Excerpts = BTreeMap<JobId, Vec<String>>;

/// The first line of the comment, which nobody sees: by it the comment is found when its id was lost. The
/// environment's id is random and told nowhere else, so nobody can write it before core has.
pub(crate) fn marker(environment: EnvironmentId) -> String {
    format!("<!-- stagely {environment} -->")
}

/// The comment, in Markdown.
pub(crate) fn render(shown: &Shown<'_>, excerpts: &Excerpts) -> String {
    let mut body = marker(shown.environment.id);
    let sections = [
        Some(headline(shown)),
        approval(shown),
        problems(shown),
        table(shown),
        failures(shown, excerpts),
        images(shown),
        warnings(shown),
        note(shown),
        Some(footer(shown)),
    ];
    for section in sections.into_iter().flatten() {
        // The limits of the sections are below this one together.
        if body.len() + section.len() < BODY_BYTES_MAX {
            body.push_str("\n\n");
            body.push_str(section.trim_end());
        }
    }
    body.push('\n');
    body
}

fn headline(shown: &Shown<'_>) -> String {
    let text = match &shown.run.state {
        RunState::AwaitingApproval => "🔒 Waits for approval".to_owned(),
        RunState::Pending
        | RunState::Deferred { .. }
        | RunState::Planning { .. }
        | RunState::Building => "⏳ Building…".to_owned(),
        RunState::Completed => "✅ Build completed".to_owned(),
        RunState::Failed { .. } => format!("❌ Build failed [View Logs]({})", logs_url(shown)),
        RunState::Cancelled { reason } => format!("⏹ Build cancelled{}", why(*reason)),
    };
    format!("### {text}")
}

/// Where whoever sees a failure wants to go: to the one log, or where all are.
fn logs_url(shown: &Shown<'_>) -> String {
    let mut failed = shown.failed_jobs().filter(|job| job.attempt > 0);
    match (failed.next(), failed.next()) {
        (Some(job), None) => shown.job_url(job.id),
        _ => shown.run_url(),
    }
}

const fn why(reason: CancelReason) -> &'static str {
    match reason {
        CancelReason::Requested => "",
        CancelReason::EnvironmentClosed => ": the pull request was closed",
        CancelReason::Superseded => ": a newer run takes its place",
    }
}

fn approval(shown: &Shown<'_>) -> Option<String> {
    let commit = shown.commit().filter(|_| shown.awaits_approval())?;
    let number = short(&commit);
    let label = code(shown.approval_label, WORDS_CHARS_MAX);
    Some(format!(
        "Commit `{commit}` comes from a fork, and nothing of it is built until somebody who may write to \
         this repository has looked at it and comments `/stagely approve {number}`.\n\n\
         The label {label} does the same. Either holds for that commit alone, which gets no secrets and \
         writes no shared cache."
    ))
}

/// Why there are no jobs.
fn problems(shown: &Shown<'_>) -> Option<String> {
    let RunState::Failed { plan_error: Some(error) } = &shown.run.state else { return None };
    let block = first_lines(error.message.lines(), PROBLEMS_BYTES_MAX);
    Some(format!("{}:\n\n{block}", capital(&inline(&error.reason.to_string(), WORDS_CHARS_MAX))))
}

fn table(shown: &Shown<'_>) -> Option<String> {
    let mut jobs: Vec<&Job> = shown.jobs().collect();
    let mut rows: Vec<String> = jobs.iter().map(|job| row(shown, job)).collect();
    if rows.iter().map(String::len).sum::<usize>() > ROWS_BYTES_MAX {
        jobs.sort_by_key(|job| urgency(job));
        rows = jobs.iter().map(|job| row(shown, job)).collect();
    }
    rows.extend(shown.run.skipped.iter().map(|skipped| {
        let build = code(skipped.variant.as_str(), WORDS_CHARS_MAX);
        let reason = inline(&skipped.reason.to_string(), WORDS_CHARS_MAX);
        format!("| {build} | | skipped: {reason} | | | |\n")
    }));
    if rows.is_empty() {
        return None;
    }
    let mut text = "| Build | Platform | State | Cached | Digest | Log |\n\
                    |---|---|---|---|---|---|\n"
        .to_owned();
    let mut left = rows.len();
    for row in &rows {
        if text.len() + row.len() > ROWS_BYTES_MAX {
            break;
        }
        text.push_str(row);
        left -= 1;
    }
    if left > 0 {
        let _ = write!(text, "\n… and {left} more builds: [all of them]({})", shown.run_url());
    }
    Some(text)
}

/// What matters first where a table is cut.
const fn urgency(job: &Job) -> u8 {
    match job.state {
        JobState::Failed { .. } => 0,
        JobState::Running { .. } | JobState::Provisioning { .. } => 1,
        JobState::Queued { .. } | JobState::Postponed { .. } => 2,
        JobState::Cancelled => 3,
        JobState::Completed { .. } => 4,
    }
}

fn row(shown: &Shown<'_>, job: &Job) -> String {
    let build = code(job.variant.as_str(), WORDS_CHARS_MAX);
    let merged = if matches!(job.kind, JobKind::Merge { .. }) { " (merged)" } else { "" };
    let platforms = platforms(job);
    let emulated = if job.emulated { " (emulated)" } else { "" };
    let cached = job.steps.iter().filter(|step| step.cached).count();
    let cached =
        if job.steps.is_empty() { String::new() } else { format!("{cached}/{}", job.steps.len()) };
    let digest = match &job.state {
        JobState::Completed { digest: Some(digest) } => {
            let short: String = digest.as_str().chars().take("sha256:".len() + 12).collect();
            code(&short, WORDS_CHARS_MAX)
        }
        _ => String::new(),
    };
    let log =
        if job.attempt > 0 { format!("[Log]({})", shown.job_url(job.id)) } else { String::new() };
    let state = state(job);
    format!("| {build}{merged} | {platforms}{emulated} | {state} | {cached} | {digest} | {log} |\n")
}

/// How far a job is, and how long its newest attempt took.
fn state(job: &Job) -> String {
    let took = job.started_at.zip(job.ended_at).map(|(from, to)| seconds(to.since(from)));
    let took = took.map(|took| format!(" in {took}")).unwrap_or_default();
    match &job.state {
        JobState::Queued { .. } | JobState::Postponed { .. } => "queued".to_owned(),
        JobState::Provisioning { .. } => "starting".to_owned(),
        JobState::Running { .. } => "⏳ running".to_owned(),
        JobState::Completed { .. } if job.kept_from.is_some() => {
            "✅ kept from an earlier run".to_owned()
        }
        JobState::Completed { .. } => format!("✅ completed{took}"),
        JobState::Failed { reason: FailureReason::DependencyFailed { job }, .. } => {
            format!("❌ not started: {} did not complete", code(job, WORDS_CHARS_MAX))
        }
        JobState::Failed { .. } => format!("❌ failed{took}"),
        JobState::Cancelled => "⏹ cancelled".to_owned(),
    }
}

/// Each failure with what the failing step said last.
fn failures(shown: &Shown<'_>, excerpts: &Excerpts) -> Option<String> {
    let failed: Vec<&Job> = shown.failed_jobs().collect();
    let shares = failed.len().clamp(1, FAILURES_MAX);
    let bytes_max = (FAILURES_BYTES_MAX / shares).min(FAILURE_BYTES_MAX);
    let mut text = String::new();
    for job in failed.iter().take(FAILURES_MAX) {
        text.push_str(&failure(shown, job, excerpts.get(&job.id), bytes_max));
        text.push('\n');
    }
    if failed.len() > FAILURES_MAX {
        let more = failed.len() - FAILURES_MAX;
        let _ = write!(text, "… and {more} more: [all of them]({})", shown.run_url());
    }
    (!text.is_empty()).then_some(text)
}

fn failure(
    shown: &Shown<'_>,
    job: &Job,
    excerpt: Option<&Vec<String>>,
    bytes_max: usize,
) -> String {
    let JobState::Failed { reason, message, .. } = &job.state else { return String::new() };
    let name = code(&job.name, WORDS_CHARS_MAX);
    let what = match reason {
        FailureReason::User { step, exit_code } if !step.is_empty() => {
            format!("step {} failed with exit code {exit_code}", code(step, WORDS_CHARS_MAX))
        }
        reason => inline(&reason.to_string(), WORDS_CHARS_MAX),
    };
    let log = if job.attempt > 0 {
        format!(" · [Log]({})", shown.job_url(job.id))
    } else {
        String::new()
    };
    let head = format!("**{name}**: {what}{log}\n\n");
    let said = excerpt.filter(|lines| !lines.is_empty());
    // The message of a user's failure has the step's last lines, too; others are in no log.
    let (is_users, has_message) =
        (matches!(reason, FailureReason::User { .. }), !message.trim().is_empty());
    let mut blocks = head;
    if has_message && (!is_users || said.is_none()) {
        blocks.push_str(&last_lines(message.lines(), bytes_max / 3));
        blocks.push('\n');
    }
    if let Some(lines) = said {
        blocks.push_str(&last_lines(lines.iter().map(String::as_str), bytes_max));
    }
    blocks
}

/// The images that the run is about, in full: an index stands for the images that it joins.
fn images(shown: &Shown<'_>) -> Option<String> {
    let jobs: Vec<&Job> = shown.jobs().collect();
    let is_merge = |job: &Job| matches!(job.kind, JobKind::Merge { .. });
    let is_joined = |job: &Job| {
        !is_merge(job) && jobs.iter().any(|it| is_merge(it) && it.variant == job.variant)
    };
    let named = |job: &&Job| match &job.state {
        JobState::Completed { digest: Some(digest) } => {
            let reference = job.tag.as_ref().unwrap_or_else(|| job.kind.image());
            Some(format!("{reference}@{digest}"))
        }
        _ => None,
    };
    let images: Vec<String> = jobs.iter().filter(|job| !is_joined(job)).filter_map(named).collect();
    if images.is_empty() {
        return None;
    }
    let block = first_lines(images.iter().map(String::as_str), IMAGES_BYTES_MAX);
    Some(format!("<details><summary>Images</summary>\n\n{block}\n</details>"))
}

/// What the user should know, each once, with the jobs that it is of.
fn warnings(shown: &Shown<'_>) -> Option<String> {
    let mut jobs_of: BTreeMap<String, BTreeSet<&str>> = BTreeMap::new();
    let mut order = Vec::new();
    for job in shown.jobs() {
        // The agent says so, too, once the job has ended.
        let is_said = job.warnings.iter().any(|warning| warning.contains("emulated"));
        let is_unsaid = job.emulated && !is_said;
        let emulated = is_unsaid.then(|| "built under QEMU emulation, which is slow".to_owned());
        for warning in job.warnings.iter().cloned().chain(emulated) {
            let jobs = jobs_of.entry(warning.clone()).or_default();
            if jobs.is_empty() {
                order.push(warning);
            }
            jobs.insert(&job.name);
        }
    }
    let mut lines = order.iter().map(|warning| {
        let jobs: Vec<&str> = jobs_of[warning].iter().copied().collect();
        let jobs = code(&jobs.join(", "), WORDS_CHARS_MAX);
        format!("- {jobs}: {}\n", inline(warning, WORDS_CHARS_MAX))
    });
    let mut text = String::new();
    while let Some(line) = lines.next() {
        if text.len() + line.len() > WARNINGS_BYTES_MAX {
            let left = lines.len() + 1;
            let _ = writeln!(text, "- … and {left} more: [all of them]({})", shown.run_url());
            break;
        }
        text.push_str(&line);
    }
    (!text.is_empty()).then(|| format!("**⚠️ Warnings**\n\n{text}"))
}

/// What became of the last command.
fn note(shown: &Shown<'_>) -> Option<String> {
    let note = shown.environment.report.note.as_ref()?;
    Some(format!("> {}", inline(note, WORDS_CHARS_MAX)))
}

fn footer(shown: &Shown<'_>) -> String {
    let run = shown.run;
    let commit = shown.commit().map(|it| format!(" · commit `{}`", short(&it))).unwrap_or_default();
    let took = run.ended_at.map(|ended| format!(" · {}", seconds(ended.since(run.created_at))));
    let (id, url) = (run.id, shown.run_url());
    format!("<sub>Run [`{id}`]({url}){commit}{}</sub>", took.unwrap_or_default())
}

/// The text with its first letter in upper case, if it does not begin with the name of a file.
fn capital(text: &str) -> String {
    if text.split(' ').next().is_some_and(|word| word.contains('.')) {
        return text.to_owned();
    }
    let mut rest = text.chars();
    let first = rest.next().map(|first| first.to_uppercase().collect::<String>());
    first.unwrap_or_default() + rest.as_str()
}

#[cfg(test)]
mod tests;
