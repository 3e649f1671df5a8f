//! Keeps the agent in touch with core: dials out, says HELLO, answers, and dials again.
//!
//! Jobs do not notice whether core is there; their lines wait in their spools meanwhile.

mod link;

use std::fs::{self, File, TryLockError};
use std::future::pending;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rand::RngExt as _;
use stagely_protocol::agent_config::AgentConfig;
use stagely_protocol::{
    AgentMessage, Arch, CoreMessage, ErrorMessage, Heartbeat, Hello, HelloAck, ParseError, Status,
    StatusState, SystemInfo, WireId,
};
use sysinfo::System;
use thiserror::Error;
use tokio::sync::Notify;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, sleep_until, timeout_at};
use tokio_util::sync::CancellationToken;

use self::link::Link;
use crate::contact::ContactFiles;
use crate::docker;
use crate::job::{REGISTRY_PATIENCE, Work, Workplace};
use crate::jobs::Jobs;
use crate::spot::SpotWatch;

/// The shortest wait between two attempts.
const BACKOFF_MIN: Duration = Duration::from_secs(1);

/// The longest.
const BACKOFF_MAX: Duration = Duration::from_mins(1);

/// How long core may take to answer HELLO.
const HELLO_ACK_LIMIT: Duration = Duration::from_secs(10);

/// How long HELLO may wait for the engine to name its version. HELLO goes out within 50 ms.
const ENGINE_LIMIT: Duration = Duration::from_millis(30);

/// A session in which nothing arrives for this many heartbeats is dead. Core answers each one's
/// ping, if nothing else.
const SILENT_HEARTBEATS: u32 = 3;

/// Why an agent ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AgentExit {
    /// Core said TERMINATE.
    Terminated,
    /// `stop` fired: SIGTERM.
    Stopped,
    /// There was no contact with core for `give_up_after`.
    GaveUp,
}

impl AgentExit {
    /// The process's exit code: 0, or 3 when it gave up, which tells whoever started it that the
    /// machine is of no use any more.
    pub const fn code(self) -> u8 {
        match self {
            Self::Terminated | Self::Stopped => 0,
            Self::GaveUp => 3,
        }
    }
}

/// An agent that cannot start.
#[derive(Debug, Error)]
pub enum AgentError {
    /// The work folder cannot be used.
    #[error("cannot use the work folder {path}")]
    WorkDir {
        /// The folder.
        path: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Another agent that lives would lose its work.
    #[error("another agent works in {path}; give this one a `work_dir` of its own")]
    Busy {
        /// The folder.
        path: String,
    },
}

/// Serves core until it says TERMINATE, `stop` fires, or there was no contact for too long.
///
/// All work is stopped and its folders are removed before this returns; the ends of jobs that core
/// has not acknowledged stay on disk for the next agent, except after TERMINATE.
///
/// # Errors
/// [`AgentError`], before anything else happens.
pub async fn run(config: AgentConfig, stop: CancellationToken) -> Result<AgentExit, AgentError> {
    let spot = if config.watch_spot { SpotWatch::of_this_machine() } else { SpotWatch::none() };
    run_watching(config, spot, stop).await
}

/// As [`run`], where `spot` says whether the machine is taken back.
///
/// # Errors
/// [`AgentError`], before anything else happens.
pub async fn run_watching(
    config: AgentConfig,
    spot: SpotWatch,
    stop: CancellationToken,
) -> Result<AgentExit, AgentError> {
    let wake = Arc::new(Notify::new());
    let place = Workplace {
        machine: config.agent_id.clone(),
        work_dir: config.work_dir.clone(),
        docker_host: config.docker_host.clone(),
        // The rest of the grace is for what comes after: removing folders, closing the connection.
        grace: config.kill_grace.mul_f64(0.75),
        registry_patience: REGISTRY_PATIENCE,
    };
    let _lock = lock(&config.work_dir)?;
    let jobs = Jobs::recover(place, Arc::clone(&wake)).map_err(|source| {
        let path = config.work_dir.display().to_string();
        AgentError::WorkDir { path, source }
    })?;
    let mut agent = Agent {
        contact: ContactFiles::new(config.run_dir.clone()),
        config,
        jobs,
        wake,
        spot,
        docker_version: String::new(),
        last_contact: Instant::now(),
        grace: None,
    };
    let exit = agent.serve(&stop).await;
    tracing::info!(?exit, "stopping all work");
    let grace = agent.grace;
    let clean_up = async {
        agent.jobs.stop_all().await;
        if exit == AgentExit::Terminated {
            agent.jobs.remove_all().await;
        }
    };
    let over = async {
        match grace {
            Some(grace) => sleep(grace).await,
            None => pending().await,
        }
    };
    tokio::select! {
        () = clean_up => {}
        // Child processes are killed as their owners are dropped.
        () = over => tracing::warn!("core's grace is over, and work has not stopped"),
    }
    Ok(exit)
}

/// Makes the work folder, and keeps other agents out of it until the value is dropped or the process
/// dies.
fn lock(work_dir: &Path) -> Result<File, AgentError> {
    let path = work_dir.display().to_string();
    // The folder itself, so that no file is left in it.
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
    wake: Arc<Notify>,
    spot: SpotWatch,
    contact: ContactFiles,
    /// What the engine said last.
    docker_version: String,
    last_contact: Instant,
    /// What core allows for the end, if it says so.
    grace: Option<Duration>,
}

/// How a session ended.
enum Ended {
    Exit(AgentExit),
    /// The connection broke; whether core had answered HELLO by then.
    Lost {
        was_open: bool,
    },
}

impl Agent {
    async fn serve(&mut self, stop: &CancellationToken) -> AgentExit {
        let mut failures = 0;
        loop {
            let give_up = self.last_contact + self.config.give_up_after;
            let link = tokio::select! {
                () = stop.cancelled() => return AgentExit::Stopped,
                link = timeout_at(give_up, self.connect()) => link,
            };
            match link {
                Err(_) => return AgentExit::GaveUp,
                Ok(None) => failures += 1,
                Ok(Some(link)) => match self.talk(link, stop).await {
                    Ended::Exit(exit) => return exit,
                    Ended::Lost { was_open: true } => failures = 1,
                    Ended::Lost { was_open: false } => failures += 1,
                },
            }
            let give_up = self.last_contact + self.config.give_up_after;
            tokio::select! {
                () = stop.cancelled() => return AgentExit::Stopped,
                () = sleep_until(give_up) => return AgentExit::GaveUp,
                () = sleep(backoff(failures)) => {}
            }
        }
    }

