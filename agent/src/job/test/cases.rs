//! The cases of one attempt of a test, as `JUnit` files describe them.

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use stagely_protocol::text::readable;
use stagely_protocol::{
    CASE_LINE_BYTES_MAX, CASE_LINES_MAX, CASE_MESSAGE_BYTES_MAX, CASE_NAME_BYTES_MAX,
};

use crate::mask::Masker;

/// The most failed cases, and the most flaky ones, whose texts are kept. The others are only counted.
const KEPT_MAX: usize = 2_000;

/// What happened to a case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Passed,
    Skipped,
    Failed,
    /// It failed, and the test runner tried it again.
    Flaky,
}

/// A case as a file has it: not masked, and of any length.
#[derive(Clone, Debug, Default)]
pub(super) struct ReadCase {
    pub(super) suite: String,
    pub(super) name: String,
    pub(super) message: String,
    /// What is known about the failure.
    pub(super) text: String,
    pub(super) seconds: f64,
}

/// A case that failed at least once. Its texts are masked and short.
#[derive(Clone, Debug)]
pub(super) struct Case {
    pub(super) key: u64,
    pub(super) suite: String,
    pub(super) name: String,
    pub(super) message: String,
    pub(super) lines: Vec<String>,
    pub(super) seconds: f64,
    /// A case of the same name passed later in the same file.
    pub(super) passed_later: bool,
}

/// All cases of an attempt.
#[derive(Debug)]
pub(super) struct Cases {
    masker: Masker,
    pub(super) passed: u64,
    pub(super) skipped: u64,
    pub(super) failed: Vec<Case>,
    /// How many failed cases are not in `failed`.
    pub(super) more_failed: u64,
    pub(super) flaky: Vec<Case>,
    pub(super) more_flaky: u64,
    /// The keys of those that passed.
    passed_keys: HashSet<u64>,
    /// Where the failed cases of the file that is being read begin.
    file_start: usize,
}

impl Cases {
    pub(super) fn new(masker: Masker) -> Self {
        Self {
            masker,
            passed: 0,
            skipped: 0,
            failed: Vec::new(),
            more_failed: 0,
            flaky: Vec::new(),
            more_flaky: 0,
            passed_keys: HashSet::new(),
            file_start: 0,
        }
    }

    pub(super) fn begin_file(&mut self) {
        self.file_start = self.failed.len();
    }

    pub(super) fn add(&mut self, outcome: Outcome, case: &ReadCase) {
        let key = key(&case.suite, &case.name);
        match outcome {
            Outcome::Skipped => self.skipped += 1,
            Outcome::Passed => {
                self.passed += 1;
                self.passed_keys.insert(key);
                let of_file = self.failed.iter_mut().skip(self.file_start);
                for failed in of_file.filter(|failed| failed.key == key) {
                    failed.passed_later = true;
                }
            }
            Outcome::Failed if self.failed.len() >= KEPT_MAX => self.more_failed += 1,
            Outcome::Failed => self.failed.push(self.case(key, case)),
            Outcome::Flaky if self.flaky.len() >= KEPT_MAX => self.more_flaky += 1,
            Outcome::Flaky => self.flaky.push(self.case(key, case)),
        }
    }

    pub(super) fn has_passed(&self, key: u64) -> bool {
        self.passed_keys.contains(&key)
    }

    /// Masked before it is cut: a part of a secret is not recognized.
    fn case(&self, key: u64, case: &ReadCase) -> Case {
        let masked = |text: &str| plain(&self.masker.mask(text));
        let text = masked(&case.text);
        let lines: Vec<_> = text.lines().filter(|line| !line.trim().is_empty()).collect();
        let message = match one_line(&masked(&case.message)) {
            message if message.is_empty() => one_line(lines.first().unwrap_or(&"")),
            message => message,
        };
        let last = lines.iter().skip(lines.len().saturating_sub(CASE_LINES_MAX));
        Case {
            key,
            suite: cut(&one_line(&masked(&case.suite)), CASE_NAME_BYTES_MAX),
            name: cut(&one_line(&masked(&case.name)), CASE_NAME_BYTES_MAX),
            message: cut(&message, CASE_MESSAGE_BYTES_MAX),
            lines: last.map(|line| cut(line.trim_end(), CASE_LINE_BYTES_MAX)).collect(),
            seconds: case.seconds,
            passed_later: false,
        }
    }
}

fn key(suite: &str, name: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    (suite, name).hash(&mut hasher);
    hasher.finish()
}

pub(super) fn cut(text: &str, bytes_max: usize) -> String {
    text[..text.floor_char_boundary(bytes_max)].to_owned()
}

/// White space becomes one space each.
fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Removes control sequences, and shows tabs as spaces.
fn plain(text: &str) -> String {
    let lines = text.lines().map(|line| readable(line).replace('\t', "    "));
    lines.collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mask::MaskerBuilder;

    #[test]
    fn texts_are_masked_plain_and_short() {
        let mut secrets = MaskerBuilder::default();
        secrets.credential("hunter2hunter2");
        let mut cases = Cases::new(secrets.build().unwrap());
        let lines: Vec<_> = (0..30).map(|line| format!("line {line}")).collect();
        let lines = lines.join("\n");
        let case = ReadCase {
            suite: "a\u{1b}[31m.spec\u{1b}[39m".to_owned(),
            name: "n".repeat(1_000),
            message: format!("{}hunter2hunter2", "m".repeat(CASE_MESSAGE_BYTES_MAX - 5)),
            text: format!("{lines}\n\n\tat hunter2hunter2\0\n\n"),
            seconds: 1.0,
        };
        cases.add(Outcome::Failed, &case);
        let coloured = "hunter2\u{1b}[31mhunter2\u{1b}[0m";
        let highlighted = ReadCase {
            message: format!("x {coloured} y"),
            text: coloured.to_owned(),
            ..case.clone()
        };
        cases.add(Outcome::Failed, &highlighted);
        let shown = &cases.failed[1];
        assert_eq!((&*shown.message, &shown.lines[..]), ("x *** y", &["***".to_owned()][..]));
        let kept = &cases.failed[0];
        assert_eq!((&*kept.suite, kept.name.len()), ("a.spec", CASE_NAME_BYTES_MAX));
        assert!(kept.message.ends_with("m***"), "{}", kept.message);
        assert_eq!(kept.lines.len(), CASE_LINES_MAX);
        assert_eq!(kept.lines[18..], ["line 29", "    at ***"]);
    }

    #[test]
    fn without_a_message_the_first_line_is_the_message() {
        let mut cases = Cases::new(MaskerBuilder::default().build().unwrap());
        let text = "\n  Error: expected\n 1\n".to_owned();
        cases.add(Outcome::Failed, &ReadCase { text, ..ReadCase::default() });
        assert_eq!(cases.failed[0].message, "Error: expected");
    }

    #[test]
    fn very_many_failures_are_counted() {
        let mut cases = Cases::new(MaskerBuilder::default().build().unwrap());
        for outcome in [Outcome::Failed, Outcome::Flaky] {
            for _ in 0..KEPT_MAX + 3 {
                cases.add(outcome, &ReadCase::default());
            }
        }
        assert_eq!((cases.failed.len(), cases.more_failed), (KEPT_MAX, 3));
        assert_eq!((cases.flaky.len(), cases.more_flaky), (KEPT_MAX, 3));
    }
}
