//! The tree of the section `preview` → a preview and all its mistakes.

use std::collections::BTreeMap;

use super::source::{Deployed, Form};
use super::{Preview, PreviewVariable, SINGLE_SERVICE, ServiceCommand, values};
use crate::fields::{Field, Fields, read_value};
use crate::limits::{
    COMMAND_TEXTS_MAX, DEFAULT_COMMAND_TIMEOUT, DEFAULT_DISK_GIB, DEFAULT_SLEEP_AFTER, DEFAULT_TTL,
    ENV_MAX, GIB_BYTES, PUBLIC_PATHS_MAX, SECRETS_MAX,
};
use crate::lists::{self, branch_patterns, distinct, limit, path_patterns, templates};
use crate::manifest::Build;
use crate::mistake::Mistake;
use crate::problem::Collector;
use crate::template::Template;
use crate::times;
use crate::values::machine;

/// Reads the section. `builds` are those of the file.
pub(crate) fn preview(
    field: &Field<'_>,
    builds: &[Build],
    problems: &mut Collector,
) -> Option<Preview> {
    let mut fields = Fields::open(field, "a map with `compose` or `image`", problems)?;
    let Deployed { form, source, endpoints, compose_at } =
        Deployed::read(field, &mut fields, builds, problems);
    let variables = PreviewVariable::by_name(endpoints.iter().map(|endpoint| &*endpoint.name));
    let mut preview = Preview {
        source,
        endpoints,
        env: fields
            .take("env")
            .map(|field| templates(&field, ENV_MAX, "a variable's name", &variables, problems))
            .unwrap_or_default(),
        secrets: Vec::new(),
        migrate: fields.take("migrate").and_then(|field| command(&field, form, problems)),
        seed: fields.take("seed").and_then(|field| command(&field, form, problems)),
        reset_when: fields.take("reset_when").and_then(|field| path_patterns(&field, problems)),
        on: fields.value("on", values::trigger, problems).unwrap_or_default(),
        branches: fields.take("branches").and_then(|field| branch_patterns(&field, problems)),
        machine: fields.value("machine", machine, problems).unwrap_or_default(),
        disk_bytes: fields
            .value("disk", values::disk_bytes, problems)
            .unwrap_or(DEFAULT_DISK_GIB * GIB_BYTES),
        access: fields.value("access", values::access, problems).unwrap_or_default(),
        public_paths: fields
            .take("public_paths")
            .map(|field| public_paths(&field, problems))
            .unwrap_or_default(),
        sleep_after: fields
            .value("sleep_after", times::sleep_after, problems)
            .unwrap_or(Some(DEFAULT_SLEEP_AFTER)),
        ttl: fields.value("ttl", times::ttl, problems).unwrap_or(DEFAULT_TTL),
        compose_at,
    };
    if let Some(field) = fields.take("secrets") {
        preview.secrets = secret_names(&field, &preview.env, problems);
    }
    fields.finish(problems);
    Some(preview)
}

/// Reads the names of secrets, which are not those of `env`.
pub(crate) fn secret_names(
    field: &Field<'_>,
    env: &BTreeMap<String, Template<PreviewVariable>>,
    problems: &mut Collector,
) -> Vec<String> {
    let Some(mut items) = lists::open(field, "a list of names", problems) else {
        return Vec::new();
    };
    limit(field, &mut items, SECRETS_MAX, problems);
    let names = distinct(&items, values::secret_name, problems);
    for item in &items {
        if item.scalar().is_some_and(|name| env.contains_key(name)) {
            problems.add(item.at(), &*item.path, Mistake::SetTwice { other: "env" });
        }
    }
    names
}

fn public_paths(field: &Field<'_>, problems: &mut Collector) -> Vec<String> {
    let Some(mut items) = lists::open(field, "a list of paths", problems) else {
        return Vec::new();
    };
    limit(field, &mut items, PUBLIC_PATHS_MAX, problems);
    distinct(&items, values::public_path, problems)
}

/// Reads `migrate` or `seed`.
fn command(field: &Field<'_>, form: Form, problems: &mut Collector) -> Option<ServiceCommand> {
    let mut fields = Fields::open(field, "a map with `command`", problems)?;
    let hint = "it is the service of the compose file whose image has the command";
    let service = match form {
        Form::Compose => fields.require("service", hint, problems),
        Form::Image | Form::Unclear => fields.take("service"),
    };
    let service = service.and_then(|field| {
        let service = read_value(&field, values::service, problems)?;
        if form == Form::Image && service != SINGLE_SERVICE {
            let mistake = Mistake::OtherService { only: SINGLE_SERVICE };
            problems.add(field.at(), &*field.path, mistake);
        }
        Some(service)
    });
    let hint = "it is a list of the program and its arguments";
    let command = fields
        .require("command", hint, problems)
        .map(|field| {
            let hint =
                "write a list of the program and its arguments, such as `[bin/migrate, --all]`";
            command_texts(&field, hint, problems)
        })
        .unwrap_or_default();
    let timeout = fields.value("timeout", times::command_timeout, problems);
    fields.finish(problems);
    Some(ServiceCommand {
        service: service.unwrap_or_else(|| SINGLE_SERVICE.to_owned()),
        command,
        timeout: timeout.unwrap_or(DEFAULT_COMMAND_TIMEOUT),
    })
}

/// Reads a program and its arguments. `hint` is for a text in place of the list.
pub(crate) fn command_texts(
    field: &Field<'_>,
    hint: &'static str,
    problems: &mut Collector,
) -> Vec<String> {
    let Some(mut items) = field.list() else {
        let hint = field.scalar().map(|_| hint);
        problems.add(field.at(), &*field.path, field.wanted("a list of texts", hint));
        return Vec::new();
    };
    if items.is_empty() {
        problems.add(field.at(), &*field.path, Mistake::EmptyText { hint: Some("name a program") });
    }
    limit(field, &mut items, COMMAND_TEXTS_MAX, problems);
    items.iter().filter_map(|item| read_value(item, values::command_text, problems)).collect()
}
