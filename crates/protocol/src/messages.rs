//! The two enums of all messages, how they are read and written, and ERROR, which both sides send.

mod agent;
mod build;
mod core;
mod deploy;
mod preview;
mod test;

use std::borrow::Cow;

use secrecy::{ExposeSecret, SecretString};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize, Serializer};
use serde_json::error::Category;
use thiserror::Error;

pub use self::core::{Cancel, HelloAck, LogAck, ResumedJob, StatusAck, Terminate};
pub use agent::{
    Heartbeat, Hello, Interrupted, Log, LogLine, Notice, RunningJob, Status, StatusState, Step,
    Stream, SystemInfo,
};
pub use build::{Build, BuildArgs, BuildConfig, CloneContext, Merge, RegistryAuth};
pub use deploy::{Deploy, Dial, Endpoint, HealthCheck, Secrets, ServiceCommand, Sleep};
pub use preview::{
    EndpointAddress, Preview, PreviewState, RunningPreview, ServiceState, UNKNOWN_PREVIEW,
    service_log, service_log_id,
};
pub use test::{
    ARTIFACT_PATH_BYTES_MAX, CASE_LINE_BYTES_MAX, CASE_LINES_MAX, CASE_MESSAGE_BYTES_MAX,
    CASE_NAME_BYTES_MAX, CASES_BYTES_MAX, CASES_MAX, COMMENT_IMAGE_BYTES_MAX, COMMENT_IMAGES_MAX,
    CaseOutcome, Shard, StoredArtifacts, TEST_REPORT_SECONDS_MAX, Test, TestCase, TestResults,
    TestedPreview, is_artifact_path,
};

/// A message that could not be read. The error quotes no value of the message, because a secret may
/// stand in the wrong field.
#[derive(Debug, Error)]
pub enum ParseError {
    /// The text is not JSON, or a field is missing or wrong.
    #[error("malformed message: {problem} at line {line}, column {column}")]
    Malformed {
        problem: String,
        /// Counted from 1.
        line: usize,
        /// The byte of the line at which parsing stopped, from 1.
        column: usize,
    },
    #[error("unknown message type {0:?}")]
    UnknownType(String),
    #[error("LOG holds neither `data` nor `lines`")]
    EmptyLog,
}

impl ParseError {
    /// The `code` of the ERROR that is sent back.
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
        // Of serde_json's messages about values only this one quotes no value; it names our own field.
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
#[expect(clippy::large_enum_variant, reason = "a message is handled at once, and none is kept")]
#[derive(Debug, Serialize)]
#[serde(tag = "type", rename_all = "UPPERCASE")]
pub enum AgentMessage<'a> {
    Hello(Hello),
    Log(Log<'a>),
    Status(Status),
    Heartbeat(Heartbeat),
    Interrupted(Interrupted),
    Preview(Preview),
    Error(ErrorMessage),
}

impl<'a> AgentMessage<'a> {
    /// Reads one text message.
    ///
    /// # Errors
    /// [`ParseError`], whose [`code`](ParseError::code) goes back in ERROR.
    pub fn parse(text: &'a str) -> Result<Self, ParseError> {
        // Core reads up to a million lines a second: this prefix of our agent's LOG saves parsing the type.
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
            "PREVIEW" => Self::Preview(from_str(text)?),
            "ERROR" => Self::Error(from_str(text)?),
            _ => return Err(ParseError::UnknownType(tag.r#type.chars().take(80).collect())),
        })
    }

    pub fn to_json(&self) -> String {
        to_json(self)
    }
}

/// Core → agent.
#[derive(Debug, Serialize)]
#[serde(tag = "type", rename_all = "SCREAMING_SNAKE_CASE")]
pub enum CoreMessage {
    HelloAck(HelloAck),
    Build(Box<Build>),
    Merge(Merge),
    Deploy(Box<Deploy>),
    Test(Box<Test>),
    Sleep(Sleep),
    Dial(Dial),
    LogAck(LogAck),
    StatusAck(StatusAck),
    Cancel(Cancel),
    Terminate(Terminate),
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
            "DEPLOY" => Self::Deploy(from_str(text)?),
            "TEST" => Self::Test(from_str(text)?),
            "SLEEP" => Self::Sleep(from_str(text)?),
            "DIAL" => Self::Dial(from_str(text)?),
            "LOG_ACK" => Self::LogAck(from_str(text)?),
            "STATUS_ACK" => Self::StatusAck(from_str(text)?),
            "CANCEL" => Self::Cancel(from_str(text)?),
            "TERMINATE" => Self::Terminate(from_str(text)?),
            "ERROR" => Self::Error(from_str(text)?),
            _ => return Err(ParseError::UnknownType(tag.r#type.chars().take(80).collect())),
        })
    }

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

/// Serializes a secret into a message or `agent.json`.
///
/// # Errors
/// Only those of the serializer.
pub fn expose_secret<S: Serializer>(secret: &SecretString, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(secret.expose_secret())
}

#[expect(clippy::ref_option, reason = "serde passes a reference to the field")]
fn expose_secret_option<S: Serializer>(
    secret: &Option<SecretString>,
    to: S,
) -> Result<S::Ok, S::Error> {
    match secret {
        Some(secret) => expose_secret(secret, to),
        None => to.serialize_none(),
    }
}

/// ERROR: a message could not be used. The session goes on.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ErrorMessage {
    /// A word for programs.
    pub code: String,
    /// A sentence for people.
    pub message: String,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference to the field")]
const fn is_false(flag: &bool) -> bool {
    !*flag
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference to the field")]
const fn is_true(flag: &bool) -> bool {
    *flag
}
