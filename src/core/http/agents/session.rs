//! The session of one agent, after its HELLO.

use std::collections::VecDeque;
use std::future::pending;

use axum::body::Bytes;
use axum::extract::ws::{Message, Utf8Bytes, WebSocket};
use stagely_protocol::{
    AgentMessage, CoreMessage, ErrorMessage, Hello, HelloAck, Log, LogAck, Notice, ParseError,
    ResumedJob, Status, StatusAck, WireId,
};
use stagely_state::ids::{MachineId, SessionId};
use stagely_state::{Attempt, Event, Interruption, Timestamp};
use tokio::time::{Instant, timeout};
use tracing::{debug, warn};

use super::reports::{cut_system_info, status_event};
use super::{AgentEndpoint, SEND_LIMIT, SessionEnd};
use crate::core::clock::now;
use crate::core::logs::{AppendError, Receipt};
use crate::core::sessions::SessionEntry;

/// Most LOG batches of one session that wait for the store. Then core stops reading from the session, and the rest
/// stays in the agent's spool.
const APPENDS_MAX: usize = 16;

/// A LOG that is not stored yet.
struct Append {
    job_id: WireId,
    receipt: Receipt,
}

pub(super) struct AgentSession<'a> {
    endpoint: &'a AgentEndpoint,
    machine: MachineId,
    socket: WebSocket,
    appends: VecDeque<Append>,
}

impl<'a> AgentSession<'a> {
    pub(super) fn new(endpoint: &'a AgentEndpoint, machine: MachineId, socket: WebSocket) -> Self {
        Self { endpoint, machine, socket, appends: VecDeque::new() }
    }

    /// Serves the agent until its session ends. May be dropped at any `await`, because the agent repeats unacknowledged
    /// messages.
    pub(super) async fn run(
        &mut self,
        hello: Hello,
        entry: &mut SessionEntry,
    ) -> Result<(), SessionEnd> {
        self.greet(hello, entry.id).await?;
        let interval = self.endpoint.heartbeat_interval;
        let mut pings = self.endpoint.sockets.pings();
        let mut received_at = Instant::now();
        loop {
            tokio::select! {
                () = entry.end.cancelled() => return Err(SessionEnd::Ended),
                Some(message) = entry.messages.recv() => self.send(&message).await?,
                stored = next_stored(&mut self.appends) => self.acknowledge(stored?).await?,
                received = self.socket.recv(), if self.appends.len() < APPENDS_MAX => {
                    received_at = Instant::now();
                    match received.ok_or(SessionEnd::Closed)?? {
                        Message::Text(text) => self.handle(&text).await?,
                        Message::Ping(_) | Message::Pong(_) => {}
                        Message::Binary(_) => self.answer_error("malformed_message", "messages are JSON text").await?,
                        Message::Close(_) => return Err(SessionEnd::Closed),
                    }
                }
                _ = pings.tick() => {
                    if self.appends.len() < APPENDS_MAX && received_at.elapsed() > interval * 3 {
                        return Err(SessionEnd::Silent);
                    }
                    // The answer shows that an agent without HEARTBEAT is alive.
                    self.send_raw(Message::Ping(Bytes::new())).await?;
                }
            }
        }
    }

    /// Reports the agent to the orchestrator, and acknowledges HELLO with the next line of each log.
    async fn greet(&mut self, hello: Hello, session: SessionId) -> Result<(), SessionEnd> {
        let holds: Vec<Attempt> =
            hello.jobs.iter().filter_map(|job| job.job_id.as_str().parse().ok()).collect();
        let event = Event::AgentConnected {
            machine: self.machine,
            session,
            system_info: cut_system_info(hello.system_info),
            holds: holds.clone(),
        };
        self.endpoint.events.store(event).await?;
        // Also unwanted jobs, because a registered machine is free only when its agent has reported their end. Their
        // lines are dropped.
        let mut jobs = Vec::new();
        for attempt in holds {
            let next_line = self.endpoint.logs.next_line(attempt).await?;
            jobs.push(ResumedJob { job_id: attempt.wire(), next_line });
        }
        let heartbeat_interval = self.endpoint.heartbeat_interval.as_secs();
        self.send(&CoreMessage::HelloAck(HelloAck {
            heartbeat_interval,
            jobs,
            lease_seconds: self.lease_seconds(),
        }))
        .await
    }

