//! The text of the comment on a pull request: a pure function of the records and of the logs of failed steps.
//!
//! The same records give the same text, so that nothing is written twice. Therefore the text does not depend on
//! the time of day, and only ended jobs have a duration.

mod preview;
mod test_results;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use stagely_protocol::FailureReason;
use stagely_state::ids::{EnvironmentId, JobId};
use stagely_state::{
    CancelReason, Job, JobFailure, JobKind, JobState, QueueReason, QueuedJob, RunState,
};

use super::markdown::{code, first_lines, inline, last_lines};
use super::view::{ReportView, platforms, seconds, short, warnings_of};
use crate::core::costs::{self, SETTLED};
use crate::core::github::webhook::command::OWN_COMMENT;

/// GitHub's limit is 65,536 characters. The limits of the sections below add up to less than this.
const BODY_BYTES_MAX: usize = 60_000;

const ROWS_BYTES_MAX: usize = 18_000;

/// The excerpts of logs, together and each.
const FAILURES_BYTES_MAX: usize = 20_000;
const FAILURE_BYTES_MAX: usize = 6_000;

/// Failures with an excerpt. The table has all failures.
pub(crate) const FAILURES_MAX: usize = 10;

/// The mistakes in stagely.yaml.
const PROBLEMS_BYTES_MAX: usize = 10_000;

const WARNINGS_BYTES_MAX: usize = 5_000;

const IMAGES_BYTES_MAX: usize = 5_000;

/// Foreign text in one place.
const WORDS_CHARS_MAX: usize = 300;

/// The last lines of the failed steps, by job.
pub(crate) type Excerpts = BTreeMap<JobId, Vec<String>>;

/// The first line of the comment, which GitHub does not display. The comment is found by it when its id was
/// lost. The environment's id is random and shown nowhere else, so nobody can write the line before core does.
pub(crate) fn marker(environment: EnvironmentId) -> String {
    format!("{OWN_COMMENT}{environment} -->")
}

/// Makes the comment, in Markdown.
pub(crate) fn render(view: &ReportView<'_>, excerpts: &Excerpts) -> String {
    let mut body = marker(view.environment.id);
    let sections = [
        Some(headline(view)),
        preview::section(view),
        cost(view),
        approval(view),
        problems(view),
        test_results::section(view),
        table(view),
        failures(view, excerpts),
        images(view),
        warnings(view),
        note(view),
        Some(footer(view)),
    ];
    for section in sections.into_iter().flatten() {
        // Always true, because the limits of the sections are smaller together.
        if body.len() + section.len() < BODY_BYTES_MAX {
            body.push_str("\n\n");
            body.push_str(section.trim_end());
        }
    }
    body.push('\n');
    body
}

fn headline(view: &ReportView<'_>) -> String {
    let text = match &view.run.state {
        RunState::AwaitingApproval => "🔒 Waits for approval".to_owned(),
        RunState::Pending
        | RunState::Deferred { .. }
        | RunState::Planning { .. }
        | RunState::Building => "⏳ Building…".to_owned(),
        RunState::Deploying => "⏳ Deploying…".to_owned(),
        RunState::Testing => "⏳ Testing…".to_owned(),
        RunState::Completed => "✅ Build completed".to_owned(),
        RunState::Failed { .. } => {
            format!("❌ {} failed [View Logs]({})", failed_part(view), logs_url(view))
        }
        RunState::Cancelled { reason } => format!("⏹ Build cancelled{}", why(*reason)),
    };
    format!("### {text}")
}

/// What of the run has failed, in its first phase that did.
fn failed_part(view: &ReportView<'_>) -> &'static str {
    let phases = view.failed_jobs().map(|job| match job.kind {
        JobKind::Build { .. } | JobKind::Merge { .. } => 0,
        JobKind::Deploy { .. } => 1,
        JobKind::Test { .. } => 2,
    });
    match phases.min() {
        // Without a failed job, the plan failed.
        None | Some(0) => "Build",
        Some(1) => "Deployment",
        Some(_) => "Test",
    }
}

/// The log of the only failed job, or the page of the run.
fn logs_url(view: &ReportView<'_>) -> String {
    let mut failed = view.failed_jobs().filter(|job| job.attempt > 0);
    match (failed.next(), failed.next()) {
        (Some(job), None) => view.job_url(job.id),
        _ => view.run_url(),
    }
}

const fn why(reason: CancelReason) -> &'static str {
    match reason {
        CancelReason::Requested => "",
        CancelReason::EnvironmentClosed => ": the pull request was closed",
        CancelReason::Superseded => ": a newer run takes its place",
    }
}

