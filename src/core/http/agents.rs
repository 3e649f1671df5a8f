//! `/v1/agent/connect`: the WebSocket that agents dial.
//!
//! Each session is its own task with bounded queues: an agent that sends faster than the store
//! writes is not read from, one that does not read is closed, and neither is felt by the others.

use std::collections::VecDeque;
use std::future::pending;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::State;
use axum::extract::ws::{Message, Utf8Bytes, WebSocket, WebSocketUpgrade};
use axum::response::Response;
use futures_util::FutureExt as _;
use stagely_protocol::{
    AgentMessage, CHANGED_FILES_MAX, CacheMiss, ChangedFile, CoreMessage, ErrorMessage,
    FailureReason, Hello, HelloAck, Log, LogAck, MESSAGE_BYTES_MAX, MissCause, Notice, ParseError,
    ResumedJob, Status, StatusAck, StatusState, Step, SystemInfo, WireId,
};
use stagely_state::ids::{MachineId, SessionId};
use stagely_state::{Attempt, Event, Interruption, JobOutcome, JobReport, Timestamp};
use thiserror::Error;
use tokio::time::{Instant, timeout};
use tracing::{debug, error, info, warn};

use super::Api;
use crate::core::clock::now;
use crate::core::logs::{AppendError, Receipt};
use crate::core::orchestrator::ShuttingDown;
use crate::core::sessions::SessionEntry;

/// From the connection to HELLO.
const HELLO_LIMIT: Duration = Duration::from_secs(10);

/// How long an agent may take to read one message.
const SEND_LIMIT: Duration = Duration::from_secs(30);

/// LOG batches of one session that may wait for the store. With more on the way the session is not
/// read from, so that the agent's own spool holds the rest.
const APPENDS_MAX: usize = 16;

/// The socket's buffer for reading. With the default of 128 KiB a thousand idle agents would hold
/// 134 MB; this costs a tenth of the throughput of one connection.
const READ_BUFFER_BYTES: usize = 4 * 1024;

/// Most jobs that one agent may hold. It gets one at a time; what is beyond that it has yet to stop.
const HELD_MAX: usize = 64;

// What an agent says is kept in the records, so it is cut: lists by their entries, texts in characters.
const ERROR_CHARS_MAX: usize = 8_000;
const STEPS_MAX: usize = 1_000;
const STEP_CHARS_MAX: usize = 1_000;
const WARNINGS_MAX: usize = 100;
const WARNING_CHARS_MAX: usize = 2_000;
const MISS_NAMES_MAX: usize = 100;
const MISS_CHARS_MAX: usize = 1_000;
const SYSTEM_CHARS_MAX: usize = 255;
const EMULATED_MAX: usize = 32;

/// Takes an agent's connection.
pub(super) async fn connect(State(api): State<Api>, upgrade: WebSocketUpgrade) -> Response {
    upgrade
        .read_buffer_size(READ_BUFFER_BYTES)
        .write_buffer_size(0)
        .max_message_size(MESSAGE_BYTES_MAX)
        .max_frame_size(MESSAGE_BYTES_MAX)
        .on_upgrade(move |socket| serve(api, socket))
}

