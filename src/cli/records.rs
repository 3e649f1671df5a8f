//! `stagely runs`, `jobs`, `logs` and `cancel`: what core remembers of runs.

use std::io::{BufWriter, Write, stdout};
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Args;
use futures_util::TryStreamExt as _;
use jiff::tz::TimeZone;
use serde::Serialize;
use stagely_protocol::CommitSha;
use stagely_state::Timestamp;
use stagely_state::ids::{JobId, RunId};

use super::connect::ServerArgs;
use super::embedded::Records;
use super::run::outcome::{cached, duration_of, notes, platforms, seconds, status};
use super::table::table;
use crate::api::{ListRuns, LogRange, RunView};
use crate::client::{Client, LogEvent};

/// Digits of a commit that people compare.
const COMMIT_DIGITS: usize = 12;

/// Lists runs, newest first
#[derive(Args, Debug)]
pub struct RunsArgs {
    /// Most runs to list
    #[arg(long, value_name = "N", default_value_t = 20)]
    limit: usize,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    server: ServerArgs,
}

/// Lists the jobs of a run
#[derive(Args, Debug)]
pub struct JobsArgs {
    /// The run, run_…
    #[arg(value_name = "RUN")]
    run: RunId,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    server: ServerArgs,
}

/// Prints a job's log
#[derive(Args, Debug)]
pub struct LogsArgs {
    /// The job, job_…
    #[arg(value_name = "JOB")]
    job: JobId,
    /// Go on with what comes, to the job's end
    #[arg(short, long)]
    follow: bool,
    /// The first line, from 0
    #[arg(long, value_name = "N")]
    from: Option<u64>,
    /// The attempt, from 1. Default: the newest
    #[arg(long, value_name = "N")]
    attempt: Option<u32>,
    #[command(flatten)]
    server: ServerArgs,
}

/// Stops a run
#[derive(Args, Debug)]
pub struct CancelArgs {
    /// The run, run_…
    #[arg(value_name = "RUN")]
    run: RunId,
    /// Return at once instead of waiting until its machines are gone
    #[arg(long)]
    no_wait: bool,
    #[command(flatten)]
    server: ServerArgs,
}

/// Runs `stagely runs`.
///
/// # Errors
/// A core that cannot be asked; standard output that cannot be written.
pub async fn runs(arguments: RunsArgs) -> anyhow::Result<ExitCode> {
    let records = Records::open(&arguments.server).await?;
    let which = ListRuns { limit: Some(arguments.limit), before: None };
    let runs = records.client().runs(&which).await;
    records.close().await?;
    print(arguments.json, &runs?, |runs| runs_table(runs))
}

fn runs_table(runs: &[RunView]) -> String {
    if runs.is_empty() {
        return "no runs".to_owned();
    }
    let rows = runs.iter().map(|run| {
        let time = run.ended_at.map(|ended| seconds(ended.since(run.created_at)));
        [
            run.id.to_string(),
            run.project.clone(),
            run.environment.clone(),
            run.commit.as_ref().map(short).unwrap_or_default(),
            run.status.as_str().to_owned(),
            local_time(run.created_at),
            time.unwrap_or_default(),
        ]
    });
    table(["RUN", "PROJECT", "ENVIRONMENT", "COMMIT", "STATUS", "CREATED", "TIME"], rows)
}

fn short(commit: &CommitSha) -> String {
    commit.as_str().chars().take(COMMIT_DIGITS).collect()
}

/// `2026-11-24 13:05:07`, in this machine's time zone.
pub(super) fn local_time(at: Timestamp) -> String {
    let at = i64::try_from(at.0).ok().and_then(|at| jiff::Timestamp::from_millisecond(at).ok());
    let at = at.map(|at| at.to_zoned_datetime(TimeZone::system()));
    at.map(|at| at.strftime("%Y-%m-%d %H:%M:%S").to_string()).unwrap_or_default()
}

/// Runs `stagely jobs`.
///
/// # Errors
/// As [`runs`].
pub async fn jobs(arguments: JobsArgs) -> anyhow::Result<ExitCode> {
    let records = Records::open(&arguments.server).await?;
    let run = records.client().run(arguments.run).await;
    records.close().await?;
    let run = run?;
    if arguments.json {
        return print(true, &run.jobs, |_| String::new());
    }
    print(false, &run, jobs_table)
}

