//! The session of one agent, after its HELLO.

use std::collections::{BTreeSet, VecDeque};
use std::future::pending;

use axum::body::Bytes;
use axum::extract::ws::{Message, Utf8Bytes, WebSocket};
use stagely_protocol::{
    AgentMessage, CoreMessage, Digest, ErrorChain, ErrorMessage, Hello, HelloAck, Log, LogAck,
    Notice, ParseError, Preview, PreviewState, ResumedJob, RunningPreview, Status, StatusAck,
    UNKNOWN_PREVIEW, WireId,
};
use stagely_state::ids::{MachineId, PreviewId, SessionId};
use stagely_state::{Archive, Attempt, Event, Interruption, Timestamp};
use tokio::time::{Instant, timeout};
use tracing::{debug, warn};

use super::reports::{
    advise_new_token, archive_problem, cut_system_info, preview_report, status_event,
};
use super::{AgentEndpoint, HELD_JOBS_MAX, SEND_LIMIT, SessionEnd};
use crate::core::clock::now;
use crate::core::logs::{AppendError, LogId, Receipt};
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
        Box::pin(self.greet(hello, entry.id)).await?;
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
                        // In a box, because this future would be most of the memory of an idle session.
                        Message::Text(text) => Box::pin(self.handle(&text)).await?,
                        Message::Ping(_) | Message::Pong(_) => {}
                        Message::Binary(_) => Box::pin(self.answer_error("malformed_message", "messages are JSON text")).await?,
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
        let running = hello.previews;
        let service_logs = running.iter().flatten().filter_map(service_log);
        let service_logs: Vec<LogId> = service_logs.take(HELD_JOBS_MAX).collect();
        let event = Event::AgentConnected {
            machine: self.machine,
            session,
            system_info: cut_system_info(hello.system_info),
            holds: holds.clone(),
            previews: running.as_deref().map(previews),
        };
        self.endpoint.events.store(event).await?;
        // Also unwanted jobs, because a registered machine is free only when its agent has reported their end. Their
        // lines are dropped.
        let mut jobs = Vec::new();
        for log in holds.into_iter().map(LogId::Attempt).chain(service_logs) {
            let next_line = self.endpoint.logs.next_line(log).await?;
            jobs.push(ResumedJob { job_id: log.wire(), next_line });
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
            Ok(AgentMessage::Preview(preview)) => self.store_preview(preview).await,
            Ok(AgentMessage::Error(error)) => {
                warn!(machine = %self.machine, ?error, "the agent could not use a message");
                match self.archiving().filter(|_| error.code == UNKNOWN_PREVIEW) {
                    Some(preview) => self.store_missing(preview).await,
                    None => Ok(()),
                }
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

    async fn store_preview(&mut self, preview: Preview) -> Result<(), SessionEnd> {
        debug!(machine = %self.machine, ?preview, "the state of a preview");
        let Ok(id) = preview.preview_id.as_str().parse() else { return Ok(()) };
        if preview.state != PreviewState::Archived {
            let problem = preview.messages.join("; ");
            let has_failed = preview.archive_failed;
            self.keep_report(id, preview).await;
            if has_failed {
                let machine = self.machine;
                let event = Event::PreviewArchiveFailed { machine, preview: id, problem };
                self.endpoint.events.store(event).await?;
            }
            return Ok(());
        }
        let mut problem = archive_problem(&preview);
        let archive = match &preview.archive {
            Some(digest) => self.stored_archive(id, digest).await?,
            None => None,
        };
        if archive.is_none() && preview.archive.is_some() {
            problem = Some("core does not have the archive of its data".to_owned());
        }
        let event = Event::PreviewArchived { machine: self.machine, preview: id, archive, problem };
        Ok(self.endpoint.events.store(event).await?)
    }

    /// The preview that core waits for this machine to archive.
    fn archiving(&self) -> Option<PreviewId> {
        let records = self.endpoint.records.read();
        let preview = records.machines.get(&self.machine)?.serves?;
        let state = records.previews.get(&preview)?.state;
        matches!(state, stagely_state::PreviewState::Archiving { .. }).then_some(preview)
    }

    /// The machine has nothing of the preview that it is to archive: a deployment with fresh data has failed.
    async fn store_missing(&mut self, preview: PreviewId) -> Result<(), SessionEnd> {
        let problem = Some("its machine has no data of it".to_owned());
        let (machine, archive) = (self.machine, None);
        let event = Event::PreviewArchived { machine, preview, archive, problem };
        Ok(self.endpoint.events.store(event).await?)
    }

    /// Keeps what the agent says about a preview that runs, for people. Deletes the logs of its services before the
    /// deployment before this one.
    async fn keep_report(&mut self, id: PreviewId, preview: Preview) {
        if !self.runs(id) {
            return;
        }
        let (reports, generation) = (&self.endpoint.preview_reports, preview.generation);
        let before = reports.set(id, preview_report(self.machine, preview));
        if before.is_some_and(|before| before.generation == generation) {
            return;
        }
        let records = &self.endpoint.records;
        reports.retain(|known| records.read().previews.contains_key(&known));
        let oldest = generation.saturating_sub(1);
        if let Err(error) = self.endpoint.logs.forget_services(id, oldest).await {
            warn!(preview = %id, error = %ErrorChain(&error), "old logs cannot be deleted");
        }
    }

    /// Keeps where a preview listens on its machine, for people on that machine.
    fn keep_addresses(&self, attempt: Attempt, status: &mut Status) {
        if status.endpoints.is_empty() || !self.has(attempt) {
            return;
        }
        let preview = {
            let records = self.endpoint.records.read();
            let run = records.jobs.get(&attempt.job).and_then(|job| records.runs.get(&job.run));
            run.and_then(|run| records.preview_of(run.environment)).map(|preview| preview.id)
        };
        if let Some(preview) = preview {
            let addresses = std::mem::take(&mut status.endpoints);
            self.endpoint.preview_reports.set_addresses(preview, self.machine, addresses);
        }
    }

    /// The archive that the agent names; `None` if core does not have it: no record names an archive that is not there.
    async fn stored_archive(
        &mut self,
        preview: PreviewId,
        digest: &Digest,
    ) -> Result<Option<Archive>, SessionEnd> {
        let archives = &self.endpoint.archives;
        let found = archives.reported(self.machine, preview, digest.clone()).await;
        let bytes = found.map_err(SessionEnd::Archive)?;
        if bytes.is_none() {
            warn!(machine = %self.machine, %preview, %digest, "an agent reports an archive that core does not have");
        }
        let archive = |bytes| Archive { digest: digest.clone(), bytes, made_at: now() };
        Ok(bytes.map(archive))
    }

    /// Drops artifacts that core does not have: no record names any that are not there.
    async fn check_artifacts(
        &mut self,
        attempt: Attempt,
        status: &mut Status,
    ) -> Result<(), SessionEnd> {
        let Some(named) = status.artifacts.take() else { return Ok(()) };
        let artifacts = &self.endpoint.artifacts;
        let is_there = artifacts.has(self.machine, attempt, named.digest.clone()).await;
        if is_there.map_err(SessionEnd::Archive)? {
            status.artifacts = Some(named);
        } else if self.has(attempt) {
            warn!(machine = %self.machine, %attempt, "an agent reports artifacts that core does not have");
            status
                .warnings
                .push("core does not have the artifacts that the test has left".to_owned());
        }
        Ok(())
    }

    async fn store_log(&mut self, log: &Log<'_>) -> Result<(), SessionEnd> {
        let id = LogId::from_wire(&log.job_id);
        let Some(id) = id.filter(|id| self.writes(*id)) else {
            // These lines are no longer wanted. The acknowledgement removes them from the agent's spool.
            let lines = log.first.unwrap_or(0).saturating_add(log.lines.len() as u64);
            let ack = LogAck { job_id: log.job_id.clone(), lines };
            return self.send(&CoreMessage::LogAck(ack)).await;
        };
        let receipt = self.endpoint.logs.append(id, log.first, &log.lines).await?;
        self.appends.push_back(Append { job_id: log.job_id.clone(), receipt });
        Ok(())
    }

    /// Whether lines of this log are wanted from this machine.
    fn writes(&self, log: LogId) -> bool {
        match log {
            LogId::Attempt(attempt) => self.has(attempt),
            LogId::Services { preview, generation } => {
                self.runs(preview) && self.has_generation(preview, generation)
            }
        }
    }

    /// Whether the preview runs on this machine. Before its STATUS, the machine of the deploy job does not serve it yet.
    fn runs(&self, id: PreviewId) -> bool {
        let records = self.endpoint.records.read();
        let machine = records.machines.get(&self.machine);
        let job = records.previews.get(&id).and_then(|preview| preview.state.job());
        machine.is_some_and(|machine| {
            machine.serves == Some(id) || (job.is_some() && machine.job() == job)
        })
    }

    /// Whether the preview shows this deployment, or it is the newest one, or the one before it, whose last lines may come
    /// after the end of an update. The log of each takes space.
    fn has_generation(&self, id: PreviewId, generation: u64) -> bool {
        let records = self.endpoint.records.read();
        records.previews.get(&id).is_some_and(|preview| {
            let shown = preview.shown.as_ref().map(|shown| shown.number);
            let is_kept = |shown: u64| generation <= shown && shown - generation <= 1;
            generation == preview.last_generation || shown.is_some_and(is_kept)
        })
    }

    /// Whether this machine works on `attempt`, or still exports its cache.
    fn has(&self, attempt: Attempt) -> bool {
        let records = self.endpoint.records.read();
        let job = records.jobs.get(&attempt.job);
        let exporting = records.machines.get(&self.machine).and_then(|machine| machine.exporting);
        job.is_some_and(|job| job.state.attempt_on(self.machine) == Some(attempt.number))
            || exporting.is_some_and(|export| export.attempt == attempt)
    }

    /// Whether the job is of a run that has the secrets of an earlier one.
    fn has_kept_secrets(&self, attempt: Attempt) -> bool {
        let records = self.endpoint.records.read();
        let run = records.jobs.get(&attempt.job).and_then(|job| records.runs.get(&job.run));
        run.is_some_and(|run| run.trigger.is_for_preview())
    }

    async fn store_status(&mut self, mut status: Status) -> Result<(), SessionEnd> {
        // Lines that the agent sent before its STATUS are stored before it.
        while !self.appends.is_empty() {
            let stored = next_stored(&mut self.appends).await?;
            self.acknowledge(stored).await?;
        }
        let job_id = status.job_id.clone();
        if let Ok(attempt) = job_id.as_str().parse() {
            if self.has_kept_secrets(attempt) {
                advise_new_token(&mut status);
            }
            self.keep_addresses(attempt, &mut status);
            self.check_artifacts(attempt, &mut status).await?;
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

/// The previews of HELLO, without those of another core.
fn previews(running: &[RunningPreview]) -> BTreeSet<PreviewId> {
    running.iter().filter_map(|preview| preview.preview_id.as_str().parse().ok()).collect()
}

/// The log of the services of a preview; `None` for one of another core.
fn service_log(running: &RunningPreview) -> Option<LogId> {
    let preview = running.preview_id.as_str().parse().ok()?;
    Some(LogId::Services { preview, generation: running.generation })
}
