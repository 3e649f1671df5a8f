//! `stagely logs`: prints and follows the log of a job.

use std::io::{BufWriter, Write as _, stdout};
use std::pin::pin;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Args;
use futures_util::TryStreamExt as _;
use reqwest::Response;
use stagely_state::ids::JobId;

use super::connect::ServerArgs;
use super::core_handle::CoreHandle;
use super::output::note;
use super::signals::output_closed;
use crate::api::{FollowedLine, JobStatus, LogRange};
use crate::client::{Client, LogEvent};

/// Prints the log of a job
#[derive(Args, Debug)]
pub struct LogsArgs {
    /// The job, job_…
    #[arg(value_name = "JOB")]
    job: JobId,
    /// Print further lines until the job ends
    #[arg(short, long)]
    follow: bool,
    /// The number of the first line, from 0
    #[arg(long, value_name = "N")]
    from: Option<u64>,
    /// The number of the attempt, from 1. Default: the newest
    #[arg(long, value_name = "N")]
    attempt: Option<u32>,
    #[command(flatten)]
    server: ServerArgs,
}

/// Runs `stagely logs`.
///
/// # Errors
/// Core cannot be reached; standard output cannot be written.
pub async fn logs(arguments: LogsArgs) -> anyhow::Result<ExitCode> {
    let get = async |client: &Client| client.job(arguments.job).await;
    let (core, _) = CoreHandle::find(&arguments.server, get).await?;
    let range = LogRange { from: arguments.from, attempt: arguments.attempt };
    let printed = if arguments.follow {
        follow(core.client(), arguments.job, range).await
    } else {
        copy(core.client(), arguments.job, &range).await
    };
    core.close().await?;
    printed
}

async fn copy(client: &Client, job: JobId, range: &LogRange) -> anyhow::Result<ExitCode> {
    print_text(client.log(job, range).await?).await?;
    Ok(ExitCode::SUCCESS)
}

/// Prints a log as it arrives.
pub(super) async fn print_text(log: Response) -> anyhow::Result<()> {
    let mut text = log.bytes_stream();
    let mut out = BufWriter::new(stdout());
    while let Some(bytes) = text.try_next().await.context("the log was interrupted")? {
        out.write_all(&bytes)?;
    }
    Ok(out.flush()?)
}

pub(super) fn print_lines(lines: &[FollowedLine<'_>]) -> std::io::Result<()> {
    let mut out = BufWriter::new(stdout());
    for line in lines {
        writeln!(out, "{}", line.data)?;
    }
    out.flush()
}

/// Prints lines as they arrive. The exit code is 0 if the job completes, otherwise 1.
async fn follow(client: &Client, job: JobId, range: LogRange) -> anyhow::Result<ExitCode> {
    let mut follower = client.follow_log(job, range);
    let mut code = ExitCode::SUCCESS;
    let mut closed = pin!(output_closed());
    loop {
        let event = tokio::select! {
            event = follower.next() => event?,
            // A job may be silent for long after the reader has ended.
            () = &mut closed => return Ok(code),
        };
        let Some(event) = event else { return Ok(code) };
        match event {
            LogEvent::Lines { lines, .. } => print_lines(&lines)?,
            LogEvent::End(status) => {
                note(&format!("The job is {}.", status.as_str()));
                if status != JobStatus::Completed {
                    code = ExitCode::FAILURE;
                }
            }
        }
    }
}
