//! The messages, one type each, and the two enums that hold them.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use secrecy::{ExposeSecret, SecretString};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize, Serializer};
use serde_json::error::Category;
use thiserror::Error;

use super::{
    Arch, CacheMiss, CommitSha, Digest, Emulation, FailureReason, Fingerprint, ImageRef, Platform,
    WireId,
};

/// A message that could not be read. It quotes no value of the message, which may be a secret in
/// the wrong place.
#[derive(Debug, Error)]
pub enum ParseError {
    /// The text is not JSON, or a field is missing or wrong.
    #[error("malformed message: {problem} at line {line}, column {column}")]
    Malformed {
        /// What is wrong.
        problem: String,
        /// The line, from 1.
        line: usize,
        /// The byte in it that the reader had come to, from 1.
        column: usize,
    },
    /// The `type` is none that this side knows.
    #[error("unknown message type {0:?}")]
    UnknownType(String),
    /// LOG holds neither `data` nor `lines`.
    #[error("LOG holds neither `data` nor `lines`")]
    EmptyLog,
}

impl ParseError {
    /// The `code` of the ERROR that answers it.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Malformed { .. } | Self::EmptyLog => "malformed_message",
            Self::UnknownType(_) => "unknown_type",
        }
    }
}

impl From<serde_json::Error> for ParseError {
    fn from(error: serde_json::Error) -> Self {
        let text = error.to_string();
        // The one message about values that quotes none: it names a field of ours.
        let missing = text.strip_prefix("missing field `").and_then(|text| text.split_once('`'));
        let problem = match (error.classify(), missing) {
            (Category::Data, Some((field, _))) => format!("no field `{field}`"),
            (Category::Data, None) => "a value of the wrong kind".to_owned(),
            (Category::Syntax, _) => "no JSON".to_owned(),
            (Category::Eof | Category::Io, _) => "JSON without its end".to_owned(),
        };
        Self::Malformed { problem, line: error.line(), column: error.column() }
    }
}

#[derive(Deserialize)]
struct Tag<'a> {
    #[serde(borrow)]
    r#type: Cow<'a, str>,
}

/// Agent → core.
#[derive(Debug, Serialize)]
#[serde(tag = "type", rename_all = "UPPERCASE")]
pub enum AgentMessage<'a> {
    /// Opens the session.
    Hello(Hello),
    /// One line, or a batch of numbered lines.
    Log(Log<'a>),
    /// What became of a job.
    Status(Status),
    /// The agent is alive.
    Heartbeat(Heartbeat),
    /// The cloud takes the machine back.
    Interrupted(Interrupted),
    /// Something core sent could not be used.
    Error(ErrorMessage),
}

impl<'a> AgentMessage<'a> {
    /// Reads one text message.
    ///
    /// # Errors
    /// [`ParseError`], whose [`code`](ParseError::code) goes back in ERROR.
    pub fn parse(text: &'a str) -> Result<Self, ParseError> {
        // What our own agent sends a million times a second needs no look for its type.
        if text.starts_with(r#"{"type":"LOG","#) {
            return Ok(Self::Log(Log::parse(text)?));
        }
        // An internally tagged enum would buffer the whole message first: 2.6 times slower.
        let tag: Tag<'a> = serde_json::from_str(text)?;
        Ok(match &*tag.r#type {
            "LOG" => Self::Log(Log::parse(text)?),
            "STATUS" => Self::Status(from_str(text)?),
            "HEARTBEAT" => Self::Heartbeat(from_str(text)?),
            "HELLO" => Self::Hello(from_str(text)?),
            "INTERRUPTED" => Self::Interrupted(from_str(text)?),
            "ERROR" => Self::Error(from_str(text)?),
            _ => return Err(ParseError::UnknownType(tag.r#type.chars().take(80).collect())),
        })
    }

    /// The message as JSON text.
    pub fn to_json(&self) -> String {
        to_json(self)
    }
}

/// Core → agent.
#[derive(Debug, Serialize)]
#[serde(tag = "type", rename_all = "SCREAMING_SNAKE_CASE")]
pub enum CoreMessage {
    /// Answers HELLO.
    HelloAck(HelloAck),
    /// Build and push an image.
    Build(Box<Build>),
    /// Join images into an index.
    Merge(Merge),
    /// Lines stored so far.
    LogAck(LogAck),
    /// The STATUS is in the store.
    StatusAck(StatusAck),
    /// Stop a job.
    Cancel(Cancel),
    /// Stop all work and exit.
    Terminate(Terminate),
    /// Something the agent sent could not be used.
    Error(ErrorMessage),
}

impl CoreMessage {
    /// Reads one text message.
    ///
    /// # Errors
    /// [`ParseError`], whose [`code`](ParseError::code) goes back in ERROR.
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        let tag: Tag<'_> = serde_json::from_str(text)?;
        Ok(match &*tag.r#type {
            "HELLO_ACK" => Self::HelloAck(from_str(text)?),
            "BUILD" => Self::Build(from_str(text)?),
            "MERGE" => Self::Merge(from_str(text)?),
            "LOG_ACK" => Self::LogAck(from_str(text)?),
            "STATUS_ACK" => Self::StatusAck(from_str(text)?),
            "CANCEL" => Self::Cancel(from_str(text)?),
            "TERMINATE" => Self::Terminate(from_str(text)?),
            "ERROR" => Self::Error(from_str(text)?),
            _ => return Err(ParseError::UnknownType(tag.r#type.chars().take(80).collect())),
        })
    }

