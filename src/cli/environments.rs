//! `stagely environments`: lists environments, and closes them.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io::{Write as _, stdout};
use std::process::ExitCode;

use anyhow::{Context as _, anyhow};
use clap::{Args, Subcommand};
use console::truncate_str;
use stagely_state::ids::EnvironmentId;

use super::connect::ServerArgs;
use super::core_handle::CoreHandle;
use super::output::print;
use super::table::table;
use crate::api::{EnvironmentView, ListEnvironments};
use crate::client::Client;

/// The width of an environment's images in the list. --json prints all of them.
const IMAGES_COLUMNS: usize = 20;

/// Lists environments, and closes them
#[derive(Args, Debug)]
#[command(args_conflicts_with_subcommands = true)]
pub struct EnvironmentsArgs {
    #[command(subcommand)]
    command: Option<EnvironmentsCommand>,
    #[command(flatten)]
    list: ListArgs,
}

#[derive(Args, Debug)]
struct ListArgs {
    /// List only environments of this project
    #[arg(long, value_name = "NAME")]
    project: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    server: ServerArgs,
}

#[derive(Subcommand, Debug)]
enum EnvironmentsCommand {
    /// Closes an environment, as the end of its pull request does
    ///
    /// Cancels its runs and deletes the cache references that only it writes, and the images of a pull
    /// request. A new run opens it again.
    Close(CloseArgs),
}

#[derive(Args, Debug)]
struct CloseArgs {
    /// The environment's project, or its id, env_…
    #[arg(value_name = "PROJECT|ID")]
    project: String,
    /// The environment's name. Not needed with an id
    #[arg(value_name = "ENVIRONMENT")]
    environment: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    server: ServerArgs,
}

/// Runs `stagely environments`.
///
/// # Errors
/// Core cannot be reached or refuses; the environment does not exist; standard output cannot be written.
pub async fn environments(arguments: EnvironmentsArgs) -> anyhow::Result<ExitCode> {
    if let Some(EnvironmentsCommand::Close(which)) = arguments.command {
        return close(which).await;
    }
    let ListArgs { project, json, server } = arguments.list;
    let which = ListEnvironments { project };
    let list = async |client: &Client| client.environments(&which).await;
    let mut environments = CoreHandle::collect(&server, list).await?;
    // Several cores of a user may know an environment. The one with its newest run counts.
    environments.sort_by_key(|environment| Reverse(environment.newest_run));
    let mut known = BTreeSet::new();
    environments.retain(|environment| {
        known.insert((environment.project.clone(), environment.name.clone()))
    });
    environments
        .sort_by(|one, other| (&one.project, &one.name).cmp(&(&other.project, &other.name)));
    print(json, &environments, |environments| environments_table(environments))
}

fn environments_table(environments: &[EnvironmentView]) -> String {
    if environments.is_empty() {
        return "no environments".to_owned();
    }
    let rows = environments.iter().map(|environment| {
        let images: Vec<&str> = environment.images.iter().map(|image| &*image.build).collect();
        [
            environment.project.clone(),
            environment.name.clone(),
            environment.pull_request.map(|number| format!("#{number}")).unwrap_or_default(),
            if environment.closed { "closed" } else { "open" }.to_owned(),
            environment.newest_run.map(|run| run.to_string()).unwrap_or_default(),
            truncate_str(&images.join(", "), IMAGES_COLUMNS, "…").into_owned(),
        ]
    });
    table(["PROJECT", "ENVIRONMENT", "PR", "STATUS", "NEWEST RUN", "IMAGES"], rows)
}

async fn close(which: CloseArgs) -> anyhow::Result<ExitCode> {
    let (client, found) = find_in_all(which.server.all_running()?, &which).await?;
    // Printed first, so that it can be read even if the response is lost.
    if !which.json {
        writeln!(stdout(), "{}", closing_text(&found))?;
    }
    let closed = client.close_environment(found.id).await?;
    print(which.json, &closed, |closed| format!("{} of {} is closed", closed.name, closed.project))
}

