//! The section `test`: commands that test what was built, alone or on the preview.

mod read;
mod schemas;
mod values;

use std::collections::BTreeMap;
use std::time::Duration;

use schemars::JsonSchema;
use stagely_protocol::ImageRef;
use stagely_state::MachineSize;

use super::preview::{self, PreviewVariable};
use super::problem::Position;
use super::template::Template;
use super::value_schemas;

pub(super) use read::tests as read;
pub(super) use schemas::section as schema;

/// Runs a command in a new container of an image. With a section `preview` it runs when the preview serves, and finds its
/// address in `PREVIEW_URL`.
#[derive(Clone, Debug, PartialEq, JsonSchema)]
#[schemars(deny_unknown_fields, transform = schemas::test_as_written)]
pub struct Test {
    /// The test's key in the file.
    #[schemars(skip)]
    pub name: String,
    /// The build whose image has the command, or an image reference such as `docker.io/library/node:24`.
    /// The image of a build with a matrix is named by its combination (`app-node_version-18`).
    #[schemars(schema_with = "schemas::image")]
    pub image: TestImage,
    /// The program and its arguments, at most 64 texts, instead of the image's own command. No shell
    /// reads them, and no variables are filled in.
    #[schemars(schema_with = "preview::command_schema")]
    pub command: Vec<String>,
    /// Where the command runs: on a machine of its own (`tester`), or on that of the preview, in whose
    /// networks the services have their names (`preview`).
    #[schemars(schema_with = "schemas::on")]
    pub on: TestPlace,
    /// With `on: tester`: the size of the machine: `small` has 2 processors, `medium` 4, `large` 8 and
    /// `xlarge` 16.
    #[schemars(schema_with = "value_schemas::machine")]
    pub machine: MachineSize,
    /// With `on: tester`: on how many machines the test runs at the same time, each with another part of
    /// it; at most 16. The command finds the number of its part, from 1, in `STAGELY_SHARD`, and how many
    /// there are in `STAGELY_SHARDS`.
    #[schemars(schema_with = "schemas::shards")]
    pub shards: u32,
    /// How often a test that fails runs again; at most 3. What passes later is flaky, and not failed.
    #[schemars(schema_with = "schemas::retries")]
    pub retries: u32,
    /// The time limit of the test, such as `45m`, `1h30m` or `90s`; at most 24h.
    #[schemars(schema_with = "value_schemas::timeout")]
    pub timeout: Duration,
    /// Environment variables, at most 128. Stagely fills in the variables of `build_args`, and with a
    /// section `preview` those of its `env`.
    #[schemars(schema_with = "preview::env_schema")]
    pub env: BTreeMap<String, Template<PreviewVariable>>,
    /// The names of secrets of the project that become environment variables, at most 64. Tests of forks
    /// do not get them.
    #[schemars(schema_with = "preview::secrets_schema")]
    pub secrets: Vec<String>,
    /// Patterns of `JUnit` files, relative to the image's working folder, or absolute; a folder stands for
    /// everything in it. `*` matches within one path component, `**` matches across slashes.
    #[schemars(schema_with = "schemas::patterns")]
    pub junit: Vec<String>,
    /// Patterns of files to keep, as those of `junit`: at most 5,000 files with 1 GiB together.
    #[schemars(schema_with = "schemas::patterns")]
    pub artifacts: Vec<String>,
    /// Patterns of pictures that are kept with the artifacts, as those of `junit`; at most 4 pictures.
    #[schemars(schema_with = "schemas::patterns")]
    pub comment_images: Vec<String>,
    /// The position of the test's key.
    #[schemars(skip)]
    pub at: Position,
}

/// The image of a test.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TestImage {
    /// That of a build, by the name of the variant.
    Variant(String),
    Reference(ImageRef),
}

/// Where a test runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TestPlace {
    #[default]
    Tester,
    /// On the preview's machine.
    Preview,
}

impl TestPlace {
    const NAMES: [(&str, Self); 2] = [("tester", Self::Tester), ("preview", Self::Preview)];
}

#[cfg(test)]
mod tests;
