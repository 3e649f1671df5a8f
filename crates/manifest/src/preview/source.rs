//! What a preview runs: a compose file and its endpoints, or one container.

use std::collections::BTreeMap;

use super::{Endpoint, Health, PreviewSource, SINGLE_SERVICE, values};
use crate::fields::{Field, Fields, read_value};
use crate::limits::{BUILDS_MAX, ENDPOINTS_MAX};
use crate::lists::limit;
use crate::manifest::Build;
use crate::mistake::Mistake;
use crate::problem::{Collector, Position};
use crate::suggest::{closest, shown};
use crate::times;
use crate::values::file;

/// What the section's keys say about the containers.
pub(super) struct Deployed {
    pub(super) form: Form,
    pub(super) source: PreviewSource,
    pub(super) endpoints: Vec<Endpoint>,
    /// The position of `compose`, or of the preview's key without it.
    pub(super) compose_at: Position,
}

/// The two forms of the section.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    Compose,
    Image,
    /// Both forms are mixed, or neither is there. Both are mistakes.
    Unclear,
}

impl Deployed {
    /// Reads every key of both forms, so that all mistakes are found.
    pub(super) fn read(
        preview: &Field<'_>,
        fields: &mut Fields<'_>,
        builds: &[Build],
        problems: &mut Collector,
    ) -> Self {
        let (compose, image) = (fields.take("compose"), fields.take("image"));
        let form = Form::of(preview, compose.as_ref(), image.as_ref(), problems);
        let images = fields.take("images");
        let endpoints = match form {
            Form::Compose => {
                let hint = "it maps names to ports of services; the first is the preview's URL";
                fields.require("endpoints", hint, problems)
            }
            Form::Image | Form::Unclear => fields.take("endpoints"),
        };
        let port = match form {
            Form::Image => {
                fields.require("port", "it is the port that the container listens on", problems)
            }
            Form::Compose | Form::Unclear => fields.take("port"),
        };
        let health = fields.take("health");
        form.refuse_other_keys([&images, &endpoints, &port, &health], problems);

        let compose_at = compose.as_ref().map_or(preview.key_at, Field::at);
        let path = compose.and_then(|field| read_value(&field, file, problems));
        let image = image.and_then(|field| variant(&field, builds, problems));
        let images = images.map(|field| images_of(&field, builds, problems));
        let endpoints = endpoints.map(|field| endpoints_of(&field, problems));
        let port = port.and_then(|field| read_value(&field, values::port, problems));
        let health = health.map(|field| health_of(&field, problems));
        if form == Form::Image {
            let variant = image.unwrap_or_default();
            let endpoint = Endpoint {
                name: SINGLE_SERVICE.to_owned(),
                service: SINGLE_SERVICE.to_owned(),
                port: port.unwrap_or_default(),
                health: health.unwrap_or_default(),
            };
            let source = PreviewSource::Image { variant };
            return Self { form, source, endpoints: vec![endpoint], compose_at };
        }
        let (path, images) = (path.unwrap_or_default(), images.unwrap_or_default());
        let source = PreviewSource::Compose { path, images };
        Self { form, source, endpoints: endpoints.unwrap_or_default(), compose_at }
    }
}

impl Form {
    fn of(
        preview: &Field<'_>,
        compose: Option<&Field<'_>>,
        image: Option<&Field<'_>>,
        problems: &mut Collector,
    ) -> Self {
        match (compose, image) {
            (Some(_), None) => Self::Compose,
            (None, Some(_)) => Self::Image,
            (Some(_), Some(image)) => {
                problems.add(image.key_at, &*image.path, Mistake::BothPreviewSources);
                Self::Unclear
            }
            (None, None) => {
                problems.add(preview.key_at, &*preview.path, Mistake::NoPreviewSource);
                Self::Unclear
            }
        }
    }

    fn refuse_other_keys(
        self,
        [images, endpoints, port, health]: [&Option<Field<'_>>; 4],
        problems: &mut Collector,
    ) {
        let (form, others) = match self {
            Self::Compose => (
                "image",
                [
                    (port, "each endpoint has a `port` of its own"),
                    (health, "each endpoint has a `health` of its own"),
                ],
            ),
            Self::Image => (
                "compose",
                [
                    (images, "`image` names the build"),
                    (endpoints, "with `image` there is one endpoint, at `port`"),
                ],
            ),
            Self::Unclear => return,
        };
        for (field, hint) in others {
            if let Some(field) = field {
                let mistake = Mistake::OtherPreviewForm { form, hint };
                problems.add(field.key_at, &*field.path, mistake);
            }
        }
    }
}

fn images_of(
    field: &Field<'_>,
    builds: &[Build],
    problems: &mut Collector,
) -> BTreeMap<String, String> {
    let Some(mut entries) = field.map(problems) else {
        let wanted = field.wanted("a map of services to builds", None);
        problems.add(field.at(), &*field.path, wanted);
        return BTreeMap::new();
    };
    limit(field, &mut entries, BUILDS_MAX, problems);
    let image = |entry: &Field<'_>| {
        if let Err(mistake) = values::check_service(entry.key) {
            problems.add(entry.key_at, &*entry.path, mistake);
        }
        Some((entry.key.to_owned(), variant(entry, builds, problems)?))
    };
    entries.iter().filter_map(image).collect()
}

