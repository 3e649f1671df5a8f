//! A BUILD job: clone, log in, build, push; and export the layer cache.

use std::io;
use std::path::Path;
use std::pin::pin;
use std::time::{Duration, Instant};

use stagely_protocol::paths::{self, BuildPaths, PathError};
use stagely_protocol::{
    Build, BuildArgs, BuildConfig, CacheMiss, FailureReason, Fingerprint, Step, slow_down,
};
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::{sleep, timeout};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::wait::{Retry, await_engine, log_in};
use super::{JobError, Outcome};
use crate::docker::{
    self, BuildError, BuildOutcome, BuildRequest, DockerCommand, EmulationError, Engine,
};
use crate::fingerprint::{Inputs, cache_miss};
use crate::git::{self, CloneError};
use crate::job_log::JobLog;
use crate::process::ProcessError;

/// Exporting a cache may take this long. What it pushes, the next build need not make.
const EXPORT_LIMIT: Duration = Duration::from_mins(10);

/// After a build, its report waits this long for what the build was made of, which is read beside it.
const EXPLAIN_LIMIT: Duration = Duration::from_secs(5);

/// What is wrong with an engine without the containerd image store.
const NO_CACHE_EXPORT: &str = "this machine's Docker engine cannot export caches: its containerd image \
    store is off (`\"features\": {\"containerd-snapshotter\": true}` in daemon.json)";

impl From<CloneError> for JobError {
    fn from(error: CloneError) -> Self {
        Self::new(error.reason(), &error)
    }
}

impl From<PathError> for JobError {
    fn from(error: PathError) -> Self {
        let reason = match error {
            PathError::Io { .. } => FailureReason::Internal,
            PathError::Absolute(_)
            | PathError::Outside(_)
            | PathError::NoContext(_)
            | PathError::NotAFolder(_)
            | PathError::NoDockerfile { .. } => {
                FailureReason::User { step: String::new(), exit_code: 1 }
            }
        };
        Self::new(reason, &error)
    }
}

impl From<BuildError> for JobError {
    fn from(error: BuildError) -> Self {
        let reason = error.reason();
        match error {
            BuildError::Failed { message, steps, .. } => Self { reason, message, steps },
            BuildError::Process(_) | BuildError::ReportLost { .. } | BuildError::NoDigest => {
                Self::new(reason, &error)
            }
        }
    }
}

impl From<EmulationError> for JobError {
    fn from(error: EmulationError) -> Self {
        let reason = match &error {
            EmulationError::Process(ProcessError::Spawn { .. }) | EmulationError::Inspect(_) => {
                FailureReason::Engine
            }
            EmulationError::Process(_) => FailureReason::Internal,
            EmulationError::Impossible { .. } | EmulationError::Disabled { .. } => {
                FailureReason::Emulation
            }
        };
        Self::new(reason, &error)
    }
}

pub(super) async fn perform(
    build: &Build,
    docker: &DockerCommand,
    folder: &Path,
    log: &JobLog,
    stop: &CancellationToken,
) -> Result<Outcome, JobError> {
    let config = &build.build_config;
    let checkout = folder.join("src");
    clone(build, &checkout, log, stop).await?;
    let paths = paths::locate(&checkout, &config.context_path, &config.dockerfile)?;
    let engine = await_engine(docker, log, stop).await?;
    let emulated = check_platform(config, &engine, docker, log, stop).await?;
    log_in(docker, config.target_image.registry(), build.registry_auth.as_ref(), log, stop).await?;
    if config.cache_to.is_some() && !engine.containerd_store {
        if !config.push {
            // The cache is all that it is for.
            let message = format!("{NO_CACHE_EXPORT}; switch it on and restart dockerd");
            return Err(JobError { reason: FailureReason::Engine, message, steps: Vec::new() });
        }
        log.warn(NO_CACHE_EXPORT);
    }
    log.say(&format!(
        "Building {} for {} with Docker {}",
        config.target_image, config.platform, engine.version
    ));
    let started = Instant::now();
    let containerd_store = engine.containerd_store;
    let request = BuildRequest { docker, config, paths: &paths, containerd_store, folder, log };
    let inputs = Reading::begin(&paths, &config.build_args, stop);
    let outcome = build_until_pushed(&request, stop).await?;
    let explained = timeout(EXPLAIN_LIMIT, explain(inputs, config, &outcome));
    let explained = stop.run_until_cancelled(explained).await;
    let (cache_miss, fingerprint) = explained.and_then(Result::ok).unwrap_or_default();
    let BuildOutcome { digest, steps, .. } = outcome;
    if let Some(warning) = emulated {
        say_how_slow(config, &warning, &steps, log);
    }
    let to_export = config.push && request.cache_to().is_some();
    Ok(Outcome {
        pushed: digest.map(|digest| (config.target_image.clone(), digest)),
        duration: started.elapsed(),
        steps,
        cache_miss,
        fingerprint,
        to_export: to_export.then(|| CacheExport { config: config.clone(), paths }),
    })
}

