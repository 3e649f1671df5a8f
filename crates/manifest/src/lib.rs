//! `stagely.yaml`: what a repository wants built, read and checked as a whole.

mod fault;
mod fields;
mod globs;
mod matrix;
mod names;
mod order;
mod problem;
mod read;
mod schema;
pub mod suggest;
mod template;
mod tree;
mod values;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::time::Duration;

use nix::fcntl::OFlag;
use schemars::JsonSchema;
use stagely_protocol::paths::{find_context, find_dockerfile};
use stagely_protocol::{Emulation, ImageRef, Platform};
use stagely_state::MachineSize;

use fault::Fault;
use problem::Collector;

pub use globs::Globs;
pub use matrix::{JOBS_MAX, Variant};
pub use order::image_argument;
pub use problem::{Position, Problem, Problems};
pub use schema::json_schema;
pub use template::{Template, TemplateError, Variable};

/// The name of the file, at the repository's root.
pub const FILE_NAME: &str = "stagely.yaml";

/// The largest file, in bytes.
pub const FILE_BYTES_MAX: usize = tree::FILE_BYTES_MAX;

/// The most builds of one file.
pub const BUILDS_MAX: usize = 64;

/// The most jobs of one file.
pub const FILE_JOBS_MAX: usize = 512;

/// The most build arguments of one build.
pub const BUILD_ARGS_MAX: usize = 128;

/// The most entries of one `cache_from`.
pub const CACHE_FROM_MAX: usize = 16;

/// The most patterns of one `only_branches` or `paths`.
pub const GLOBS_MAX: usize = 32;

/// How long a build may take that sets no `timeout`.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_mins(30);

/// What Stagely builds from a repository. The file `stagely.yaml` lies at the repository's root.
#[derive(Clone, Debug, PartialEq, JsonSchema)]
#[schemars(title = "stagely.yaml", deny_unknown_fields, transform = schema::manifest_as_written)]
pub struct Manifest {
    /// What people call the project; at most 100 characters.
    #[schemars(schema_with = "schema::name")]
    pub name: Option<String>,
    /// The images to build: a map of names to builds, at most 64. A name is made of letters,
    /// digits, `_` and `-`, does not start with `-`, and becomes part of job names and image tags.
    #[schemars(schema_with = "schema::builds")]
    pub builds: Vec<Build>,
}

/// One image.
#[derive(Clone, Debug, PartialEq, JsonSchema)]
#[schemars(deny_unknown_fields, transform = schema::build_as_written)]
pub struct Build {
    /// Its key in the file.
    #[schemars(skip)]
    pub name: String,
    /// The folder that the image is built from, relative to the repository's root and inside it.
    #[schemars(schema_with = "schema::path")]
    pub context: String,
    /// The Dockerfile: looked up in the context, then from the repository's root.
    #[schemars(schema_with = "schema::dockerfile")]
    pub dockerfile: String,
    /// Several platforms, each built on a machine of its kind; their images are joined into one.
    /// Instead of `platform`.
    #[schemars(schema_with = "schema::platforms")]
    pub platforms: Vec<Platform>,
    /// How big a machine builds it: small has 2 processors, medium 4, large 8, xlarge 16.
    #[schemars(schema_with = "schema::machine")]
    pub machine: MachineSize,
    /// Values for the Dockerfile's `ARG`s, taken as they are written. `${COMMIT_HASH}`,
    /// `${BRANCH}`, `${PR_NUMBER}` (empty without a pull request), `${PROJECT_ID}` and
    /// `${STAGELY_HASH}` (12 hexadecimal digits made of project, environment and commit) are
    /// filled in; `$${` stands for a literal `${`.
    #[schemars(schema_with = "schema::build_args")]
    pub build_args: BTreeMap<String, Template>,
    /// The stage of the Dockerfile to build, instead of the last.
    #[schemars(schema_with = "schema::target")]
    pub target: Option<String>,
    /// How long the build may take, such as `45m`, `1h30m` or `90s`; at most 24h.
    #[schemars(schema_with = "schema::timeout")]
    pub timeout: Duration,
    /// Image references in which layers are looked for, besides the build's own cache.
    #[schemars(schema_with = "schema::cache_from")]
    pub cache_from: Vec<ImageRef>,
    /// Builds the image once for each combination of values: a map of build arguments to lists of
    /// values (text, numbers and booleans, each taken as it is written and without variables).
    /// `exclude` lists combinations, or parts of some, that are left out; an entry of `include` adds
    /// its values to every combination that it does not contradict, or is a combination of its own if
    /// there is none. Names and values of a combination become part of its job names and image tags
    /// (`app-node_version-18`). At most 64 jobs a build, and 512 a file.
    #[schemars(rename = "matrix", schema_with = "schema::matrix")]
    pub variants: Vec<Variant>,
    /// Other builds of this file that are built first. The image of each (of each combination of its
    /// matrix) is a named context, so that `FROM other` and `COPY --from=other` use it, and its
    /// reference is the build argument `STAGELY_IMAGE_OTHER`. They must have all platforms of this
    /// build, and make at most 64 images.
    #[schemars(schema_with = "schema::depends_on")]
    pub depends_on: Vec<String>,
    /// Patterns over branch names: on other branches the build is skipped, also where it is asked for
    /// by name. `*` stays between slashes, `**` does not, and `!` is not supported. A build that
    /// depends on a skipped one takes the newest good image that the base branch has of it, and is
    /// skipped too where there is none.
    #[schemars(schema_with = "schema::branches")]
    pub only_branches: Option<Globs>,
    /// Patterns over paths from the repository's root; a folder means all that is in it. The build is
    /// skipped, and the newest good image of the base branch stands in, if nothing that they match
    /// has changed since the base commit and since that image's commit, nor anything that the `paths`
    /// of the builds that it depends on match. A change of `stagely.yaml` or `.gitmodules` counts for
    /// every build, and another commit of a submodule for all patterns that may match something in it.
    /// `*` stays between slashes, `**` does not, and `!` is not supported. A build that is asked for by
    /// name is not skipped.
    #[schemars(schema_with = "schema::paths")]
    pub paths: Option<Globs>,
    /// Whether the build may run under emulation where no machine of its platform can be had; `forbid`
    /// lets it fail instead.
    #[schemars(schema_with = "schema::emulation")]
    pub emulation: Emulation,
    /// Where its key stands.
    #[schemars(skip)]
    pub at: Position,
    /// Where the context stands.
    #[schemars(skip)]
    pub context_at: Position,
    /// Where the Dockerfile stands; the context where the file names none.
    #[schemars(skip)]
    pub dockerfile_at: Position,
    /// Where the builds that it depends on stand; its key where the file names none.
    #[schemars(skip)]
    pub depends_on_at: Position,
}

