//! A test job: what it runs, and where.

use serde::{Deserialize, Serialize};
use stagely_protocol::{BuildArgs, Shard};

use super::{Timestamp, UsedImage};

/// What a test job runs: an entry of `test` of `stagely.yaml` with all variables expanded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Test {
    pub image: UsedImage,
    /// Program and arguments; empty: the image's own.
    pub command: Vec<String>,
    pub env: BuildArgs,
    /// The names of the project's secrets that the command gets.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub secrets: Vec<String>,
    #[serde(default)]
    pub shard: Shard,
    /// How often the agent runs the command again when it fails. A test that passes later is flaky.
    #[serde(default)]
    pub retries: u32,
    /// Patterns of the `JUnit` files with the results.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub junit: Vec<String>,
    /// Patterns of the files that core keeps.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub artifacts: Vec<String>,
    /// Patterns of pictures for the comment, which are kept with the artifacts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub comment_images: Vec<String>,
    pub on: TestMachine,
    /// The [`requested_at`](super::Generation::requested_at) of the preview that is tested; `None`: the test needs no
    /// preview.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preview_of: Option<Timestamp>,
}

/// The machine that a test runs on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TestMachine {
    /// One of the tester fleet.
    #[default]
    Tester,
    /// The machine that serves the preview.
    Preview,
}

impl Test {
    /// Whether it runs on the machine that serves the preview.
    pub const fn is_on_preview(&self) -> bool {
        matches!(self.on, TestMachine::Preview) && self.preview_of.is_some()
    }
}
