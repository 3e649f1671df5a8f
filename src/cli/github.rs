//! `stagely github`: the connection with GitHub.

use std::fmt::Write as _;
use std::process::ExitCode;

use clap::Args;

use super::connect::ServerArgs;
use super::output::{local_time, print};
use super::table::table;
use crate::api::GithubView;

/// Shows the connection with GitHub: credentials, rate limits and the last comparison
#[derive(Args, Debug)]
pub struct GithubArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    server: ServerArgs,
}

/// Runs `stagely github`.
///
/// # Errors
/// Core cannot be reached; standard output cannot be written.
pub async fn github(arguments: GithubArgs) -> anyhow::Result<ExitCode> {
    let view = arguments.server.running()?.github().await?;
    print(arguments.json, &view, github_text)
}

fn github_text(view: &GithubView) -> String {
    let webhooks =
        if view.webhook_secret { "accepted" } else { "refused: no secret is configured" };
    let remaining = view.remaining.map_or_else(|| "unknown".to_owned(), |left| left.to_string());
    let mut text = format!(
        "credentials    {}\nwebhooks       {webhooks}\nrequests left  {remaining}",
        view.credentials
    );
    if let Some(resets) = view.resets_at {
        let _ = write!(text, " until {}", local_time(resets));
    }
    if let Some(until) = view.blocked_until {
        let _ = write!(text, "\nblocked until  {}", local_time(until));
    }
    if let Some(problem) = &view.problem {
        let _ = write!(text, "\nproblem        {problem}");
    }
    if view.projects.is_empty() {
        text.push_str("\nno repositories are watched; see `stagely project add`");
        return text;
    }
    let rows = view.projects.iter().map(|project| {
        [
            project.project.clone(),
            project.reconciled_at.map_or_else(|| "not yet".to_owned(), local_time),
            project.problem.clone().unwrap_or_default(),
            if project.deployments_problem.is_some() { "not permitted" } else { "" }.to_owned(),
        ]
    });
    let _ = write!(text, "\n\n{}", table(["PROJECT", "COMPARED", "PROBLEM", "DEPLOYMENTS"], rows));
    text
}

#[cfg(test)]
mod tests {
    use stagely_state::Timestamp;

    use super::*;
    use crate::api::ReconciledView;

    #[test]
    fn only_existing_problems_are_shown() {
        let mut view = GithubView {
            credentials: "app".to_owned(),
            webhook_secret: true,
            remaining: Some(4_999),
            resets_at: None,
            blocked_until: None,
            problem: None,
            projects: Vec::new(),
        };
        let text = github_text(&view);
        assert!(text.contains("4999") && text.contains("stagely project add"), "{text}");
        assert!(!text.contains("problem") && !text.contains("blocked"), "{text}");
        view.blocked_until = Some(Timestamp(1_795_000_000_000));
        let project = "shop".to_owned();
        let problem = Some("not shown to these credentials".to_owned());
        let deployments_problem = Some("GitHub refuses (403): not you".to_owned());
        let compared =
            ReconciledView { project, reconciled_at: None, problem, deployments_problem };
        view.projects.push(compared);
        let text = github_text(&view);
        assert!(text.contains("blocked until") && text.contains("not shown"), "{text}");
        assert!(text.contains("not permitted"), "{text}");
    }
}
