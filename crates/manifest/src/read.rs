//! The tree of `stagely.yaml` → a manifest and all its mistakes.
//!
//! A wrong value is replaced by its default so that reading goes on. A manifest with problems is never
//! returned to callers of the crate.

use std::collections::BTreeMap;
use std::rc::Rc;

use stagely_protocol::paths::dockerfile_candidates;
use stagely_protocol::{Arch, Emulation, ImageRef, Platform};

use super::fields::{Field, Fields, read_value};
use super::kind::ValueKind;
use super::limits::{
    BUILD_ARGS_MAX, BUILDS_MAX, CACHE_FROM_MAX, DEFAULT_TIMEOUT, FILE_BYTES_MAX, FILE_JOBS_MAX,
};
use super::lists::{branch_patterns, distinct, limit, path_patterns, templates};
use super::manifest::{Build, Manifest, Variant};
use super::matrix::{self, Owner};
use super::mistake::Mistake;
use super::names;
use super::order;
use super::preview;
use super::problem::{Collector, Position};
use super::template::{Template, Variable};
use super::test;
use super::times;
use super::tree::{self, Node};
use super::values;

/// Reads the file.
pub(super) fn file(bytes: &[u8], problems: &mut Collector) -> Manifest {
    match root(bytes) {
        Ok(node) => manifest(&Field::root(&node), problems),
        Err((at, mistake)) => {
            problems.add(at, "", mistake);
            Manifest::default()
        }
    }
}

fn root(bytes: &[u8]) -> Result<Rc<Node>, (Position, Mistake)> {
    if bytes.len() > FILE_BYTES_MAX {
        let mistake = Mistake::FileTooLarge { max_kib: FILE_BYTES_MAX / 1024 };
        return Err((Position::START, mistake));
    }
    let text = std::str::from_utf8(bytes)
        .map_err(|error| (position_after(&bytes[..error.valid_up_to()]), Mistake::NotUtf8))?;
    // Editors on Windows write a byte-order mark first, which is not part of the text.
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    match tree::read(text)? {
        Some(node) if node.kind() != ValueKind::Nothing => Ok(node),
        _ => Err((Position::START, Mistake::EmptyFile)),
    }
}

/// The position of the first byte that is not UTF-8.
fn position_after(valid: &[u8]) -> Position {
    let text = String::from_utf8_lossy(valid);
    let line = text.split('\n').count();
    let column = text.rsplit('\n').next().map_or(0, |last| last.chars().count()) + 1;
    Position { line, column }
}

fn manifest(root: &Field<'_>, problems: &mut Collector) -> Manifest {
    let Some(mut fields) = Fields::open(root, "a map with the key `builds`", problems) else {
        return Manifest::default();
    };
    fields.value("version", values::version, problems);
    let name = fields.value("name", values::name, problems);
    let submodules = fields.value("submodules", values::submodules, problems).unwrap_or_default();
    let builds = fields.require("builds", "it maps names to builds", problems);
    let (preview, tests) = (fields.take("preview"), fields.take("test"));
    fields.take_extensions();
    fields.finish(problems);
    let builds = builds.map(|field| builds_and_jobs_of(&field, problems)).unwrap_or_default();
    names::check(&builds, problems);
    order::check(&builds, problems);
    let preview = preview.and_then(|field| preview::read(&field, &builds, problems));
    let tests = tests.map(|field| test::read(&field, &builds, preview.as_ref(), problems));
    Manifest { name, submodules, builds, preview, tests: tests.unwrap_or_default() }
}

/// Reads the builds, and notes if they make too many jobs together.
fn builds_and_jobs_of(field: &Field<'_>, problems: &mut Collector) -> Vec<Build> {
    let builds = builds_of(field, problems);
    let jobs = builds.iter().map(Build::job_count).sum();
    if jobs > FILE_JOBS_MAX {
        let mistake = Mistake::TooManyJobsInAll { jobs, max: FILE_JOBS_MAX };
        problems.add(field.at(), &*field.path, mistake);
    }
    builds
}

fn builds_of(field: &Field<'_>, problems: &mut Collector) -> Vec<Build> {
    let Some(mut entries) = field.map(problems) else {
        let hint = match field.kind() {
            ValueKind::List => Some("write `name:` instead of `- name:`"),
            _ => None,
        };
        problems.add(field.at(), &*field.path, field.wanted("a map of names to builds", hint));
        return Vec::new();
    };
    if entries.is_empty() {
        problems.add(field.at(), &*field.path, Mistake::NoBuilds);
    }
    limit(field, &mut entries, BUILDS_MAX, problems);
    let names: Vec<&str> = entries.iter().map(|entry| entry.key).collect();
    entries.iter().filter_map(|entry| build(entry, &names, problems)).collect()
}