/// Why a session ended.
#[derive(Debug, Error)]
enum SessionEnd {
    #[error("no HELLO came in {HELLO_LIMIT:?}")]
    NoHello,
    #[error("HELLO was not good: {0}")]
    BadHello(String),
    #[error("the agent closed the connection")]
    Closed,
    #[error("the connection failed: {0}")]
    Broken(#[from] axum::Error),
    #[error("the agent does not read")]
    NotReading,
    #[error("the agent was silent for three heartbeats")]
    Silent,
    #[error("the session is not wanted any more")]
    Ended,
    #[error(transparent)]
    ShuttingDown(#[from] ShuttingDown),
    #[error("its log cannot be stored: {0}")]
    Log(#[from] AppendError),
}

async fn serve(api: Api, mut socket: WebSocket) {
    let hello = match timeout(HELLO_LIMIT, receive_hello(&api, &mut socket)).await {
        Ok(Ok(hello)) => hello,
        Ok(Err(end)) => return refuse(&mut socket, &end).await,
        Err(_) => return refuse(&mut socket, &SessionEnd::NoHello).await,
    };
    let (machine, hello) = hello;
    let entry = api.sessions.open(machine);
    info!(%machine, version = hello.version, "an agent has connected");
    let mut session = Session { api: &api, machine, socket, appends: VecDeque::new() };
    let mut entry = entry;
    // The machine would count as connected for ever.
    if let Ok(end) = AssertUnwindSafe(session.run(hello, &mut entry)).catch_unwind().await {
        let end = end.err().map(|end| end.to_string());
        info!(%machine, end, "an agent's session has ended");
    } else {
        error!(%machine, "an agent's session has panicked");
    }
    api.sessions.close(&entry);
    // A newer session may speak for the machine by now. The state can tell.
    let gone = Event::AgentDisconnected { machine, session: entry.id };
    let _ = api.events.store(gone).await;
}

/// Says why, so that the log of the agent shows it, and closes.
async fn refuse(socket: &mut WebSocket, end: &SessionEnd) {
    debug!(%end, "a connection was refused");
    let error = ErrorMessage { code: "refused".to_owned(), message: end.to_string() };
    let json = CoreMessage::Error(error).to_json();
    let _ = timeout(SEND_LIMIT, socket.send(Message::Text(json.into()))).await;
    let _ = timeout(SEND_LIMIT, socket.send(Message::Close(None))).await;
}

async fn receive_hello(
    api: &Api,
    socket: &mut WebSocket,
) -> Result<(MachineId, Hello), SessionEnd> {
    let text = loop {
        match socket.recv().await.ok_or(SessionEnd::Closed)?? {
            Message::Text(text) => break text,
            Message::Ping(_) | Message::Pong(_) => {}
            Message::Binary(_) | Message::Close(_) => return Err(SessionEnd::Closed),
        }
    };
    let hello = match AgentMessage::parse(&text) {
        Ok(AgentMessage::Hello(hello)) => hello,
        Ok(_) => return Err(SessionEnd::BadHello("it must be the first message".to_owned())),
        Err(error) => return Err(SessionEnd::BadHello(error.to_string())),
    };
    if hello.jobs.len() > HELD_MAX {
        return Err(SessionEnd::BadHello(format!("it names more than {HELD_MAX} jobs")));
    }
    // One answer for a machine that is not there and a token that is wrong: guessing learns nothing.
    let refused = || SessionEnd::BadHello("the agent id or the token is wrong".to_owned());
    let machine: MachineId = hello.agent_id.as_str().parse().map_err(|_| refused())?;
    if !api.secrets.is_machine_token(machine, &hello.token) {
        return Err(refused());
    }
    Ok((machine, hello))
}

/// A LOG on its way to the store.
struct Append {
    job_id: WireId,
    receipt: Receipt,
}

/// One agent's session.
struct Session<'a> {
    api: &'a Api,
    machine: MachineId,
    socket: WebSocket,
    appends: VecDeque<Append>,
}

impl Session<'_> {
    async fn run(&mut self, hello: Hello, entry: &mut SessionEntry) -> Result<(), SessionEnd> {
        self.greet(hello, entry.id).await?;
        let interval = self.api.config.agents.heartbeat_interval;
        let mut beat = self.api.beats();
        let mut heard_at = Instant::now();
        loop {
            tokio::select! {
                () = entry.end.cancelled() => return Err(SessionEnd::Ended),
                () = self.api.stop.cancelled() => return Err(ShuttingDown.into()),
                Some(message) = entry.messages.recv() => self.send(&message).await?,
                stored = next_stored(&mut self.appends) => self.acknowledge(stored?).await?,
                received = self.socket.recv(), if self.appends.len() < APPENDS_MAX => {
                    heard_at = Instant::now();
                    match received.ok_or(SessionEnd::Closed)?? {
                        Message::Text(text) => self.take(&text).await?,
                        Message::Ping(_) | Message::Pong(_) => {}
                        Message::Binary(_) => self.answer_error("malformed_message", "messages are JSON text").await?,
                        Message::Close(_) => return Err(SessionEnd::Closed),
                    }
                }
                _ = beat.tick() => {
                    if self.appends.len() < APPENDS_MAX && heard_at.elapsed() > interval * 3 {
                        return Err(SessionEnd::Silent);
                    }
                    // It is answered, so also an agent without HEARTBEAT is heard.
                    self.send_raw(Message::Ping(Bytes::new())).await?;
                }
            }
        }
    }

    /// Tells the orchestrator of the agent, and the agent where its logs go on.
    async fn greet(&mut self, hello: Hello, session: SessionId) -> Result<(), SessionEnd> {
        let holds: Vec<Attempt> =
            hello.jobs.iter().filter_map(|job| job.job_id.as_str().parse().ok()).collect();
        let event = Event::AgentConnected {
            machine: self.machine,
            session,
            system_info: cut_system_info(hello.system_info),
            holds: holds.clone(),
        };
        self.api.events.store(event).await?;
        // Also those that are not wanted any more: the agent reports their end then, and until it
        // does a registered machine is not free. What they say is dropped.
        let mut jobs = Vec::new();
        for attempt in holds {
            let next_line = self.api.logs.next_line(attempt).await?;
            jobs.push(ResumedJob { job_id: attempt.wire(), next_line });
        }
        let heartbeat_interval = self.api.config.agents.heartbeat_interval.as_secs();
        self.send(&CoreMessage::HelloAck(HelloAck {
            heartbeat_interval,
            jobs,
            lease_seconds: self.lease_seconds(),
        }))
        .await
    }

    /// Seconds for which the machine may still live. Where its lease is over core ends it itself, once it has
    /// heard what the agent has to say: so the machine's own switch waits a little.
    fn lease_seconds(&self) -> Option<u64> {
        let until = self.api.records.read().machines.get(&self.machine)?.lease_until?;
        Some(until.since(now()).max(self.api.config.builders.job_grace).as_secs())
    }

    async fn take(&mut self, text: &Utf8Bytes) -> Result<(), SessionEnd> {
        match AgentMessage::parse(text) {
            Ok(AgentMessage::Log(log)) => self.take_log(&log).await,
            Ok(AgentMessage::Status(status)) => self.take_status(status).await,
            Ok(AgentMessage::Heartbeat(beat)) => {
                debug!(machine = %self.machine, ?beat, "heartbeat");
                Ok(())
            }
            Ok(AgentMessage::Interrupted(interrupted)) => {
                warn!(machine = %self.machine, ?interrupted, "the cloud wants the machine back");
                let interruption = match interrupted.notice {
                    Notice::Likely => Interruption::Likely,
                    Notice::Certain => Interruption::Certain { at: Timestamp(interrupted.at) },
                };
                let event = Event::MachineInterrupted { machine: self.machine, interruption };
                Ok(self.api.events.store(event).await?)
            }
            Ok(AgentMessage::Error(error)) => {
                warn!(machine = %self.machine, ?error, "the agent could not use a message");
                Ok(())
            }
            Ok(AgentMessage::Hello(_)) => {
                self.answer_error("unexpected_hello", "HELLO was said already").await
            }
            Err(error @ ParseError::UnknownType(_)) => {
                self.answer_error(error.code(), &error.to_string()).await
            }
            Err(error) => self.answer_error(error.code(), &error.to_string()).await,
        }
    }

    async fn take_log(&mut self, log: &Log<'_>) -> Result<(), SessionEnd> {
        let attempt: Option<Attempt> = log.job_id.as_str().parse().ok();
        let Some(attempt) = attempt.filter(|attempt| self.has(*attempt)) else {
            // Nobody wants these lines any more. Acknowledged, they leave the agent's spool.
            let lines = log.first.unwrap_or(0).saturating_add(log.lines.len() as u64);
            let ack = LogAck { job_id: log.job_id.clone(), lines };
            return self.send(&CoreMessage::LogAck(ack)).await;
        };
        let receipt = self.api.logs.append(attempt, log.first, &log.lines).await?;
        self.appends.push_back(Append { job_id: log.job_id.clone(), receipt });
        Ok(())
    }

    /// Whether `attempt` is this machine's: its work, or the cache that it still exports.
    fn has(&self, attempt: Attempt) -> bool {
        let records = self.api.records.read();
        let job = records.jobs.get(&attempt.job);
        let exporting = records.machines.get(&self.machine).and_then(|machine| machine.exporting);
        job.is_some_and(|job| job.state.attempt_on(self.machine) == Some(attempt.number))
            || exporting.is_some_and(|export| export.attempt == attempt)
    }

    async fn take_status(&mut self, mut status: Status) -> Result<(), SessionEnd> {
        // What the agent said before its STATUS is in the store before the STATUS is.
        while !self.appends.is_empty() {
            let stored = next_stored(&mut self.appends).await?;
            self.acknowledge(stored).await?;
        }
        let job_id = status.job_id.clone();
        if let Ok(attempt) = job_id.as_str().parse() {
            let fingerprint = status.fingerprint.take();
            let (events, event) = (&self.api.events, event_of(self.machine, attempt, status));
            match fingerprint {
                Some(fingerprint) => events.store_with_fingerprint(event, fingerprint).await?,
                None => events.store(event).await?,
            }
        }
        self.send(&CoreMessage::StatusAck(StatusAck {
            job_id,
            lease_seconds: self.lease_seconds(),
        }))
        .await
    }

    async fn acknowledge(&mut self, stored: (WireId, u64)) -> Result<(), SessionEnd> {
        let (job_id, lines) = stored;
        self.send(&CoreMessage::LogAck(LogAck { job_id, lines })).await
    }

    async fn answer_error(&mut self, code: &str, message: &str) -> Result<(), SessionEnd> {
        debug!(machine = %self.machine, code, message, "a message cannot be used");
        let error = ErrorMessage { code: code.to_owned(), message: message.to_owned() };
        self.send(&CoreMessage::Error(error)).await
    }

    async fn send(&mut self, message: &CoreMessage) -> Result<(), SessionEnd> {
        self.send_raw(Message::Text(message.to_json().into())).await
    }

    async fn send_raw(&mut self, message: Message) -> Result<(), SessionEnd> {
        let sent = timeout(SEND_LIMIT, self.socket.send(message)).await;
        Ok(sent.map_err(|_| SessionEnd::NotReading)??)
    }
}

/// Waits for the oldest append; for ever where there is none.
async fn next_stored(appends: &mut VecDeque<Append>) -> Result<(WireId, u64), AppendError> {
    let Some(oldest) = appends.front_mut() else { return pending().await };
    let lines = oldest.receipt.stored().await;
    let job_id = oldest.job_id.clone();
    appends.pop_front();
    lines.map(|lines| (job_id, lines))
}

/// STATUS as the state understands it.
fn event_of(machine: MachineId, attempt: Attempt, status: Status) -> Event {
    let outcome = match status.state {
        StatusState::Running => return Event::JobStarted { machine, attempt },
        StatusState::Completed => JobOutcome::Completed { digest: status.digest },
        StatusState::Cancelled => JobOutcome::Cancelled,
        StatusState::Failed => {
            let exit_code = status.exit_code;
            // A simple agent gives an exit code alone: it is the build's, so the user's.
            let reason = status.error.unwrap_or_else(|| match exit_code {
                Some(exit_code) => FailureReason::User { step: String::new(), exit_code },
                None => FailureReason::Internal,
            });
            let message = status.error_message.unwrap_or_else(|| reason.to_string());
            let message = cut(message, ERROR_CHARS_MAX);
            JobOutcome::Failed { reason: cut_reason(reason), message, exit_code }
        }
    };
    let steps = status.steps.into_iter().take(STEPS_MAX);
    let warnings = status.warnings.into_iter().take(WARNINGS_MAX);
    let report = JobReport {
        outcome,
        steps: steps.map(|step| Step { name: cut(step.name, STEP_CHARS_MAX), ..step }).collect(),
        warnings: warnings.map(|warning| cut(warning, WARNING_CHARS_MAX)).collect(),
        cache_miss: status.cache_miss.map(cut_cache_miss),
        exporting_cache: status.exporting_cache,
    };
    Event::JobReported { machine, attempt, report }
}

fn cut(mut text: String, chars_max: usize) -> String {
    if let Some((end, _)) = text.char_indices().nth(chars_max) {
        text.truncate(end);
    }
    text
}

fn cut_reason(reason: FailureReason) -> FailureReason {
    match reason {
        FailureReason::User { step, exit_code } => {
            FailureReason::User { step: cut(step, STEP_CHARS_MAX), exit_code }
        }
        FailureReason::DependencyFailed { job } => {
            FailureReason::DependencyFailed { job: cut(job, STEP_CHARS_MAX) }
        }
        reason => reason,
    }
}

fn cut_cache_miss(miss: CacheMiss) -> CacheMiss {
    let cause = match miss.cause {
        MissCause::BuildArgs { names } => {
            let names = names.into_iter().take(MISS_NAMES_MAX);
            MissCause::BuildArgs { names: names.map(|name| cut(name, MISS_CHARS_MAX)).collect() }
        }
        MissCause::BaseImage { was, is } => {
            MissCause::BaseImage { was: cut(was, MISS_CHARS_MAX), is: cut(is, MISS_CHARS_MAX) }
        }
        MissCause::Files { count, files } => {
            let files = files.into_iter().take(CHANGED_FILES_MAX);
            let files = files.map(|file| {
                let path = cut(file.path, MISS_CHARS_MAX);
                ChangedFile { path, change: file.change }
            });
            MissCause::Files { count, files: files.collect() }
        }
        cause @ (MissCause::NoCache | MissCause::Instruction | MissCause::Unknown) => cause,
    };
    CacheMiss { step: cut(miss.step, STEP_CHARS_MAX), cause }
}

fn cut_system_info(info: SystemInfo) -> SystemInfo {
    let emulated = info.emulated.into_iter().take(EMULATED_MAX);
    SystemInfo {
        hostname: cut(info.hostname, SYSTEM_CHARS_MAX),
        architecture: info.architecture,
        docker_version: cut(info.docker_version, SYSTEM_CHARS_MAX),
        emulated: emulated.map(|platform| cut(platform, SYSTEM_CHARS_MAX)).collect(),
    }
}

#[cfg(test)]
mod tests {
    use stagely_protocol::{FINGERPRINT_BYTES_MAX, FileChange, Fingerprint};

