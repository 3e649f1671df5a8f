//! `stagely rebuild`: builds the commit of a run again, as a new run.

use std::process::ExitCode;
use std::str::FromStr;

use anyhow::bail;
use clap::Args;
use stagely_protocol::InvalidValue;
use stagely_state::ids::{EnvironmentId, RunId};

use super::run::outcome::EXIT_CODES;
use super::run::start::{CloneTokenArgs, SetArgs, StartArgs};
use crate::api::{ListEnvironments, RebuildEnvironment, RebuildRun};
use crate::client::Client;

/// The run to build again.
#[derive(Clone, Copy, Debug)]
enum RebuildTarget {
    Run(RunId),
    Environment(EnvironmentId),
}

impl FromStr for RebuildTarget {
    type Err = InvalidValue;
    fn from_str(text: &str) -> Result<Self, InvalidValue> {
        if text.starts_with("env_") {
            text.parse().map(Self::Environment)
        } else {
            text.parse().map(Self::Run)
        }
    }
}

/// Builds the commit of a run again, as a new run
///
/// Core does not store secrets of ended runs: give tokens and build arguments again. A folder of this
/// machine that `stagely run` built is no longer served: use `stagely run` again instead.
#[derive(Args, Debug)]
#[command(after_help = EXIT_CODES)]
pub struct RebuildArgs {
    /// The run, run_…; or an environment, env_…, to rebuild its newest run
    #[arg(value_name = "RUN|ENVIRONMENT")]
    run: RebuildTarget,
    /// Build only the jobs that did not complete, and reuse the images of completed jobs
    #[arg(long)]
    failed: bool,
    /// Deploy a preview although `on` of stagely.yaml is `label` or `manual`
    #[arg(long)]
    preview: bool,
    /// Run all tests again, and reuse the images and the preview that are there
    #[arg(long)]
    tests: bool,
    #[command(flatten)]
    set: SetArgs,
    #[command(flatten)]
    clone_token: CloneTokenArgs,
    #[command(flatten)]
    start: StartArgs,
}

/// Runs `stagely rebuild`.
///
/// # Errors
/// The run cannot start, or cannot be followed to its end.
pub async fn rebuild(arguments: RebuildArgs) -> anyhow::Result<ExitCode> {
    let request = RebuildRun {
        failed: arguments.failed,
        clone_token: arguments.clone_token.read()?,
        set: arguments.set.map(),
        preview: arguments.preview,
        tests: arguments.tests,
    };
    let has_arguments = !request.set.is_empty() || request.clone_token.is_some();
    if matches!(arguments.run, RebuildTarget::Environment(_)) && has_arguments {
        bail!("tokens and build arguments need a run: name the environment's newest run, run_…");
    }
    let is_known = async |client: &Client| match arguments.run {
        RebuildTarget::Run(run) => Ok(client.run(run).await.is_ok()),
        RebuildTarget::Environment(id) => {
            let known = client.environments(&ListEnvironments::default()).await?;
            Ok(known.iter().any(|environment| environment.id == id))
        }
    };
    let core = arguments.start.core_with(arguments.start.named()?, is_known).await?;
    let rebuild = async |client: &Client| match arguments.run {
        RebuildTarget::Run(run) => client.rebuild(run, &request).await,
        RebuildTarget::Environment(environment) => {
            let RebuildRun { failed, preview, tests, .. } = request;
            let request = RebuildEnvironment { failed_only: failed, preview, tests };
            client.rebuild_environment(environment, &request).await
        }
    };
    arguments.start.carry_out(core, false, rebuild).await
}
