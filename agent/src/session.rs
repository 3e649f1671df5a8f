//! Keeps the agent connected to core: connects, sends HELLO, handles messages, and reconnects.
//!
//! Jobs do not depend on the connection; their lines wait in their spools.

mod connection;

use std::fs::{self, File, TryLockError};
use std::future::pending;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use stagely_protocol::agent_config::AgentConfig;
use stagely_protocol::{
    AgentMessage, Arch, CoreMessage, ErrorChain, ErrorMessage, Heartbeat, Hello, HelloAck,
    ParseError, RunningPreview, Status, StatusState, SystemInfo, UNKNOWN_PREVIEW,
};
use sysinfo::System;
use thiserror::Error;
use tokio::sync::Notify;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, sleep_until, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use self::connection::{Connection, ConnectionLost};
use crate::contact::ContactFiles;
use crate::docker;
use crate::endpoints::Endpoints;
use crate::job::{JobRequest, JobSettings, REGISTRY_RETRY_LIMIT};
use crate::jobs::Jobs;
use crate::preview::{PreviewSettings, Previews};
use crate::retry::Backoff;
use crate::spot::SpotWatch;
use crate::tunnel::Tunnels;

/// The shortest delay between two attempts to connect.
const RECONNECT_DELAY_MIN: Duration = Duration::from_secs(1);

/// The longest delay between two attempts to connect, without its random part.
const RECONNECT_DELAY_MAX: Duration = Duration::from_secs(30);

/// How long core may take to answer HELLO.
const HELLO_ACK_LIMIT: Duration = Duration::from_secs(10);

/// How long HELLO may wait for the engine's version. HELLO must be sent within 50 ms.
const ENGINE_LIMIT: Duration = Duration::from_millis(30);

/// A session in which nothing arrives for this many heartbeat intervals is lost. Core answers at least the ping
/// that is sent with each heartbeat.
const SILENT_HEARTBEATS_MAX: u32 = 3;

/// The interval of checks whether the parent process has ended.
const PARENT_POLL: Duration = Duration::from_millis(250);

/// Why an agent exited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AgentExit {
    /// Core sent TERMINATE.
    Terminated,
    /// `stop` fired: SIGTERM.
    Stopped,
    /// There was no contact with core for `give_up_after`.
    GaveUp,
}

impl AgentExit {
    /// The process's exit code: 0, or 3 if the agent gave up. 3 tells the caller that the machine serves no core
    /// any more.
    pub const fn code(self) -> u8 {
        match self {
            Self::Terminated | Self::Stopped => 0,
            Self::GaveUp => 3,
        }
    }
}

/// Why an agent cannot start.
#[derive(Debug, Error)]
pub enum AgentError {
    #[error("cannot use the work folder {path}")]
    WorkDir {
        path: String,
        #[source]
        source: io::Error,
    },
    #[error("another agent works in {path}; give this one a `work_dir` of its own")]
    Busy { path: String },
}

/// Serves core until core sends TERMINATE, `stop` fires, or there was no contact for too long.
///
/// Stops all jobs and removes their folders before it returns. The ends of jobs that core has not acknowledged
/// stay on disk for the next agent, except after TERMINATE.
///
/// # Errors
/// [`AgentError`], before any work starts.
pub async fn run(config: AgentConfig, stop: CancellationToken) -> Result<AgentExit, AgentError> {
    let spot = if config.watch_spot { SpotWatch::of_this_machine() } else { SpotWatch::none() };
    run_with(config, spot, Endpoints::default(), stop).await
}

