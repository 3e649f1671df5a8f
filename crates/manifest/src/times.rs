//! Reads times such as `45m` and `7d`, and checks their limits.

use std::time::Duration;

use super::fields::Field;
use super::kind::ValueKind;
use super::limits::{
    COMMAND_TIMEOUT_MAX, HEALTH_TIMEOUT_MAX, SLEEP_AFTER_MAX, SLEEP_AFTER_MIN, TIMEOUT_MAX,
    TTL_MAX, TTL_MIN,
};
use super::mistake::Mistake;
use super::suggest::shown;

/// The limits of a time, and how messages name them.
struct Limits {
    min: Duration,
    max: Duration,
    /// Completes the sentence "the most that".
    max_of: &'static str,
}

/// The time limit of a build.
pub(super) fn build_timeout(field: &Field<'_>) -> Result<Duration, Mistake> {
    time(field, &Limits { min: Duration::ZERO, max: TIMEOUT_MAX, max_of: "a build may take" })
}

/// The time limit of a test.
pub(super) fn test_timeout(field: &Field<'_>) -> Result<Duration, Mistake> {
    time(field, &Limits { min: Duration::ZERO, max: TIMEOUT_MAX, max_of: "a test may take" })
}

/// The time until an endpoint is healthy.
pub(super) fn health_timeout(field: &Field<'_>) -> Result<Duration, Mistake> {
    let max_of = "a health check may take";
    time(field, &Limits { min: Duration::ZERO, max: HEALTH_TIMEOUT_MAX, max_of })
}

/// The time limit of `migrate` and `seed`.
pub(super) fn command_timeout(field: &Field<'_>) -> Result<Duration, Mistake> {
    let max_of = "a command may take";
    time(field, &Limits { min: Duration::ZERO, max: COMMAND_TIMEOUT_MAX, max_of })
}

/// A time or `never`, which is `None`.
pub(super) fn sleep_after(field: &Field<'_>) -> Result<Option<Duration>, Mistake> {
    if let (Some("never"), ValueKind::Text) = (field.scalar(), field.kind()) {
        return Ok(None);
    }
    let max_of = "a preview may wait; write `never` for one that does not sleep";
    time(field, &Limits { min: SLEEP_AFTER_MIN, max: SLEEP_AFTER_MAX, max_of }).map(Some).map_err(
        |mistake| match mistake {
            Mistake::Time(text) => Mistake::TimeOrNever(text),
            other => other,
        },
    )
}

/// The time that a preview stays without a push or a visit.
pub(super) fn ttl(field: &Field<'_>) -> Result<Duration, Mistake> {
    let max_of = "a preview may stay unused";
    time(field, &Limits { min: TTL_MIN, max: TTL_MAX, max_of })
}

fn time(field: &Field<'_>, limits: &Limits) -> Result<Duration, Mistake> {
    let (Some(text), ValueKind::Text | ValueKind::Number) = (field.scalar(), field.kind()) else {
        return Err(field.wanted("a time such as `45m`", None));
    };
    if !text.is_empty() && text.len() < 10 && text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(Mistake::TimeUnit(text.to_owned()));
    }
    let duration = parse(text).ok_or_else(|| Mistake::Time(text.to_owned()))?;
    let Limits { min, max, max_of } = *limits;
    if duration.is_zero() {
        return Err(Mistake::TimeZero);
    }
    if duration < min {
        return Err(Mistake::TimeTooShort { text: shown(text), min: short_form(min) });
    }
    if duration > max {
        return Err(Mistake::TimeTooLong { text: shown(text), max: short_form(max), max_of });
    }
    Ok(duration)
}

/// Parses days, hours, minutes and seconds, in this order and each at most once.
fn parse(text: &str) -> Option<Duration> {
    let (days, text) = leading_count(text, 'd')?;
    let (hours, text) = leading_count(text, 'h')?;
    let (minutes, text) = leading_count(text, 'm')?;
    let (seconds, text) = leading_count(text, 's')?;
    if !text.is_empty() || days.or(hours).or(minutes).or(seconds).is_none() {
        return None;
    }
    let seconds_of = |count: Option<u64>, unit: u64| count.unwrap_or(0) * unit;
    let hours = seconds_of(days, 24 * 3600) + seconds_of(hours, 3600);
    Some(Duration::from_secs(hours + seconds_of(minutes, 60) + seconds_of(seconds, 1)))
}

/// Splits `12h30m` at `h` into 12 and `30m`. Without the unit there is no count; before the unit there
/// must be 1 to 6 digits.
fn leading_count(text: &str, unit: char) -> Option<(Option<u64>, &str)> {
    let Some((digits, rest)) = text.split_once(unit) else { return Some((None, text)) };
    let valid = (1..=6).contains(&digits.len()) && digits.bytes().all(|byte| byte.is_ascii_digit());
    if valid { Some((Some(digits.parse().ok()?), rest)) } else { None }
}

/// A limit in the form of the file: days from two days on, else hours or minutes.
fn short_form(limit: Duration) -> String {
    match limit.as_secs() / 60 {
        minutes if minutes >= 48 * 60 => format!("{}d", minutes / (24 * 60)),
        minutes if minutes >= 60 => format!("{}h", minutes / 60),
        minutes => format!("{minutes}m"),
    }
}
