//! `stagely queue`: lists waiting jobs.

use std::process::ExitCode;

use anyhow::Context as _;
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
    let mut clients = arguments.server.all_running()?.into_iter();
    let first = clients.next().context("no core runs")?;
    let mut queue = first.queue().await?;
    for client in clients {
        let other = client.queue().await?;
        queue.max_concurrent += other.max_concurrent;
        queue.live_machines += other.live_machines;
        queue.jobs.extend(other.jobs);
    }
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