/// As [`run`], with another source of interruption notices, and previews that run already.
///
/// # Errors
/// [`AgentError`], before any work starts.
pub async fn run_with(
    mut config: AgentConfig,
    spot: SpotWatch,
    endpoints: Endpoints,
    stop: CancellationToken,
) -> Result<AgentExit, AgentError> {
    let stop = stop.child_token();
    // Not all child processes run in the agent's current directory.
    config.work_dir = std::path::absolute(&config.work_dir).map_err(|source| {
        AgentError::WorkDir { path: config.work_dir.display().to_string(), source }
    })?;
    let _watch = config
        .parent
        .map(|parent| AbortOnDropHandle::new(tokio::spawn(end_with(parent, stop.clone()))));
    let wake = Arc::new(Notify::new());
    // The rest of the grace is for removing folders and closing the connection.
    let grace = config.kill_grace.mul_f64(0.75);
    let previews = PreviewSettings {
        machine: config.agent_id.clone(),
        work_dir: config.work_dir.clone(),
        docker_host: config.docker_host.clone(),
        grace,
        core: Some((config.core_url.clone(), config.token.clone())),
        endpoints: endpoints.clone(),
    };
    let previews = Previews::new(previews, Arc::clone(&wake));
    let settings = JobSettings {
        machine: config.agent_id.clone(),
        work_dir: config.work_dir.clone(),
        docker_host: config.docker_host.clone(),
        user_logins: config.user_logins,
        grace,
        registry_retry_limit: REGISTRY_RETRY_LIMIT,
        previews: Arc::clone(&previews),
    };
    let _lock = lock(&config.work_dir)?;
    let jobs = Jobs::recover(settings, Arc::clone(&wake)).map_err(|source| {
        let path = config.work_dir.display().to_string();
        AgentError::WorkDir { path, source }
    })?;
    let _watch_previews = AbortOnDropHandle::new(tokio::spawn(Arc::clone(&previews).watch()));
    let mut agent = Agent {
        previews: Arc::clone(&previews),
        contact: ContactFiles::new(config.run_dir.clone()),
        tunnels: Tunnels::start(&config, endpoints, previews),
        config,
        jobs,
        wake,
        spot,
        docker_version: String::new(),
        running_previews: Vec::new(),
        last_contact: Instant::now(),
        terminate_grace: None,
    };
    let exit = agent.serve(&stop).await;
    agent.stop_work(exit).await;
    Ok(exit)
}

/// Fires `stop` when this process is no longer a child of `parent`, which has ended then.
async fn end_with(parent: u32, stop: CancellationToken) {
    while std::os::unix::process::parent_id() == parent {
        sleep(PARENT_POLL).await;
    }
    tracing::warn!("the process of core has ended");
    stop.cancel();
}

/// Creates the work folder, and locks it against other agents until the value is dropped or the process ends.
pub(crate) fn lock(work_dir: &Path) -> Result<File, AgentError> {
    let path = work_dir.display().to_string();
    // The lock is on the folder itself, so that no lock file is left behind.
    let folder = match fs::create_dir_all(work_dir).and_then(|()| File::open(work_dir)) {
        Ok(folder) => folder,
        Err(source) => return Err(AgentError::WorkDir { path, source }),
    };
    match folder.try_lock() {
        Ok(()) => Ok(folder),
        Err(TryLockError::WouldBlock) => Err(AgentError::Busy { path }),
        Err(TryLockError::Error(source)) => Err(AgentError::WorkDir { path, source }),
    }
}

struct Agent {
    config: AgentConfig,
    jobs: Jobs,
    previews: Arc<Previews>,
    /// The previews that ran when the agent last connected.
    running_previews: Vec<RunningPreview>,
    wake: Arc<Notify>,
    spot: SpotWatch,
    contact: ContactFiles,
    tunnels: Tunnels,
    /// The version that the engine reported last.
    docker_version: String,
    last_contact: Instant,
    /// How long stopping may take, if TERMINATE says so.
    terminate_grace: Option<Duration>,
}

/// How a session ended.
enum SessionEnd {
    Exit(AgentExit),
    /// Core did not answer HELLO, or refused it.
    NotOpened,
    /// The connection was lost after core had answered HELLO.
    Lost,
}