    use super::*;

    #[test]
    fn a_status_with_the_longest_fingerprint_and_all_else_that_is_kept_fits_a_message() {
        let attempt: Attempt = "job_00000000000000000000000001".parse().unwrap();
        let name = "[stage-1 12/34] RUN ".to_owned() + &"x".repeat(380);
        let step = Step { name, seconds: 1.0, cached: false };
        let file = ChangedFile { path: "p".repeat(MISS_CHARS_MAX), change: FileChange::Changed };
        let files = vec![file; CHANGED_FILES_MAX];
        let status = Status {
            error_message: Some("e".repeat(ERROR_CHARS_MAX)),
            steps: vec![step; STEPS_MAX],
            warnings: vec!["w".repeat(WARNING_CHARS_MAX); WARNINGS_MAX],
            cache_miss: Some(CacheMiss {
                step: "s".repeat(STEP_CHARS_MAX),
                cause: MissCause::Files { count: 1_000_000, files },
            }),
            fingerprint: Some(Fingerprint::try_from("/".repeat(FINGERPRINT_BYTES_MAX)).unwrap()),
            ..Status::new(attempt.wire(), StatusState::Completed)
        };
        let json = AgentMessage::Status(status).to_json();
        assert!(json.len() < MESSAGE_BYTES_MAX, "{}", json.len());
    }