/// What the run and its pull request have cost, as of the last event.
fn cost(view: &ReportView<'_>) -> Option<String> {
    let (records, environment) = (view.records, view.environment);
    let run = costs::sentence(&records.spending_of_run(view.run.id, SETTLED));
    let in_all = records.spending_of_environment(environment.id, SETTLED).total();
    let in_all = (!in_all.is_zero() && environment.pull_request.is_some())
        .then(|| format!("this pull request {in_all}"));
    let preview = view.preview().and_then(|preview| {
        let machine = records.machines.get(&preview.state.machine()?)?;
        let price = machine.price().filter(|price| !price.is_zero())?;
        let sign = if machine.bill.as_ref()?.approximate { "≈ " } else { "" };
        Some(format!("preview {sign}{price}/h awake, $0 asleep"))
    });
    let parts: Vec<String> = [run, in_all, preview].into_iter().flatten().collect();
    (!parts.is_empty()).then(|| parts.join(" · "))
}

fn approval(view: &ReportView<'_>) -> Option<String> {
    let commit = view.commit().filter(|_| view.awaits_approval())?;
    let number = short(&commit);
    let label = code(view.approval_label, WORDS_CHARS_MAX);
    Some(format!(
        "Commit `{commit}` comes from a fork, and nothing of it is built until somebody who may write to \
         this repository has looked at it and comments `/stagely approve {number}`.\n\n\
         The label {label} does the same. Either holds for that commit alone, which gets no secrets and \
         writes no shared cache."
    ))
}

/// The error of the plan.
fn problems(view: &ReportView<'_>) -> Option<String> {
    let RunState::Failed { plan_error: Some(error) } = &view.run.state else { return None };
    let block = first_lines(error.message.lines(), PROBLEMS_BYTES_MAX);
    Some(format!("{}:\n\n{block}", capital(&inline(&error.reason.to_string(), WORDS_CHARS_MAX))))
}