fn jobs_table(run: &RunView) -> String {
    let rows = run.jobs.iter().map(|job| {
        [
            job.id.to_string(),
            job.name.clone(),
            platforms(job),
            status(job),
            job.attempt.to_string(),
            duration_of(job).map(seconds).unwrap_or_default(),
            cached(job),
        ]
    });
    let jobs = table(["JOB", "NAME", "PLATFORM", "STATUS", "ATTEMPT", "TIME", "CACHED"], rows);
    let errors = run.jobs.iter().filter_map(|job| {
        job.error.as_ref().map(|error| format!("\n{} failed: {error}", job.name))
    });
    let waiting = run.jobs.iter().filter_map(|job| {
        let place = job.queue.as_ref()?;
        Some(format!("\n{} is number {} in the queue: {}", job.name, place.position, place.reason))
    });
    let plan_error = run.error.as_ref().map(|error| format!("\n{error}"));
    let notes = notes(run).into_iter().map(|note| format!("\n{note}"));
    jobs + &waiting.chain(notes).chain(errors).chain(plan_error).collect::<String>()
}

/// Runs `stagely logs`.
///
/// # Errors
/// As [`runs`].
pub async fn logs(arguments: LogsArgs) -> anyhow::Result<ExitCode> {
    let records = Records::open(&arguments.server).await?;
    let range = LogRange { from: arguments.from, attempt: arguments.attempt };
    let printed = if arguments.follow {
        follow(records.client(), arguments.job, range).await
    } else {
        copy(records.client(), arguments.job, &range).await
    };
    records.close().await?;
    printed
}

async fn copy(client: &Client, job: JobId, range: &LogRange) -> anyhow::Result<ExitCode> {
    let mut text = client.log(job, range).await?.bytes_stream();
    let mut out = BufWriter::new(stdout());
    while let Some(bytes) = text.try_next().await.context("the log broke off")? {
        out.write_all(&bytes)?;
    }
    out.flush()?;
    Ok(ExitCode::SUCCESS)
}

/// Prints lines as they come. Ends with 0 if the job completed, and with 1 otherwise.
async fn follow(client: &Client, job: JobId, range: LogRange) -> anyhow::Result<ExitCode> {
    // A job that is not there is told at once, and not taken for a core that is away.
    client.job(job).await?;
    let mut follower = client.follow_log(job, range);
    let mut code = ExitCode::SUCCESS;
    while let Some(event) = follower.next().await? {
        match event {
            LogEvent::Lines { lines, .. } => {
                let mut out = BufWriter::new(stdout());
                for line in lines {
                    writeln!(out, "{}", line.data)?;
                }
                out.flush()?;
            }
            LogEvent::End(status) => {
                eprintln!("The job is {}.", status.as_str());
                if status != crate::api::JobStatus::Completed {
                    code = ExitCode::FAILURE;
                }
            }
        }
    }
    Ok(code)
}

/// Runs `stagely cancel`.
///
/// # Errors
/// As [`runs`].
pub async fn cancel(arguments: CancelArgs) -> anyhow::Result<ExitCode> {
    let client = arguments.server.running()?;
    let mut follower = client.follow_run(arguments.run);
    if !arguments.no_wait {
        // A follower waits for a core that is away. Of that a user is told at once.
        client.run(arguments.run).await?;
        // Before the end is asked for: the core of `stagely run` is gone soon after it.
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

/// Prints `value` as JSON, or as `text` shows it.
pub(super) fn print<T: Serialize>(
    json: bool,
    value: &T,
    text: impl Fn(&T) -> String,
) -> anyhow::Result<ExitCode> {
    let text = if json { serde_json::to_string_pretty(value)? } else { text(value) };
    writeln!(stdout(), "{text}")?;
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{JobStatus, QueuePosition};
    use crate::cli::run::outcome::tests::{job, run};

    #[test]
    fn a_job_that_waits_is_told_with_its_place_and_its_reason_below_the_table() {
        let mut waiting = job(2, "web", "linux/amd64");
        waiting.status = JobStatus::Queued;
        let reason = "waiting for 1 of 50 builders".to_owned();
        waiting.queue = Some(QueuePosition { position: 12, reason });

        let text = jobs_table(&run(vec![job(1, "api", "linux/amd64"), waiting]));

        let line = "\nweb is number 12 in the queue: waiting for 1 of 50 builders";
        assert!(text.contains(line), "{text}");
        assert_eq!(text.matches("in the queue").count(), 1, "{text}");
    }
}