    #[test]
    fn what_an_agent_says_of_the_cache_is_cut_before_it_is_kept() {
        let long = "ä".repeat(10_000);
        let cut = |cause| cut_cache_miss(CacheMiss { step: long.clone(), cause });

        let file = ChangedFile { path: long.clone(), change: FileChange::Added };
        let files = cut(MissCause::Files { count: 500, files: vec![file; 500] });
        assert_eq!(files.step.chars().count(), STEP_CHARS_MAX);
        let MissCause::Files { count, files } = files.cause else { panic!("{files:?}") };
        assert_eq!((count, files.len()), (500, CHANGED_FILES_MAX));
        assert_eq!(files[0].path.chars().count(), MISS_CHARS_MAX);

        let names = cut(MissCause::BuildArgs { names: vec![long.clone(); 500] });
        let MissCause::BuildArgs { names } = names.cause else { panic!("{names:?}") };
        assert_eq!((names.len(), names[0].chars().count()), (MISS_NAMES_MAX, MISS_CHARS_MAX));

        let base = cut(MissCause::BaseImage { was: long.clone(), is: long.clone() });
        let MissCause::BaseImage { was, is } = base.cause else { panic!("{base:?}") };
        assert_eq!((was.chars().count(), is.chars().count()), (MISS_CHARS_MAX, MISS_CHARS_MAX));
    }

