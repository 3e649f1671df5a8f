//! A BUILD job: clones, logs in, builds and pushes.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use stagely_protocol::paths;
use stagely_protocol::{
    Build, BuildArgs, BuildConfig, CacheMiss, FailureReason, Fingerprint, RegistryAuth, Step,
    slow_down,
};
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::timeout;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::cache_export::CacheExporter;
use super::clone::clone;
use super::contexts::usable_contexts;
use super::error::JobError;
use super::platforms::PlatformCheck;
use super::prerequisites::{RegistryBackoff, log_in, wait_for_engine};
use super::report::JobOutput;
use super::target::named_target;
use crate::docker::{
    self, BuildError, BuildFiles, BuildOutcome, BuildRequest, DockerCommand, Engine, RunningBuild,
};
use crate::fingerprint::{BuildInputs, cache_miss};
use crate::job_log::JobLog;

/// After a build, the report waits this long for the build's inputs, which are read while it runs.
const EXPLAIN_LIMIT: Duration = Duration::from_secs(5);

/// The warning about an engine without the containerd image store.
const NO_CACHE_EXPORT: &str = "this machine's Docker engine cannot export caches: its containerd image \
    store is off (`\"features\": {\"containerd-snapshotter\": true}` in daemon.json)";

pub(super) async fn perform(
    build: &Build,
    docker: &DockerCommand,
    folder: &Path,
    log: &Arc<JobLog>,
    stop: &CancellationToken,
) -> Result<JobOutput, JobError> {
    let config = &build.build_config;
    let checkout = folder.join("src");
    clone(&build.context, &checkout, log, stop).await?;
    let paths = paths::locate(&checkout, &config.context_path, &config.dockerfile)?;
    let files = BuildFiles::stage(&paths, &config.dockerfile, folder)
        .map_err(|error| JobError::io("cannot copy the Dockerfile", &error))?;
    let engine = wait_for_engine(docker, log, stop).await?;
    let emulation_warning = check_platform(config, &engine, docker, log, stop).await?;
    log_in(docker, config.target_image.registry(), build.registry_auth.as_ref(), log, stop).await?;
    check_cache_export(config, &engine, log)?;
    log.info(&format!(
        "Building {} for {} with Docker {}",
        config.target_image, config.platform, engine.version
    ));
    let started = Instant::now();
    let request = BuildRequest {
        docker: docker.clone(),
        config: BuildConfig {
            build_contexts: usable_contexts(config, &files.dockerfile, log)?,
            target: named_target(config, &files.dockerfile)?,
            ..config.clone()
        },
        files: files.clone(),
        containerd_store: engine.containerd_store,
        folder: folder.to_owned(),
        log: Arc::clone(log),
    };
    docker::set_proxies(&docker.config, &config.build_args)
        .map_err(|error| JobError::io("cannot write the Docker configuration", &error))?;
    let platforms = PlatformCheck::start(build, &files, docker, engine.arch, stop);
    let inputs = InputsReader::start(&files, &config.build_args, stop);
    let build_stop = stop.child_token();
    let (outcome, running) =
        build_with_retries(&request, build.registry_auth.as_ref(), &build_stop).await?;
    let explanation = timeout(EXPLAIN_LIMIT, explain(inputs, config, &outcome));
    let explanation = stop.run_until_cancelled(explanation).await;
    let (cache_miss, fingerprint) = explanation.and_then(Result::ok).unwrap_or_default();
    let BuildOutcome { digest, steps, .. } = outcome;
    platforms.warn(log).await;
    if let Some(warning) = emulation_warning {
        add_slowdown(config, &warning, &steps, log);
    }
    let cache = request.cache_to().filter(|_| config.push).cloned();
    Ok(JobOutput {
        pushed: digest.map(|digest| (config.target_image.clone(), digest)),
        duration: started.elapsed(),
        steps,
        cache_miss,
        fingerprint,
        cache_exporter: cache.map(|cache| CacheExporter { cache, running, stop: build_stop }),
        ..JobOutput::default()
    })
}

/// Makes sure that the engine can build for the platform. Returns the warning if the engine emulates it.
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
        return Err(JobError::with_message(FailureReason::Emulation, message));
    }
    docker::ensure_emulation(docker, own, wanted, |line| log.info(line), stop).await?;
    let warning = format!("{wanted} is emulated on this {own} machine: RUN steps are slow");
    log.warn(&warning);
    Ok(Some(warning))
}

/// Fails if the build is for its cache alone and the engine cannot export one. Warns if it exports none beside the
/// image.
fn check_cache_export(config: &BuildConfig, engine: &Engine, log: &JobLog) -> Result<(), JobError> {
    if config.cache_to.is_none() || engine.containerd_store {
        return Ok(());
    }
    if !config.push {
        let message = format!("{NO_CACHE_EXPORT}; switch it on and restart dockerd");
        return Err(JobError::with_message(FailureReason::Engine, message));
    }
    log.warn(NO_CACHE_EXPORT);
    Ok(())
}

/// Adds to `warning` how much slower the steps are, if it is known how long they take natively.
fn add_slowdown(config: &BuildConfig, warning: &str, steps: &[Step], log: &JobLog) {
    if let Some(factor) = slow_down(&config.native_steps, steps) {
        let with_factor = format!("{warning} ({factor:.1} times as long as natively)");
        log.replace_warning(warning, &with_factor);
    }
}

