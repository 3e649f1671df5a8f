//! Agent → core: what the agent is, the lines and the state of its jobs, and notices of the machine's end.

use std::borrow::Cow;

use secrecy::SecretString;
use serde::{Deserialize, Serialize};

use super::{
    EndpointAddress, ParseError, RunningPreview, StoredArtifacts, TestResults, expose_secret,
    is_false,
};
use crate::{Arch, CacheMiss, Digest, FailureReason, Fingerprint, ImageRef, WireId};

/// HELLO opens a session: who the agent is, and which jobs it still has.
#[derive(Debug, Serialize, Deserialize)]
pub struct Hello {
    pub version: String,
    /// The machine's id.
    pub agent_id: WireId,
    /// The machine's token.
    #[serde(serialize_with = "expose_secret")]
    pub token: SecretString,
    pub system_info: SystemInfo,
    /// The jobs that the agent still runs, or whose end core has not acknowledged.
    #[serde(default)]
    pub jobs: Vec<RunningJob>,
    /// The previews whose containers run on the machine. Absent if the agent does not keep account of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previews: Option<Vec<RunningPreview>>,
}

/// The properties of a machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SystemInfo {
    pub hostname: String,
    pub architecture: Arch,
    /// The Docker engine's version; empty if no engine answers.
    #[serde(default)]
    pub docker_version: String,
    /// The platforms that the engine builds by emulation.
    #[serde(default)]
    pub emulated: Vec<String>,
}

/// A job in HELLO.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(from = "RunningJobForm")]
pub struct RunningJob {
    pub job_id: WireId,
}

/// A simple agent lists bare ids, ours objects.
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

/// The output that a line came from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stream {
    #[default]
    Stdout,
    Stderr,
}

/// LOG: lines of a job's output.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Log<'a> {
    pub job_id: WireId,
    /// The number of the first line. `None` from an agent that does not number its lines: they follow
    /// the stored ones.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first: Option<u64>,
    /// Never empty.
    pub lines: Vec<LogLine<'a>>,
}

/// One line of output.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogLine<'a> {
    /// When the agent read the line, in milliseconds since the Unix epoch; 0 if unknown.
    #[serde(default)]
    pub t: u64,
    #[serde(default)]
    pub stream: Stream,
    /// The text, without the line's end.
    #[serde(borrow)]
    pub data: Cow<'a, str>,
}

/// Both shapes of LOG: one line in `data`, or a batch in `lines`.
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
    pub(super) fn parse(text: &'a str) -> Result<Self, ParseError> {
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

/// Removes one `\n` or `\r\n` from the end.
fn trim_line_end(text: &mut Cow<'_, str>) {
    let length = text.strip_suffix('\n').map(|text| text.strip_suffix('\r').unwrap_or(text).len());
    match (length, text) {
        (None, _) => {}
        (Some(length), Cow::Borrowed(text)) => *text = &text[..length],
        (Some(length), Cow::Owned(text)) => text.truncate(length),
    }
}

/// The state of a job in STATUS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StatusState {
    Running,
    /// The image is pushed, the preview serves, or the test has passed.
    Completed,
    /// The reason is in `error`.
    Failed,
    /// Stopped on request.
    Cancelled,
}

/// STATUS: the state of a job. The last one is sent after core has acknowledged the job's last line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    pub job_id: WireId,
    pub state: StatusState,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// The image's reference.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_url: Option<ImageRef>,
    /// The image's digest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<Digest>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<FailureReason>,
    /// A sentence for people: why the job failed. Masked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error_message: Option<String>,
    /// The steps of the build, in `BuildKit`'s order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub steps: Vec<Step>,
    /// Sentences for people about problems that did not fail the job. Masked.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// The image is pushed, and the agent still exports the layer cache. Another STATUS follows after
    /// the export; until then HELLO lists the attempt.
    #[serde(default, skip_serializing_if = "is_false")]
    pub exporting_cache: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache_miss: Option<CacheMiss>,
    /// The next build with this cache is compared with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fingerprint: Option<Fingerprint>,
    /// The endpoints of a deployed preview, in the order of DEPLOY.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub endpoints: Vec<EndpointAddress>,
    /// The results of a test job, also of one that failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tests: Option<TestResults>,
    /// The files of a test job that core has. Absent if there are none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifacts: Option<StoredArtifacts>,
}

impl Status {
    /// A STATUS without optional fields, as the simplest agent sends it.
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
            endpoints: Vec::new(),
            tests: None,
            artifacts: None,
        }
    }
}

/// One step of a build.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// `BuildKit`'s name of the step: `[2/5] RUN npm install`.
    pub name: String,
    /// Wall-clock time.
    pub seconds: f64,
    /// Whether the result came from a cache.
    pub cached: bool,
}

/// HEARTBEAT: the agent is alive.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Heartbeat {
    /// The load average over one minute.
    #[serde(default)]
    pub load: f64,
    #[serde(default)]
    pub memory_used_bytes: u64,
    #[serde(default)]
    pub memory_total_bytes: u64,
    /// Of the file system that holds the work folder.
    #[serde(default)]
    pub disk_free_bytes: u64,
}

/// INTERRUPTED: the cloud has sent an interruption notice for the machine.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Interrupted {
    /// Milliseconds since the Unix epoch: see [`Notice`].
    pub at: u64,
    #[serde(default)]
    pub notice: Notice,
}

/// The kind of an interruption notice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Notice {
    /// The machine will be reclaimed at the given time.
    #[default]
    Certain,
    /// The risk of an interruption has risen; the time is that of the notice.
    Likely,
}