    /// Dials core, and asks the engine for its version meanwhile.
    async fn connect(&mut self) -> Option<Link> {
        let version = docker::version_within(self.config.docker_host.as_deref(), ENGINE_LIMIT);
        let dial = Link::dial(&self.config.core_url, Arc::clone(&self.wake));
        let (link, version) = tokio::join!(dial, version);
        if !version.is_empty() {
            self.docker_version = version;
        }
        link.inspect_err(|error| tracing::warn!(%error, "cannot reach core")).ok()
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
        })
    }

    async fn talk(&mut self, mut link: Link, stop: &CancellationToken) -> Ended {
        if link.send(&self.hello()).is_err() {
            return Ended::Lost { was_open: false };
        }
        let ack = tokio::select! {
            () = stop.cancelled() => {
                link.close().await;
                return Ended::Exit(AgentExit::Stopped);
            }
            ack = self.await_ack(&mut link) => ack,
        };
        let Some(ack) = ack else { return Ended::Lost { was_open: false } };
        tracing::info!(jobs = ack.jobs.len(), "connected to core");
        self.contact.leased(ack.lease_seconds);
        self.jobs.resume(&ack.jobs);
        // Also one that core was told of: nobody knows whether it came to the store.
        if let Some(notice) = self.spot.notice()
            && link.send(&AgentMessage::Interrupted(notice)).is_err()
        {
            return Ended::Lost { was_open: true };
        }
        let interval = Duration::from_secs(ack.heartbeat_interval.max(1));
        let exit = self.converse(&mut link, interval, stop).await;
        link.close().await;
        exit.map_or(Ended::Lost { was_open: true }, Ended::Exit)
    }

    /// Waits for `HELLO_ACK`. Nothing else is used before it.
    async fn await_ack(&mut self, link: &mut Link) -> Option<HelloAck> {
        let limit = Instant::now() + HELLO_ACK_LIMIT;
        while let Ok(Some(text)) = timeout_at(limit, link.next()).await {
            match CoreMessage::parse(&text) {
                Ok(CoreMessage::HelloAck(ack)) => {
                    self.heard(Instant::now());
                    return Some(ack);
                }
                Ok(CoreMessage::Error(error)) => {
                    tracing::error!(code = error.code, message = error.message, "core refuses");
                    return None;
                }
                Ok(_) => tracing::warn!("core sent something else before HELLO_ACK"),
                Err(error) => answer_error(link, &error).ok()?,
            }
        }
        tracing::warn!("core did not answer HELLO");
        None
    }

    /// The session proper. `None`: the connection is lost.
    async fn converse(
        &mut self,
        link: &mut Link,
        heartbeat_interval: Duration,
        stop: &CancellationToken,
    ) -> Option<AgentExit> {
        let mut heartbeat = interval(heartbeat_interval);
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let (messages, next) = self.jobs.due(link.room());
            for message in messages {
                link.send_text(message).ok()?;
            }
            let next = next.unwrap_or_else(|| Instant::now() + heartbeat_interval);
            tokio::select! {
                () = stop.cancelled() => return Some(AgentExit::Stopped),
                text = link.next() => {
                    let text = text?;
                    self.heard(Instant::now());
                    if let Some(exit) = self.handle(&text, link).ok()? {
                        return Some(exit);
                    }
                }
                notice = self.spot.next() => {
                    link.send(&AgentMessage::Interrupted(notice)).ok()?;
                }
                () = self.wake.notified() => {}
                () = sleep_until(next) => {}
                _ = heartbeat.tick() => {
                    self.heard(link.last_received());
                    if link.last_received().elapsed() > heartbeat_interval * SILENT_HEARTBEATS {
                        tracing::warn!("core is silent");
                        return None;
                    }
                    link.send(&AgentMessage::Heartbeat(self.heartbeat())).ok()?;
                    link.ping().ok()?;
                }
            }
        }
    }

    /// Something came from core at that time.
    fn heard(&mut self, at: Instant) {
        self.last_contact = self.last_contact.max(at);
        self.contact.heard(at);
    }

    /// Does what core says.
    ///
    /// # Errors
    /// When the answer cannot be sent.
    fn handle(&mut self, text: &str, link: &mut Link) -> Result<Option<AgentExit>, link::Lost> {
        let message = match CoreMessage::parse(text) {
            Ok(message) => message,
            Err(error) => return answer_error(link, &error).map(|()| None),
        };
        match message {
            CoreMessage::Build(build) => self.start(Work::Build(build), link)?,
            CoreMessage::Merge(merge) => self.start(Work::Merge(merge), link)?,
            CoreMessage::LogAck(ack) => self.jobs.acknowledge(&ack),
            CoreMessage::StatusAck(ack) => {
                self.contact.leased(ack.lease_seconds);
                self.jobs.status_acknowledged(&ack.job_id);
            }
            CoreMessage::Cancel(cancel) => {
                tracing::info!(job = %cancel.job_id, reason = cancel.reason, "cancel");
                if !self.jobs.cancel(&cancel.job_id) {
                    answer(link, "unknown_job", format!("there is no job {}", cancel.job_id))?;
                }
            }
            CoreMessage::Terminate(terminate) => {
                tracing::info!(reason = terminate.reason, "terminate");
                self.grace = (terminate.grace > 0).then(|| Duration::from_secs(terminate.grace));
                return Ok(Some(AgentExit::Terminated));
            }
            CoreMessage::HelloAck(_) => tracing::warn!("a second HELLO_ACK is ignored"),
            CoreMessage::Error(error) => {
                tracing::warn!(code = error.code, message = error.message, "core reports an error");
            }
        }
        Ok(None)
    }

    fn start(&mut self, work: Work, link: &mut Link) -> Result<(), link::Lost> {
        let job_id: WireId = work.job_id().clone();
        match self.jobs.start(work) {
            Ok(true) => {
                tracing::info!(job = %job_id, "job begins");
                link.send(&AgentMessage::Status(Status::new(job_id, StatusState::Running)))
            }
            Ok(false) => {
                tracing::info!(job = %job_id, "this job is known already");
                Ok(())
            }
            // Core must not wait for its end until the deadline.
            Err(error) => {
                tracing::error!(job = %job_id, %error, "this job cannot be started");
                link.send(&AgentMessage::Status(Status {
                    error: Some(error.reason()),
                    error_message: Some(error.to_string()),
                    ..Status::new(job_id, StatusState::Failed)
                }))
            }
        }
    }

    fn heartbeat(&self) -> Heartbeat {
        let system = System::new().map(|mut system| {
            system.refresh_memory();
            (system.used_memory(), system.total_memory())
        });
        let (memory_used_bytes, memory_total_bytes) = system.unwrap_or_default();
        let disk = nix::sys::statvfs::statvfs(&self.config.work_dir);
        Heartbeat {
            load: System::load_average().map_or(0.0, |load| load.one),
            memory_used_bytes,
            memory_total_bytes,
            disk_free_bytes: disk.map_or(0, |it| it.blocks_available() * it.fragment_size()),
        }
    }
}

