//! `stagely approve`: agrees to a run of a fork's commit.

use std::io::{Write as _, stdout};
use std::process::ExitCode;

use clap::Args;
use stagely_state::ids::RunId;

use super::connect::ServerArgs;

/// Approves a run of a fork's commit, which waits for that
///
/// Look at the commit first: what it builds runs on your machines. It gets no secrets and writes no
/// shared cache.
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
/// A core that cannot be asked, or refuses; standard output that cannot be written.
pub async fn approve(arguments: ApproveArgs) -> anyhow::Result<ExitCode> {
    let run = arguments.server.running()?.approve(arguments.run).await?;
    writeln!(stdout(), "{} is approved", run.id)?;
    Ok(ExitCode::SUCCESS)
}
