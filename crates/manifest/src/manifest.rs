//! The contents of `stagely.yaml`: the project, its builds, and the names of their jobs, images and caches.

use std::collections::BTreeMap;
use std::time::Duration;

use schemars::JsonSchema;
use stagely_protocol::{Emulation, ImageRef, Platform, Submodules};
use stagely_state::MachineSize;

use super::globs::Globs;
use super::preview::{self, Preview};
use super::problem::Position;
use super::template::Template;
use super::test::{self, Test};
use super::value_schemas;

/// The builds of a repository. The file `stagely.yaml` is at the root of the repository.
#[derive(Clone, Debug, Default, PartialEq, JsonSchema)]
#[schemars(title = "stagely.yaml", deny_unknown_fields, transform = value_schemas::manifest_as_written)]
pub struct Manifest {
    /// The project's name for people; at most 100 characters.
    #[schemars(schema_with = "value_schemas::name")]
    pub name: Option<String>,
    /// Which submodules are fetched: `true` all, and theirs; `false` none, so that their folders are
    /// empty; `shallow` all, but never more of a submodule's history than the last commit of each
    /// branch, where its server does not serve single commits.
    #[schemars(schema_with = "value_schemas::submodules")]
    pub submodules: Submodules,
    /// The images to build: a map of names to builds, at most 64. A name is made of letters,
    /// digits, `_` and `-`, does not start with `-`, and becomes part of job names and image tags.
    #[schemars(schema_with = "value_schemas::builds::<Build>")]
    pub builds: Vec<Build>,
    /// How the images are deployed for people to look at, each pull request on a machine of its own.
    #[schemars(schema_with = "preview::schema")]
    pub preview: Option<Preview>,
    /// Commands that test the images and the preview: a map of names to tests, at most 16.
    #[schemars(rename = "test", schema_with = "test::schema")]
    pub tests: Vec<Test>,
}

/// One image.
#[derive(Clone, Debug, PartialEq, JsonSchema)]
#[schemars(deny_unknown_fields, transform = value_schemas::build_as_written)]
pub struct Build {
    /// The build's key in the file.
    #[schemars(skip)]
    pub name: String,
    /// The build context: a folder inside the repository, relative to its root.
    #[schemars(schema_with = "value_schemas::path")]
    pub context: String,
    /// The Dockerfile. Stagely looks for it in the context first, then from the repository's root.
    #[schemars(schema_with = "value_schemas::dockerfile")]
    pub dockerfile: String,
    /// Several platforms, instead of `platform`. Each is built on a machine of its own processor, and
    /// the images are joined into one image index.
    #[schemars(schema_with = "value_schemas::platforms")]
    pub platforms: Vec<Platform>,
    /// The size of the machine: `small` has 2 processors, `medium` 4, `large` 8 and `xlarge` 16.
    #[schemars(schema_with = "value_schemas::machine")]
    pub machine: MachineSize,
    /// Values for the Dockerfile's `ARG`s, taken as they are written. Stagely fills in
    /// `${COMMIT_HASH}`, `${BRANCH}`, `${PR_NUMBER}` (empty without a pull request), `${PROJECT_ID}`
    /// and `${STAGELY_HASH}` (12 hexadecimal digits made of project, environment and commit). Write
    /// `$${` for a literal `${`.
    #[schemars(schema_with = "value_schemas::build_args")]
    pub build_args: BTreeMap<String, Template>,
    /// The stage of the Dockerfile to build, instead of the last.
    #[schemars(schema_with = "value_schemas::target")]
    pub target: Option<String>,
    /// The build's time limit, such as `45m`, `1h30m` or `90s`; at most 24h.
    #[schemars(schema_with = "value_schemas::timeout")]
    pub timeout: Duration,
    /// Further image references to import cached layers from, besides the build's own cache.
    #[schemars(schema_with = "value_schemas::cache_from")]
    pub cache_from: Vec<ImageRef>,
    /// Builds the image once for each combination of values: a map of build arguments to lists of
    /// values (text, numbers and booleans, each taken as it is written and without variables).
    /// `exclude` removes combinations: an entry names a whole combination, or some of its values. An
    /// entry of `include` adds its values to every combination that it does not contradict; if there
    /// is none, it becomes a combination of its own. Names and values of a combination become part of
    /// its job names and image tags (`app-node_version-18`). A build makes at most 64 jobs, a file at
    /// most 512.
    #[schemars(rename = "matrix", schema_with = "value_schemas::matrix")]
    pub variants: Vec<Variant>,
    /// Other builds of this file that are built first. The image of each (of each combination of its
    /// matrix) is a named context for `FROM other` and `COPY --from=other`, and its reference is the
    /// build argument `STAGELY_IMAGE_OTHER`. Those builds must have all platforms of this build, and
    /// make at most 64 images together.
    #[schemars(schema_with = "value_schemas::depends_on")]
    pub depends_on: Vec<String>,
    /// Patterns of branch names. On other branches the build is skipped, even if it is requested by
    /// name. `*` matches within one path component, `**` matches across slashes, and `!` is not
    /// supported. A build that depends on a skipped build uses the newest completed image of the base
    /// branch, and is skipped as well if there is none.
    #[schemars(schema_with = "value_schemas::branches")]
    pub only_branches: Option<Globs>,
    /// Patterns of paths from the repository's root; a folder stands for everything in it. The build
    /// is skipped, and the newest completed image of the base branch is used instead, if no matching
    /// file has changed since the base commit and since that image's commit. Files that match the
    /// `paths` of builds that this build depends on count as well. A change of `stagely.yaml` or
    /// `.gitmodules` counts for every build, and another commit of a submodule for all patterns that
    /// may match something in it. `*` matches within one path component, `**` matches across slashes,
    /// and `!` is not supported. A build that is requested by name is not skipped.
    #[schemars(schema_with = "value_schemas::paths")]
    pub paths: Option<Globs>,
    /// Whether the build may run under emulation if no machine of its platform is available. With
    /// `forbid` it fails instead.
    #[schemars(schema_with = "value_schemas::emulation")]
    pub emulation: Emulation,
    /// The position of the build's key.
    #[schemars(skip)]
    pub at: Position,
    /// The position of `context`.
    #[schemars(skip)]
    pub context_at: Position,
    /// The position of `dockerfile`, or of `context` without it.
    #[schemars(skip)]
    pub dockerfile_at: Position,
    /// The position of `depends_on`, or of the build's key without it.
    #[schemars(skip)]
    pub depends_on_at: Position,
}