    #[test]
    fn what_an_agent_says_is_cut_before_it_is_kept() {
        let long = "ä".repeat(10_000);
        let step = Step { name: long.clone(), seconds: 1.0, cached: true };
        let attempt: Attempt = "job_00000000000000000000000001".parse().unwrap();
        let status = Status {
            job_id: attempt.wire(),
            state: StatusState::Failed,
            exit_code: Some(1),
            artifact_url: None,
            digest: None,
            error: Some(FailureReason::User { step: long.clone(), exit_code: 1 }),
            error_message: Some(long.clone()),
            steps: vec![step; 2_000],
            warnings: vec![long.clone(); 200],
            ..Status::new(attempt.wire(), StatusState::Failed)
        };
        let event = event_of(MachineId::from_bits(1), attempt, status);
        let Event::JobReported { report, .. } = event else { panic!("{event:?}") };
        assert_eq!((report.steps.len(), report.warnings.len()), (STEPS_MAX, WARNINGS_MAX));
        assert_eq!(report.steps[0].name.chars().count(), STEP_CHARS_MAX);
        assert_eq!(report.warnings[0].chars().count(), WARNING_CHARS_MAX);
        let JobOutcome::Failed { reason, message, .. } = report.outcome else { panic!("failed") };
        assert_eq!(message.chars().count(), ERROR_CHARS_MAX);
        let FailureReason::User { step, .. } = reason else { panic!("{reason:?}") };
        assert_eq!(step.chars().count(), STEP_CHARS_MAX);
        let info = cut_system_info(SystemInfo {
            hostname: long.clone(),
            architecture: stagely_protocol::Arch::Amd64,
            docker_version: "26.1.5".to_owned(),
            emulated: vec![long; 100],
        });
        assert_eq!(info.hostname.chars().count(), SYSTEM_CHARS_MAX);
        assert_eq!((&*info.docker_version, info.emulated.len()), ("26.1.5", EMULATED_MAX));
    }
}
