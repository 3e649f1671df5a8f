//! The attempts of a test → its results, and why it failed.

use stagely_protocol::{CaseOutcome, FailureReason, Test, TestCase, TestResults};

use super::JobError;
use super::cases::{Case, Cases};
use super::container::Ended;

/// The most failed cases that the log and the message name.
const LOGGED_MAX: usize = 20;
const NAMED_MAX: usize = 3;

/// One run of the command.
pub(super) struct Attempt {
    ended: Ended,
    /// `None`: there were no `JUnit` files.
    cases: Option<Cases>,
}

impl Attempt {
    pub(super) const fn new(ended: Ended, cases: Option<Cases>) -> Self {
        Self { ended, cases }
    }

    pub(super) fn is_failed(&self) -> bool {
        self.ended.exit_code != 0 || self.ended.is_late || self.failed_count() > 0
    }

    fn failed_count(&self) -> u64 {
        self.cases.as_ref().map_or(0, |cases| self.failed().count() as u64 + cases.more_failed)
    }

    fn cases(&self) -> impl Iterator<Item = &Cases> {
        self.cases.iter()
    }

    /// The cases that count as failed. A test runner that tried a case again and is content has listed it twice.
    fn failed(&self) -> impl Iterator<Item = &Case> {
        let failed = self.cases().flat_map(|cases| &cases.failed);
        failed.filter(|case| !self.is_retried(case))
    }

    fn is_retried(&self, case: &Case) -> bool {
        case.passed_later && self.ended.exit_code == 0 && !self.ended.is_late
    }
}

/// The results of all attempts: those of the last one, with the failures of earlier ones as flaky. If the last one failed before
/// it wrote any, the one before counts. `None`: nothing is known of single cases.
pub(super) fn attempts_results(test: &Test, attempts: &[Attempt]) -> Option<TestResults> {
    let (last, earlier) = attempts.split_last()?;
    if last.is_failed() && last.cases.is_none() && !earlier.is_empty() {
        return attempts_results(test, earlier);
    }
    let Some(cases) = &last.cases else {
        return whole_test_flaky(test, last, earlier);
    };
    let mut flaky: Vec<&Case> = cases.flaky.iter().collect();
    // Those that passed later are among the passed ones, each once, however often they failed before.
    let mut also_passed = 0;
    for case in cases.failed.iter().filter(|case| last.is_retried(case)) {
        if !flaky.iter().any(|known| known.key == case.key) {
            flaky.push(case);
            also_passed += 1;
        }
    }
    for case in earlier.iter().rev().flat_map(Attempt::failed) {
        let is_known = flaky.iter().any(|known| known.key == case.key)
            || last.failed().any(|failed| failed.key == case.key);
        if !is_known && cases.has_passed(case.key) {
            flaky.push(case);
            also_passed += 1;
        }
    }
    let failed = last.failed().map(|case| result(case, CaseOutcome::Failed));
    let listed = failed.chain(flaky.iter().map(|case| result(case, CaseOutcome::Flaky)));
    Some(TestResults {
        passed: cases.passed.saturating_sub(also_passed),
        failed: last.failed_count(),
        skipped: cases.skipped,
        flaky: flaky.len() as u64 + cases.more_flaky,
        cases: listed.collect(),
    })
}

/// A test without cases that passed when it was tried again is a flaky case by itself.
fn whole_test_flaky(test: &Test, last: &Attempt, earlier: &[Attempt]) -> Option<TestResults> {
    let failed = earlier.last().filter(|_| !last.is_failed())?;
    let name = match test.command.join(" ") {
        command if command.is_empty() => "the command of the image".to_owned(),
        command => command,
    };
    let case = TestCase {
        suite: String::new(),
        name,
        outcome: CaseOutcome::Flaky,
        message: format!("exit code {} at attempt {}", failed.ended.exit_code, earlier.len()),
        lines: failed.ended.last_lines.clone(),
        seconds: 0.0,
    };
    Some(TestResults { flaky: 1, cases: vec![case], ..TestResults::default() })
}