fn answer_error(link: &mut Link, error: &ParseError) -> Result<(), link::Lost> {
    answer(link, error.code(), error.to_string())
}

fn answer(link: &mut Link, code: &str, message: String) -> Result<(), link::Lost> {
    tracing::warn!(code, message, "core's message cannot be used");
    link.send(&AgentMessage::Error(ErrorMessage { code: code.to_owned(), message }))
}

/// The wait after so many failures in a row: 1 to 2 s, 2 to 4 s, and so on to 30 to 60 s. Half of it
/// is random: when core comes back, not all agents dial at once.
fn backoff(failures: u32) -> Duration {
    let most = BACKOFF_MIN.saturating_mul(2_u32.saturating_pow(failures.max(1)));
    most.min(BACKOFF_MAX).mul_f64(rand::rng().random_range(0.5..=1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wait_grows_to_a_minute() {
        for (failures, seconds) in [(0, 2), (1, 2), (2, 4), (5, 32), (6, 60), (40, 60)] {
            let (most, wait) = (Duration::from_secs(seconds), backoff(failures));
            assert!(wait <= most && wait >= most / 2, "{failures}: {wait:?}");
            assert!(wait >= BACKOFF_MIN && wait <= BACKOFF_MAX, "{failures}: {wait:?}");
        }
    }
}
