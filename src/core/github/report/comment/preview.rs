//! The section of the comment about the preview: its addresses, what it shows, and what is wrong with it.

use secrecy::ExposeSecret as _;
use stagely_protocol::CommitSha;
use stagely_state::{
    Access, DataLoss, Job, JobState, Preview, PreviewState, QueueReason, RunState, Timestamp,
};

use super::super::markdown::{code, inline, last_lines};
use super::super::view::{ReportView, short};
use super::{WORDS_CHARS_MAX, capital};
use crate::core::previews::{deployment_of, reason_of_wait};

const PROBLEM_BYTES_MAX: usize = 3_000;

pub(super) fn section(view: &ReportView<'_>) -> Option<String> {
    let Some(preview) = view.preview() else { return without_record(view) };
    let paragraphs = [
        Some(format!("**Preview**: {}", sentence(view, preview))),
        further_endpoints(view, preview),
        waiting(view),
        problem(view, preview),
        preview.data_loss.as_ref().map(data_loss),
        extension(preview),
    ];
    let paragraphs: Vec<String> = paragraphs.into_iter().flatten().collect();
    Some(paragraphs.join("\n\n"))
}

fn extension(preview: &Preview) -> Option<String> {
    let until = preview.extended_until.filter(|_| preview.shown.is_some())?;
    Some(format!("It stays at least until {}.", time(until)))
}

/// The section of an environment that has had no preview.
fn without_record(view: &ReportView<'_>) -> Option<String> {
    if let Some(waiting) = waiting(view) {
        return Some(format!("**Preview**: {waiting}"));
    }
    let is_missing = view.run.with_preview == Some(true)
        && view.run.state == RunState::Completed
        && view.deploy_job().is_none();
    is_missing.then(|| {
        "**Preview**: there is none, because `stagely.yaml` of this commit has no `preview`."
            .to_owned()
    })
}

fn sentence(view: &ReportView<'_>, preview: &Preview) -> String {
    let link = link(view, preview);
    let shown = preview.shown.as_ref().map(|shown| &shown.commit);
    let commit = named(shown);
    match preview.state {
        PreviewState::Deploying { job } => {
            format!("⏳ {link} is being deployed with {}.", named(view.commit_of(job)))
        }
        PreviewState::Live { .. } => format!("🟢 {link} shows {commit}{}", newer(view, shown)),
        PreviewState::Updating { job, .. } => match view.commit_of(job) {
            next if next == shown => {
                format!("🟢 {link} shows {commit}, and is being deployed again.")
            }
            next => format!("🟢 {link} shows {commit} while {} is being deployed.", named(next)),
        },
        PreviewState::Archiving { wakes: false, .. } => {
            format!("💤 {link} goes to sleep with {commit}{}", newer(view, shown))
        }
        PreviewState::Archiving { wakes: true, .. } => {
            format!("⏳ {link} moves to another machine with {commit}{}", newer(view, shown))
        }
        PreviewState::Asleep => format!(
            "💤 {link} sleeps with {commit}{} Whoever opens it wakes it, and so does `/stagely preview`.",
            newer(view, shown)
        ),
        PreviewState::Waking { job } => {
            format!("⏳ {link} starts with {}.", named(view.commit_of(job)))
        }
        PreviewState::Ending | PreviewState::Ended if view.environment.state.is_closed() => {
            "⏹ ended with the pull request.".to_owned()
        }
        PreviewState::Ending | PreviewState::Ended => {
            "⏹ ended. `/stagely preview` brings it back.".to_owned()
        }
        PreviewState::Failed { job } => format!(
            "❌ {} could not be deployed. `/stagely preview` tries again.",
            named(view.commit_of(job))
        ),
    }
}

/// The preview's address, with its key.
fn link(view: &ReportView<'_>, preview: &Preview) -> String {
    let endpoints = view.links.endpoints(view.records, preview);
    let Some(first) = endpoints.into_iter().next() else { return "it".to_owned() };
    let access = deployment_of(view.records, preview).map(|deployed| deployed.settings.access);
    let with_token = if access == Some(Access::Token) { " (with a token of Stagely)" } else { "" };
    let host = code(first.url.host_str().unwrap_or_default(), WORDS_CHARS_MAX);
    let url = view.links.opening_url(view.records, preview, first.url);
    format!("[{host}]({}){with_token}", url.expose_secret())
}

fn further_endpoints(view: &ReportView<'_>, preview: &Preview) -> Option<String> {
    let further = view.links.endpoints(view.records, preview).into_iter().skip(1);
    let links: Vec<String> = further
        .map(|endpoint| {
            let name = code(&endpoint.name, WORDS_CHARS_MAX);
            let url = view.links.opening_url(view.records, preview, endpoint.url);
            format!("[{name}]({})", url.expose_secret())
        })
        .collect();
    (!links.is_empty()).then(|| format!("Further endpoints: {}", links.join(", ")))
}

/// What becomes of the newest commit if the preview shows another one. Ends the sentence.
fn newer(view: &ReportView<'_>, shown: Option<&CommitSha>) -> String {
    let newest = view.commit();
    if newest.as_ref() == shown {
        return ".".to_owned();
    }
    let newest = named(newest.as_ref());
    if view.deploy_job().is_some_and(has_failed) {
        return format!(". ❌ The deployment of {newest} failed.");
    }
    if view.run.state.is_final() {
        return format!(". {} is not deployed.", capital(&newest));
    }
    format!("; {newest} follows.")
}

/// Why the run's deployment waits for a machine.
fn waiting(view: &ReportView<'_>) -> Option<String> {
    let job = view.deploy_job()?;
    let (_, queued) = view.records.queued(job.id)?;
    // The others pass soon.
    let is_long = matches!(
        queued.reason,
        QueueReason::PreviewLimit { .. }
            | QueueReason::RegisteredMachine { .. }
            | QueueReason::Budget(_)
    );
    let reason = reason_of_wait(view.records, job).filter(|_| is_long)?;
    Some(format!("⏳ {} waits: {reason}.", capital(&named(view.commit().as_ref()))))
}

/// The problem, unless it is among the failures of the run or is a loss of data.
fn problem(view: &ReportView<'_>, preview: &Preview) -> Option<String> {
    let problem = preview.problem.as_ref()?;
    let is_loss = preview.data_loss.as_ref().is_some_and(|loss| loss.reason == *problem);
    if is_loss || view.deploy_job().is_some_and(has_failed) {
        return None;
    }
    let block = last_lines(problem.lines(), PROBLEM_BYTES_MAX);
    Some(format!("❌ It could not be started:\n\n{}", block.trim_end()))
}

fn has_failed(job: &Job) -> bool {
    matches!(job.state, JobState::Failed(_))
}

fn data_loss(loss: &DataLoss) -> String {
    let reason = capital(&inline(&loss.reason, WORDS_CHARS_MAX));
    let data = loss.archived_at.map_or_else(
        || "There is no archive, so the data is fresh.".to_owned(),
        |archived_at| format!("The data is that of {}.", time(archived_at)),
    );
    format!("⚠️ {reason} ({}). {data}", time(loss.at))
}

fn named(commit: Option<&CommitSha>) -> String {
    commit.map_or_else(|| "a commit".to_owned(), |commit| format!("commit `{}`", short(commit)))
}

/// `2026-11-30 10:31 UTC`
fn time(at: Timestamp) -> String {
    let millis = i64::try_from(at.0).unwrap_or(i64::MAX);
    jiff::Timestamp::from_millisecond(millis)
        .map_or_else(|_| "a far day".to_owned(), |at| at.strftime("%Y-%m-%d %H:%M UTC").to_string())
}