fn result(case: &Case, outcome: CaseOutcome) -> TestCase {
    TestCase {
        suite: case.suite.clone(),
        name: case.name.clone(),
        outcome,
        message: case.message.clone(),
        lines: case.lines.clone(),
        seconds: case.seconds,
    }
}

/// Why the last attempt failed. `None`: it passed.
pub(super) fn failure(attempts: &[Attempt], results: Option<&TestResults>) -> Option<JobError> {
    let last = attempts.last().filter(|last| last.is_failed())?;
    let exit_code = last.ended.exit_code;
    let reason = FailureReason::Test { failed: last.failed_count(), exit_code };
    let message = if let Some(results) = results.filter(|results| results.failed > 0) {
        let named: Vec<_> = failed_cases(results).take(NAMED_MAX).map(title).collect();
        let more = results.failed.saturating_sub(named.len() as u64);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        format!("{reason}: {}{more}", named.join("; "))
    } else {
        let memory = if last.ended.was_out_of_memory { " (it ran out of memory)" } else { "" };
        let lines = last.ended.last_lines.join("\n");
        let lines = if lines.is_empty() { lines } else { format!("; its last lines:\n{lines}") };
        format!("{reason}{memory}{lines}")
    };
    Some(JobError::with_message(reason, message))
}

fn failed_cases(results: &TestResults) -> impl Iterator<Item = &TestCase> {
    results.cases.iter().filter(|case| case.outcome == CaseOutcome::Failed)
}

/// `login.spec.ts › remembers me: expected 200`
fn title(case: &TestCase) -> String {
    let suite = if case.suite.is_empty() { String::new() } else { format!("{} › ", case.suite) };
    let colon = if case.message.is_empty() { "" } else { ": " };
    format!("{suite}{}{colon}{}", case.name, case.message)
}

/// The failed cases, for the log.
pub(super) fn failed_lines(results: &TestResults) -> Vec<String> {
    failed_cases(results).take(LOGGED_MAX).map(|case| format!("FAILED {}", title(case))).collect()
}

#[cfg(test)]
mod tests {
    use super::super::cases::{Outcome, ReadCase};
    use super::super::counts;
    use super::*;
    use crate::mask::MaskerBuilder;

