//! `stagely queue`: lists waiting jobs.

use std::process::ExitCode;

use clap::Args;

use super::connect::ServerArgs;
use super::output::print;
use super::table::table;
use crate::api::QueueView;

/// Lists waiting jobs, in the order in which they will get machines
#[derive(Args, Debug)]
pub struct QueueArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    server: ServerArgs,
}

/// Runs `stagely queue`.
///
/// # Errors
/// Core cannot be reached; standard output cannot be written.
pub async fn queue(arguments: QueueArgs) -> anyhow::Result<ExitCode> {
    let queue = arguments.server.running()?.queue().await?;
    print(arguments.json, &queue, queue_table)
}

fn queue_table(queue: &QueueView) -> String {
    let QueueView { live_machines, max_concurrent, jobs } = queue;
    let builders = format!("{live_machines} of {max_concurrent} builders are in use");
    if jobs.is_empty() {
        return format!("no jobs wait; {builders}");
    }
    let rows = jobs.iter().map(|job| {
        [
            job.position.to_string(),
            job.job_id.to_string(),
            job.name.clone(),
            job.project.clone(),
            job.reason.clone(),
        ]
    });
    format!("{}\n{builders}", table(["", "JOB", "NAME", "PROJECT", "WAITS FOR"], rows))
}