/// Reads the manifest of the repository that is checked out at `root`. Whoever wrote the repository is
/// not trusted: only a regular file of it is opened, which neither is one of this machine's nor lets a
/// reader wait for ever.
///
/// # Errors
/// There is no such file below `root`. What lies outside makes no difference to it.
pub fn read_checkout(root: &Path) -> io::Result<Vec<u8>> {
    let root = root.canonicalize()?;
    let path = root.join(FILE_NAME);
    let path = if path.symlink_metadata()?.is_symlink() {
        let target = path.canonicalize().ok().filter(|target| target.starts_with(&root));
        target.ok_or_else(|| io::Error::other("it is a symlink to nothing in the repository"))?
    } else {
        path
    };
    let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
    let file = File::options().read(true).custom_flags(flags.bits()).open(&path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is not a file"));
    }
    read(file)
}

/// Reads the bytes of a manifest's file, and no further than it takes to see that it is too large.
///
/// # Errors
/// Those of the file.
pub fn read_file(path: &Path) -> io::Result<Vec<u8>> {
    read(File::open(path)?)
}

fn read(file: File) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX as u64 + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Reads a manifest. `file_name` is for the problems alone.
///
/// # Errors
/// [`Problems`]: everything that is wrong, at once.
pub fn parse(file_name: &str, bytes: &[u8]) -> Result<Manifest, Problems> {
    let mut problems = Collector::default();
    let manifest = read::file(bytes, &mut problems);
    problems.into_result(file_name, manifest)
}

/// Looks for the contexts and Dockerfiles of a manifest below `root`.
///
/// # Errors
/// [`Problems`]: every one that is missing or leads out of `root`, also through symlinks.
pub fn check_paths(manifest: &Manifest, root: &Path, file_name: &str) -> Result<(), Problems> {
    let mut problems = Collector::default();
    find_paths(manifest, root, &mut problems);
    problems.into_result(file_name, ())
}

/// Reads a manifest and looks for its contexts and Dockerfiles below `root`, even where something
/// else is wrong.
///
/// # Errors
/// [`Problems`]: those of [`parse`] and of [`check_paths`].
pub fn validate(file_name: &str, bytes: &[u8], root: &Path) -> Result<Manifest, Problems> {
    let mut problems = Collector::default();
    let manifest = read::file(bytes, &mut problems);
    find_paths(&manifest, root, &mut problems);
    problems.into_result(file_name, manifest)
}

fn find_paths(manifest: &Manifest, root: &Path, problems: &mut Collector) {
    for build in &manifest.builds {
        let path = |key| format!("builds.{}.{key}", suggest::shown(&build.name));
        let (context, dockerfile) = (path("context"), path("dockerfile"));
        if !problems.has(&context)
            && let Err(error) = find_context(root, &build.context)
        {
            problems.add(build.context_at, &*context, Fault::Path(error));
        }
        // Without a context there is no place to look in.
        if !problems.has(&context)
            && !problems.has(&dockerfile)
            && let Err(error) = find_dockerfile(root, &build.context, &build.dockerfile)
        {
            problems.add(build.dockerfile_at, dockerfile, Fault::Path(error));
        }
    }
}
