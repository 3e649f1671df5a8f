//! `stagely.yaml`: what a repository wants built, read and checked as a whole.

mod compose;
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
mod test;
mod times;
mod tree;
mod value_schemas;
mod values;

use std::path::Path;

use stagely_protocol::paths::{find_compose_file, find_context, find_dockerfile};

use mistake::Mistake;
use problem::Collector;

pub use compose::{WritableMount, model as compose_model, writable_mounts};
pub use globs::Globs;
pub use limits::{
    BUILD_ARGS_MAX, BUILDS_MAX, CACHE_FROM_MAX, DEFAULT_TIMEOUT, ENDPOINT_NAME_CHARACTERS_MAX,
    ENDPOINTS_MAX, FILE_BYTES_MAX, FILE_JOBS_MAX, GLOBS_MAX, JOBS_MAX, TESTS_MAX,
};
pub use manifest::{Build, Manifest, Variant};
pub use order::image_argument;
pub use preview::{
    Endpoint, Health, Preview, PreviewAccess, PreviewSource, PreviewTrigger, PreviewVariable,
    SINGLE_SERVICE, ServiceCommand,
};
pub use problem::{Position, Problem, Problems};
pub use schema::json_schema;
pub use source::{FILE_NAME, MISNAMED, MISNAMED_ADVICE, MISSING_ADVICE, read_checkout, read_file};
pub use template::{Template, TemplateError, Variable};
pub use test::{Test, TestImage, TestPlace};

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
    {
        match find_compose_file(root, path) {
            Ok(file) => find_services(manifest, &file, path, problems),
            Err(error) => problems.add(*compose_at, "preview.compose", Mistake::Path(error)),
        }
    }
}

/// Checks that the compose file at `file` has the services that the preview names. A file that cannot be read here is left
/// to Docker Compose, which says why.
fn find_services(manifest: &Manifest, file: &Path, compose: &str, problems: &mut Collector) {
    let Some(preview) = &manifest.preview else { return };
    let text = read_file(file).ok().filter(|bytes| bytes.len() <= FILE_BYTES_MAX);
    let text = text.and_then(|bytes| String::from_utf8(bytes).ok());
    let Some(services) = text.and_then(|text| compose::services(&text)) else { return };
    let endpoints = preview.endpoints.iter().map(|endpoint| {
        (format!("preview.endpoints.{}.service", endpoint.name), &endpoint.service)
    });
    let images = match &preview.source {
        PreviewSource::Compose { images, .. } => Some(images.keys()),
        PreviewSource::Image { .. } => None,
    };
    let images = images.into_iter().flatten();
    let images = images.map(|service| ("preview.images".to_owned(), service));
    let commands = [("migrate", &preview.migrate), ("seed", &preview.seed)];
    let commands = commands.into_iter().filter_map(|(key, command)| {
        Some((format!("preview.{key}.service"), &command.as_ref()?.service))
    });
    for (path, service) in endpoints.chain(images).chain(commands) {
        // An empty name is a mistake of its own.
        if service.is_empty() || services.contains(service) {
            continue;
        }
        let known = services.iter().map(String::as_str);
        let suggestion = suggest::closest(service, known).map(str::to_owned);
        let mistake = Mistake::NoService {
            service: service.clone(),
            compose: compose.to_owned(),
            suggestion,
            known: services.clone(),
        };
        problems.add(preview.compose_at, path, mistake);
    }
}