fn table(view: &ReportView<'_>) -> Option<String> {
    let mut jobs: Vec<&Job> = view.jobs().collect();
    let mut rows: Vec<String> = jobs.iter().map(|job| row(view, job)).collect();
    if rows.iter().map(String::len).sum::<usize>() > ROWS_BYTES_MAX {
        jobs.sort_by_key(|job| urgency(job));
        rows = jobs.iter().map(|job| row(view, job)).collect();
    }
    rows.extend(view.run.skipped.iter().map(|skipped| {
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
        let _ = write!(text, "\n… and {left} more builds: [all of them]({})", view.run_url());
    }
    Some(text)
}

/// The order of rows in a table that must be cut.
const fn urgency(job: &Job) -> u8 {
    match job.state {
        JobState::Failed(_) => 0,
        JobState::Running { .. } | JobState::Provisioning { .. } => 1,
        JobState::Queued { .. } | JobState::Postponed { .. } => 2,
        JobState::Cancelled => 3,
        JobState::Completed { .. } => 4,
    }
}

fn row(view: &ReportView<'_>, job: &Job) -> String {
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
        if job.attempt > 0 { format!("[Log]({})", view.job_url(job.id)) } else { String::new() };
    let state = state(job);
    let wait = wait(view, job).unwrap_or_default();
    format!(
        "| {build}{merged} | {platforms}{emulated} | {state}{wait} | {cached} | {digest} | {log} |\n"
    )
}

/// The job's wait for money, or for capacity with the provider's answer.
fn wait(view: &ReportView<'_>, job: &Job) -> Option<String> {
    if let Some((_, QueuedJob { reason: QueueReason::Budget(shortage), .. })) =
        view.records.queued(job.id)
    {
        return Some(format!(", waits: {}", view.records.shortage_text(shortage)));
    }
    let wait = view.capacity_wait(job)?;
    Some(format!(", waits for capacity {}", inline(&wait.text(), WORDS_CHARS_MAX)))
}

/// The job's state, and how long its newest attempt took.
fn state(job: &Job) -> String {
    let took = job.started_at.zip(job.ended_at).map(|(from, to)| seconds(to.since(from)));
    let took = took.map(|took| format!(" in {took}")).unwrap_or_default();
    match &job.state {
        JobState::Queued { .. } | JobState::Postponed { .. } => "queued".to_owned(),
        JobState::Provisioning { .. } => "starting".to_owned(),
        JobState::Running { .. } => "⏳ running".to_owned(),
        JobState::Completed { .. } if job.reused_from.is_some() => {
            "✅ reused from an earlier run".to_owned()
        }
        JobState::Completed { .. } => format!("✅ completed{took}"),
        JobState::Failed(JobFailure {
            reason: FailureReason::DependencyFailed { job }, ..
        }) => {
            format!("❌ not started: {} did not complete", code(job, WORDS_CHARS_MAX))
        }
        JobState::Failed(_) => format!("❌ failed{took}"),
        JobState::Cancelled => "⏹ cancelled".to_owned(),
    }
}

/// The failures, each with the last lines of its step.
fn failures(view: &ReportView<'_>, excerpts: &Excerpts) -> Option<String> {
    let failed: Vec<&Job> = view.failed_jobs().collect();
    let shares = failed.len().clamp(1, FAILURES_MAX);
    let bytes_max = (FAILURES_BYTES_MAX / shares).min(FAILURE_BYTES_MAX);
    let mut text = String::new();
    for job in failed.iter().take(FAILURES_MAX) {
        text.push_str(&failure(view, job, excerpts.get(&job.id), bytes_max));
        text.push('\n');
    }
    if failed.len() > FAILURES_MAX {
        let more = failed.len() - FAILURES_MAX;
        let _ = write!(text, "… and {more} more: [all of them]({})", view.run_url());
    }
    (!text.is_empty()).then_some(text)
}

fn failure(
    view: &ReportView<'_>,
    job: &Job,
    excerpt: Option<&Vec<String>>,
    bytes_max: usize,
) -> String {
    let JobState::Failed(JobFailure { reason, message, .. }) = &job.state else {
        return String::new();
    };
    let name = code(&job.name, WORDS_CHARS_MAX);
    let what = match reason {
        FailureReason::User { step, exit_code } if !step.is_empty() => {
            format!("step {} failed with exit code {exit_code}", code(step, WORDS_CHARS_MAX))
        }
        reason => inline(&reason.to_string(), WORDS_CHARS_MAX),
    };
    let log = if job.attempt > 0 {
        format!(" · [Log]({})", view.job_url(job.id))
    } else {
        String::new()
    };
    let head = format!("**{name}**: {what}{log}\n\n");
    let lines = excerpt.filter(|lines| !lines.is_empty());
    // The message of a user's failure repeats the step's last lines. Other messages are in no log.
    let (is_users, has_message) =
        (matches!(reason, FailureReason::User { .. }), !message.trim().is_empty());
    let mut blocks = head;
    if has_message && (!is_users || lines.is_none()) {
        blocks.push_str(&last_lines(message.lines(), bytes_max / 3));
        blocks.push('\n');
    }
    if let Some(lines) = lines {
        blocks.push_str(&last_lines(lines.iter().map(String::as_str), bytes_max));
    }
    blocks
}

/// The images of the run. An image index stands for the images that it joins.
fn images(view: &ReportView<'_>) -> Option<String> {
    let jobs: Vec<&Job> = view.jobs().collect();
    let is_merge = |job: &Job| matches!(job.kind, JobKind::Merge { .. });
    let is_joined = |job: &Job| {
        !is_merge(job) && jobs.iter().any(|other| is_merge(other) && other.variant == job.variant)
    };
    let named = |job: &&Job| match &job.state {
        JobState::Completed { digest: Some(digest) } => {
            let reference = job.tag.as_ref().or(job.kind.image())?;
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

/// The warnings, each once, with its jobs.
fn warnings(view: &ReportView<'_>) -> Option<String> {
    let mut jobs_of: BTreeMap<String, BTreeSet<&str>> = BTreeMap::new();
    let mut order = Vec::new();
    for job in view.jobs() {
        for warning in warnings_of(job) {
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
            let _ = writeln!(text, "- … and {left} more: [all of them]({})", view.run_url());
            break;
        }
        text.push_str(&line);
    }
    (!text.is_empty()).then(|| format!("**⚠️ Warnings**\n\n{text}"))
}

/// The result of the last command.
fn note(view: &ReportView<'_>) -> Option<String> {
    let note = view.environment.report.note.as_ref()?;
    Some(format!("> {}", inline(note, WORDS_CHARS_MAX)))
}

fn footer(view: &ReportView<'_>) -> String {
    let run = view.run;
    let commit =
        view.commit().map(|commit| format!(" · commit `{}`", short(&commit))).unwrap_or_default();
    let took = run.ended_at.map(|ended| format!(" · {}", seconds(ended.since(run.created_at))));
    let (id, url) = (run.id, view.run_url());
    format!("<sub>Run [`{id}`]({url}){commit}{}</sub>", took.unwrap_or_default())
}

/// The text with its first letter in upper case, unless it begins with a file name.
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
