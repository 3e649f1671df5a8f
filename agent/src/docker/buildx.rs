//! Builds and pushes one image with `docker buildx build`, and exports its layer cache afterwards.
//!
//! `BuildKit` can do both in one command, but it reports what it pushed only at the end of the command. So there
//! are two commands: the second one repeats the build from the engine's own cache and exports only the cache.

use std::fs;
use std::path::Path;
use std::process::ExitStatus;
use std::time::Duration;

use serde::Deserialize;
use stagely_protocol::{
    BuildConfig, Digest, FailureReason, ImageRef, RegistryProblem, Step, Stream,
};
use thiserror::Error;
use tokio_util::sync::CancellationToken;

use super::abandoned;
use super::build_files::BuildFiles;
use super::classify::build_failure;
use super::command::DockerCommand;
use super::progress::{FailedStep, OutputItem, Progress, RawJsonDecoder};
use super::vertex::BaseImage;
use crate::job_log::JobLog;
use crate::mask::is_secret_name;
use crate::process::{Invocation, ProcessError};

/// A `buildx` that gets SIGTERM exits when the engine has ended the build, or after 3 s.
const ENGINE_STOP_TIME: Duration = Duration::from_millis(2_500);

/// The error of a `buildx` whose build has succeeded and that has not received the whole report 3 s later, because
/// the machine is too busy.
const REPORT_LOST: &str = "failed to receive status: rpc error: code = Canceled";

/// The number of last lines of the client that are kept to find the cause of a failure.
const CLIENT_LINES_MAX: usize = 60;

/// The parameters of one build.
pub struct BuildRequest<'a> {
    /// The settings of the `docker` command.
    pub docker: &'a DockerCommand,
    /// The build, as core sent it.
    pub config: &'a BuildConfig,
    /// The context and the Dockerfile.
    pub files: &'a BuildFiles,
    /// Whether the engine has the containerd image store, without which it exports no cache.
    pub containerd_store: bool,
    /// The job's private folder.
    pub folder: &'a Path,
    /// Gets the output.
    pub log: &'a JobLog,
}

impl BuildRequest<'_> {
    /// The reference that the layer cache is exported to, if the engine can export it.
    pub fn cache_to(&self) -> Option<&ImageRef> {
        self.config.cache_to.as_ref().filter(|_| self.containerd_store)
    }
}

/// The result of a build that succeeded.
#[derive(Debug)]
pub struct BuildOutcome {
    /// The image's digest, if it was to be pushed.
    pub digest: Option<Digest>,
    /// The steps, in `BuildKit`'s order.
    pub steps: Vec<Step>,
    /// The images that the build used.
    pub base_images: Vec<BaseImage>,
    /// Whether any cache was imported.
    pub has_imported_cache: bool,
}

/// Why a build made no image.
#[derive(Debug, Error)]
pub enum BuildError {
    /// The command could not be run.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// The build failed.
    #[error("{message}")]
    Failed {
        /// The reason that core gets.
        reason: FailureReason,
        /// The error, after the last lines of the failing step. Masked.
        message: String,
        /// The steps that have ended.
        steps: Vec<Step>,
    },
    /// The engine has built the image, but its report did not arrive in time, so the digest and the end of the log
    /// are missing. A further build comes from the engine's own cache.
    #[error("the engine's report did not arrive in time")]
    ReportLost {
        /// The steps that were reported.
        steps: Vec<Step>,
    },
    /// `buildx` succeeded, but it did not report the digest.
    #[error("buildx did not report the digest of the image that it pushed")]
    NoDigest,
}

impl BuildError {
    /// The reason that core gets.
    pub fn reason(&self) -> FailureReason {
        match self {
            Self::Process(ProcessError::Spawn { .. }) => FailureReason::Engine,
            Self::Process(_) | Self::ReportLost { .. } | Self::NoDigest => FailureReason::Internal,
            Self::Failed { reason, .. } => reason.clone(),
        }
    }
}