/// Reads a build's inputs while it runs. Dropping the value stops the reading.
struct InputsReader {
    inputs: JoinHandle<io::Result<BuildInputs>>,
    _stop_on_drop: DropGuard,
}

impl InputsReader {
    fn start(files: &BuildFiles, args: &BuildArgs, stop: &CancellationToken) -> Self {
        let (files, args, stop) = (files.clone(), args.clone(), stop.child_token());
        let guard = stop.clone().drop_guard();
        let read = move || BuildInputs::read(&files.context, &files.dockerfile, &args, &stop);
        Self { inputs: spawn_blocking(read), _stop_on_drop: guard }
    }
}

/// Why not all steps came from the cache, and the fingerprint that the next build compares itself with. The
/// build succeeds without them.
async fn explain(
    mut reader: InputsReader,
    config: &BuildConfig,
    outcome: &BuildOutcome,
) -> (Option<CacheMiss>, Option<Fingerprint>) {
    let Ok(Ok(mut inputs)) = (&mut reader.inputs).await else { return (None, None) };
    let previous = config.previous_fingerprint.clone();
    let (images, steps) = (outcome.base_images.clone(), outcome.steps.clone());
    let has_imported_cache = outcome.has_imported_cache;
    let explained = spawn_blocking(move || {
        inputs.add_images(&images);
        let previous = previous.as_ref().and_then(BuildInputs::from_fingerprint);
        (
            cache_miss(previous.as_ref(), &inputs, &steps, has_imported_cache),
            inputs.to_fingerprint(),
        )
    });
    explained.await.unwrap_or_default()
}

/// Builds, and builds again if the registry does not answer or, once each, if the engine's report is lost, the registry
/// may lack a layer, or a login that was accepted before is refused: it may have expired during a long build. The command
/// of the returned build may still export the cache.
async fn build_with_retries(
    request: &BuildRequest,
    auth: Option<&RegistryAuth>,
    stop: &CancellationToken,
) -> Result<(BuildOutcome, RunningBuild), JobError> {
    let mut backoff = RegistryBackoff::new(&request.docker);
    let (mut known_steps, mut was_report_lost, mut was_login_refused) = (Vec::new(), false, false);
    let mut was_manifest_refused = false;
    loop {
        let mut running = RunningBuild::start(request.clone(), stop.clone());
        let mut error = match running.pushed().await {
            Ok(mut outcome) => {
                restore_steps(&mut outcome.steps, &mut known_steps);
                return Ok((outcome, running));
            }
            Err(BuildError::ReportLost { mut steps }) if !was_report_lost => {
                was_report_lost = true;
                restore_steps(&mut steps, &mut known_steps);
                continue;
            }
            Err(error) if error.may_lack_layers() && !was_manifest_refused => {
                was_manifest_refused = true;
                request.log.info(
                    "The registry refused the manifest. The image is pushed once more, in case a layer was missing that \
                     another build was pushing",
                );
                restore_steps(&mut JobError::from(error).steps, &mut known_steps);
                continue;
            }
            Err(error @ BuildError::LoginMissing { .. }) if !is_own(request, &error) => {
                let mut error = JobError::from(error);
                restore_steps(&mut error.steps, &mut known_steps);
                return Err(error);
            }
            Err(error) => JobError::from(error),
        };
        restore_steps(&mut error.steps, &mut known_steps);
        if error.may_be_an_expired_login() && auth.is_some() && !was_login_refused {
            was_login_refused = true;
            let registry = request.config.target_image.registry();
            log_in(&request.docker, registry, auth, &request.log, stop).await?;
            continue;
        }
        backoff.wait_after(error, &request.log, stop).await?;
    }
}

/// Whether the login that is missing is that of the registry to which the image is pushed.
fn is_own(request: &BuildRequest, error: &BuildError) -> bool {
    let own = request.config.target_image.registry();
    matches!(error, BuildError::LoginMissing { registry, .. } if docker::is_same_registry(registry, own))
}

/// Replaces each step that this attempt found in the cache by its result in the attempts before, `known_steps`.
/// Adds the other steps to `known_steps`.
fn restore_steps(steps: &mut [Step], known_steps: &mut Vec<Step>) {
    for step in steps {
        match known_steps.iter_mut().find(|known| known.name == step.name) {
            Some(known) if step.cached => *step = known.clone(),
            Some(known) => *known = step.clone(),
            None => known_steps.push(step.clone()),
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
    fn a_step_that_the_retry_finds_cached_keeps_its_first_result() {
        let mut known = Vec::new();
        let mut first = [step("[1/3] FROM a", 1.0, true), step("[2/3] RUN make", 60.0, false)];
        restore_steps(&mut first, &mut known);
        // An attempt that failed before its first step.
        restore_steps(&mut [], &mut known);
        let last = step("[3/3] RUN test", 5.0, false);
        let mut third = [first[0].clone(), step("[2/3] RUN make", 0.0, true), last.clone()];
        restore_steps(&mut third, &mut known);
        assert_eq!(third, [first[0].clone(), first[1].clone(), last]);
        // A step that ran again keeps its own result.
        let mut fourth = [step("[2/3] RUN make", 50.0, false)];
        restore_steps(&mut fourth, &mut known);
        assert_eq!(fourth, [step("[2/3] RUN make", 50.0, false)]);
    }
}
