//! Reads and checks single values of the section `test`.

use super::TestPlace;
use crate::fields::Field;
use crate::kind::ValueKind;
use crate::limits::{TEST_RETRIES_MAX, TEST_SHARDS_MAX};
use crate::mistake::Mistake;
use crate::preview::keyword;

/// `tester` or `preview`.
pub(super) fn place(field: &Field<'_>) -> Result<TestPlace, Mistake> {
    keyword(field, &TestPlace::NAMES)
}

pub(super) fn shards(field: &Field<'_>) -> Result<u32, Mistake> {
    number(field, 1, TEST_SHARDS_MAX)
}

pub(super) fn retries(field: &Field<'_>) -> Result<u32, Mistake> {
    number(field, 0, TEST_RETRIES_MAX)
}

/// A number in decimal digits.
fn number(field: &Field<'_>, min: u32, max: u32) -> Result<u32, Mistake> {
    let mistake = || Mistake::NumberRange { min, max };
    match (field.scalar(), field.kind()) {
        (Some(text), ValueKind::Number) => {
            let is_plain = text == "0" || text.starts_with(|first| matches!(first, '1'..='9'));
            let number = text.parse().ok().filter(|number| (min..=max).contains(number));
            number.filter(|_| is_plain).ok_or_else(mistake)
        }
        (Some(text), ValueKind::Text) if text.parse::<u32>().is_ok() => {
            Err(field.wanted("a number", Some("write it without quotes")))
        }
        _ => Err(mistake()),
    }
}

/// Whether Stagely sets the variable itself.
pub(super) fn is_reserved(name: &str) -> bool {
    name == "PREVIEW_URL" || name.starts_with("STAGELY_")
}