/// Builds and pushes. A build that pushes no image exports its layer cache.
///
/// # Errors
/// [`BuildError`]
pub async fn build(
    request: &BuildRequest<'_>,
    stop: &CancellationToken,
) -> Result<BuildOutcome, BuildError> {
    let metadata = request.folder.join("metadata.json");
    let mut output = BuildOutput::new(request.log, Verbosity::Everything);
    let product = if request.config.push { Product::Image } else { Product::Cache };
    let result = output.run(request, product, &metadata, stop).await;
    if output.progress.is_clipped() {
        // Failed builds need the warning most: people read their logs.
        request.log.warn(
            "the Docker engine dropped a part of this log; set BUILDKIT_STEP_LOG_MAX_SIZE=-1 and \
             BUILDKIT_STEP_LOG_MAX_SPEED=-1 in the environment of dockerd to keep all of it",
        );
    }
    let status = result?;
    if !status.success() {
        let is_cut_off = output.progress.is_cut_off();
        let error = output.into_error(status.code());
        if is_cut_off || matches!(error, BuildError::ReportLost { .. }) {
            request.log.warn(
                "this machine was too busy to pass on all output of this build: a part of its log \
                 is missing",
            );
        }
        return Err(error);
    }
    // The command succeeds even if the export failed. A warm-up needs the cache.
    if let (Product::Cache, Some(error)) = (product, output.export_error()) {
        return Err(error);
    }
    let digest = match product {
        Product::Image => Some(read_digest(&metadata).ok_or(BuildError::NoDigest)?),
        Product::Cache => None,
    };
    Ok(BuildOutcome {
        digest,
        steps: output.progress.steps(),
        base_images: output.progress.base_images(),
        has_imported_cache: output.progress.has_imported_cache(),
    })
}

/// Exports the layer cache of the image that [`build`] has pushed. The output is not logged.
///
/// # Errors
/// [`BuildError`]
pub async fn export_cache(
    request: &BuildRequest<'_>,
    stop: &CancellationToken,
) -> Result<(), BuildError> {
    let metadata = request.folder.join("metadata.cache.json");
    let mut output = BuildOutput::new(request.log, Verbosity::Nothing);
    let status = output.run(request, Product::Cache, &metadata, stop).await?;
    match output.export_error() {
        None if status.success() => Ok(()),
        None => Err(output.into_error(status.code())),
        Some(error) => Err(error),
    }
}

/// The product of a build.
#[derive(Clone, Copy, Debug)]
enum Product {
    /// An image that is pushed.
    Image,
    /// The layer cache, without an image.
    Cache,
}

fn invocation(request: &BuildRequest<'_>, product: Product, metadata: &Path) -> Invocation {
    let config = request.config;
    let mut command = request
        .docker
        .invocation()
        .args(["buildx", "build", "--progress=rawjson"])
        // Attestations turn each single-platform image into an index, which costs 60 ms a push and
        // puts entries of platform `unknown` into every merged index.
        .args(["--provenance=false", "--sbom=false"])
        .arg(format!("--platform={}", config.platform))
        .args(match product {
            Product::Image => image_output(&config.target_image, request.containerd_store),
            Product::Cache => cache_output(request.cache_to()),
        });
    for image in &config.cache_from {
        command = command.arg(format!("--cache-from=type=registry,ref={image}"));
    }
    for (name, image) in &config.build_contexts {
        command = command.arg(format!("--build-context={name}=docker-image://{image}"));
    }
    for (name, value) in &config.build_args.0 {
        command = if is_secret_name(name) {
            // Every user of the machine can read arguments, but only the owner can read the environment.
            command.arg(format!("--build-arg={name}")).env(name, value)
        } else {
            command.arg(format!("--build-arg={name}={value}"))
        };
    }
    if let Some(target) = &config.target {
        command = command.arg(format!("--target={target}"));
    }
    command
        .arg("--metadata-file")
        .arg(metadata)
        .arg("--file")
        .arg(&request.files.dockerfile)
        .arg("--")
        .arg(&request.files.context)
}

/// Layers are compressed once, for the image and the cache. zstd takes a third of gzip's time. The layers of the base
/// image keep their compression, because `force-compression` would compress all of them again.
fn image_output(image: &ImageRef, containerd_store: bool) -> Vec<String> {
    if !containerd_store {
        return vec!["--push".to_owned(), format!("--tag={image}")];
    }
    let output = "--output=type=image,push=true,compression=zstd,oci-mediatypes=true";
    vec![format!("{output},name={image}")]
}

fn cache_output(cache: Option<&ImageRef>) -> Vec<String> {
    let how = "mode=max,oci-mediatypes=true,image-manifest=true,compression=zstd,ignore-error=true";
    let cache = cache.map(|image| format!("--cache-to=type=registry,{how},ref={image}"));
    [Some("--output=type=cacheonly".to_owned()), cache].into_iter().flatten().collect()
}

#[derive(Deserialize)]
struct Metadata {
    #[serde(rename = "containerimage.digest")]
    digest: Digest,
}

fn read_digest(path: &Path) -> Option<Digest> {
    let text = fs::read(path).ok()?;
    serde_json::from_slice::<Metadata>(&text).ok().map(|metadata| metadata.digest)
}

