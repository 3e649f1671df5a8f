//! Arguments → core, agent or a client command.

use std::io::{self, IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Args, CommandFactory as _, Parser, Subcommand};
use clap_complete::Shell;
use stagely::cli::output::{is_broken_pipe, note};
use stagely::cli::run::outcome::EXIT_FAILED;
use stagely::cli::settings::{ServiceArgs, SettingsArgs};
use stagely::cli::signals::stop_token;
use stagely::cli::{
    approve, artifacts, budget, cancel, cost, doctor, environments, explain, fleets, github, jobs,
    logs, machines, previews, project, queue, rebuild, run, runs, schema, secret, sweep,
    test_results, token, validate, warm,
};
use stagely::core::damage::DamagedDatabase;
use stagely::core::{self, FolderCheck};
use stagely_agent::exec::exec;
use stagely_agent::{GUARD_COMMAND, Guard, clean_up, guard_children};
use stagely_protocol::WireId;
use stagely_protocol::agent_config::AgentConfig;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

/// The time limit for threads to end after the command has ended.
const RUNTIME_END_LIMIT: Duration = Duration::from_secs(2);

/// The exit code of a core whose database is damaged. A service manager must not start it again.
const EXIT_DAMAGED: u8 = 5;

/// Libraries that log their traffic, including tokens and passwords. Only their warnings are logged,
/// whatever the value of `STAGELY_LOG`.
const WIRE_LOGS: [&str; 6] =
    ["tungstenite", "tokio_tungstenite", "hyper", "h2", "reqwest", "bollard"];

/// Builds the container images of pull requests, each on a machine of its own, and runs them as previews
#[derive(Parser)]
#[command(name = "stagely", version, propagate_version = true, arg_required_else_help = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Run(Box<run::RunArgs>),
    Rebuild(Box<rebuild::RebuildArgs>),
    Warm(Box<warm::WarmArgs>),
    /// Checks a stagely.yaml and prints every mistake with line and column
    Validate {
        /// The file, or its folder
        #[arg(value_name = "FILE")]
        file: Option<PathBuf>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Prints the JSON Schema of stagely.yaml
    Schema,
    Runs(runs::RunsArgs),
    Jobs(jobs::JobsArgs),
    Tests(test_results::TestsArgs),
    Artifacts(artifacts::ArtifactsArgs),
    Logs(logs::LogsArgs),
    Explain(explain::ExplainArgs),
    Cancel(cancel::CancelArgs),
    Approve(approve::ApproveArgs),
    Project(project::ProjectArgs),
    Secret(secret::SecretArgs),
    Github(github::GithubArgs),
    Environments(environments::EnvironmentsArgs),
    Previews(previews::PreviewsArgs),
    Machines(machines::MachinesArgs),
    Sweep(sweep::SweepArgs),
    Fleets(fleets::FleetsArgs),
    Queue(queue::QueueArgs),
    Cost(cost::CostArgs),
    Budget(budget::BudgetArgs),
    Token(token::TokenArgs),
    Doctor(doctor::DoctorArgs),
    Core(CoreArgs),
    Agent(AgentArgs),
    /// Kills the children of an agent that was killed, and removes its logins. Agents start it.
    #[command(name = GUARD_COMMAND, hide = true)]
    Guard {
        machine: WireId,
        agent: u32,
        work_dir: PathBuf,
    },
    /// Prints the completion script for a shell
    Completions {
        /// The shell to complete for
        shell: Shell,
    },
}

/// Runs the coordinator
#[derive(Args)]
struct CoreArgs {
    #[command(flatten)]
    service: ServiceArgs,
    /// Use a data folder that was moved or restored, once: the core that used it is gone
    ///
    /// Two cores with copies of one data folder would end each other's machines, so core refuses a folder that was used
    /// on another host or at another path.
    #[arg(long)]
    moved: bool,
    #[command(flatten)]
    settings: SettingsArgs,
}

/// Runs an agent, which connects to core and runs jobs
#[derive(Args)]
#[command(args_conflicts_with_subcommands = true)]
struct AgentArgs {
    #[command(subcommand)]
    command: Option<AgentCommand>,
    /// The agent's configuration
    #[arg(long, value_name = "FILE", default_value = stagely_protocol::agent_config::DEFAULT_PATH)]
    config: PathBuf,
}

#[derive(Subcommand)]
enum AgentCommand {
    /// Runs the job of one BUILD, MERGE, DEPLOY or TEST message, without core
    ///
    /// Uses this machine's Docker. Prints the log and, as the last line, the STATUS message. A preview serves until Ctrl-C.
    Exec {
        /// A file with the message, as JSON
        #[arg(value_name = "MESSAGE.JSON")]
        message: PathBuf,
        /// The Docker Engine, unix:///…
        #[arg(long, value_name = "URL", env = "STAGELY_DOCKER_HOST")]
        docker_host: Option<String>,
    },
    /// Removes what the previews of an agent left on the Docker engine
    ///
    /// For an agent that is gone for good: that of a machine that is no longer registered, say. Needs no core.
    CleanUp {
        /// The agent's configuration
        #[arg(long, value_name = "FILE", default_value = stagely_protocol::agent_config::DEFAULT_PATH)]
        config: PathBuf,
    },
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => return report(&error.into()),
    };
    let is_core = matches!(arguments.command, Command::Core(_));
    let result = runtime.block_on(perform(arguments.command));
    // A thread that is blocked, for example by a hanging disk, does not keep the process alive.
    runtime.shutdown_timeout(RUNTIME_END_LIMIT);
    match result {
        Ok(code) => code,
        // The reader of the output has closed it.
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) if is_core && is_damage(&error) => {
            report(&error);
            ExitCode::from(EXIT_DAMAGED)
        }
        Err(error) => report(&error),
    }
}