/// A layer cache that is exported after its image was pushed.
#[derive(Debug)]
pub(super) struct CacheExport {
    config: BuildConfig,
    paths: BuildPaths,
}

impl CacheExport {
    /// Exports it, says in the log what became of it, and whether it is there.
    pub(super) async fn perform(
        &self,
        docker: &DockerCommand,
        folder: &Path,
        log: &JobLog,
        stop: &CancellationToken,
    ) -> bool {
        let (config, paths) = (&self.config, &self.paths);
        let request = BuildRequest { docker, config, paths, containerd_store: true, folder, log };
        let Some(cache) = request.cache_to() else { return false };
        log.say(&format!("Exporting the cache to {cache}"));
        let (started, export_stop) = (Instant::now(), stop.child_token());
        let limit = async {
            sleep(EXPORT_LIMIT).await;
            export_stop.cancel();
        };
        let mut exporting = pin!(docker::export_cache(&request, &export_stop));
        let result = tokio::select! {
            result = &mut exporting => result,
            () = limit => exporting.await,
        };
        let seconds = started.elapsed().as_secs_f64();
        let is_exported = result.is_ok();
        match result {
            Ok(()) => log.say(&format!("Cache exported to {cache} in {seconds:.1}s")),
            Err(_) if stop.is_cancelled() => log.say("The export of the cache was stopped"),
            Err(_) if export_stop.is_cancelled() => {
                log.say(&format!("The cache was not exported: not done after {EXPORT_LIMIT:?}"));
            }
            Err(error) => log.say(&format!("The cache was not exported: {error}")),
        }
        is_exported
    }
}

async fn clone(
    build: &Build,
    checkout: &Path,
    log: &JobLog,
    stop: &CancellationToken,
) -> Result<(), JobError> {
    let context = &build.context;
    log.say(&format!(
        "Cloning {} at {}",
        git::without_credentials(&context.repo_url),
        context.commit_hash
    ));
    let started = Instant::now();
    let done = git::fetch_commit(context.clone().into(), checkout, stop).await?;
    let submodules = match done.submodules {
        0 => String::new(),
        1 => " with 1 submodule".to_owned(),
        count => format!(" with {count} submodules"),
    };
    let (kib, seconds) = (done.bytes.div_ceil(1024), started.elapsed().as_secs_f64());
    log.say(&format!("Cloned{submodules}: {kib} KiB in {seconds:.1}s"));
    Ok(())
}

/// Sees to it that the engine can build the platform. Gives the warning, if it has to emulate it.
async fn check_platform(
    config: &BuildConfig,
    engine: &Engine,
    docker: &DockerCommand,
    log: &JobLog,
    stop: &CancellationToken,
) -> Result<Option<String>, JobError> {
    let (own, wanted) = (engine.arch, config.platform.arch());
    if wanted == own {
        return Ok(None);
    }
    if !config.emulation.is_allowed() {
        let message = format!(
            "this {own} machine would have to emulate {wanted}, and the build says `emulation: \
             forbid`"
        );
        return Err(JobError { reason: FailureReason::Emulation, message, steps: Vec::new() });
    }
    docker::ensure_emulation(docker, own, wanted, |line| log.say(line), stop).await?;
    let warning = format!("{wanted} is emulated on this {own} machine: RUN steps are slow");
    log.warn(&warning);
    Ok(Some(warning))
}

