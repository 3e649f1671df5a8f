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

/// Formats a time in this machine's time zone: `2026-11-24 13:05:07`.
pub(super) fn local_time(at: Timestamp) -> String {
    let at = i64::try_from(at.0).ok().and_then(|at| jiff::Timestamp::from_millisecond(at).ok());
    let at = at.map(|at| at.to_zoned_datetime(TimeZone::system()));
    at.map(|at| at.strftime("%Y-%m-%d %H:%M:%S").to_string()).unwrap_or_default()
}
