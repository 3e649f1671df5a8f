//! Reads lists and maps of a limited length.

use super::fields::{Field, read_value};
use super::mistake::Mistake;
use super::problem::Collector;

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