/// Reads one build. `names` are the names of all builds of the file.
fn build(field: &Field<'_>, names: &[&str], problems: &mut Collector) -> Option<Build> {
    if let Err(mistake) = values::check_build_name(field.key) {
        problems.add(field.key_at, &*field.path, mistake);
    }
    let mut fields = Fields::open(field, "a map with at least `context`", problems)?;
    let paths = paths(field, &mut fields, problems);
    let platforms = platforms(&mut fields, problems);
    let machine = fields.value("machine", values::machine, problems).unwrap_or_default();
    let build_args = fields.take("build_args");
    let build_args = build_args.map(|field| build_args_of(&field, problems)).unwrap_or_default();
    let mut build = Build {
        name: field.key.to_owned(),
        context: paths.context,
        dockerfile: paths.dockerfile,
        platforms,
        machine,
        build_args,
        target: fields.value("target", values::target, problems),
        timeout: fields.value("timeout", times::build_timeout, problems).unwrap_or(DEFAULT_TIMEOUT),
        cache_from: fields
            .take("cache_from")
            .map(|field| cache_from(&field, problems))
            .unwrap_or_default(),
        variants: vec![Variant { name: field.key.to_owned(), values: BTreeMap::new() }],
        depends_on: Vec::new(),
        only_branches: None,
        paths: None,
        emulation: Emulation::default(),
        at: field.key_at,
        context_at: paths.context_at,
        dockerfile_at: paths.dockerfile_at,
        depends_on_at: field.key_at,
    };
    variants_and_conditions(&mut build, &mut fields, names, problems);
    fields.finish(problems);
    Some(build)
}

/// Reads the build's matrix, its dependencies, and the conditions under which it is built.
fn variants_and_conditions(
    build: &mut Build,
    fields: &mut Fields<'_>,
    names: &[&str],
    problems: &mut Collector,
) {
    if let Some(field) = fields.take("matrix") {
        let owner = Owner {
            name: &build.name,
            build_args: &build.build_args,
            jobs_each: build.jobs_of_each_variant(),
        };
        if let Some(variants) = matrix::read(&field, &owner, problems) {
            build.variants = variants;
        }
    }
    if let Some(field) = fields.take("depends_on") {
        build.depends_on_at = field.at();
        build.depends_on = order::depends_on(&field, &build.name, names, problems);
    }
    if let Some(field) = fields.take("only_branches") {
        build.only_branches = branch_patterns(&field, problems);
    }
    if let Some(field) = fields.take("paths") {
        build.paths = path_patterns(&field, problems);
    }
    build.emulation = fields.value("emulation", values::emulation, problems).unwrap_or_default();
}

struct Paths {
    context: String,
    context_at: Position,
    dockerfile: String,
    dockerfile_at: Position,
}

fn paths(build: &Field<'_>, fields: &mut Fields<'_>, problems: &mut Collector) -> Paths {
    let hint = "it is the folder that the image is built from";
    let context = fields.require("context", hint, problems);
    let context_at = context.as_ref().map_or(build.key_at, Field::at);
    let context = context.and_then(|field| read_value(&field, values::context, problems));
    let dockerfile = fields.take("dockerfile");
    let dockerfile_at = dockerfile.as_ref().map_or(context_at, Field::at);
    let dockerfile = dockerfile
        .and_then(|field| read_value(&field, values::dockerfile, problems))
        .unwrap_or_else(|| "Dockerfile".to_owned());
    if let Some(context) = &context
        && let Err(error) = dockerfile_candidates(context, &dockerfile)
    {
        problems.add(dockerfile_at, format!("{}.dockerfile", build.path), Mistake::Path(error));
    }
    let context = context.unwrap_or_else(|| ".".to_owned());
    Paths { context, context_at, dockerfile, dockerfile_at }
}

fn platforms(fields: &mut Fields<'_>, problems: &mut Collector) -> Vec<Platform> {
    let (one, several) = (fields.take("platform"), fields.take("platforms"));
    if let (Some(_), Some(several)) = (&one, &several) {
        problems.add(several.key_at, &*several.path, Mistake::BothPlatformKeys);
    }
    let one = one.and_then(|field| platform(&field, problems));
    let several = several.map(|field| platform_list(&field, problems)).unwrap_or_default();
    if let Some(one) = one {
        vec![one]
    } else if several.is_empty() {
        vec![Platform(Arch::Amd64)]
    } else {
        several
    }
}

fn platform(field: &Field<'_>, problems: &mut Collector) -> Option<Platform> {
    if field.kind() == ValueKind::List {
        let mistake = field.wanted("one platform", Some("did you mean `platforms`?"));
        problems.add(field.at(), &*field.path, mistake);
        return None;
    }
    read_value(field, values::platform, problems)
}

fn platform_list(field: &Field<'_>, problems: &mut Collector) -> Vec<Platform> {
    let Some(items) = field.list() else {
        let hint = (field.kind() == ValueKind::Text).then_some("did you mean `platform`?");
        problems.add(field.at(), &*field.path, field.wanted("a list of platforms", hint));
        return Vec::new();
    };
    if items.is_empty() {
        problems.add(field.at(), &*field.path, Mistake::NoPlatforms);
    }
    distinct(&items, values::platform, problems)
}

fn build_args_of(field: &Field<'_>, problems: &mut Collector) -> BTreeMap<String, Template> {
    let known = Variable::by_name();
    templates(field, BUILD_ARGS_MAX, values::BUILD_ARG_NAME, &known, problems)
}

fn cache_from(field: &Field<'_>, problems: &mut Collector) -> Vec<ImageRef> {
    let Some(mut items) = field.list() else {
        problems.add(field.at(), &*field.path, field.wanted("a list of image references", None));
        return Vec::new();
    };
    limit(field, &mut items, CACHE_FROM_MAX, problems);
    distinct(&items, values::image_ref, problems)
}
