//! Builds and pushes one image with `docker buildx build`, and exports its layer cache afterwards.
//!
//! `BuildKit` does both in one command, but says only at its end what it pushed. So there are two: the
//! second builds the same again, all of it from the engine's own cache, and exports nothing but the
//! cache.

use std::fs;
use std::path::Path;
use std::process::ExitStatus;
use std::time::Duration;

use serde::Deserialize;
use stagely_protocol::paths::BuildPaths;
use stagely_protocol::{
    BuildConfig, Digest, FailureReason, ImageRef, RegistryProblem, Step, Stream,
};
use thiserror::Error;
use tokio_util::sync::CancellationToken;

use super::abandoned;
use super::classify::build_failure;
use super::command::DockerCommand;
use super::progress::{FailedStep, OutputItem, Progress, RawJsonDecoder};
use super::vertex::BaseImage;
use crate::job_log::JobLog;
use crate::mask::is_secret_name;
use crate::process::{Invocation, ProcessError};

/// `buildx` that is told to stop ends when the engine has ended the build, or 3 s later.
const ENGINE_ANSWER: Duration = Duration::from_millis(2_500);

/// The last words of a `buildx` whose build has succeeded and whose report was still on its way 3 s
/// later: on a machine that is too busy.
const REPORT_LOST: &str = "failed to receive status: rpc error: code = Canceled";

/// The last lines after `BuildKit`'s report that are kept to find out what went wrong.
const TEXT_LINES: usize = 60;

/// One build.
pub struct BuildRequest<'a> {
    /// How `docker` is called.
    pub docker: &'a DockerCommand,
    /// What to build.
    pub config: &'a BuildConfig,
    /// Where it is.
    pub paths: &'a BuildPaths,
    /// Whether the engine has the containerd image store, without which it exports no cache.
    pub containerd_store: bool,
    /// The job's private folder.
    pub folder: &'a Path,
    /// Where the output goes.
    pub log: &'a JobLog,
}

impl BuildRequest<'_> {
    /// Where the layer cache goes, if it can.
    pub fn cache_to(&self) -> Option<&ImageRef> {
        self.config.cache_to.as_ref().filter(|_| self.containerd_store)
    }
}

/// A build that has succeeded.
#[derive(Debug)]
pub struct BuildOutcome {
    /// The image's digest, if it was to be pushed.
    pub digest: Option<Digest>,
    /// The steps.
    pub steps: Vec<Step>,
    /// The images that it used.
    pub base_images: Vec<BaseImage>,
    /// Whether any cache could be imported.
    pub cache_found: bool,
}

/// A build without an image.
#[derive(Debug, Error)]
pub enum BuildError {
    /// The command could not be run.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// The build failed.
    #[error("{message}")]
    Failed {
        /// Whose fault it is.
        reason: FailureReason,
        /// What happened, with the last lines of the failing step. Masked.
        message: String,
        /// The steps that have ended.
        steps: Vec<Step>,
    },
    /// The engine has made the image, but its report did not arrive in time, so that its digest and
    /// the end of its log are missing. Built again, it comes from the engine's own cache.
    #[error("the engine's report did not arrive in time")]
    ReportLost {
        /// The steps that were reported.
        steps: Vec<Step>,
    },
    /// It said that it succeeded, but not what it pushed.
    #[error("buildx did not say which image it pushed")]
    NoDigest,
}

impl BuildError {
    /// Whose fault it is.
    pub fn reason(&self) -> FailureReason {
        match self {
            Self::Process(ProcessError::Spawn { .. }) => FailureReason::Engine,
            Self::Process(_) | Self::ReportLost { .. } | Self::NoDigest => FailureReason::Internal,
            Self::Failed { reason, .. } => reason.clone(),
        }
    }
}

/// Builds and pushes. What is not pushed is built for its layer cache, and that is exported.
///
/// # Errors
/// [`BuildError`]
pub async fn build(
    request: &BuildRequest<'_>,
    stop: &CancellationToken,
) -> Result<BuildOutcome, BuildError> {
    let metadata = request.folder.join("metadata.json");
    let mut reader = Reader::new(request.log, Verbosity::Everything);
    let product = if request.config.push { Product::Image } else { Product::Cache };
    let result = reader.run(request, product, &metadata, stop).await;
    if reader.progress.is_clipped() {
        // Also of a build that fails: its log is the one that people read.
        request.log.warn(
            "the Docker engine dropped a part of this log; set BUILDKIT_STEP_LOG_MAX_SIZE=-1 and \
             BUILDKIT_STEP_LOG_MAX_SPEED=-1 in the environment of dockerd to keep all of it",
        );
    }
    let status = result?;
    if !status.success() {
        return Err(reader.into_error(status.code()));
    }
    // Even so the command succeeds. Of a warm-up the cache is all that counts.
    if let (Product::Cache, Some(error)) = (product, reader.export_error()) {
        return Err(error);
    }
    let digest = match product {
        Product::Image => Some(read_digest(&metadata).ok_or(BuildError::NoDigest)?),
        Product::Cache => None,
    };
    Ok(BuildOutcome {
        digest,
        steps: reader.progress.steps(),
        base_images: reader.progress.base_images(),
        cache_found: reader.progress.has_imported_cache(),
    })
}