/// The client's error, without the part of the Dockerfile that the client prints before it.
fn client_error(text: &str) -> &str {
    text.rfind("\nERROR: ").map_or(text, |at| &text[at..])
}

/// How much of the command's output is logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verbosity {
    Everything,
    Nothing,
}

/// Converts the command's output into log lines, and keeps the parts that an error message needs.
struct BuildOutput<'a> {
    log: &'a JobLog,
    verbosity: Verbosity,
    stdout: RawJsonDecoder,
    /// `buildx` writes the status reports to its standard error.
    stderr: RawJsonDecoder,
    progress: Progress,
    /// The last lines of the client, masked.
    client_lines: Vec<String>,
}

impl<'a> BuildOutput<'a> {
    fn new(log: &'a JobLog, verbosity: Verbosity) -> Self {
        Self {
            log,
            verbosity,
            stderr: RawJsonDecoder::default(),
            progress: Progress::new(log.masker().clone()),
            stdout: RawJsonDecoder::default(),
            client_lines: Vec::new(),
        }
    }

    /// Runs the command to its end. If it is stopped, no step of it goes on.
    async fn run(
        &mut self,
        request: &BuildRequest<'_>,
        product: Product,
        metadata: &Path,
        stop: &CancellationToken,
    ) -> Result<ExitStatus, ProcessError> {
        let (grace, log) = (request.docker.grace, request.log);
        let result = invocation(request, product, metadata)
            .run(grace, stop, |stream, bytes| self.push(stream, bytes))
            .await;
        self.finish();
        if let Err(ProcessError::Stopped { stopped_at, .. }) = result
            && stopped_at.elapsed() >= ENGINE_STOP_TIME.min(grace)
        {
            abandoned::kill_steps(self.progress.running_vertexes(), stopped_at, log).await;
        }
        result
    }

    fn push(&mut self, stream: Stream, bytes: &[u8]) {
        let mut items = Vec::new();
        match stream {
            Stream::Stdout => self.stdout.push(bytes, &mut items),
            Stream::Stderr => self.stderr.push(bytes, &mut items),
        }
        self.apply(items);
    }

    fn finish(&mut self) {
        let (mut items, mut lines) = (Vec::new(), Vec::new());
        self.stdout.finish(&mut items);
        self.stderr.finish(&mut items);
        self.apply(items);
        self.progress.finish(&mut lines);
        self.log_lines(&lines);
    }

    fn log_lines(&self, lines: &[(Stream, String)]) {
        if self.verbosity == Verbosity::Everything {
            self.log.append_masked(lines);
        }
    }

    fn apply(&mut self, items: Vec<OutputItem>) {
        let mut lines = Vec::new();
        for item in items {
            match item {
                OutputItem::Status(status) => self.progress.apply(status, &mut lines),
                OutputItem::Text(text) => {
                    let text = self.log.masker().mask(&text);
                    self.client_lines.push(text.clone());
                    self.progress.push_client_line(text, &mut lines);
                }
            }
        }
        let excess = self.client_lines.len().saturating_sub(CLIENT_LINES_MAX);
        self.client_lines.drain(..excess);
        self.log_lines(&lines);
    }

    /// Why the cache was not exported, if it was not.
    fn export_error(&self) -> Option<BuildError> {
        let message = self.progress.cache_export_error()?.to_owned();
        let reason = match build_failure("exporting cache", &message) {
            // The message is unknown, but only the registry can refuse a cache.
            FailureReason::Internal => {
                FailureReason::Registry { problem: RegistryProblem::Unavailable }
            }
            reason => reason,
        };
        Some(BuildError::Failed { reason, message, steps: self.progress.steps() })
    }

    fn into_error(self, exit_code: Option<i32>) -> BuildError {
        let text = self.client_lines.join("\n");
        if text.contains(REPORT_LOST) {
            return BuildError::ReportLost { steps: self.progress.steps() };
        }
        let failed = self.progress.failed_step().unwrap_or_default();
        let FailedStep { name, error, mut tail } = failed;
        let reason =
            build_failure(&name, if error.is_empty() { client_error(&text) } else { &error });
        let last_text = self.client_lines.last().cloned().unwrap_or_else(|| match exit_code {
            Some(code) => format!("buildx ended with exit code {code}"),
            None => "buildx was killed".to_owned(),
        });
        tail.push(if error.is_empty() { last_text } else { format!("{name}: {error}") });
        BuildError::Failed { reason, message: tail.join("\n"), steps: self.progress.steps() }
    }
}
