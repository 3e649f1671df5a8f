//! `stagely run`: from a repository to pushed images, in front of one's eyes.

mod display;
mod git_server;
pub mod outcome;
mod registry;
mod snapshot;
mod source;
mod watch;

use std::collections::BTreeMap;
use std::io::{Write as _, stdout};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use clap::Args;
use secrecy::SecretString;

use self::display::Display;
use self::outcome::{EXIT_CANCELLED, EXIT_CODES, exit_code, report};
use self::snapshot::Wanted;
use self::source::{Named, Source, is_on_this_machine};
use self::watch::{Update, Watch};
use super::connect::{ServerArgs, state_folder};
use super::embedded::{Embedded, builders_of_this_machine};
use super::settings::Settings;
use super::signals::Interrupts;
use crate::api::{CreateRun, RunView};
use crate::client::Client;
use crate::config::RegistryConfig;
use crate::ids::RunId;

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
    /// A build argument for every build; KEY alone takes the value from the environment, where no
    /// other user of this machine sees it. May be repeated
    #[arg(long = "set", value_name = "KEY[=VALUE]", value_parser = parse_set)]
    set: Vec<(String, SecretString)>,
    /// The project's name. Default: made of the folder's name or the address
    #[arg(long, value_name = "NAME")]
    project: Option<String>,
    /// The environment's name. Default: made of the branch or tag
    #[arg(long, value_name = "NAME")]
    environment: Option<String>,
    /// A file that holds a token for the repository; the variable `STAGELY_CLONE_TOKEN` may hold one too
    #[arg(long, value_name = "FILE")]
    clone_token_file: Option<PathBuf>,
    /// Start the run and leave; print its id. Needs --server or --data-dir
    #[arg(long)]
    detach: bool,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    server: ServerArgs,
    #[command(flatten)]
    settings: Settings,
}

fn parse_set(text: &str) -> Result<(String, SecretString), String> {
    match text.split_once('=') {
        Some((key, value)) => Ok((key.to_owned(), value.into())),
        None => match std::env::var(text) {
            Ok(value) => Ok((text.to_owned(), value.into())),
            Err(_) => Err(format!("{text} has no `=VALUE`, and is not in the environment either")),
        },
    }
}

/// Where the run goes on.
#[derive(Debug)]
enum Place {
    Server(Client),
    Here(Embedded),
}

impl Place {
    const fn client(&self) -> &Client {
        match self {
            Self::Server(client) | Self::Here(Embedded { client, .. }) => client,
        }
    }

    async fn leave(self) -> anyhow::Result<()> {
        match self {
            Self::Server(_) => Ok(()),
            Self::Here(embedded) => embedded.stop().await,
        }
    }
}

/// Runs the command.
///
/// # Errors
/// What kept the run from starting, or from being followed to its end.
pub async fn run(arguments: RunArgs) -> anyhow::Result<ExitCode> {
    let server = arguments.server.named()?;
    if arguments.detach && server.is_none() {
        bail!("--detach needs a core that goes on: name one with --server or --data-dir");
    }
    // Mistakes in what is asked for show before anything is started.
    let source = arguments.source(server.as_ref()).await?;
    let place = match server {
        Some(client) => Place::Server(client),
        None => Place::Here(arguments.start_here().await?),
    };
    match arguments.run_at(place.client(), source).await {
        // Builders notice within a minute that their core is gone, and end.
        Ok(End::Left) => Ok(ExitCode::from(EXIT_CANCELLED)),
        Ok(End::Over(code)) => place.leave().await.map(|()| code),
        Err(error) => {
            // The first error is the one to tell.
            let _ = place.leave().await;
            Err(error)
        }
    }
}

/// How the command ends.
enum End {
    /// With the run, or after it was started.
    Over(ExitCode),
    /// At once, whatever goes on.
    Left,
}