fn is_damage(error: &anyhow::Error) -> bool {
    error.chain().any(<dyn std::error::Error>::is::<DamagedDatabase>)
}

fn report(error: &anyhow::Error) -> ExitCode {
    note(&format!("error: {error:#}"));
    ExitCode::from(EXIT_FAILED)
}

async fn perform(command: Command) -> anyhow::Result<ExitCode> {
    start_log(&command)?;
    match command {
        Command::Run(arguments) => Box::pin(run::run(*arguments)).await,
        Command::Rebuild(arguments) => rebuild::rebuild(*arguments).await,
        Command::Warm(arguments) => warm::warm(*arguments).await,
        Command::Validate { file, json } => validate::validate(file, json),
        Command::Schema => schema::schema(),
        Command::Runs(arguments) => runs::runs(arguments).await,
        Command::Jobs(arguments) => jobs::jobs(arguments).await,
        Command::Tests(arguments) => test_results::tests(arguments).await,
        Command::Artifacts(arguments) => Box::pin(artifacts::artifacts(arguments)).await,
        Command::Logs(arguments) => logs::logs(arguments).await,
        Command::Explain(arguments) => explain::explain(arguments).await,
        Command::Environments(arguments) => environments::environments(arguments).await,
        Command::Previews(arguments) => previews::previews(arguments).await,
        Command::Cancel(arguments) => cancel::cancel(arguments).await,
        Command::Approve(arguments) => approve::approve(arguments).await,
        Command::Project(arguments) => project::project(arguments).await,
        Command::Secret(arguments) => secret::secret(arguments).await,
        Command::Github(arguments) => github::github(arguments).await,
        Command::Machines(arguments) => machines::machines(arguments).await,
        Command::Sweep(arguments) => sweep::sweep(arguments).await,
        Command::Fleets(arguments) => fleets::fleets(&arguments),
        Command::Queue(arguments) => queue::queue(arguments).await,
        Command::Cost(arguments) => cost::cost(arguments).await,
        Command::Budget(arguments) => budget::budget(arguments).await,
        Command::Token(arguments) => token::token(arguments).await,
        Command::Doctor(arguments) => Box::pin(doctor::doctor(arguments)).await,
        Command::Core(arguments) => Box::pin(run_core(&arguments)).await,
        Command::Agent(arguments) => Box::pin(run_agent(arguments)).await,
        Command::Guard { machine, agent, work_dir } => {
            guard_children(&machine, agent, &work_dir);
            Ok(ExitCode::SUCCESS)
        }
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Arguments::command(), "stagely", &mut script);
            io::stdout().write_all(&script)?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// Logs to standard error. `STAGELY_LOG` is the filter. Default: `info` for services, and nothing for
/// commands, which report errors themselves.
fn start_log(command: &Command) -> anyhow::Result<()> {
    let default = match command {
        Command::Core(_)
        | Command::Agent(AgentArgs { command: None, .. })
        | Command::Guard { .. } => LevelFilter::INFO,
        _ => LevelFilter::OFF,
    };
    let filter = match std::env::var("STAGELY_LOG") {
        Ok(filter) => {
            let filter: Targets = filter.parse().context("STAGELY_LOG is not a filter")?;
            filter.with_targets(WIRE_LOGS.map(|library| (library, LevelFilter::WARN)))
        }
        Err(_) => Targets::new().with_default(default),
    };
    let lines = tracing_subscriber::fmt::layer().with_writer(io::stderr);
    let lines = lines.log_internal_errors(false).with_ansi(io::stderr().is_terminal());
    tracing_subscriber::registry().with(lines).with(filter).init();
    Ok(())
}

async fn run_core(arguments: &CoreArgs) -> anyhow::Result<ExitCode> {
    let mut config = arguments.settings.read()?;
    arguments.service.apply(&mut config);
    let stop = stop_token()?;
    let check = if arguments.moved { FolderCheck::Moved } else { FolderCheck::SameLocation };
    core::start(config, check).await?.until(stop).await?;
    Ok(ExitCode::SUCCESS)
}

async fn run_agent(arguments: AgentArgs) -> anyhow::Result<ExitCode> {
    let stop = stop_token()?;
    match arguments.command {
        Some(AgentCommand::Exec { message, docker_host }) => {
            return Ok(ExitCode::from(exec(&message, docker_host, stop).await?));
        }
        Some(AgentCommand::CleanUp { config }) => {
            clean_up(agent_config(&config)?).await?;
            return Ok(ExitCode::SUCCESS);
        }
        None => {}
    }
    let config = agent_config(&arguments.config)?;
    let _guard = Guard::start(&config.agent_id, &config.work_dir)
        .context("cannot start the agent's guard")?;
    let exit = stagely_agent::run(config, stop).await?;
    Ok(ExitCode::from(exit.code()))
}

fn agent_config(path: &Path) -> anyhow::Result<AgentConfig> {
    let text = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_slice(&text).with_context(|| format!("{}", path.display()))
}
