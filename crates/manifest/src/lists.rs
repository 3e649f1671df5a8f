//! Reads lists and maps of a limited length, such as patterns and variables.

use std::collections::BTreeMap;

use super::fields::{Field, read_value};
use super::globs::Globs;
use super::kind::ValueKind;
use super::limits::GLOBS_MAX;
use super::mistake::Mistake;
use super::problem::Collector;
use super::template::Template;
use super::values;

/// Opens a list; other values are a mistake.
pub(super) fn open<'a>(
    field: &Field<'a>,
    wanted: &'static str,
    problems: &mut Collector,
) -> Option<Vec<Field<'a>>> {
    let items = field.list();
    if items.is_none() {
        let hint = field.scalar().map(|_| "write `[…]` around it");
        problems.add(field.at(), &*field.path, field.wanted(wanted, hint));
    }
    items
}

/// Keeps the first `max` entries and notes that there are more, so that reading a hostile file costs
/// no more than reading a long one.
pub(super) fn limit(
    field: &Field<'_>,
    entries: &mut Vec<Field<'_>>,
    max: usize,
    problems: &mut Collector,
) {
    let found = entries.len();
    if found > max {
        problems.add(field.at(), &*field.path, Mistake::TooMany { found, max });
        entries.truncate(max);
    }
}

/// Reads the items of a list and notes repeated ones.
pub(super) fn distinct<T: PartialEq + ToString>(
    items: &[Field<'_>],
    read: fn(&Field<'_>) -> Result<T, Mistake>,
    problems: &mut Collector,
) -> Vec<T> {
    let mut values = Vec::new();
    for item in items {
        match read_value(item, read, problems) {
            Some(value) if values.contains(&value) => {
                problems.add(item.at(), &*item.path, Mistake::Twice(value.to_string()));
            }
            Some(value) => values.push(value),
            None => {}
        }
    }
    values
}

/// Reads patterns of branch names.
pub(super) fn branch_patterns(field: &Field<'_>, problems: &mut Collector) -> Option<Globs> {
    patterns(field, values::branch_glob, Globs::of_branches, problems)
}

/// Reads patterns of paths.
pub(super) fn path_patterns(field: &Field<'_>, problems: &mut Collector) -> Option<Globs> {
    patterns(field, values::path_glob, Globs::of_paths, problems)
}

fn patterns(
    field: &Field<'_>,
    read: fn(&Field<'_>) -> Result<String, Mistake>,
    compile: fn(&[String]) -> Result<Globs, Mistake>,
    problems: &mut Collector,
) -> Option<Globs> {
    let mut items = open(field, "a list of patterns", problems)?;
    if items.is_empty() {
        problems.add(field.at(), &*field.path, Mistake::EmptyList { what: "pattern" });
    }
    limit(field, &mut items, GLOBS_MAX, problems);
    let texts = distinct(&items, read, problems);
    compile(&texts).map_err(|mistake| problems.add(field.at(), &*field.path, mistake)).ok()
}

/// Reads a map of at most `max` names to texts with the variables `known`. `what` names a name in messages.
pub(super) fn templates<V: Clone>(
    field: &Field<'_>,
    max: usize,
    what: &'static str,
    known: &[(String, V)],
    problems: &mut Collector,
) -> BTreeMap<String, Template<V>> {
    let Some(mut entries) = field.map(problems) else {
        let hint = (field.kind() == ValueKind::List)
            .then_some("write `NAME: value` instead of `- NAME=value`");
        problems.add(field.at(), &*field.path, field.wanted("a map of names to values", hint));
        return BTreeMap::new();
    };
    limit(field, &mut entries, max, problems);
    let mut templates = BTreeMap::new();
    for entry in entries {
        if let Err(mistake) = values::check_variable_name(entry.key, what) {
            problems.add(entry.key_at, &*entry.path, mistake);
        }
        let template = template(&entry, known, problems);
        // A wrong value leaves its name, which must not be given twice.
        templates.insert(entry.key.to_owned(), template.unwrap_or_default());
    }
    templates
}

fn template<V: Clone>(
    field: &Field<'_>,
    known: &[(String, V)],
    problems: &mut Collector,
) -> Option<Template<V>> {
    let mut note = |mistake| problems.add(field.at(), &*field.path, mistake);
    let text = values::variable_value(field).map_err(&mut note).ok()?;
    let errors = |errors: Vec<_>| errors.into_iter().map(Mistake::Template).for_each(&mut note);
    Template::parse(text, known).map_err(errors).ok()
}
