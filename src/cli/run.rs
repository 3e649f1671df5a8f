//! `stagely run`: builds a repository and shows the progress.

mod display;
mod follow;
mod git_server;
pub mod outcome;
mod preview;
mod promised_objects;
mod registry;
mod revision;
mod served_repository;
mod source;
pub mod start;
mod submodules;
mod user_git;
mod user_repository;
mod watch;
mod working_tree;

use std::process::ExitCode;

use anyhow::bail;
use clap::Args;
use stagely_agent::proxy::is_loopback;

use self::outcome::EXIT_CODES;
use self::preview::PreviewArgs;
use self::revision::Revision;
use self::source::{RepositoryLocation, RunSource};
use self::start::{CloneTokenArgs, SetArgs, StartArgs};
use crate::api::CreateRun;
use crate::client::Client;

/// Builds the images of a repository and shows the progress
///
/// Without --server, core runs inside this process, and its builders use this machine's Docker.
/// Progress and logs go to standard error, the result to standard output. If stagely.yaml has a
/// preview, it runs until Ctrl-C, or ends with the command where there is no terminal.
#[derive(Args, Debug)]
#[command(after_help = EXIT_CODES)]
pub struct RunArgs {
    /// The repository: a folder or an address
    #[arg(default_value = ".", value_name = "PATH|URL")]
    source: String,
    /// The branch, tag or commit to build. Default: the checked-out commit, or the default branch
    #[arg(long = "ref", value_name = "REF")]
    reference: Option<String>,
    /// Build the files in the folder, including uncommitted changes
    #[arg(long, conflicts_with = "reference")]
    dirty: bool,
    /// Build only this build of stagely.yaml. Can be repeated
    #[arg(long = "build", value_name = "NAME")]
    builds: Vec<String>,
    #[command(flatten)]
    set: SetArgs,
    /// The project's name. Default: derived from the folder's name or the address
    #[arg(long, value_name = "NAME")]
    project: Option<String>,
    /// The environment's name. Default: derived from the branch or tag
    #[arg(long, value_name = "NAME")]
    environment: Option<String>,
    /// The number of the commit's pull request. The environment is then `pr-N`
    #[arg(long, value_name = "N", conflicts_with = "environment")]
    pull_request: Option<u64>,
    /// Treat the commit as one from a fork: read caches, but never write them
    #[arg(long, requires = "pull_request")]
    from_fork: bool,
    /// The branch or commit to compare the `paths` of builds with. Default: the default branch
    #[arg(long, value_name = "REF")]
    base: Option<String>,
    #[command(flatten)]
    preview: PreviewArgs,
    /// Leave out the tests of stagely.yaml
    #[arg(long)]
    no_test: bool,
    #[command(flatten)]
    clone_token: CloneTokenArgs,
    #[command(flatten)]
    start: StartArgs,
}

/// Runs the command.
///
/// # Errors
/// The run cannot start, or cannot be followed to its end.
pub async fn run(arguments: RunArgs) -> anyhow::Result<ExitCode> {
    let server = arguments.start.named()?;
    // Checked first, so that mistakes are reported before core starts.
    let source = arguments.source(server.as_ref()).await?;
    let is_embedded = server.is_none();
    let core = arguments.start.core(server).await?;
    let request = arguments.request(&source, is_embedded);
    let keeps_preview = arguments.preview.is_kept();
    let start = async |client: &Client| client.create_run(&request).await;
    arguments.start.carry_out(core, keeps_preview, start).await
}

impl RunArgs {
    async fn source(&self, server: Option<&Client>) -> anyhow::Result<RunSource> {
        let token = self.clone_token.read()?;
        let base = self.base.as_deref();
        let revision = match &self.reference {
            Some(reference) => Revision::Ref(reference),
            None if self.dirty => Revision::Dirty,
            None => Revision::Head,
        };
        let mut source = match RepositoryLocation::parse(&self.source)? {
            RepositoryLocation::Address(_) if self.dirty => {
                bail!("--dirty needs a folder of this machine")
            }
            RepositoryLocation::Address(url) => {
                let at = RunSource::at(&url, self.reference.clone(), token);
                at.compared_with(self.base.clone())
            }
            RepositoryLocation::Folder(folder) => {
                let is_local = server.is_none_or(|client| is_loopback(client.server()));
                if is_local && !self.start.detach {
                    RunSource::serve(&folder, revision, base).await?
                } else {
                    RunSource::remote_of(&folder, revision, base, token)?
                }
            }
        };
        source.project = self.project.clone().or(source.project);
        if self.pull_request.is_some() {
            source.environment = None;
        }
        source.environment = self.environment.clone().or(source.environment);
        Ok(source)
    }

    fn request(&self, source: &RunSource, is_embedded: bool) -> CreateRun {
        CreateRun {
            reference: source.reference.clone(),
            clone_token: source.clone_token.clone(),
            project: source.project.clone(),
            environment: source.environment.clone(),
            pull_request: self.pull_request,
            from_fork: self.from_fork,
            base: source.base.clone(),
            builds: self.builds.clone(),
            set: self.set.map(),
            preview: self.preview.choice(is_embedded),
            without_tests: self.no_test,
            ..CreateRun::new(source.repository.clone())
        }
    }
}
