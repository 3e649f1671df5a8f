//! `stagely schema`: prints the JSON Schema of `stagely.yaml`.

use std::io::{self, Write};
use std::process::ExitCode;

use stagely_manifest::json_schema;

/// Prints the schema to standard output.
///
/// # Errors
/// Standard output cannot be written.
pub fn schema() -> anyhow::Result<ExitCode> {
    let text = serde_json::to_string_pretty(&json_schema())?;
    writeln!(io::stdout().lock(), "{text}")?;
    Ok(ExitCode::SUCCESS)
}
