//! `stagely tests`: the results of the tests of a run.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use console::style;
use stagely_protocol::{CaseOutcome, TestCase, TestResults};
use stagely_state::ids::RunId;

use super::connect::ServerArgs;
use super::core_handle::CoreHandle;
use super::output::print;
use super::run::outcome::{duration_of, seconds, status};
use super::table::table;
use crate::api::{JobKindView, JobView, RunView, total};
use crate::client::Client;

/// Shows the results of the tests of a run, and the cases that failed
#[derive(Args, Debug)]
pub struct TestsArgs {
    /// The run, run_…
    #[arg(value_name = "RUN")]
    run: RunId,
    /// Print the test jobs as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    server: ServerArgs,
}

/// Runs `stagely tests`.
///
/// # Errors
/// Core cannot be reached; standard output cannot be written.
pub async fn tests(arguments: TestsArgs) -> anyhow::Result<ExitCode> {
    let get = async |client: &Client| client.run(arguments.run).await;
    let (core, run) = CoreHandle::find(&arguments.server, get).await?;
    core.close().await?;
    let jobs: Vec<&JobView> = test_jobs(&run).collect();
    print(arguments.json, &jobs, |jobs| tests_text(&run, jobs))
}

/// The test jobs of a run.
pub(super) fn test_jobs(run: &RunView) -> impl Iterator<Item = &JobView> {
    run.jobs.iter().filter(|job| job.kind == JobKindView::Test)
}

fn tests_text(run: &RunView, jobs: &[&JobView]) -> String {
    if jobs.is_empty() {
        return format!("{} has no tests", run.id);
    }
    let mut tests: BTreeMap<&str, Vec<&JobView>> = BTreeMap::new();
    for job in jobs {
        tests.entry(&job.build).or_default().push(job);
    }
    let rows = tests.values().map(|shards| row(shards));
    let mut text = table(["TEST", "STATUS", "PASSED", "FAILED", "FLAKY", "SKIPPED", "TIME"], rows);
    for job in jobs {
        text.push_str(&cases_text(job));
    }
    text
}

/// One test, whose shards count as one.
fn row(shards: &[&JobView]) -> [String; 7] {
    let results = results_of(shards);
    let count = |count: fn(&TestResults) -> u64| {
        results.as_ref().map(|results| count(results).to_string()).unwrap_or_default()
    };
    // They run at the same time, so the longest one counts.
    let time: Option<Duration> = shards.iter().filter_map(|job| duration_of(job)).max();
    let first = shards.first().map(|job| job.build.clone()).unwrap_or_default();
    let name = if shards.len() > 1 { format!("{first} ({} shards)", shards.len()) } else { first };
    [
        name,
        status_of(shards),
        count(|results| results.passed),
        count(|results| results.failed),
        count(|results| results.flaky),
        count(|results| results.skipped),
        time.map(seconds).unwrap_or_default(),
    ]
}

/// The results of all shards that have some; `None` if none has.
fn results_of(shards: &[&JobView]) -> Option<TestResults> {
    let known = shards.iter().filter_map(|job| job.test.as_ref()?.results.as_ref());
    let known: Vec<&TestResults> = known.collect();
    (!known.is_empty()).then(|| total(known))
}

/// The status of the shard that decides: one that has not ended, or else one that did not pass.
fn status_of(shards: &[&JobView]) -> String {
    use crate::api::JobStatus as S;
    let urgency = |job: &&&JobView| match job.status {
        S::Running => 0,
        S::Provisioning => 1,
        S::Queued => 2,
        S::Failed => 3,
        S::Cancelled => 4,
        S::Completed => 5,
    };
    shards.iter().min_by_key(urgency).map(|job| status(job)).unwrap_or_default()
}

/// What a job says about its failure, and the cases that did not pass at once.
fn cases_text(job: &JobView) -> String {
    let mut text = String::new();
    if let Some(error) = &job.error {
        let error: Vec<String> = error.lines().map(printable).collect();
        let _ = write!(text, "\n{}: {}", style(&job.name).bold(), error.join("\n"));
    }
    let cases = job.test.as_ref().and_then(|test| test.results.as_ref());
    for case in cases.into_iter().flat_map(|results| &results.cases) {
        text.push_str(&case_text(&job.name, case));
    }
    text
}

fn case_text(job: &str, case: &TestCase) -> String {
    let outcome = match case.outcome {
        CaseOutcome::Failed => style("failed").red(),
        CaseOutcome::Flaky => style("flaky").yellow(),
    };
    let suite = if case.suite.is_empty() {
        String::new()
    } else {
        format!("{} › ", printable(&case.suite))
    };
    let mut text = format!("\n{job}: {suite}{} {outcome}", printable(&case.name));
    if !case.message.is_empty() {
        let _ = write!(text, ": {}", printable(&case.message));
    }
    for line in &case.lines {
        let _ = write!(text, "\n    {}", printable(line));
    }
    text
}

/// A test's words on one line, without what would control the terminal.
fn printable(text: &str) -> String {
    let text = console::strip_ansi_codes(text);
    text.chars().map(|char| if char.is_control() { ' ' } else { char }).collect()
}

#[cfg(test)]
mod tests {
    use stagely_protocol::Shard;

    use super::*;
    use crate::api::{JobStatus, TestView};
    use crate::cli::run::outcome::tests::{job, run};

    fn shard(number: u8, status: JobStatus, results: Option<TestResults>) -> JobView {
        let shard = Shard { index: u32::from(number), total: 2 };
        let test = TestView { shard, of_preview: true, results, artifacts: None };
        JobView {
            name: format!("e2e ({number})"),
            build: "e2e".to_owned(),
            kind: JobKindView::Test,
            test: Some(test),
            status,
            ..job(number, "e2e", "linux/amd64")
        }
    }

    #[test]
    fn shards_are_one_test_and_failed_cases_are_told() {
        let case = TestCase {
            suite: "login.spec.ts".to_owned(),
            name: "remembers me".to_owned(),
            outcome: CaseOutcome::Failed,
            message: "expected \u{1b}[31mtrue".to_owned(),
            lines: vec!["at line 7".to_owned()],
            seconds: 1.0,
        };
        let one = TestResults { passed: 30, ..TestResults::default() };
        let other =
            TestResults { passed: 4, failed: 1, cases: vec![case], ..TestResults::default() };
        let jobs =
            [shard(1, JobStatus::Completed, Some(one)), shard(2, JobStatus::Failed, Some(other))];
        let text = tests_text(&run(jobs.to_vec()), &jobs.iter().collect::<Vec<_>>());
        let line = text.lines().nth(1).unwrap().split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(line.starts_with("e2e (2 shards) failed 34 1 0 0"), "{text}");
        let told = "e2e (2): login.spec.ts › remembers me failed: expected true\n    at line 7";
        assert!(text.contains(told), "{text}");
    }

    #[test]
    fn a_run_without_tests_says_so() {
        let run = run(vec![job(1, "app", "linux/amd64")]);
        assert_eq!(tests_text(&run, &[]), format!("{} has no tests", run.id));
    }
}