/// One combination of a build's matrix. A build without a matrix has a single variant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Variant {
    /// The build's name, and each name and value of the combination: `app-node_version-18`.
    pub name: String,
    /// The build arguments of the combination. Empty only without a matrix.
    pub values: BTreeMap<String, String>,
}

impl Build {
    /// Whether the build has several platforms, whose images are joined.
    pub const fn is_multi_platform(&self) -> bool {
        self.platforms.len() > 1
    }

    /// Whether the build has a matrix.
    pub fn has_matrix(&self) -> bool {
        self.variants.iter().any(|variant| !variant.values.is_empty())
    }

    /// The number of jobs of each variant: one for each platform, and a merge job for several platforms.
    pub const fn jobs_of_each_variant(&self) -> usize {
        self.platforms.len() + self.is_multi_platform() as usize
    }

    /// The number of the build's jobs.
    pub const fn job_count(&self) -> usize {
        self.variants.len() * self.jobs_of_each_variant()
    }

    /// The name of the job that builds `platform`: `backend`, or `app_arm64` where the build has
    /// several platforms or a matrix.
    pub fn job_name(&self, variant: &Variant, platform: Platform) -> String {
        if self.is_multi_platform() || self.has_matrix() {
            format!("{}_{}", variant.name, platform.arch())
        } else {
            variant.name.clone()
        }
    }

    /// The tag of the layer cache of `platform`. Each arch has a tag of its own, because an export
    /// replaces the whole cache. Each dot of a matrix value is doubled: a single dot separates the name
    /// of an environment in the tags of its own caches, so `py-3` of the branch `10` differs from
    /// `py-3.10`.
    pub fn cache_tag(&self, variant: &Variant, platform: Platform) -> String {
        let tag = if self.is_multi_platform() {
            variant.image_tag(platform)
        } else {
            variant.name.clone()
        };
        tag.replace('.', "..")
    }
}

impl Variant {
    /// The name of the job that joins the images: `app_merge`.
    pub fn merge_job_name(&self) -> String {
        format!("{}_merge", self.name)
    }

    /// The tag of the image of `platform`: `app-arm64`. The tag of the joined image is the variant's name.
    pub fn image_tag(&self, platform: Platform) -> String {
        format!("{}-{}", self.name, platform.arch())
    }
}
