//! The section of the comment about tests: how many passed, and which did not.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use stagely_protocol::{COMMENT_IMAGES_MAX, CaseOutcome, TestCase, TestResults};
use stagely_state::{Job, JobState};

use super::super::markdown::{code, inline, last_lines, picture};
use super::super::view::ReportView;
use super::WORDS_CHARS_MAX;
use crate::api::{counts, total};

/// The whole section.
const SECTION_BYTES_MAX: usize = 8_000;

/// The part of the section that pictures may take. Cases leave it to them.
const PICTURES_BYTES_MAX: usize = 3_000;

/// The cases of one test that are named. The page of its job has all.
const CASES_MAX: usize = 10;

/// The last lines of a case.
const LINES_BYTES_MAX: usize = 1_000;

/// One line for each test, and the cases that failed. `None` if the run has no tests.
pub(super) fn section(view: &ReportView<'_>) -> Option<String> {
    let mut tests: BTreeMap<&str, Vec<&Job>> = BTreeMap::new();
    for job in view.jobs().filter(|job| job.kind.is_test()) {
        tests.entry(&job.build).or_default().push(job);
    }
    if tests.is_empty() {
        return None;
    }
    let mut text = "#### Tests\n\n".to_owned();
    for (name, shards) in &tests {
        let _ = writeln!(text, "- {}: {}", code(name, WORDS_CHARS_MAX), outcome(view, shards));
    }
    let mut shown = String::new();
    for shards in tests.values() {
        let pictures = pictures(view, shards);
        if shown.len() + pictures.len() <= PICTURES_BYTES_MAX {
            shown.push_str(&pictures);
        }
    }
    let mut has_more = false;
    for job in tests.values().flatten() {
        for case in told(job) {
            let case = case_text(view, job, case);
            if text.len() + case.len() + shown.len() > SECTION_BYTES_MAX {
                has_more = true;
                break;
            }
            text.push_str(&case);
        }
    }
    if has_more {
        let _ = write!(text, "\n… and more on the pages of [the run's jobs]({})\n", view.run_url());
    }
    text.push_str(&shown);
    Some(text)
}

/// The pictures of all shards of a test. GitHub fetches them without a token, so they are links if a log needs one.
fn pictures(view: &ReportView<'_>, shards: &[&Job]) -> String {
    let mut pictures = Vec::new();
    for (job, artifacts) in shards.iter().filter_map(|job| Some((job, job.artifacts.as_ref()?))) {
        let names = artifacts.comment_images.iter().zip(1..);
        pictures.extend(names.map(|(name, number)| (name, view.picture_url(job.id, number))));
    }
    let pictures = pictures.into_iter().take(COMMENT_IMAGES_MAX);
    let shown: Vec<String> = if view.open_logs {
        pictures.map(|(name, url)| picture(name, &url, WORDS_CHARS_MAX)).collect()
    } else {
        pictures.map(|(name, url)| format!("[{}]({url})", code(name, WORDS_CHARS_MAX))).collect()
    };
    if shown.is_empty() { String::new() } else { format!("\n{}\n", shown.join(" ")) }
}

/// The result of all shards of a test.
fn outcome(view: &ReportView<'_>, shards: &[&Job]) -> String {
    let known: Vec<&TestResults> = shards.iter().filter_map(|job| job.results.as_ref()).collect();
    let is_open = shards.iter().any(|job| !job.state.is_final());
    let has_failed = shards.iter().any(|job| matches!(job.state, JobState::Failed(_)));
    let is_cancelled = shards.iter().any(|job| job.state == JobState::Cancelled);
    let sign = match (has_failed, is_open, is_cancelled) {
        (true, ..) => "❌",
        (false, true, _) => "⏳",
        (false, false, true) => "⏹",
        (false, false, false) => "✅",
    };
    let words = match (known.is_empty(), is_open) {
        (true, true) => "waits or runs".to_owned(),
        (true, false) if has_failed => "failed".to_owned(),
        (true, false) if is_cancelled => "was not run".to_owned(),
        (true, false) => "passed".to_owned(),
        (false, _) => counts(&total(known.iter().copied())),
    };
    let left = shards.iter().map(|job| artifacts(view, job)).collect::<String>();
    format!("{sign} {words}{left}")
}

/// A link to what a test has left.
fn artifacts(view: &ReportView<'_>, job: &Job) -> String {
    match &job.artifacts {
        Some(artifacts) => {
            let files = if artifacts.files == 1 {
                "1 file".to_owned()
            } else {
                format!("{} files", artifacts.files)
            };
            format!(" · [{files}]({})", view.job_url(job.id))
        }
        None => String::new(),
    }
}

/// The failed cases, and the flaky ones after them.
fn told(job: &Job) -> impl Iterator<Item = &TestCase> {
    let cases = || job.results.iter().flat_map(|results| &results.cases);
    let of = move |outcome| cases().filter(move |case| case.outcome == outcome);
    of(CaseOutcome::Failed).chain(of(CaseOutcome::Flaky)).take(CASES_MAX)
}

fn case_text(view: &ReportView<'_>, job: &Job, case: &TestCase) -> String {
    let sign = match case.outcome {
        CaseOutcome::Failed => "❌",
        CaseOutcome::Flaky => "⚠️ flaky:",
    };
    let suite = inline(&case.suite, WORDS_CHARS_MAX);
    let suite = if suite.is_empty() { suite } else { format!("{suite} › ") };
    let name = inline(&case.name, WORDS_CHARS_MAX);
    let mut text = format!("\n{sign} {suite}{name} · [Log]({})\n", view.job_url(job.id));
    if !case.message.is_empty() {
        let _ = writeln!(text, "\n{}", inline(&case.message, WORDS_CHARS_MAX));
    }
    if case.outcome == CaseOutcome::Failed && !case.lines.is_empty() {
        let lines = last_lines(case.lines.iter().map(String::as_str), LINES_BYTES_MAX);
        let _ = write!(text, "\n{lines}");
    }
    text
}
