//! `stagely cancel`: cancels a run.

use std::io::{Write as _, stdout};
use std::process::ExitCode;

use clap::Args;
use stagely_state::ids::RunId;

use super::connect::ServerArgs;

/// Cancels a run
#[derive(Args, Debug)]
pub struct CancelArgs {
    /// The run, run_…
    #[arg(value_name = "RUN")]
    run: RunId,
    /// Return at once, without waiting until the run's machines are terminated
    #[arg(long)]
    no_wait: bool,
    #[command(flatten)]
    server: ServerArgs,
}

/// Runs `stagely cancel`.
///
/// # Errors
/// Core cannot be reached or refuses; standard output cannot be written.
pub async fn cancel(arguments: CancelArgs) -> anyhow::Result<ExitCode> {
    let mut clients = arguments.server.all_running()?;
    let mut client = clients.remove(0);
    // The core of another command may have the run. An unknown run is an error of the first one.
    for other in clients {
        if other.run(arguments.run).await.is_ok() {
            client = other;
        }
    }
    let mut follower = client.follow_run(arguments.run);
    if !arguments.no_wait {
        // An unknown run or an unreachable core is an error here. The follower would wait for core.
        client.run(arguments.run).await?;
        // Connects before cancelling: the core of `stagely run` exits soon after its run has ended.
        follower.next().await?;
    }
    let mut run = client.cancel(arguments.run).await?;
    while !arguments.no_wait
        && let Some(newer) = follower.next().await?
    {
        run = newer;
    }
    writeln!(stdout(), "{} is {}", run.id, run.status.as_str())?;
    Ok(ExitCode::SUCCESS)
}