    fn test() -> Test {
        serde_json::from_str(r#"{"job_id":"j","image":"r/a:b","command":["npm","test"]}"#).unwrap()
    }

    fn attempt(exit_code: i32, outcomes: &[(&str, Outcome)]) -> Attempt {
        let mut cases = Cases::new(MaskerBuilder::default().build().unwrap());
        for (name, outcome) in outcomes {
            let message = format!("{name} at exit {exit_code}");
            let (suite, name) = ("a.spec".to_owned(), (*name).to_owned());
            cases.add(*outcome, &ReadCase { suite, name, message, ..ReadCase::default() });
        }
        Attempt { cases: Some(cases), ..without_cases(exit_code) }
    }

    fn without_cases(exit_code: i32) -> Attempt {
        let last_lines = vec!["first".to_owned(), "last".to_owned()];
        let ended = Ended { exit_code, was_out_of_memory: false, is_late: false, last_lines };
        Attempt { ended, cases: None }
    }

    fn of(attempts: &[Attempt]) -> (Option<String>, Option<String>) {
        let results = attempts_results(&test(), attempts);
        let failure = failure(attempts, results.as_ref()).map(|error| error.message);
        (results.as_ref().map(counts), failure)
    }

    #[test]
    fn a_case_that_passes_at_a_further_attempt_is_flaky() {
        use Outcome::{Failed, Flaky, Passed, Skipped};
        let attempts = [
            attempt(1, &[("a", Failed), ("b", Failed), ("c", Passed), ("d", Skipped)]),
            attempt(
                0,
                &[("a", Passed), ("b", Passed), ("c", Passed), ("d", Skipped), ("e", Flaky)],
            ),
        ];
        assert_eq!(of(&attempts), (Some("1 passed, 3 flaky, 1 skipped".to_owned()), None));
        let results = attempts_results(&test(), &attempts).unwrap();
        let messages: Vec<_> = results.cases.iter().map(|case| &*case.message).collect();
        assert_eq!(messages, ["e at exit 0", "a at exit 1", "b at exit 1"]);
    }

    #[test]
    fn a_case_that_fails_again_is_failed_and_one_that_does_not_run_again_is_not_flaky() {
        use Outcome::{Failed, Passed};
        let attempts = [
            attempt(1, &[("a", Failed), ("b", Failed), ("gone", Failed)]),
            attempt(1, &[("a", Failed), ("b", Passed)]),
        ];
        let (counts, failure) = of(&attempts);
        assert_eq!(counts.unwrap(), "0 passed, 1 failed, 1 flaky");
        assert_eq!(failure.unwrap(), "1 test failed: a.spec › a: a at exit 1");
    }

    #[test]
    fn failed_cases_fail_a_test_that_exits_with_0() {
        let names: Vec<_> = (0..5).map(|number| number.to_string()).collect();
        let failed: Vec<_> = names.iter().map(|name| (&**name, Outcome::Failed)).collect();
        let attempts = [attempt(0, &failed)];
        let failure = failure(&attempts, attempts_results(&test(), &attempts).as_ref()).unwrap();
        assert_eq!(failure.reason, FailureReason::Test { failed: 5, exit_code: 0 });
        assert!(failure.message.starts_with("5 tests failed: a.spec › 0: 0 at exit 0; "));
        assert!(failure.message.ends_with("2 at exit 0 and 2 more"), "{}", failure.message);
    }

    #[test]
    fn a_case_that_the_runner_lists_again_as_passed_is_flaky_if_the_runner_is_content() {
        let twice = [("a", Outcome::Failed), ("a", Outcome::Passed), ("b", Outcome::Passed)];
        assert_eq!(of(&[attempt(0, &twice)]), (Some("1 passed, 1 flaky".to_owned()), None));
        let thrice = [("a", Outcome::Failed), ("a", Outcome::Failed), ("a", Outcome::Passed)];
        assert_eq!(of(&[attempt(0, &thrice)]), (Some("0 passed, 1 flaky".to_owned()), None));
        let (counts, failure) = of(&[attempt(1, &twice)]);
        assert_eq!(counts.unwrap(), "2 passed, 1 failed");
        assert!(failure.is_some());
    }

    #[test]
    fn an_exit_code_fails_a_test_whose_cases_passed() {
        let (counts, failure) = of(&[attempt(3, &[("a", Outcome::Passed)])]);
        assert_eq!(counts.unwrap(), "1 passed");
        let expected = "the test failed with exit code 3; its last lines:\nfirst\nlast";
        assert_eq!(failure.unwrap(), expected);
    }

    #[test]
    fn an_attempt_that_ends_before_it_has_cases_leaves_those_of_the_one_before() {
        use Outcome::{Failed, Passed};
        let late = |attempt: Attempt| Attempt {
            ended: Ended { is_late: true, ..attempt.ended },
            ..attempt
        };
        let first = || attempt(1, &[("a", Failed), ("b", Passed)]);
        for second in [without_cases(137), late(without_cases(0))] {
            let (counts, failure) = of(&[first(), second]);
            assert_eq!(counts.unwrap(), "1 passed, 1 failed");
            assert!(failure.unwrap().ends_with(": a.spec › a: a at exit 1"));
        }
        // A runner that is stopped may be content with the half.
        let half = late(attempt(0, &[("a", Failed), ("a", Passed)]));
        assert_eq!(of(&[half]).0.unwrap(), "1 passed, 1 failed");
        assert_eq!(of(&[without_cases(1), late(without_cases(0))]).0, None);
    }

    #[test]
    fn a_test_without_cases_is_one_flaky_case_if_it_passes_later() {
        let results = attempts_results(&test(), &[without_cases(7), without_cases(0)]).unwrap();
        assert_eq!((results.flaky, &*results.cases[0].name), (1, "npm test"));
        assert_eq!(results.cases[0].message, "exit code 7 at attempt 1");
        assert_eq!(of(&[without_cases(0)]), (None, None));
        assert_eq!(of(&[without_cases(7), without_cases(8)]).0, None);
    }
}