    /// The message as JSON text.
    pub fn to_json(&self) -> String {
        to_json(self)
    }
}

fn from_str<T: DeserializeOwned>(text: &str) -> Result<T, ParseError> {
    Ok(serde_json::from_str(text)?)
}

fn to_json(message: &impl Serialize) -> String {
    serde_json::to_string(message).expect("a message has string keys and no failing serializer")
}

/// Writes a secret into a message or `agent.json`. Nothing else takes one out of its wrapper.
///
/// # Errors
/// Only those of the serializer.
pub fn expose_secret<S: Serializer>(secret: &SecretString, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(secret.expose_secret())
}

#[expect(clippy::ref_option, reason = "serde's serialize_with hands out a reference to the field")]
fn expose_secret_option<S: Serializer>(
    secret: &Option<SecretString>,
    to: S,
) -> Result<S::Ok, S::Error> {
    match secret {
        Some(secret) => expose_secret(secret, to),
        None => to.serialize_none(),
    }
}

/// HELLO: who the agent is and what it still runs. The first message of a session.
#[derive(Debug, Serialize, Deserialize)]
pub struct Hello {
    /// The agent's own version.
    pub version: String,
    /// The machine's id.
    pub agent_id: WireId,
    /// The machine's token.
    #[serde(serialize_with = "expose_secret")]
    pub token: SecretString,
    /// What the machine is.
    pub system_info: SystemInfo,
    /// The jobs that it still runs, or whose end core has not acknowledged.
    #[serde(default)]
    pub jobs: Vec<RunningJob>,
}

/// What a machine is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SystemInfo {
    /// The machine's own name.
    pub hostname: String,
    /// Its processor.
    pub architecture: Arch,
    /// The Docker engine's version; empty when none answers.
    #[serde(default)]
    pub docker_version: String,
    /// The platforms that its engine builds by emulation.
    #[serde(default)]
    pub emulated: Vec<String>,
}

/// A job in HELLO.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(from = "RunningJobForm")]
pub struct RunningJob {
    /// The job.
    pub job_id: WireId,
}

/// A simple agent lists bare ids, ours an object.
#[derive(Deserialize)]
#[serde(untagged)]
enum RunningJobForm {
    Id(WireId),
    Object { job_id: WireId },
}

impl From<RunningJobForm> for RunningJob {
    fn from(form: RunningJobForm) -> Self {
        match form {
            RunningJobForm::Id(job_id) | RunningJobForm::Object { job_id } => Self { job_id },
        }
    }
}

/// `HELLO_ACK`: the session is open.
#[derive(Debug, Serialize, Deserialize)]
pub struct HelloAck {
    /// Seconds between heartbeats. Core gives a session up after three silent intervals.
    pub heartbeat_interval: u64,
    /// For each job of HELLO that is still wanted, where its log goes on.
    #[serde(default)]
    pub jobs: Vec<ResumedJob>,
    /// Seconds from now for which the machine may live; absent where it may for ever.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease_seconds: Option<u64>,
}

/// A job in `HELLO_ACK`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ResumedJob {
    /// The job.
    pub job_id: WireId,
    /// The number of the next line that core wants.
    pub next_line: u64,
}

/// Which output a line came from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stream {
    /// Standard output.
    #[default]
    Stdout,
    /// Standard error.
    Stderr,
}

/// LOG: lines of a job's output.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Log<'a> {
    /// The job.
    pub job_id: WireId,
    /// The number of the first line; `None` from an agent that does not number them: the line
    /// follows whatever is stored already.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first: Option<u64>,
    /// The lines, at least one.
    pub lines: Vec<LogLine<'a>>,
}

