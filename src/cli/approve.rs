//! `stagely approve`: approves a run of a commit from a fork.

use std::io::{Write as _, stdout};
use std::process::ExitCode;

use clap::Args;
use stagely_state::ids::RunId;

use super::connect::ServerArgs;

/// Approves a run of a commit from a fork
///
/// Review the commit first: its builds run on your machines. They get no secrets and cannot write
/// shared caches.
#[derive(Args, Debug)]
pub struct ApproveArgs {
    /// The run, run_…
    #[arg(value_name = "RUN")]
    run: RunId,
    #[command(flatten)]
    server: ServerArgs,
}

/// Runs `stagely approve`.
///
/// # Errors
/// Core cannot be reached or refuses; standard output cannot be written.
pub async fn approve(arguments: ApproveArgs) -> anyhow::Result<ExitCode> {
    let run = arguments.server.running()?.approve(arguments.run).await?;
    writeln!(stdout(), "{} is approved", run.id)?;
    Ok(ExitCode::SUCCESS)
}
