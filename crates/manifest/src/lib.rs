//! `stagely.yaml`: what a repository wants built, read and checked as a whole.

mod fields;
mod globs;
mod keywords;
mod kind;
mod limits;
mod lists;
mod manifest;
mod matrix;
mod mistake;
mod names;
mod order;
mod preview;
mod problem;
mod read;
mod schema;
mod source;
pub mod suggest;
mod template;
mod times;
mod tree;
mod value_schemas;
mod values;

use std::path::Path;

use stagely_protocol::paths::{find_compose_file, find_context, find_dockerfile};

use mistake::Mistake;
use problem::Collector;

pub use globs::Globs;
pub use limits::{
    BUILD_ARGS_MAX, BUILDS_MAX, CACHE_FROM_MAX, DEFAULT_TIMEOUT, ENDPOINT_NAME_CHARACTERS_MAX,
    ENDPOINTS_MAX, FILE_BYTES_MAX, FILE_JOBS_MAX, GLOBS_MAX, JOBS_MAX,
};
pub use manifest::{Build, Manifest, Variant};
pub use order::image_argument;
pub use preview::{
    Endpoint, Health, Preview, PreviewAccess, PreviewSource, PreviewTrigger, PreviewVariable,
    SINGLE_SERVICE, ServiceCommand,
};
pub use problem::{Position, Problem, Problems};
pub use schema::json_schema;
pub use source::{FILE_NAME, MISNAMED, MISNAMED_ADVICE, read_checkout, read_file};
pub use template::{Template, TemplateError, Variable};

/// Reads a manifest. `file_name` only appears in problems.
///
/// # Errors
/// [`Problems`]: all mistakes at once.
pub fn parse(file_name: &str, bytes: &[u8]) -> Result<Manifest, Problems> {
    let mut problems = Collector::default();
    let manifest = read::file(bytes, &mut problems);
    problems.into_result(file_name, manifest)
}

/// Checks that the contexts, Dockerfiles and the compose file of a manifest exist below `root`.
///
/// # Errors
/// [`Problems`]: every path that is missing or leads out of `root`, also through symlinks.
pub fn check_paths(manifest: &Manifest, root: &Path, file_name: &str) -> Result<(), Problems> {
    let mut problems = Collector::default();
    find_paths(manifest, root, &mut problems);
    problems.into_result(file_name, ())
}

/// Reads a manifest and checks its contexts, Dockerfiles and compose file below `root`, even if other
/// values are wrong.
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
            problems.add(build.context_at, &*context, Mistake::Path(error));
        }
        // A Dockerfile is looked up in its context.
        if !problems.has(&context)
            && !problems.has(&dockerfile)
            && let Err(error) = find_dockerfile(root, &build.context, &build.dockerfile)
        {
            problems.add(build.dockerfile_at, dockerfile, Mistake::Path(error));
        }
    }
    if let Some(Preview { source: PreviewSource::Compose { path, .. }, compose_at, .. }) =
        &manifest.preview
        && !path.is_empty()
        && let Err(error) = find_compose_file(root, path)
    {
        problems.add(*compose_at, "preview.compose", Mistake::Path(error));
    }
}