/// Finds the environment in the cores `clients`, and the core that has its newest run.
async fn find_in_all(
    clients: Vec<Client>,
    which: &CloseArgs,
) -> anyhow::Result<(Client, EnvironmentView)> {
    let mut newest: Option<(Client, EnvironmentView)> = None;
    let mut first_error = None;
    for client in clients {
        let environments = client.environments(&ListEnvironments::default()).await?;
        match find(environments, &which.project, which.environment.as_deref()) {
            Ok(found) => {
                let is_older =
                    newest.as_ref().is_some_and(|(_, newest)| found.newest_run < newest.newest_run);
                if !is_older {
                    newest = Some((client, found));
                }
            }
            Err(error) => first_error = first_error.or(Some(error)),
        }
    }
    newest.ok_or_else(|| first_error.unwrap_or_else(|| anyhow!("no core of this user runs")))
}

/// Finds the environment by its id, or by its project and name.
fn find(
    environments: Vec<EnvironmentView>,
    project: &str,
    name: Option<&str>,
) -> anyhow::Result<EnvironmentView> {
    let mut environments = environments.into_iter();
    let found = if let Some(name) = name {
        environments.find(|found| found.project == project && found.name == name)
    } else {
        let id: EnvironmentId = project.parse().with_context(|| {
            format!("give the environment's name after the project {project:?}, or its id alone")
        })?;
        environments.find(|found| found.id == id)
    };
    found.with_context(|| {
        let what = name.map_or_else(|| project.to_owned(), |name| format!("{name} of {project}"));
        format!("there is no environment {what}; `stagely environments` lists them")
    })
}

/// Describes the effects of closing an environment.
fn closing_text(environment: &EnvironmentView) -> String {
    let EnvironmentView { name, project, .. } = environment;
    let mut text = format!("Closing {name} of {project}: its open runs are cancelled");
    match &environment.cache_refs[..] {
        [] => text.push_str(". It has no cache refs of its own."),
        refs => {
            text.push_str(", and these cache refs are deleted:");
            for reference in refs {
                let _ = write!(text, "\n  {reference}");
            }
        }
    }
    if environment.pull_request.is_some() {
        text.push_str("\nThe images that its pull request pushed are deleted.");
    } else {
        text.push_str("\nIts images stay in the registry.");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(name: &str) -> EnvironmentView {
        EnvironmentView {
            id: EnvironmentId::from_bits(u128::from(name.as_bytes()[0])),
            project: "shop".to_owned(),
            name: name.to_owned(),
            pull_request: name.strip_prefix("pr-").and_then(|number| number.parse().ok()),
            closed: false,
            newest_run: None,
            images: Vec::new(),
            cache_refs: Vec::new(),
            head: None,
            comment: None,
            comment_url: None,
            report_problem: None,
        }
    }

    #[test]
    fn an_environment_is_found_by_its_id_or_its_project_and_name() {
        let all = || vec![environment("main"), environment("pr-7")];
        assert_eq!(find(all(), "shop", Some("pr-7")).unwrap().pull_request, Some(7));
        let id = environment("main").id.to_string();
        assert_eq!(find(all(), &id, None).unwrap().name, "main");
        let error = find(all(), "shop", Some("pr-8")).unwrap_err().to_string();
        assert!(error.starts_with("there is no environment pr-8 of shop"), "{error}");
        let error = find(all(), "shop", None).unwrap_err().to_string();
        assert!(error.contains("name after the project \"shop\""), "{error}");
    }

    #[test]
    fn long_lists_of_images_are_cut() {
        let mut main = environment("main");
        main.newest_run = Some(stagely_state::ids::RunId::from_bits(1));
        let image = |number| crate::api::EnvironmentImage {
            build: format!("service-{number}"),
            tag: "registry:5000/shop/main:app".parse().unwrap(),
            digest: format!("sha256:{}", "ab".repeat(32)).parse().unwrap(),
            commit: "0123abcd".repeat(5).parse().unwrap(),
        };
        main.images = (0..20).map(image).collect();
        let table = environments_table(&[main]);
        assert!(table.ends_with("service-0, service-…"), "{table}");
    }

    #[test]
    fn closing_lists_the_deleted_references() {
        let mut closing = environment("pr-7");
        assert!(closing_text(&closing).contains("no cache refs of its own"));
        closing.cache_refs.push("registry:5000/shop/cache:app.pr-7".parse().unwrap());
        let text = closing_text(&closing);
        assert!(text.contains("deleted:\n  registry:5000/shop/cache:app.pr-7\n"), "{text}");
        assert!(text.ends_with("pull request pushed are deleted."), "{text}");
        let text = closing_text(&environment("main"));
        assert!(text.ends_with("Its images stay in the registry."), "{text}");
    }
}