/// One line of output.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogLine<'a> {
    /// Milliseconds since the Unix epoch when the agent read it; 0 if unknown.
    #[serde(default)]
    pub t: u64,
    /// Where it came from.
    #[serde(default)]
    pub stream: Stream,
    /// The text, without the line's end.
    #[serde(borrow)]
    pub data: Cow<'a, str>,
}

/// Both shapes of LOG.
#[derive(Deserialize)]
struct LogForm<'a> {
    job_id: WireId,
    #[serde(default)]
    first: Option<u64>,
    #[serde(default)]
    stream: Stream,
    #[serde(borrow, default)]
    data: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    lines: Vec<LogLine<'a>>,
}

impl<'a> Log<'a> {
    fn parse(text: &'a str) -> Result<Self, ParseError> {
        let form: LogForm<'a> = serde_json::from_str(text)?;
        let mut lines = form.lines;
        if let Some(data) = form.data {
            lines.insert(0, LogLine { t: 0, stream: form.stream, data });
        }
        if lines.is_empty() {
            return Err(ParseError::EmptyLog);
        }
        for line in &mut lines {
            trim_line_end(&mut line.data);
        }
        Ok(Self { job_id: form.job_id, first: form.first, lines })
    }
}

/// Takes one `\n` or `\r\n` off the end.
fn trim_line_end(text: &mut Cow<'_, str>) {
    let length = text.strip_suffix('\n').map(|text| text.strip_suffix('\r').unwrap_or(text).len());
    match (length, text) {
        (None, _) => {}
        (Some(length), Cow::Borrowed(text)) => *text = &text[..length],
        (Some(length), Cow::Owned(text)) => text.truncate(length),
    }
}

/// How far a job is, in STATUS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StatusState {
    /// The agent has begun.
    Running,
    /// The image is pushed.
    Completed,
    /// It failed; `error` says why.
    Failed,
    /// It was stopped because core said so.
    Cancelled,
}

/// STATUS: what became of a job. Sent after the job's last line is acknowledged.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// The job.
    pub job_id: WireId,
    /// How far it is.
    pub state: StatusState,
    /// The exit code of the build.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// The image's reference.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_url: Option<ImageRef>,
    /// The image's digest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<Digest>,
    /// Whose fault a failure was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<FailureReason>,
    /// For people: what happened, in a sentence. Masked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error_message: Option<String>,
    /// The steps of the build, in `BuildKit`'s order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub steps: Vec<Step>,
    /// What the user should know although the job went on. Masked.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// The image is pushed and the agent goes on to export the layer cache. Another STATUS follows
    /// when that is over; until then the attempt is in HELLO.
    #[serde(default, skip_serializing_if = "is_false")]
    pub exporting_cache: bool,
    /// The first step that did not come from the cache, and why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache_miss: Option<CacheMiss>,
    /// What this build was made of, for the next one to compare with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fingerprint: Option<Fingerprint>,
}

impl Status {
    /// A bare STATUS, as the simplest agent sends it.
    pub const fn new(job_id: WireId, state: StatusState) -> Self {
        Self {
            job_id,
            state,
            exit_code: None,
            artifact_url: None,
            digest: None,
            error: None,
            error_message: None,
            steps: Vec::new(),
            warnings: Vec::new(),
            exporting_cache: false,
            cache_miss: None,
            fingerprint: None,
        }
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands out a reference to the field")]
const fn is_false(flag: &bool) -> bool {
    !*flag
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands out a reference to the field")]
const fn is_true(flag: &bool) -> bool {
    *flag
}

/// One step of a build.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// As `BuildKit` names it: `[2/5] RUN npm install`.
    pub name: String,
    /// Wall-clock time.
    pub seconds: f64,
    /// Whether its result came from a cache.
    pub cached: bool,
}

/// HEARTBEAT: the agent is alive.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Heartbeat {
    /// Load average over one minute.
    #[serde(default)]
    pub load: f64,
    /// Memory in use.
    #[serde(default)]
    pub memory_used_bytes: u64,
    /// Memory in all.
    #[serde(default)]
    pub memory_total_bytes: u64,
    /// Space left where the work folder is.
    #[serde(default)]
    pub disk_free_bytes: u64,
}

/// INTERRUPTED: the cloud takes the machine back.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Interrupted {
    /// When, in milliseconds since the Unix epoch.
    pub at: u64,
    /// How sure it is.
    #[serde(default)]
    pub notice: Notice,
}