impl Agent {
    async fn serve(&mut self, stop: &CancellationToken) -> AgentExit {
        let mut backoff = Backoff::jittered(RECONNECT_DELAY_MIN, RECONNECT_DELAY_MAX);
        loop {
            let give_up = self.last_contact + self.config.give_up_after;
            let connection = tokio::select! {
                () = stop.cancelled() => return AgentExit::Stopped,
                connection = timeout_at(give_up, self.connect()) => connection,
            };
            match connection {
                Err(_) => return AgentExit::GaveUp,
                Ok(None) => {}
                Ok(Some(connection)) => match self.run_session(connection, stop).await {
                    SessionEnd::Exit(exit) => return exit,
                    SessionEnd::NotOpened => {}
                    SessionEnd::Lost => {
                        backoff = Backoff::jittered(RECONNECT_DELAY_MIN, RECONNECT_DELAY_MAX);
                    }
                },
            }
            let give_up = self.last_contact + self.config.give_up_after;
            tokio::select! {
                () = sleep_until(give_up) => return AgentExit::GaveUp,
                may_retry = backoff.wait(stop, |_| {}) => {
                    if !may_retry {
                        return AgentExit::Stopped;
                    }
                }
            }
        }
    }

    /// Stops all jobs, within the grace of TERMINATE if there is one. After TERMINATE nothing is kept.
    async fn stop_work(&mut self, exit: AgentExit) {
        tracing::info!(?exit, "stopping all work");
        let grace = self.terminate_grace;
        // An agent that was only stopped starts again, unless it is one of an embedded core, which has ended.
        let has_no_successor = exit != AgentExit::Stopped || self.config.parent.is_some();
        let clean_up = async {
            tokio::join!(self.jobs.stop_all(), self.previews.stop());
            if exit == AgentExit::Terminated {
                self.jobs.remove_all().await;
            }
            if has_no_successor {
                self.previews.remove_all().await;
            }
        };
        let grace_over = async {
            match grace {
                Some(grace) => sleep(grace).await,
                None => pending().await,
            }
        };
        tokio::select! {
            () = clean_up => {}
            // Child processes are killed when their owners are dropped.
            () = grace_over => tracing::warn!("work has not stopped within the grace of TERMINATE"),
        }
    }

    /// Connects to core, and asks the engine for its version at the same time.
    async fn connect(&mut self) -> Option<Connection> {
        let version = docker::version_within(self.config.docker_host.as_deref(), ENGINE_LIMIT);
        let previews = self.previews.running(ENGINE_LIMIT);
        let connect = Connection::open(&self.config.core_url, Arc::clone(&self.wake));
        let (connection, version, previews) = tokio::join!(connect, version, previews);
        self.running_previews = previews;
        if !version.is_empty() {
            self.docker_version = version;
        }
        connection
            .inspect_err(
                |error| tracing::warn!(error = %ErrorChain(error), "cannot connect to core"),
            )
            .ok()
    }

