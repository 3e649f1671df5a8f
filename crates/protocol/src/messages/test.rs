//! Core → agent: TEST, the work of a tester, and agent → core: its results in STATUS.

use serde::{Deserialize, Serialize};

use super::{BuildArgs, RegistryAuth, Secrets};
use crate::{Digest, ImageRef, WireId};

/// The most cases that STATUS describes. The others are only counted.
pub const CASES_MAX: usize = 200;

/// The most texts of one case, in bytes: each of the names, the message, each line, and how many lines there are.
pub const CASE_NAME_BYTES_MAX: usize = 500;
pub const CASE_MESSAGE_BYTES_MAX: usize = 1_000;
pub const CASE_LINE_BYTES_MAX: usize = 500;
pub const CASE_LINES_MAX: usize = 20;

/// The most texts of all cases of one STATUS, in bytes.
pub const CASES_BYTES_MAX: usize = 128 * 1024;

/// The most pictures of one test that the comment shows.
pub const COMMENT_IMAGES_MAX: usize = 4;

/// The longest path of a file among the artifacts, in bytes.
pub const ARTIFACT_PATH_BYTES_MAX: usize = 1_000;

/// Whether artifacts may have a file with this path: on every system it is one path, and can be shown.
pub fn is_artifact_path(path: &str) -> bool {
    let has_odd = path.chars().any(|char| char.is_control() || char == '\\');
    !path.is_empty()
        && path.len() <= ARTIFACT_PATH_BYTES_MAX
        && !has_odd
        && path.split('/').all(|part| !matches!(part, "" | "." | ".."))
}

/// The longest picture that the comment shows, in bytes: GitHub's image proxy passes on no longer one.
pub const COMMENT_IMAGE_BYTES_MAX: u64 = 5 * 1024 * 1024;

/// How long an agent may need after `timeout_seconds` until it reports: it copies files out of the container and uploads them.
pub const TEST_REPORT_SECONDS_MAX: u64 = 10 * 60;

/// TEST: run a command in a new container of an image, and report what it says about its tests.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Test {
    pub job_id: WireId,
    pub image: ImageRef,
    /// The program and its arguments, as in `docker run IMAGE COMMAND…`. Empty: the image's own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub command: Vec<String>,
    #[serde(default, skip_serializing_if = "BuildArgs::is_empty")]
    pub env: BuildArgs,
    /// Like `env`, and masked in logs and results.
    #[serde(default, skip_serializing_if = "Secrets::is_empty")]
    pub secrets: Secrets,
    /// Absent for a test without a preview.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preview: Option<TestedPreview>,
    #[serde(default, skip_serializing_if = "Shard::is_all")]
    pub shard: Shard,
    /// How often a failed command runs again, each time in a new container. Cases that pass later are flaky.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub retries: u32,
    /// Patterns of `JUnit` files, relative to the image's working folder, or absolute. A folder stands for everything in it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub junit: Vec<String>,
    /// Patterns of the files that are uploaded, as those of `junit`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub artifacts: Vec<String>,
    /// Patterns of pictures for the comment, which are uploaded as well.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub comment_images: Vec<String>,
    /// The agent stops the command after this many seconds, those of its retries and of pulling the image included. Default:
    /// 1800.
    #[serde(default = "default_timeout_seconds")]
    pub timeout_seconds: u64,
    /// Absent if the registry needs no login.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub registry_auth: Option<RegistryAuth>,
}

const fn default_timeout_seconds() -> u64 {
    30 * 60
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference to the field")]
const fn is_zero(number: &u32) -> bool {
    *number == 0
}

/// The preview that a test is for.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TestedPreview {
    /// `PREVIEW_URL` in the environment.
    pub url: String,
    /// What requests need to be let in. In the environment, `STAGELY_ACCESS_HEADER` has a line `name: value` for each.
    #[serde(default, skip_serializing_if = "Secrets::is_empty")]
    pub headers: Secrets,
    /// The preview runs on this machine, and the test's container is in its networks, in which services have their names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preview_id: Option<WireId>,
}

/// Which part of a test runs: `STAGELY_SHARD` and `STAGELY_SHARDS` in the environment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shard {
    /// From 1.
    pub index: u32,
    pub total: u32,
}

impl Shard {
    /// The whole test.
    pub const ALL: Self = Self { index: 1, total: 1 };

