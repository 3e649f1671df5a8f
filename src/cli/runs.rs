//! `stagely runs`: lists runs.

use std::cmp::Reverse;
use std::process::ExitCode;

use clap::Args;
use stagely_protocol::CommitSha;

use super::connect::ServerArgs;
use super::core_handle::CoreHandle;
use super::output::{local_time, print};
use super::run::outcome::seconds;
use super::table::table;
use crate::api::{ListRuns, RunView};
use crate::client::Client;

/// The digits of a commit hash in the list.
const COMMIT_DIGITS: usize = 12;

/// Lists runs, newest first
#[derive(Args, Debug)]
pub struct RunsArgs {
    /// The most runs to list
    #[arg(long, value_name = "N", default_value_t = 20)]
    limit: usize,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    server: ServerArgs,
}

/// Runs `stagely runs`.
///
/// # Errors
/// Core cannot be reached; standard output cannot be written.
pub async fn runs(arguments: RunsArgs) -> anyhow::Result<ExitCode> {
    let which = ListRuns { limit: Some(arguments.limit), before: None };
    let list = async |client: &Client| client.runs(&which).await;
    let mut runs = CoreHandle::collect(&arguments.server, list).await?;
    runs.sort_by_key(|run| Reverse(run.id));
    runs.truncate(arguments.limit);
    print(arguments.json, &runs, |runs| runs_table(runs))
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
            run.cost.map(|cost| cost.spending().total().to_string()).unwrap_or_default(),
        ]
    });
    table(["RUN", "PROJECT", "ENVIRONMENT", "COMMIT", "STATUS", "CREATED", "TIME", "COST"], rows)
}

pub(super) fn short(commit: &CommitSha) -> String {
    commit.as_str().chars().take(COMMIT_DIGITS).collect()
}
