//! `stagely warm`: fills the caches of a project, and shows the schedule of warm-ups.

use std::process::ExitCode;

use anyhow::bail;
use clap::Args;

use super::output::{local_time, print};
use super::run::outcome::EXIT_CODES;
use super::run::start::{CloneTokenArgs, StartArgs};
use crate::api::{CreateWarmUp, WarmUpView};
use crate::client::Client;

/// Fills the caches of a project, or shows the schedule of warm-ups
///
/// Pushes no images. Without a project, shows the schedule.
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
/// The run cannot start, or cannot be followed to its end; core cannot be reached.
pub async fn warm(arguments: WarmArgs) -> anyhow::Result<ExitCode> {
    let Some(project) = &arguments.project else {
        if arguments.start.detach {
            bail!("--detach needs a project");
        }
        // Only a core that keeps running has a schedule.
        let schedule = arguments.start.server.running()?.warm_up().await?;
        return print(arguments.start.json, &schedule, schedule_text);
    };
    let request =
        CreateWarmUp { branch: arguments.branch, clone_token: arguments.clone_token.read()? };
    let is_known = async |client: &Client| {
        let known = client.projects().await?;
        Ok(known.iter().any(|known| known.name == *project))
    };
    let core = arguments.start.core_with(arguments.start.named()?, is_known).await?;
    let fill = async |client: &Client| client.create_warm_up(project, &request).await;
    arguments.start.carry_out(core, false, fill).await
}

fn schedule_text(warm_up: &WarmUpView) -> String {
    let Some(schedule) = &warm_up.schedule else {
        return "no warm-up is scheduled; see `[warm-up]` in core's configuration".to_owned();
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
    fn a_schedule_is_shown_with_its_next_time() {
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
