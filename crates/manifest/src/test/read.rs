//! The tree of the section `test` → tests and all their mistakes.

use std::collections::BTreeMap;

use stagely_protocol::ImageRef;
use stagely_state::MachineSize;

use super::{Test, TestImage, TestPlace, values};
use crate::fields::{Field, Fields, read_value};
use crate::globs;
use crate::limits::{DEFAULT_TIMEOUT, ENV_MAX, GLOBS_MAX, TESTS_MAX};
use crate::lists::{self, distinct, limit, templates};
use crate::manifest::Build;
use crate::mistake::Mistake;
use crate::preview::{self, Preview, PreviewVariable};
use crate::problem::Collector;
use crate::template::{Template, Variable};
use crate::times;
use crate::values::{check_build_name, machine};

/// What the file says besides the section.
struct Context<'a> {
    builds: &'a [Build],
    /// The section is there, with mistakes or without.
    has_preview: bool,
    variables: Vec<(String, PreviewVariable)>,
}

/// Reads the section. `builds` and `preview` are those of the file.
pub(crate) fn tests(
    field: &Field<'_>,
    builds: &[Build],
    preview: Option<&Preview>,
    problems: &mut Collector,
) -> Vec<Test> {
    let Some(mut entries) = field.map(problems) else {
        problems.add(field.at(), &*field.path, field.wanted("a map of names to tests", None));
        return Vec::new();
    };
    if entries.is_empty() {
        problems.add(field.at(), &*field.path, Mistake::EmptyList { what: "test" });
    }
    limit(field, &mut entries, TESTS_MAX, problems);
    let variables = if let Some(preview) = preview {
        PreviewVariable::by_name(preview.endpoints.iter().map(|endpoint| &*endpoint.name))
    } else {
        let of_run = Variable::by_name().into_iter();
        of_run.map(|(name, variable)| (name, PreviewVariable::Run(variable))).collect()
    };
    let has_preview = preview.is_some() || problems.has("preview");
    let context = Context { builds, has_preview, variables };
    entries.iter().filter_map(|entry| test(entry, &context, problems)).collect()
}

fn test(field: &Field<'_>, context: &Context<'_>, problems: &mut Collector) -> Option<Test> {
    if check_build_name(field.key).is_err() {
        problems.add(field.key_at, &*field.path, Mistake::TestName);
    }
    let mut fields = Fields::open(field, "a map with `image`", problems)?;
    let hint = "it is the build whose image has the command, or an image reference";
    let image = fields.require("image", hint, problems);
    let image = image.and_then(|field| image_of(&field, context, problems));
    let command = fields.take("command").map(|field| {
        let hint = "write a list of the program and its arguments, such as `[npm, test]`";
        preview::command_texts(&field, hint, problems)
    });
    let on = place(&mut fields, context, problems);
    let (machine, shards) = machine_and_shards(&mut fields, on, problems);
    let env = fields.take("env").map(|field| env(&field, context, problems)).unwrap_or_default();
    let secrets = fields.take("secrets");
    let secrets = secrets.map(|field| preview::secret_names(&field, &env, problems));
    let test = Test {
        name: field.key.to_owned(),
        image: image.unwrap_or_else(|| TestImage::Variant(String::new())),
        command: command.unwrap_or_default(),
        on,
        machine,
        shards,
        retries: fields.value("retries", values::retries, problems).unwrap_or(0),
        timeout: fields.value("timeout", times::test_timeout, problems).unwrap_or(DEFAULT_TIMEOUT),
        env,
        secrets: secrets.unwrap_or_default(),
        junit: patterns(&mut fields, "junit", problems),
        artifacts: patterns(&mut fields, "artifacts", problems),
        comment_images: patterns(&mut fields, "comment_images", problems),
        at: field.key_at,
    };
    fields.finish(problems);
    Some(test)
}

fn env(
    field: &Field<'_>,
    context: &Context<'_>,
    problems: &mut Collector,
) -> BTreeMap<String, Template<PreviewVariable>> {
    let env = templates(field, ENV_MAX, "a variable's name", &context.variables, problems);
    // Its other mistakes are noted already.
    let entries = field.map(&mut Collector::default()).unwrap_or_default();
    for entry in entries.iter().filter(|entry| values::is_reserved(entry.key)) {
        problems.add(entry.key_at, &*entry.path, Mistake::ReservedVariable);
    }
    env
}

/// A text with one of `/`, `:` and `@` is an image reference, and any other one the name of a build.
fn image_of(
    field: &Field<'_>,
    context: &Context<'_>,
    problems: &mut Collector,
) -> Option<TestImage> {
    let is_reference = field.scalar().is_some_and(|text| text.contains(['/', ':', '@']));
    if is_reference {
        let reference: ImageRef = read_value(field, crate::values::image_ref, problems)?;
        return Some(TestImage::Reference(reference));
    }
    preview::variant(field, context.builds, problems).map(TestImage::Variant)
}

fn place(fields: &mut Fields<'_>, context: &Context<'_>, problems: &mut Collector) -> TestPlace {
    let Some(field) = fields.take("on") else { return TestPlace::default() };
    let place = read_value(&field, values::place, problems).unwrap_or_default();
    if place == TestPlace::Preview && !context.has_preview {
        problems.add(field.at(), &*field.path, Mistake::NoPreviewToTest);
    }
    place
}

fn machine_and_shards(
    fields: &mut Fields<'_>,
    on: TestPlace,
    problems: &mut Collector,
) -> (MachineSize, u32) {
    let (size, count) = (fields.take("machine"), fields.take("shards"));
    if on == TestPlace::Preview {
        for field in [&size, &count].into_iter().flatten() {
            problems.add(field.key_at, &*field.path, Mistake::OnlyOnTester);
        }
    }
    let size = size.and_then(|field| read_value(&field, machine, problems));
    let count = count.and_then(|field| read_value(&field, values::shards, problems));
    (size.unwrap_or_default(), count.unwrap_or(1))
}

fn patterns(fields: &mut Fields<'_>, key: &'static str, problems: &mut Collector) -> Vec<String> {
    let Some(field) = fields.take(key) else { return Vec::new() };
    let Some(mut items) = lists::open(&field, "a list of patterns", problems) else {
        return Vec::new();
    };
    limit(&field, &mut items, GLOBS_MAX, problems);
    let read = |field: &Field<'_>| {
        let text = field.text()?;
        globs::check_file(text)?;
        Ok(text.to_owned())
    };
    distinct(&items, read, problems)
}