/// How sure it is that the cloud takes a machine back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Notice {
    /// It does, at the time that is named.
    #[default]
    Certain,
    /// It is more likely than it was; the time is when that was said.
    Likely,
}

/// ERROR: a message could not be used. The session goes on.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ErrorMessage {
    /// A word for programs.
    pub code: String,
    /// A sentence for people.
    pub message: String,
}

/// Where the source is.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CloneContext {
    /// The repository, without credentials.
    pub repo_url: String,
    /// The commit to build.
    pub commit_hash: CommitSha,
    /// A branch that contains it, for servers that do not serve a bare commit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub branch: Option<String>,
    /// Opens the repository.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        serialize_with = "expose_secret_option"
    )]
    pub clone_token: Option<SecretString>,
}

/// Opens a registry.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RegistryAuth {
    /// The user.
    pub username: String,
    /// Its password.
    #[serde(serialize_with = "expose_secret")]
    pub password: SecretString,
}

/// Build arguments. Their values stay out of `Debug`, because some are secret.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct BuildArgs(pub BTreeMap<String, String>);

impl fmt::Debug for BuildArgs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

/// What to build.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct BuildConfig {
    /// The context, relative to the repository's root.
    pub context_path: String,
    /// The Dockerfile: looked up in the context, then from the repository's root. Default: `Dockerfile`.
    #[serde(default = "default_dockerfile")]
    pub dockerfile: String,
    /// The reference that the image is pushed under.
    pub target_image: ImageRef,
    /// The platform.
    pub platform: Platform,
    /// `--build-arg`.
    #[serde(default)]
    pub build_args: BuildArgs,
    /// `--target`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// References that layers are looked for in.
    #[serde(default)]
    pub cache_from: Vec<ImageRef>,
    /// Where the layers go.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache_to: Option<ImageRef>,
    /// The agent stops the build after this many seconds. Default: 1800.
    #[serde(default = "default_timeout_seconds")]
    pub timeout_seconds: u64,
    /// Whether the image is pushed. A warm-up only fills caches. Default: true.
    #[serde(default = "default_push", skip_serializing_if = "is_true")]
    pub push: bool,
    /// `--build-context`: names that the Dockerfile may use in `FROM` and `COPY --from`, each an image
    /// by digest.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub build_contexts: BTreeMap<String, ImageRef>,
    /// Whether the build may run under emulation. Default: allow.
    #[serde(default, skip_serializing_if = "Emulation::is_allowed")]
    pub emulation: Emulation,
    /// The steps of the last native run of the same build, to say how much slower emulation was.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub native_steps: Vec<Step>,
    /// What the build was made of whose cache is imported.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous_fingerprint: Option<Fingerprint>,
}

const fn default_push() -> bool {
    true
}

fn default_dockerfile() -> String {
    "Dockerfile".to_owned()
}

const fn default_timeout_seconds() -> u64 {
    30 * 60
}

/// BUILD: clone, build, push.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Build {
    /// The job.
    pub job_id: WireId,
    /// Where the source is.
    pub context: CloneContext,
    /// What to build.
    pub build_config: BuildConfig,
    /// Opens the registry; absent where none is needed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub registry_auth: Option<RegistryAuth>,
}

/// MERGE: join single-platform images into one index.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Merge {
    /// The job.
    pub job_id: WireId,
    /// The images, by digest.
    pub source_images: Vec<ImageRef>,
    /// The reference of the index.
    pub target_image: ImageRef,
    /// Exactly the platforms that the index must hold; empty: unchecked.
    #[serde(default)]
    pub platforms: Vec<Platform>,
    /// Opens the registry; absent where none is needed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub registry_auth: Option<RegistryAuth>,
}

/// `LOG_ACK`: lines that are in the store.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LogAck {
    /// The job.
    pub job_id: WireId,
    /// Lines stored so far: the number of the next line that core wants.
    pub lines: u64,
}

/// `STATUS_ACK`: a STATUS is in the store.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct StatusAck {
    /// The job.
    pub job_id: WireId,
    /// Seconds from now for which the machine may live: what was reported may have changed that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease_seconds: Option<u64>,
}

/// CANCEL: stop a job, and say so with STATUS `cancelled`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Cancel {
    /// The job.
    pub job_id: WireId,
    /// Why, for the log.
    #[serde(default)]
    pub reason: String,
}

/// TERMINATE: stop all work, clean up and exit.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Terminate {
    /// Why, for the log.
    #[serde(default)]
    pub reason: String,
    /// Seconds that the agent may use; then it exits whatever is left. 0: as many as it needs.
    #[serde(default)]
    pub grace: u64,
}