/// Puts a number into `warning`, if it is known how long the steps take natively.
fn say_how_slow(config: &BuildConfig, warning: &str, steps: &[Step], log: &JobLog) {
    if let Some(factor) = slow_down(&config.native_steps, steps) {
        let measured = format!("{warning} ({factor:.1} times as long as natively)");
        log.warn_better(warning, &measured);
    }
}

/// Reads what a build is made of, beside the build, until it is dropped.
struct Reading {
    inputs: JoinHandle<io::Result<Inputs>>,
    _until_dropped: DropGuard,
}

impl Reading {
    fn begin(paths: &BuildPaths, args: &BuildArgs, stop: &CancellationToken) -> Self {
        let (paths, args, stop) = (paths.clone(), args.clone(), stop.child_token());
        let guard = stop.clone().drop_guard();
        let read = move || Inputs::read(&paths.context, &paths.dockerfile, &args, &stop);
        Self { inputs: spawn_blocking(read), _until_dropped: guard }
    }
}

/// Why not all steps came from the cache, and what the next build compares itself with. Neither is
/// worth failing for.
async fn explain(
    mut reading: Reading,
    config: &BuildConfig,
    outcome: &BuildOutcome,
) -> (Option<CacheMiss>, Option<Fingerprint>) {
    let Ok(Ok(mut inputs)) = (&mut reading.inputs).await else { return (None, None) };
    let previous = config.previous_fingerprint.clone();
    let (images, steps) = (outcome.base_images.clone(), outcome.steps.clone());
    let cache_found = outcome.cache_found;
    let explained = spawn_blocking(move || {
        inputs.add_images(&images);
        let previous = previous.as_ref().and_then(Inputs::open);
        (cache_miss(previous.as_ref(), &inputs, &steps, cache_found), inputs.seal())
    });
    explained.await.unwrap_or_default()
}

async fn build_until_pushed(
    request: &BuildRequest<'_>,
    stop: &CancellationToken,
) -> Result<BuildOutcome, JobError> {
    let mut retry = Retry::new(request.docker.registry_patience);
    let (mut reported, mut is_lost) = (Vec::new(), false);
    loop {
        let mut error = match docker::build(request, stop).await {
            Ok(mut outcome) => {
                restore_steps(&mut outcome.steps, &mut reported);
                return Ok(outcome);
            }
            Err(BuildError::ReportLost { mut steps }) if !is_lost => {
                request.log.warn(
                    "this machine was too busy to pass on all output of this build: a part of its \
                     log is missing",
                );
                is_lost = true;
                restore_steps(&mut steps, &mut reported);
                continue;
            }
            Err(error) => JobError::from(error),
        };
        restore_steps(&mut error.steps, &mut reported);
        retry.wait_after(error, request.log, stop).await?;
    }
}

/// Puts what was `reported` of the attempts before in the place of what this one found cached, and
/// adds this one's steps to it.
fn restore_steps(steps: &mut [Step], reported: &mut Vec<Step>) {
    for step in steps {
        match reported.iter_mut().find(|reported| reported.name == step.name) {
            Some(reported) if step.cached => *step = reported.clone(),
            Some(reported) => *reported = step.clone(),
            None => reported.push(step.clone()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(name: &str, seconds: f64, cached: bool) -> Step {
        Step { name: name.to_owned(), seconds, cached }
    }

    #[test]
    fn a_repetition_shows_what_the_first_attempt_built() {
        let mut reported = Vec::new();
        let mut first = [step("[1/3] FROM a", 1.0, true), step("[2/3] RUN make", 60.0, false)];
        restore_steps(&mut first, &mut reported);
        // One that failed before its steps has nothing to say of them.
        restore_steps(&mut [], &mut reported);
        let last = step("[3/3] RUN test", 5.0, false);
        let mut third = [first[0].clone(), step("[2/3] RUN make", 0.0, true), last.clone()];
        restore_steps(&mut third, &mut reported);
        assert_eq!(third, [first[0].clone(), first[1].clone(), last]);
        // What was built again was built again.
        let mut fourth = [step("[2/3] RUN make", 50.0, false)];
        restore_steps(&mut fourth, &mut reported);
        assert_eq!(fourth, [step("[2/3] RUN make", 50.0, false)]);
    }
}
