//! `stagely run`: from a repository to pushed images, in front of one's eyes.

mod display;
mod follow;
mod git_server;
pub mod outcome;
mod registry;
mod snapshot;
mod source;
pub mod start;
mod watch;

use std::process::ExitCode;

use anyhow::bail;
use clap::Args;

use self::outcome::EXIT_CODES;
use self::snapshot::Wanted;
use self::source::{Named, Source, is_on_this_machine};
use self::start::{CloneTokenArgs, SetArgs, StartArgs};
use crate::api::CreateRun;
use crate::client::Client;

/// Builds a repository's images and shows it
///
/// Without --server, core and its builders run in this process and on this machine's Docker.
/// Progress and logs go to standard error, the result to standard output.
#[derive(Args, Debug)]
#[command(after_help = EXIT_CODES)]
pub struct RunArgs {
    /// The repository: a folder, or an address
    #[arg(default_value = ".", value_name = "PATH|URL")]
    source: String,
    /// The branch, tag or commit to build. Default: what is checked out, or the default branch
    #[arg(long = "ref", value_name = "REF")]
    reference: Option<String>,
    /// Build what lies in the folder, uncommitted changes included
    #[arg(long, conflicts_with = "reference")]
    dirty: bool,
    /// Only this build of stagely.yaml; may be repeated
    #[arg(long = "build", value_name = "NAME")]
    builds: Vec<String>,
    #[command(flatten)]
    set: SetArgs,
    /// The project's name. Default: made of the folder's name or the address
    #[arg(long, value_name = "NAME")]
    project: Option<String>,
    /// The environment's name. Default: made of the branch or tag
    #[arg(long, value_name = "NAME")]
    environment: Option<String>,
    /// The pull request that the commit belongs to: its environment is `pr-N`
    #[arg(long, value_name = "N", conflicts_with = "environment")]
    pull_request: Option<u64>,
    /// The commit comes from a fork: caches are read and never written
    #[arg(long, requires = "pull_request")]
    from_fork: bool,
    /// The branch or commit that the `paths` of builds are compared with. Default: the default branch
    #[arg(long, value_name = "REF")]
    base: Option<String>,
    #[command(flatten)]
    clone_token: CloneTokenArgs,
    #[command(flatten)]
    start: StartArgs,
}

/// Runs the command.
///
/// # Errors
/// What kept the run from starting, or from being followed to its end.
pub async fn run(arguments: RunArgs) -> anyhow::Result<ExitCode> {
    let server = arguments.start.named()?;
    // Mistakes in what is asked for show before anything is started.
    let source = arguments.source(server.as_ref()).await?;
    let place = arguments.start.place(server).await?;
    let request = arguments.request(&source);
    arguments.start.carry_out(place, async |client| client.create_run(&request).await).await
}

impl RunArgs {
    async fn source(&self, server: Option<&Client>) -> anyhow::Result<Source> {
        let token = self.clone_token.read()?;
        let base = self.base.as_deref();
        let wanted = match &self.reference {
            Some(reference) => Wanted::Ref(reference),
            None if self.dirty => Wanted::Dirty,
            None => Wanted::Head,
        };
        let mut source = match Named::parse(&self.source)? {
            Named::Address(_) if self.dirty => bail!("--dirty is for folders of this machine"),
            Named::Address(url) => {
                let at = Source::at(&url, self.reference.clone(), token);
                at.compared_with(self.base.clone())
            }
            Named::Folder(folder) => {
                let stays_here = server.is_none_or(|it| is_on_this_machine(it.server()));
                if stays_here && !self.start.detach {
                    Source::serve(&folder, wanted, base).await?
                } else {
                    Source::remote_of(&folder, wanted, base, token)?
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

    fn request(&self, source: &Source) -> CreateRun {
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
            ..CreateRun::new(source.repository.clone())
        }
    }
}
