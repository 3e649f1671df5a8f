//! `stagely project`: GitHub repositories whose pull requests are built.

use std::io::{Write as _, stdout};
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, Subcommand};
use secrecy::{ExposeSecret as _, SecretString};
use stagely_state::{ForkPolicy, GithubRepository};
use url::Url;

use super::connect::{ServerArgs, read_token};
use super::output::print;
use super::table::table;
use crate::api::{AddProject, BASE_PATH, ProjectView};

/// Manages the GitHub repositories whose pull requests are built
#[derive(Args, Debug)]
pub struct ProjectArgs {
    #[command(subcommand)]
    command: ProjectCommand,
}

#[derive(Subcommand, Debug)]
enum ProjectCommand {
    /// Adds a repository or changes it, and prints how to set up its webhook
    ///
    /// Core builds its pull requests from now on.
    Add(AddArgs),
    /// Lists projects
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        server: ServerArgs,
    },
    /// Removes a project: its pull requests are no longer built
    ///
    /// Images and caches of open pull requests are deleted; other images stay.
    Remove {
        /// The project's name
        #[arg(value_name = "NAME")]
        name: String,
        #[command(flatten)]
        server: ServerArgs,
    },
}

#[derive(Args, Debug)]
struct AddArgs {
    /// The repository at GitHub
    #[arg(value_name = "OWNER/REPOSITORY")]
    repository: GithubRepository,
    /// The project's name. Default: derived from the repository's
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// A file with a GitHub token for this repository alone. Default: the credentials of `[github]` in
    /// core's configuration
    #[arg(long, value_name = "FILE")]
    github_token_file: Option<PathBuf>,
    /// The policy for pull requests from forks
    #[arg(long, value_name = "POLICY", default_value = "approval", value_parser = fork_policy())]
    forks: ForkPolicy,
    /// The most machines at once. Default: no limit of its own
    #[arg(long, value_name = "N")]
    max_concurrent: Option<NonZeroU32>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    server: ServerArgs,
}

/// Parses the names of [`ForkPolicy`], and shows them in the help.
fn fork_policy() -> impl TypedValueParser<Value = ForkPolicy> {
    let names = ForkPolicy::ALL.map(ForkPolicy::as_str);
    PossibleValuesParser::new(names).map(|name| {
        let policy = ForkPolicy::ALL.into_iter().find(|policy| policy.as_str() == name);
        policy.expect("the parser accepts only these names")
    })
}

/// Runs `stagely project`.
///
/// # Errors
/// Core cannot be reached or refuses; standard output cannot be written.
pub async fn project(arguments: ProjectArgs) -> anyhow::Result<ExitCode> {
    match arguments.command {
        ProjectCommand::Add(arguments) => add(arguments).await,
        ProjectCommand::List { json, server } => {
            let projects = server.running()?.projects().await?;
            print(json, &projects, |projects| projects_table(projects))
        }
        ProjectCommand::Remove { name, server } => {
            server.running()?.remove_project(&name).await?;
            writeln!(stdout(), "pull requests of {name} are no longer built")?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

async fn add(arguments: AddArgs) -> anyhow::Result<ExitCode> {
    let token = arguments.github_token_file.map(|path| read_github_token(&path)).transpose()?;
    let add = AddProject {
        github: arguments.repository,
        name: arguments.name,
        token,
        forks: arguments.forks,
        max_concurrent: arguments.max_concurrent,
    };
    let client = arguments.server.running()?;
    let added = client.add_project(&add).await?;
    print(arguments.json, &added, |added| added_text(added, client.server()))
}

fn read_github_token(path: &Path) -> anyhow::Result<SecretString> {
    let token = read_token(path)?;
    anyhow::ensure!(!token.expose_secret().is_empty(), "{} is empty", path.display());
    Ok(token)
}

/// The remaining steps at GitHub.
fn added_text(project: &ProjectView, server: &Url) -> String {
    let server = server.as_str().trim_end_matches('/');
    let repository = project.github.as_deref().unwrap_or_default();
    format!(
        "{repository} is the project {}. Unless a GitHub App delivers its events, add a webhook in the \
         settings of the repository:\n\
         Payload URL   {server}{BASE_PATH}/webhooks/github\n\
         Content type  application/json\n\
         Secret        the content of github.webhook-secret-file\n\
         Events        Pull requests, Pushes, Issue comments\n\
         GitHub must be able to reach core at that address; if it cannot, use core's public-url.",
        project.name
    )
}

fn projects_table(projects: &[ProjectView]) -> String {
    if projects.is_empty() {
        return "no projects".to_owned();
    }
    let rows = projects.iter().map(|project| {
        let forks = project.forks.map(|forks| match forks {
            ForkPolicy::Approval => "approval",
            ForkPolicy::Never => "never",
            ForkPolicy::KnownContributors => "known-contributors",
        });
        [
            project.name.clone(),
            project.github.clone().unwrap_or_default(),
            forks.unwrap_or_default().to_owned(),
            project.max_concurrent.map(|max| max.to_string()).unwrap_or_default(),
            if project.configured { "stagely.toml" } else { "" }.to_owned(),
            project.repository.clone(),
        ]
    });
    table(["PROJECT", "GITHUB", "FORKS", "MAX", "FROM", "REPOSITORY"], rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_webhook_is_described_and_the_list_names_the_origin_of_projects() {
        let project = ProjectView {
            id: stagely_state::ids::ProjectId::from_bits(1),
            name: "shop".to_owned(),
            repository: "https://github.com/acme/shop.git".to_owned(),
            github: Some("acme/shop".to_owned()),
            forks: Some(ForkPolicy::Never),
            max_concurrent: None,
            configured: true,
            has_token: false,
        };
        let text = added_text(&project, &"https://core.example/".parse().unwrap());
        assert!(text.contains("https://core.example/api/v1/webhooks/github\n"), "{text}");
        let list = projects_table(&[project]);
        assert!(list.contains("acme/shop") && list.contains("stagely.toml"), "{list}");
        assert!(list.contains("never"), "{list}");
    }
}