    fn hello(&self) -> AgentMessage<'static> {
        AgentMessage::Hello(Hello {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            agent_id: self.config.agent_id.clone(),
            token: self.config.token.clone(),
            system_info: SystemInfo {
                hostname: System::host_name().unwrap_or_default(),
                architecture: Arch::of_this_program(),
                docker_version: self.docker_version.clone(),
                emulated: docker::emulated_platforms(),
            },
            jobs: self.jobs.running(),
            previews: Some(self.running_previews.clone()),
        })
    }

    async fn run_session(
        &mut self,
        mut connection: Connection,
        stop: &CancellationToken,
    ) -> SessionEnd {
        if connection.send(&self.hello()).is_err() {
            return SessionEnd::NotOpened;
        }
        let ack = tokio::select! {
            () = stop.cancelled() => {
                connection.close().await;
                return SessionEnd::Exit(AgentExit::Stopped);
            }
            ack = self.receive_hello_ack(&mut connection) => ack,
        };
        let Some(ack) = ack else { return SessionEnd::NotOpened };
        tracing::info!(jobs = ack.jobs.len(), "connected to core");
        self.contact.record_lease(ack.lease_seconds);
        self.jobs.resume(&ack.jobs);
        self.tunnels.set_connected(true);
        self.previews.resume(&ack.jobs);
        // A notice of an earlier session is repeated: core may not have stored it.
        if let Some(notice) = self.spot.notice()
            && connection.send(&AgentMessage::Interrupted(notice)).is_err()
        {
            return SessionEnd::Lost;
        }
        let heartbeat_interval = Duration::from_secs(ack.heartbeat_interval.max(1));
        let exit = self.exchange_messages(&mut connection, heartbeat_interval, stop).await;
        self.tunnels.set_connected(false);
        connection.close().await;
        exit.map_or(SessionEnd::Lost, SessionEnd::Exit)
    }

    /// Waits for `HELLO_ACK`. Messages before it are not handled.
    async fn receive_hello_ack(&mut self, connection: &mut Connection) -> Option<HelloAck> {
        let limit = Instant::now() + HELLO_ACK_LIMIT;
        while let Ok(Some(text)) = timeout_at(limit, connection.next()).await {
            match CoreMessage::parse(&text) {
                Ok(CoreMessage::HelloAck(ack)) => {
                    self.record_contact(Instant::now());
                    return Some(ack);
                }
                Ok(CoreMessage::Error(error)) => {
                    let ErrorMessage { code, message } = error;
                    tracing::error!(code, message, "core refuses this agent");
                    return None;
                }
                Ok(_) => tracing::warn!("core sent another message before HELLO_ACK"),
                Err(error) => send_parse_error(connection, &error).ok()?,
            }
        }
        tracing::warn!("core did not answer HELLO");
        None
    }

    /// Exchanges messages with core until the agent must exit. `None`: the connection is lost.
    async fn exchange_messages(
        &mut self,
        connection: &mut Connection,
        heartbeat_interval: Duration,
        stop: &CancellationToken,
    ) -> Option<AgentExit> {
        let mut heartbeat = interval(heartbeat_interval);
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let slots = connection.free_slots();
            let (messages, next_of_jobs) = self.jobs.due(slots);
            let (of_previews, next_of_previews) = self.previews.due(slots - messages.len());
            for message in messages.into_iter().chain(of_previews) {
                connection.send_text(message).ok()?;
            }
            let next = [next_of_jobs, next_of_previews].into_iter().flatten().min();
            let next = next.unwrap_or_else(|| Instant::now() + heartbeat_interval);
            tokio::select! {
                () = stop.cancelled() => return Some(AgentExit::Stopped),
                text = connection.next() => {
                    let text = text?;
                    self.record_contact(Instant::now());
                    if let Some(exit) = self.handle(&text, connection).ok()? {
                        return Some(exit);
                    }
                }
                notice = self.spot.next() => {
                    connection.send(&AgentMessage::Interrupted(notice)).ok()?;
                }
                () = self.wake.notified() => {}
                () = sleep_until(next) => {}
                _ = heartbeat.tick() => {
                    let last_received = connection.last_received();
                    self.record_contact(last_received);
                    if last_received.elapsed() > heartbeat_interval * SILENT_HEARTBEATS_MAX {
                        tracing::warn!("nothing was received from core for too long");
                        return None;
                    }
                    connection.send(&AgentMessage::Heartbeat(self.heartbeat())).ok()?;
                    connection.ping().ok()?;
                }
            }
        }
    }

    /// Something was received from core at that time.
    fn record_contact(&mut self, at: Instant) {
        self.last_contact = self.last_contact.max(at);
        self.contact.record_contact(at);
    }

    /// Handles one message of core. Returns why the agent must exit, if it must.
    ///
    /// # Errors
    /// If the answer cannot be sent.
    fn handle(
        &mut self,
        text: &str,
        connection: &mut Connection,
    ) -> Result<Option<AgentExit>, ConnectionLost> {
        let message = match CoreMessage::parse(text) {
            Ok(message) => message,
            Err(error) => return send_parse_error(connection, &error).map(|()| None),
        };
        match message {
            CoreMessage::Build(build) => self.start(JobRequest::Build(build), connection)?,
            CoreMessage::Merge(merge) => self.start(JobRequest::Merge(merge), connection)?,
            CoreMessage::Deploy(deploy) => self.start(JobRequest::Deploy(deploy), connection)?,
            CoreMessage::Test(job) => self.start(JobRequest::Test(job), connection)?,
            CoreMessage::Sleep(sleep) => {
                let preview = sleep.preview_id.clone();
                if !self.previews.sleep(sleep) {
                    let message = format!("there is no preview {preview}");
                    send_error(connection, UNKNOWN_PREVIEW, message)?;
                }
            }
            CoreMessage::LogAck(ack) => {
                if !self.previews.acknowledge(&ack) {
                    self.jobs.acknowledge(&ack);
                }
            }
            CoreMessage::StatusAck(ack) => {
                self.contact.record_lease(ack.lease_seconds);
                self.jobs.acknowledge_status(&ack.job_id);
            }
            CoreMessage::Cancel(cancel) => {
                tracing::info!(job = %cancel.job_id, reason = cancel.reason, "cancel");
                if !self.jobs.cancel(&cancel.job_id) {
                    let message = format!("there is no job {}", cancel.job_id);
                    send_error(connection, "unknown_job", message)?;
                }
            }
            CoreMessage::Terminate(terminate) => {
                tracing::info!(reason = terminate.reason, "terminate");
                let grace = Duration::from_secs(terminate.grace);
                self.terminate_grace = Some(grace).filter(|grace| !grace.is_zero());
                return Ok(Some(AgentExit::Terminated));
            }
            CoreMessage::Dial(dial) => self.tunnels.dial(dial.connections),
            CoreMessage::HelloAck(_) => tracing::warn!("a second HELLO_ACK is ignored"),
            CoreMessage::Error(error) => {
                tracing::warn!(code = error.code, message = error.message, "core reports an error");
            }
        }
        Ok(None)
    }

    fn start(
        &mut self,
        request: JobRequest,
        connection: &mut Connection,
    ) -> Result<(), ConnectionLost> {
        let job_id = request.job_id().clone();
        match self.jobs.start(request) {
            Ok(true) => {
                tracing::info!(job = %job_id, "job starts");
                connection.send(&AgentMessage::Status(Status::new(job_id, StatusState::Running)))
            }
            Ok(false) => {
                tracing::info!(job = %job_id, "this job is known already");
                Ok(())
            }
            // Without this STATUS core would wait until the job's deadline.
            Err(error) => {
                let status = Status {
                    error: Some(error.reason()),
                    error_message: Some(error.to_string()),
                    ..Status::new(job_id.clone(), StatusState::Failed)
                };
                tracing::error!(job = %job_id, error = %ErrorChain(&error), "cannot start this job");
                connection.send(&AgentMessage::Status(status))
            }
        }
    }

    fn heartbeat(&self) -> Heartbeat {
        let memory = System::new().map(|mut system| {
            system.refresh_memory();
            (system.used_memory(), system.total_memory())
        });
        let (memory_used_bytes, memory_total_bytes) = memory.unwrap_or_default();
        let disk = nix::sys::statvfs::statvfs(&self.config.work_dir);
        Heartbeat {
            load: System::load_average().map_or(0.0, |load| load.one),
            memory_used_bytes,
            memory_total_bytes,
            disk_free_bytes: disk.map_or(0, |disk| disk.blocks_available() * disk.fragment_size()),
        }
    }
}

fn send_parse_error(connection: &mut Connection, error: &ParseError) -> Result<(), ConnectionLost> {
    send_error(connection, error.code(), error.to_string())
}

fn send_error(
    connection: &mut Connection,
    code: &str,
    message: String,
) -> Result<(), ConnectionLost> {
    tracing::warn!(code, message, "cannot handle a message of core");
    connection.send(&AgentMessage::Error(ErrorMessage { code: code.to_owned(), message }))
}