    /// The remaining seconds of the machine's lease. At its end core terminates the machine, after the agent has had
    /// time to report, so the machine's dead-man switch waits a little longer.
    fn lease_seconds(&self) -> Option<u64> {
        let until = self.endpoint.records.read().machines.get(&self.machine)?.lease_until?;
        Some(until.since(now()).max(self.endpoint.job_grace).as_secs())
    }

    async fn handle(&mut self, text: &Utf8Bytes) -> Result<(), SessionEnd> {
        match AgentMessage::parse(text) {
            Ok(AgentMessage::Log(log)) => self.store_log(&log).await,
            Ok(AgentMessage::Status(status)) => self.store_status(status).await,
            Ok(AgentMessage::Heartbeat(beat)) => {
                debug!(machine = %self.machine, ?beat, "heartbeat");
                Ok(())
            }
            Ok(AgentMessage::Interrupted(interrupted)) => {
                warn!(machine = %self.machine, ?interrupted, "the agent reports an interruption notice");
                let interruption = match interrupted.notice {
                    Notice::Likely => Interruption::Likely,
                    Notice::Certain => Interruption::Certain { at: Timestamp(interrupted.at) },
                };
                let event = Event::MachineInterrupted { machine: self.machine, interruption };
                Ok(self.endpoint.events.store(event).await?)
            }
            Ok(AgentMessage::Preview(preview)) => {
                debug!(machine = %self.machine, ?preview, "the state of a preview");
                Ok(())
            }
            Ok(AgentMessage::Error(error)) => {
                warn!(machine = %self.machine, ?error, "the agent could not use a message");
                Ok(())
            }
            Ok(AgentMessage::Hello(_)) => {
                self.answer_error("unexpected_hello", "HELLO was sent already").await
            }
            Err(error @ ParseError::UnknownType(_)) => {
                self.answer_error(error.code(), &error.to_string()).await
            }
            Err(error) => self.answer_error(error.code(), &error.to_string()).await,
        }
    }

    async fn store_log(&mut self, log: &Log<'_>) -> Result<(), SessionEnd> {
        let attempt: Option<Attempt> = log.job_id.as_str().parse().ok();
        let Some(attempt) = attempt.filter(|attempt| self.has(*attempt)) else {
            // These lines are no longer wanted. The acknowledgement removes them from the agent's spool.
            let lines = log.first.unwrap_or(0).saturating_add(log.lines.len() as u64);
            let ack = LogAck { job_id: log.job_id.clone(), lines };
            return self.send(&CoreMessage::LogAck(ack)).await;
        };
        let receipt = self.endpoint.logs.append(attempt, log.first, &log.lines).await?;
        self.appends.push_back(Append { job_id: log.job_id.clone(), receipt });
        Ok(())
    }

    /// Whether this machine works on `attempt`, or still exports its cache.
    fn has(&self, attempt: Attempt) -> bool {
        let records = self.endpoint.records.read();
        let job = records.jobs.get(&attempt.job);
        let exporting = records.machines.get(&self.machine).and_then(|machine| machine.exporting);
        job.is_some_and(|job| job.state.attempt_on(self.machine) == Some(attempt.number))
            || exporting.is_some_and(|export| export.attempt == attempt)
    }

    async fn store_status(&mut self, mut status: Status) -> Result<(), SessionEnd> {
        // Lines that the agent sent before its STATUS are stored before it.
        while !self.appends.is_empty() {
            let stored = next_stored(&mut self.appends).await?;
            self.acknowledge(stored).await?;
        }
        let job_id = status.job_id.clone();
        if let Ok(attempt) = job_id.as_str().parse() {
            let fingerprint = status.fingerprint.take();
            let (events, event) =
                (&self.endpoint.events, status_event(self.machine, attempt, status));
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
        debug!(machine = %self.machine, code, message, "an agent's message cannot be used");
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

/// Waits until the oldest append is stored; without end if there is none.
async fn next_stored(appends: &mut VecDeque<Append>) -> Result<(WireId, u64), AppendError> {
    let Some(oldest) = appends.front_mut() else { return pending().await };
    let lines = oldest.receipt.stored().await;
    let job_id = oldest.job_id.clone();
    appends.pop_front();
    lines.map(|lines| (job_id, lines))
}
