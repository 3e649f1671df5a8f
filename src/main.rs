//! Arguments → core, agent or a client command.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use stagely::config::Config;
use stagely::core;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

#[derive(Parser)]
#[command(version, about)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Runs the coordinator.
    Core {
        /// The configuration.
        #[arg(long, value_name = "FILE", env = "STAGELY_CONFIG")]
        config: Option<PathBuf>,
    },
    /// Runs an agent.
    Agent {
        /// Its configuration.
        #[arg(long, value_name = "FILE", default_value = stagely_agent::config::DEFAULT_PATH)]
        config: PathBuf,
    },
}

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let stop = CancellationToken::new();
    let stopping = stop.clone();
    tokio::spawn(async move {
        let Ok(mut term) = signal(SignalKind::terminate()) else { return };
        tokio::select! {
            _ = term.recv() => {}
            _ = tokio::signal::ctrl_c() => {}
        }
        stopping.cancel();
    });
    match Arguments::parse().command {
        Command::Core { config } => {
            let config = match config {
                Some(path) => Config::read(&path)?,
                None => Config::default(),
            };
            core::start(config).await?.until(stop).await?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Agent { config } => {
            let text = std::fs::read(&config)
                .with_context(|| format!("cannot read {}", config.display()))?;
            let exit = stagely_agent::run(serde_json::from_slice(&text)?, stop).await?;
            Ok(ExitCode::from(exit.code()))
        }
    }
}