impl RunArgs {
    async fn source(&self, server: Option<&Client>) -> anyhow::Result<Source> {
        let token = self.clone_token()?;
        let wanted = match &self.reference {
            Some(reference) => Wanted::Ref(reference),
            None if self.dirty => Wanted::Dirty,
            None => Wanted::Head,
        };
        let mut source = match Named::parse(&self.source)? {
            Named::Address(_) if self.dirty => bail!("--dirty is for folders of this machine"),
            Named::Address(url) => Source::at(&url, self.reference.clone(), token),
            Named::Folder(folder) => {
                let stays_here = server.is_none_or(|it| is_on_this_machine(it.server()));
                if stays_here && !self.detach {
                    Source::serve(&folder, wanted).await?
                } else {
                    Source::remote_of(&folder, wanted, token)?
                }
            }
        };
        source.project = self.project.clone().or(source.project);
        source.environment = self.environment.clone().or(source.environment);
        Ok(source)
    }

    fn clone_token(&self) -> anyhow::Result<Option<SecretString>> {
        match &self.clone_token_file {
            Some(path) => {
                let text = std::fs::read_to_string(path)
                    .with_context(|| format!("cannot read the token in {}", path.display()))?;
                Ok(Some(text.trim_end().into()))
            }
            None => Ok(std::env::var("STAGELY_CLONE_TOKEN")
                .ok()
                .filter(|token| !token.is_empty())
                .map(Into::into)),
        }
    }

    async fn start_here(&self) -> anyhow::Result<Embedded> {
        let mut config = self.settings.read()?;
        if self.settings.config.is_none() && self.settings.max_concurrent.is_none() {
            config.builders.max_concurrent = builders_of_this_machine();
        }
        if config.registry == RegistryConfig::default() {
            let host = config.local.docker_host.as_deref();
            config.registry.url = registry::ensure(host).await?;
        }
        Embedded::start_when_free(config, &state_folder()?).await
    }

    async fn run_at(&self, client: &Client, source: Source) -> anyhow::Result<End> {
        let set: BTreeMap<_, _> = self.set.iter().cloned().collect();
        let request = CreateRun {
            reference: source.reference.clone(),
            clone_token: source.clone_token.clone(),
            project: source.project.clone(),
            environment: source.environment.clone(),
            builds: self.builds.clone(),
            set,
            ..CreateRun::new(source.repository.clone())
        };
        let run = client.create_run(&request).await?;
        if self.detach {
            self.print(&run, |run| run.id.to_string())?;
            return Ok(End::Over(ExitCode::SUCCESS));
        }
        let Some(run) = follow(client, run).await? else { return Ok(End::Left) };
        self.print(&run, report)?;
        Ok(End::Over(exit_code(&run)))
    }

    fn print(&self, run: &RunView, text: impl Fn(&RunView) -> String) -> anyhow::Result<()> {
        let text = if self.json { serde_json::to_string_pretty(run)? } else { text(run) };
        writeln!(stdout(), "{text}")?;
        Ok(())
    }
}

/// Shows `run` until it is over. The first Ctrl-C cancels it and waits for the clean-up; the second
/// leaves at once: `None`.
async fn follow(client: &Client, run: RunView) -> anyhow::Result<Option<RunView>> {
    let mut watch = Watch::start(client.clone(), run.id);
    let mut display = Display::new();
    let mut newest = run;
    let mut interrupts = Interrupts::new()?;
    loop {
        tokio::select! {
            update = watch.next() => match update? {
                Some(Update::Run(run)) => {
                    display.show_run(&run);
                    newest = *run;
                }
                Some(Update::Lines { job, attempt, lines }) => {
                    display.show_lines(job, attempt, &lines);
                }
                None => break,
            },
            count = interrupts.next() => {
                if count > 1 {
                    display.end();
                    return Ok(None);
                }
                display.say("Cancelling, and waiting for the clean-up; Ctrl-C again leaves at once");
                cancel(client.clone(), newest.id);
            }
        }
    }
    display.end();
    Ok(Some(newest))
}

/// Asks for the end, and does not keep the display waiting for the answer.
fn cancel(client: Client, run: RunId) {
    tokio::spawn(async move {
        if let Err(error) = client.cancel(run).await {
            eprintln!("error: the run is not cancelled: {error}");
        }
    });
}
