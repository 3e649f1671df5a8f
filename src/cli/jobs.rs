//! `stagely jobs`: lists the jobs of a run.

use std::process::ExitCode;

use clap::Args;
use stagely_state::ids::RunId;

use super::connect::ServerArgs;
use super::core_handle::CoreHandle;
use super::output::print;
use super::run::outcome::{cached, duration_of, notes, platforms, seconds, status};
use super::table::table;
use crate::api::RunView;
use crate::client::Client;

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

/// Runs `stagely jobs`.
///
/// # Errors
/// Core cannot be reached; standard output cannot be written.
pub async fn jobs(arguments: JobsArgs) -> anyhow::Result<ExitCode> {
    let get = async |client: &Client| client.run(arguments.run).await;
    let (core, run) = CoreHandle::find(&arguments.server, get).await?;
    core.close().await?;
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
        let queue = job.queue.as_ref()?;
        Some(format!("\n{} is number {} in the queue: {}", job.name, queue.position, queue.reason))
    });
    let plan_error = run.error.as_ref().map(|error| format!("\n{error}"));
    let notes = notes(run).into_iter().map(|note| format!("\n{note}"));
    jobs + &waiting.chain(notes).chain(errors).chain(plan_error).collect::<String>()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{JobStatus, QueuePosition};
    use crate::cli::run::outcome::tests::{job, run};

    #[test]
    fn waiting_jobs_are_listed_below_the_table_with_position_and_reason() {
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
