//! `stagely previews logs`: prints and follows the log of a preview's services.

use std::pin::pin;
use std::process::ExitCode;

use clap::Args;

use super::WhichPreview;
use super::find::{FoundPreview, find};
use crate::api::PreviewLogRange;
use crate::cli::logs::{print_lines, print_text};
use crate::cli::signals::output_closed;

/// Prints the log of a preview's services
///
/// Each line begins with the name of its service. Core keeps the newest 16 MiB since the last deployment, and as much of
/// the deployment before.
#[derive(Args, Debug)]
pub(super) struct LogsArgs {
    #[command(flatten)]
    which: WhichPreview,
    /// Print further lines, also of later deployments, until the preview ends
    #[arg(short, long)]
    follow: bool,
    /// Print only so many lines from the end
    #[arg(long, value_name = "N")]
    tail: Option<u64>,
    /// The number of the deployment. Default: the one that the preview shows
    #[arg(long, value_name = "N")]
    generation: Option<u64>,
}

/// Runs `stagely previews logs`.
///
/// # Errors
/// The preview does not exist; core cannot be reached; standard output cannot be written.
pub(super) async fn logs(arguments: LogsArgs) -> anyhow::Result<ExitCode> {
    let LogsArgs { which, follow, tail, generation } = arguments;
    let FoundPreview { client, preview } = find(&which).await?;
    let range = PreviewLogRange { generation, from: None, tail };
    if !follow {
        print_text(client.service_log(preview.id, &range).await?).await?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut follower = client.follow_service_log(preview.id, range);
    let mut closed = pin!(output_closed());
    loop {
        let lines = tokio::select! {
            lines = follower.next() => lines?,
            // Services may be silent for long after the reader has ended.
            () = &mut closed => return Ok(ExitCode::SUCCESS),
        };
        let Some(lines) = lines else { return Ok(ExitCode::SUCCESS) };
        print_lines(&lines)?;
    }
}
