//! `stagely project`: the repositories at GitHub whose pull requests are built.

use std::io::{Write as _, stdout};
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, Subcommand};
use secrecy::SecretString;
use stagely_state::{ForkPolicy, GithubRepository};
use url::Url;

use super::connect::ServerArgs;
use super::records::print;
use super::table::table;
use crate::api::{AddProject, BASE_PATH, ProjectView};

/// Says which repositories' pull requests are built
#[derive(Args, Debug)]
pub struct ProjectArgs {
    #[command(subcommand)]
    command: ProjectCommand,
}

#[derive(Subcommand, Debug)]
enum ProjectCommand {
    /// Builds the pull requests of a repository at GitHub from now on; changes it where it is there
    /// already. Says how its webhook is to be set up
    Add(AddArgs),
    /// Lists projects
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        server: ServerArgs,
    },
    /// Builds a project's pull requests no more. The images and caches of those that are open go; what else was built stays
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
    /// The repository
    #[arg(value_name = "OWNER/REPOSITORY")]
    repository: GithubRepository,
    /// The project's name. Default: made of the repository's
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// A file that holds a GitHub token for this repository alone. Default: what `[github]` of core's
    /// configuration says
    #[arg(long, value_name = "FILE")]
    github_token_file: Option<PathBuf>,
    /// What becomes of pull requests from forks
    #[arg(long, value_name = "POLICY", default_value = "approval", value_parser = fork_policy())]
    forks: ForkPolicy,
    /// Most machines that work for it at once. Default: as many as there are
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
        policy.expect("the parser lets only these names through")
    })
}

/// Runs `stagely project`.
///
/// # Errors
/// A core that cannot be asked, or refuses; standard output that cannot be written.
pub async fn project(arguments: ProjectArgs) -> anyhow::Result<ExitCode> {
    match arguments.command {
        ProjectCommand::Add(arguments) => add(arguments).await,
        ProjectCommand::List { json, server } => {
            let projects = server.running()?.projects().await?;
            print(json, &projects, |projects| projects_table(projects))
        }
        ProjectCommand::Remove { name, server } => {
            server.running()?.remove_project(&name).await?;
            writeln!(stdout(), "the pull requests of {name} are built no more")?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

async fn add(arguments: AddArgs) -> anyhow::Result<ExitCode> {
    let token = arguments.github_token_file.map(|path| read_token(&path)).transpose()?;
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

fn read_token(path: &std::path::Path) -> anyhow::Result<SecretString> {
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("cannot read the token in {}", path.display()))?;
    let token = text.trim_end();
    anyhow::ensure!(!token.is_empty(), "{} is empty", path.display());
    Ok(token.into())
}

/// What is left to do at GitHub.
fn added_text(project: &ProjectView, server: &Url) -> String {
    let server = server.as_str().trim_end_matches('/');
    let repository = project.github.as_deref().unwrap_or_default();
    format!(
        "{repository} is the project {}. Unless a GitHub App delivers its events, add a webhook in the \
         settings of the repository:\n\
         Payload URL   {server}{BASE_PATH}/webhooks/github\n\
         Content type  application/json\n\
         Secret        that of github.webhook-secret-file\n\
         Events        Pull requests, Pushes, Issue comments\n\
         GitHub must reach core at that address; it may be core's public-url instead.",
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
    fn what_is_left_to_do_at_github_is_said_and_the_list_says_where_projects_come_from() {
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
