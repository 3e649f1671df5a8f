//! `stagely rebuild` and `stagely warm`: runs that repeat what core knows already.

use std::process::ExitCode;
use std::str::FromStr;

use anyhow::bail;
use clap::Args;
use stagely_protocol::InvalidValue;
use stagely_state::ids::{EnvironmentId, RunId};

use super::records::{local_time, print};
use super::run::outcome::EXIT_CODES;
use super::run::start::{CloneTokenArgs, SetArgs, StartArgs};
use crate::api::{CreateWarmUp, RebuildEnvironment, RebuildRun, WarmUpView};
use crate::client::Client;

/// What is built once more.
#[derive(Clone, Copy, Debug)]
enum Rebuilt {
    Run(RunId),
    Environment(EnvironmentId),
}

impl FromStr for Rebuilt {
    type Err = InvalidValue;
    fn from_str(text: &str) -> Result<Self, InvalidValue> {
        if text.starts_with("env_") {
            text.parse().map(Self::Environment)
        } else {
            text.parse().map(Self::Run)
        }
    }
}

/// Builds a run's commit once more, as a new run
///
/// Core keeps no secrets of a run that has ended: tokens and build arguments must be given again. What
/// `stagely run` built from a folder of this machine is not served any more: run it again instead.
#[derive(Args, Debug)]
#[command(after_help = EXIT_CODES)]
pub struct RebuildArgs {
    /// The run, run_…; or an environment, env_…, for its newest run, also while that goes on
    #[arg(value_name = "RUN|ENVIRONMENT")]
    run: Rebuilt,
    /// Only what did not complete; the images of completed jobs are kept
    #[arg(long)]
    failed: bool,
    #[command(flatten)]
    set: SetArgs,
    #[command(flatten)]
    clone_token: CloneTokenArgs,
    #[command(flatten)]
    start: StartArgs,
}

/// Runs `stagely rebuild`.
///
/// # Errors
/// What kept the run from starting, or from being followed to its end.
pub async fn rebuild(arguments: RebuildArgs) -> anyhow::Result<ExitCode> {
    let request = RebuildRun {
        failed: arguments.failed,
        clone_token: arguments.clone_token.read()?,
        set: arguments.set.map(),
    };
    let has_arguments = !request.set.is_empty() || request.clone_token.is_some();
    if matches!(arguments.run, Rebuilt::Environment(_)) && has_arguments {
        bail!("tokens and build arguments are for a run: name its newest run, run_…");
    }
    let place = arguments.start.place(arguments.start.named()?).await?;
    let again = async |client: &Client| match arguments.run {
        Rebuilt::Run(run) => client.rebuild(run, &request).await,
        Rebuilt::Environment(environment) => {
            let rebuild = RebuildEnvironment { failed_only: request.failed };
            client.rebuild_environment(environment, &rebuild).await
        }
    };
    arguments.start.carry_out(place, again).await
}

/// Fills a project's caches without pushing images; without one, shows the schedule
#[derive(Args, Debug)]
#[command(after_help = EXIT_CODES)]
pub struct WarmArgs {
    /// The project's name
    #[arg(value_name = "PROJECT")]
    project: Option<String>,
    /// The branch. Default: the default branch
    #[arg(long, value_name = "NAME", requires = "project")]
    branch: Option<String>,
    #[command(flatten)]
    clone_token: CloneTokenArgs,
    #[command(flatten)]
    start: StartArgs,
}

/// Runs `stagely warm`.
///
/// # Errors
/// As [`rebuild`]; without a project, a core that cannot be asked.
pub async fn warm(arguments: WarmArgs) -> anyhow::Result<ExitCode> {
    let Some(project) = &arguments.project else {
        if arguments.start.detach {
            bail!("--detach needs a project whose caches are to be filled");
        }
        // A schedule is of a core that stays.
        let schedule = arguments.start.server.running()?.warm_up().await?;
        return print(arguments.start.json, &schedule, schedule_text);
    };
    let request =
        CreateWarmUp { branch: arguments.branch, clone_token: arguments.clone_token.read()? };
    let place = arguments.start.place(arguments.start.named()?).await?;
    let fill = async |client: &Client| client.create_warm_up(project, &request).await;
    arguments.start.carry_out(place, fill).await
}

fn schedule_text(warm_up: &WarmUpView) -> String {
    let Some(schedule) = &warm_up.schedule else {
        return "no warm-up is scheduled; `[warm-up]` of core's configuration does that".to_owned();
    };
    let or = |names: &[String], none: &str| {
        if names.is_empty() { none.to_owned() } else { names.join(", ") }
    };
    let due = warm_up.next_due_at.map_or_else(|| "never".to_owned(), local_time);
    format!(
        "schedule  {schedule} (UTC)\nnext due  {due}\nprojects  {}\nbranches  {}",
        or(&warm_up.projects, "none"),
        or(&warm_up.branches, "the default branch")
    )
}

#[cfg(test)]
mod tests {
    use stagely_state::Timestamp;

    use super::*;

    #[test]
    fn a_schedule_says_when_it_is_due_next() {
        let mut view = WarmUpView {
            schedule: Some("0 4 * * *".to_owned()),
            next_due_at: Some(Timestamp(1_770_000_000_000)),
            projects: vec!["shop".to_owned(), "site".to_owned()],
            branches: Vec::new(),
        };
        let due = local_time(Timestamp(1_770_000_000_000));
        assert_eq!(
            schedule_text(&view),
            format!(
                "schedule  0 4 * * * (UTC)\nnext due  {due}\nprojects  shop, site\n\
                 branches  the default branch"
            )
        );
        view.schedule = None;
        assert!(schedule_text(&view).contains("`[warm-up]`"));
    }
}
