//! The results of a test on the page of its job.

use stagely_protocol::{CaseOutcome, TestCase};

use super::readable;
use crate::api::{JobView, counts};

/// The results of a test job, as text.
pub(super) struct ResultsPart {
    pub(super) counts: String,
    pub(super) cases: Vec<CasePart>,
    /// How many files the test has left.
    pub(super) files: u64,
    /// The names of the pictures among them.
    pub(super) pictures: Vec<String>,
}

pub(super) struct CasePart {
    pub(super) title: String,
    pub(super) outcome: &'static str,
    pub(super) text: String,
}

pub(super) fn has_left_files(job: &JobView) -> bool {
    job.test.as_ref().is_some_and(|test| test.artifacts.is_some())
}

/// `None` for a job that is no test, or has neither results nor artifacts.
pub(super) fn of(job: &JobView) -> Option<ResultsPart> {
    let test = job.test.as_ref()?;
    let files = test.artifacts.as_ref().map_or(0, |artifacts| artifacts.files);
    let pictures = test.artifacts.iter().flat_map(|artifacts| &artifacts.comment_images);
    if test.results.is_none() && files == 0 {
        return None;
    }
    let cases = test.results.iter().flat_map(|results| &results.cases);
    Some(ResultsPart {
        counts: test.results.as_ref().map(counts).unwrap_or_default(),
        cases: cases.map(case).collect(),
        files,
        pictures: pictures.map(|name| readable(name)).collect(),
    })
}

fn case(case: &TestCase) -> CasePart {
    let suite = if case.suite.is_empty() { String::new() } else { format!("{} › ", case.suite) };
    let message = Some(&case.message).filter(|message| !message.is_empty());
    let lines = message.into_iter().chain(&case.lines).map(|line| readable(line));
    CasePart {
        title: readable(&format!("{suite}{}", case.name)),
        outcome: match case.outcome {
            CaseOutcome::Failed => "failed",
            CaseOutcome::Flaky => "flaky",
        },
        text: lines.collect::<Vec<_>>().join("\n"),
    }
}