/// Exports the layer cache of what [`build`] has pushed. The log has no word of it but the client's
/// own.
///
/// # Errors
/// [`BuildError`]
pub async fn export_cache(
    request: &BuildRequest<'_>,
    stop: &CancellationToken,
) -> Result<(), BuildError> {
    let metadata = request.folder.join("metadata.cache.json");
    let mut reader = Reader::new(request.log, Verbosity::Nothing);
    let status = reader.run(request, Product::Cache, &metadata, stop).await?;
    match reader.export_error() {
        None if status.success() => Ok(()),
        None => Err(reader.into_error(status.code())),
        Some(error) => Err(error),
    }
}

/// What comes of a build.
#[derive(Clone, Copy, Debug)]
enum Product {
    /// An image that is pushed.
    Image,
    /// The layer cache alone.
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
            // Everyone on the machine reads arguments; the environment only its owner.
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
        .arg(&request.paths.dockerfile)
        .arg("--")
        .arg(&request.paths.context)
}

/// Layers are compressed once, for the image and the cache. zstd takes a third of gzip's time; layers
/// of the base image stay as they are, since `force-compression` would unpack and pack them all.
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

/// The client's own error, without the piece of the Dockerfile that it shows before.
fn last_words(text: &str) -> &str {
    text.rfind("\nERROR: ").map_or(text, |at| &text[at..])
}

/// How much of the command's output is logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verbosity {
    Everything,
    Nothing,
}

/// Turns the command's output into log lines and keeps what an error message needs.
struct Reader<'a> {
    log: &'a JobLog,
    verbosity: Verbosity,
    decoder: RawJsonDecoder,
    progress: Progress,
    stdout: RawJsonDecoder,
    text: Vec<String>,
}

impl<'a> Reader<'a> {
    fn new(log: &'a JobLog, verbosity: Verbosity) -> Self {
        Self {
            log,
            verbosity,
            decoder: RawJsonDecoder::default(),
            progress: Progress::new(log.masker().clone()),
            stdout: RawJsonDecoder::default(),
            text: Vec::new(),
        }
    }

    /// Runs the command to its end. When it is stopped, nothing of it runs on.
    async fn run(
        &mut self,
        request: &BuildRequest<'_>,
        product: Product,
        metadata: &Path,
        stop: &CancellationToken,
    ) -> Result<ExitStatus, ProcessError> {
        let (grace, log) = (request.docker.grace, request.log);
        let result = invocation(request, product, metadata)
            .run(grace, stop, |stream, bytes| self.read(stream, bytes))
            .await;
        self.finish();
        if let Err(ProcessError::Stopped { stopped_at, .. }) = result
            && stopped_at.elapsed() >= ENGINE_ANSWER.min(grace)
        {
            abandoned::end_steps(self.progress.running_vertexes(), stopped_at, log).await;
        }
        result
    }

    fn read(&mut self, stream: Stream, bytes: &[u8]) {
        let mut events = Vec::new();
        match stream {
            Stream::Stdout => self.stdout.push(bytes, &mut events),
            Stream::Stderr => self.decoder.push(bytes, &mut events),
        }
        self.take(events);
    }

    fn finish(&mut self) {
        let (mut events, mut lines) = (Vec::new(), Vec::new());
        self.stdout.finish(&mut events);
        self.decoder.finish(&mut events);
        self.take(events);
        self.progress.finish(&mut lines);
        self.log_lines(&lines);
    }

    fn log_lines(&self, lines: &[(Stream, String)]) {
        if self.verbosity == Verbosity::Everything {
            self.log.masked_lines(lines);
        }
    }

    fn take(&mut self, events: Vec<OutputItem>) {
        let mut lines = Vec::new();
        for event in events {
            match event {
                OutputItem::Status(status) => self.progress.apply(status, &mut lines),
                OutputItem::Text(text) => {
                    let text = self.log.masker().mask(&text);
                    self.text.push(text.clone());
                    self.progress.push_client_line(text, &mut lines);
                }
            }
        }
        let excess = self.text.len().saturating_sub(TEXT_LINES);
        self.text.drain(..excess);
        self.log_lines(&lines);
    }

    /// Why the cache was not exported.
    fn export_error(&self) -> Option<BuildError> {
        let message = self.progress.cache_export_error()?.to_owned();
        let reason = match build_failure("exporting cache", &message) {
            // In words that are not known; but it is the registry that takes a cache.
            FailureReason::Internal => {
                FailureReason::Registry { problem: RegistryProblem::Unavailable }
            }
            reason => reason,
        };
        Some(BuildError::Failed { reason, message, steps: self.progress.steps() })
    }

    fn into_error(self, exit_code: Option<i32>) -> BuildError {
        let text = self.text.join("\n");
        if text.contains(REPORT_LOST) {
            return BuildError::ReportLost { steps: self.progress.steps() };
        }
        let failed = self.progress.failed_step().unwrap_or_default();
        let FailedStep { name, error, mut tail } = failed;
        let reason =
            build_failure(&name, if error.is_empty() { last_words(&text) } else { &error });
        let last_text = self.text.last().cloned().unwrap_or_else(|| match exit_code {
            Some(code) => format!("buildx ended with exit code {code}"),
            None => "buildx was killed".to_owned(),
        });
        tail.push(if error.is_empty() { last_text } else { format!("{name}: {error}") });
        BuildError::Failed { reason, message: tail.join("\n"), steps: self.progress.steps() }
    }
}