    pub const fn is_all(&self) -> bool {
        self.total == 1
    }
}

impl Default for Shard {
    fn default() -> Self {
        Self::ALL
    }
}

/// The results of a test job in STATUS. Absent if the test wrote no `JUnit` files and nothing is known of single cases.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TestResults {
    /// Each case is in one of the four numbers.
    #[serde(default)]
    pub passed: u64,
    #[serde(default)]
    pub failed: u64,
    #[serde(default)]
    pub skipped: u64,
    /// Those that failed and passed when they were tried again.
    #[serde(default)]
    pub flaky: u64,
    /// Failed ones first, at most [`CASES_MAX`]. Masked.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cases: Vec<TestCase>,
}

/// A case that did not pass at once.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TestCase {
    /// The class, file or package of the case; empty if it is not known.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub suite: String,
    pub name: String,
    pub outcome: CaseOutcome,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// The last lines of what is known about the failure.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lines: Vec<String>,
    /// How long the case took; 0 if it is not known.
    #[serde(default)]
    pub seconds: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CaseOutcome {
    Failed,
    /// It failed and then passed.
    Flaky,
}

/// The uploaded files of a test job in STATUS.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredArtifacts {
    /// Of the uploaded tar archive.
    pub digest: Digest,
    /// Of the uploaded tar archive.
    pub bytes: u64,
    /// The number of files in it.
    pub files: u64,
    /// The names of the pictures for the comment in the archive, at most [`COMMENT_IMAGES_MAX`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub comment_images: Vec<String>,
}

impl TestResults {
    /// Cuts texts and lists to the limits above. An agent's results come from files that a test wrote.
    #[must_use]
    pub fn bounded(mut self) -> Self {
        self.cases.truncate(CASES_MAX);
        let mut left = CASES_BYTES_MAX;
        let mut cut = |text: &mut String, bytes_max: usize| {
            text.truncate(text.floor_char_boundary(bytes_max.min(left)));
            left -= text.len();
        };
        // Names first, so that many long messages take the names of no other case.
        for case in &mut self.cases {
            cut(&mut case.suite, CASE_NAME_BYTES_MAX);
            cut(&mut case.name, CASE_NAME_BYTES_MAX);
        }
        for case in &mut self.cases {
            cut(&mut case.message, CASE_MESSAGE_BYTES_MAX);
            let surplus = case.lines.len().saturating_sub(CASE_LINES_MAX);
            case.lines.drain(..surplus);
            for line in &mut case.lines {
                cut(line, CASE_LINE_BYTES_MAX);
            }
            if !case.seconds.is_finite() || case.seconds < 0.0 {
                case.seconds = 0.0;
            }
        }
        self.cases.retain(|case| !case.name.is_empty());
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_stay_small_and_keep_the_names() {
        let case = TestCase {
            suite: "ü".repeat(1_000),
            name: "n".repeat(10_000),
            outcome: CaseOutcome::Failed,
            message: "m".repeat(100_000),
            lines: (0..1_000).map(|line| format!("{line} {}", "l".repeat(10_000))).collect(),
            seconds: f64::NAN,
        };
        let failed = 1_000;
        let results = TestResults { failed, cases: vec![case; 1_000], ..TestResults::default() };
        let results = results.bounded();
        assert_eq!((results.failed, results.cases.len()), (failed, 131));
        let first = &results.cases[0];
        assert_eq!((first.suite.len(), first.name.len(), first.seconds), (500, 500, 0.0));
        let bytes: usize = results.cases.iter().map(text_bytes).sum();
        assert!(bytes <= CASES_BYTES_MAX, "{bytes}");

        let mut few = TestResults { cases: vec![results.cases[0].clone()], ..results };
        few.cases[0].message = "m".repeat(2_000);
        few.cases[0].lines = (0..30).map(|line| line.to_string()).collect();
        let few = few.bounded();
        assert_eq!(few.cases[0].message.len(), CASE_MESSAGE_BYTES_MAX);
        assert_eq!((few.cases[0].lines.len(), &*few.cases[0].lines[0]), (CASE_LINES_MAX, "10"));
    }

    fn text_bytes(case: &TestCase) -> usize {
        let lines: usize = case.lines.iter().map(String::len).sum();
        case.suite.len() + case.name.len() + case.message.len() + lines
    }
}