/// Reads the name of a build, or of one combination of its matrix.
pub(crate) fn variant(
    field: &Field<'_>,
    builds: &[Build],
    problems: &mut Collector,
) -> Option<String> {
    let name = read_value(field, values::variant, problems)?;
    // A build with a mistake may be missing in `builds` or lack its combinations, and a file without builds
    // has a mistake.
    let path_of = |build: &str| format!("builds.{}", shown(build));
    let lacks_combinations = |build: &Build| {
        name.starts_with(&build.name)
            && problems.has_below(&format!("{}.matrix", path_of(&build.name)))
    };
    let is_checked = !builds.is_empty()
        && !problems.has(&path_of(&name))
        && !builds.iter().any(lacks_combinations);
    if is_checked && let Err(mistake) = check_variant(&name, builds) {
        problems.add(field.at(), &*field.path, mistake);
    }
    Some(name)
}

fn check_variant(name: &str, builds: &[Build]) -> Result<(), Mistake> {
    let mut variants = builds.iter().flat_map(|build| &build.variants);
    if variants.any(|variant| variant.name == name) {
        return Ok(());
    }
    if let Some(build) = builds.iter().find(|build| build.name == name)
        && let Some(first) = build.variants.first()
    {
        let (name, example) = (name.to_owned(), first.name.clone());
        return Err(Mistake::ImageOfMatrix { name, example });
    }
    let names = || builds.iter().map(|build| &*build.name);
    let variants = builds.iter().flat_map(|build| &build.variants).map(|variant| &*variant.name);
    let suggestion = closest(name, names().chain(variants)).map(shown);
    let known = names().map(shown).collect();
    Err(Mistake::UnknownBuild { name: name.to_owned(), suggestion, known })
}

fn endpoints_of(field: &Field<'_>, problems: &mut Collector) -> Vec<Endpoint> {
    let Some(mut entries) = field.map(problems) else {
        let wanted = field.wanted("a map of names to endpoints", None);
        problems.add(field.at(), &*field.path, wanted);
        return Vec::new();
    };
    if entries.is_empty() {
        problems.add(field.at(), &*field.path, Mistake::NoEndpoints);
    }
    limit(field, &mut entries, ENDPOINTS_MAX, problems);
    entries.iter().map(|entry| endpoint(entry, problems)).collect()
}

fn endpoint(field: &Field<'_>, problems: &mut Collector) -> Endpoint {
    if let Err(mistake) = values::check_endpoint_name(field.key) {
        problems.add(field.key_at, &*field.path, mistake);
    }
    let mut endpoint = Endpoint {
        name: field.key.to_owned(),
        service: String::new(),
        port: 0,
        health: Health::default(),
    };
    let Some(mut fields) = Fields::open(field, "a map with `service` and `port`", problems) else {
        return endpoint;
    };
    let hint = "it is the service of the compose file that listens";
    if let Some(service) = fields.require("service", hint, problems) {
        endpoint.service = read_value(&service, values::service, problems).unwrap_or_default();
    }
    let hint = "it is the port that the service listens on, inside its container";
    if let Some(port) = fields.require("port", hint, problems) {
        endpoint.port = read_value(&port, values::port, problems).unwrap_or_default();
    }
    if let Some(health) = fields.take("health") {
        endpoint.health = health_of(&health, problems);
    }
    fields.finish(problems);
    endpoint
}

fn health_of(field: &Field<'_>, problems: &mut Collector) -> Health {
    let mut health = Health::default();
    let wanted = "a map with `path`, `status` or `timeout`";
    let Some(mut fields) = Fields::open(field, wanted, problems) else { return health };
    if let Some(path) = fields.value("path", values::health_path, problems) {
        health.path = path;
    }
    if let Some(status) = fields.value("status", values::status, problems) {
        health.status = status;
    }
    if let Some(timeout) = fields.value("timeout", times::health_timeout, problems) {
        health.timeout = timeout;
    }
    fields.finish(problems);
    health
}
