//! Prints results to standard output.

use std::io::{self, Write as _, stderr, stdout};
use std::process::ExitCode;

use jiff::tz::TimeZone;
use serde::Serialize;
use stagely_state::Timestamp;

/// Prints `value` as JSON or as `text`.
pub(super) fn print<T: Serialize>(
    json: bool,
    value: &T,
    text: impl Fn(&T) -> String,
) -> anyhow::Result<ExitCode> {
    let text = if json { serde_json::to_string_pretty(value)? } else { text(value) };
    writeln!(stdout(), "{text}")?;
    Ok(ExitCode::SUCCESS)
}

/// Prints a line to standard error. Unlike `eprintln!`, does not panic if nobody reads it.
pub fn note(text: &str) {
    let _ = writeln!(stderr(), "{text}");
}

/// Whether an error says that nobody reads the output any more.
pub fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let kind = |cause: &(dyn std::error::Error + 'static)| {
        cause.downcast_ref::<io::Error>().map(io::Error::kind)
    };
    error.chain().any(|cause| kind(cause) == Some(io::ErrorKind::BrokenPipe))
}

/// Formats a time in this machine's time zone: `2026-11-24 13:05:07 +01:00`.
pub(super) fn local_time_with_zone(at: Timestamp) -> String {
    formatted(at, "%Y-%m-%d %H:%M:%S %:z")
}

/// Formats a time in this machine's time zone, for tables: `2026-11-24 13:05:07`.
pub(super) fn local_time(at: Timestamp) -> String {
    formatted(at, "%Y-%m-%d %H:%M:%S")
}

fn formatted(at: Timestamp, format: &str) -> String {
    let at = i64::try_from(at.0).ok().and_then(|at| jiff::Timestamp::from_millisecond(at).ok());
    let at = at.map(|at| at.to_zoned_datetime(TimeZone::system()));
    at.map(|at| at.strftime(format).to_string()).unwrap_or_default()
}

/// Formats a time in at most five characters: `45s`, `12m`, `3h05m`, `2d04h`, `12d`.
pub(super) fn short_time(seconds: u64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3_600, seconds / 86_400);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, minutes) => format!("{minutes}m"),
        (0, hours, minutes) => format!("{hours}h{:02}m", minutes % 60),
        (days @ ..10, hours, _) => format!("{days}d{:02}h", hours % 24),
        (days, ..) => format!("{days}d"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_at_most_five_characters() {
        let shown = [45, 720, 11_100, 187_200, 1_040_000].map(short_time);
        assert_eq!(shown, ["45s", "12m", "3h05m", "2d04h", "12d"]);
    }
}
