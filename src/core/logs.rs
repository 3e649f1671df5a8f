//! The logs of jobs, and of the services of previews, in redb: compressed chunks, keyed by attempt or deployment, and first
//! line.
//!
//! Callers compress. One writer thread commits all waiting batches as one group, and then acknowledges them. Measured
//! on 2 cores with 100-byte lines: a row a line costs 135 bytes and 5,000 to 500,000 lines/s; compressed chunks of
//! batches 17 bytes and 1.5 million lines/s.

mod chunk;
mod id;
mod live;
mod tables;
mod writer;

use std::collections::BTreeSet;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use stagely_protocol::{ErrorChain, LogLine, Stream};
use stagely_state::ids::{JobId, PreviewId};
use thiserror::Error;
use tokio::sync::{mpsc, oneshot};
use tokio::task::spawn_blocking;
use tracing::error;

use self::chunk::Chunk;
use self::live::Followed;
use self::tables::{LogKey, Tables};
use self::writer::{AppendCommand, Command, Writer};
use super::damage::DamagedDatabase;
use super::disk::reserve_mib;
use crate::config::Config;

pub use id::LogId;
pub use live::{LiveLines, NewLines};

/// Most commands that wait for the writer. Then appenders wait, and so do their agents.
const WAITING_MAX: usize = 256;

/// The most stored text of the services of a preview since a deployment, in bytes. The oldest lines are dropped.
pub const SERVICES_BYTES_MAX: u64 = 16 << 20;

#[derive(Clone, Copy, Debug)]
pub struct LogSettings {
    /// The most stored text of one attempt of a job, in bytes. Further lines are counted and dropped.
    pub job_bytes_max: u64,
    /// Memory for cached pages, in bytes.
    pub cache_bytes: usize,
    /// Logs are cut where a commit would leave less than this free on the disk, in bytes.
    pub disk_free_min_bytes: u64,
}

impl From<&Config> for LogSettings {
    fn from(config: &Config) -> Self {
        let reserve_mib = reserve_mib(config.core.disk_free_min_mib);
        Self {
            job_bytes_max: config.logs.job_max_mib << 20,
            cache_bytes: usize::try_from(config.logs.cache_mib << 20).unwrap_or(usize::MAX),
            disk_free_min_bytes: reserve_mib.saturating_mul(1 << 20),
        }
    }
}

/// A log store that cannot be used.
#[derive(Debug, Error)]
pub enum LogError {
    #[error("the log database failed")]
    Database(#[source] Box<redb::Error>),
    /// A stored chunk cannot be read.
    #[error("a stored chunk of the log {log} is damaged")]
    Damaged { log: LogId },
    #[error("the log database cannot be used")]
    DamagedFile(#[source] DamagedDatabase),
    /// The store was closed.
    #[error("the log store is closed")]
    Closed,
}

impl<E: Into<redb::Error>> From<E> for LogError {
    fn from(error: E) -> Self {
        Self::Database(Box::new(error.into()))
    }
}

#[derive(Clone, Debug, Error)]
pub enum AppendError {
    /// Lines before these are missing, so the agent must send them first.
    #[error("line {expected} is missing")]
    Gap {
        /// The number of the first missing line.
        expected: u64,
    },
    /// The commit failed, or the store is closed. Nothing of the batch is stored.
    #[error("cannot store lines of a log: {0}")]
    NotStored(String),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredLine {
    /// Milliseconds since the Unix epoch when the agent read it; 0 if unknown.
    pub t: u64,
    pub stream: Stream,
    pub data: String,
}

/// Stores and reads logs. Clones share the database and the writer.
#[derive(Clone, Debug)]
pub struct LogStore {
    tables: Tables,
    writer: mpsc::Sender<Command>,
    followed: Followed,
    /// `None` once the store is closed.
    thread: Arc<Mutex<Option<JoinHandle<()>>>>,
}

/// A batch of lines that is not committed yet.
#[derive(Debug)]
pub struct Receipt(oneshot::Receiver<Result<u64, AppendError>>);

impl Receipt {
    /// Waits for the commit, and returns the number of the next line. Cancel safe: it may be called again.
    ///
    /// # Errors
    /// [`AppendError`].
    pub async fn stored(&mut self) -> Result<u64, AppendError> {
        (&mut self.0)
            .await
            .unwrap_or_else(|_| Err(AppendError::NotStored("the log store is closed".into())))
    }
}

impl LogStore {
    /// Opens or creates the database at `path`, and starts the writer. Blocks.
    ///
    /// # Errors
    /// [`LogError`].
    pub fn open(path: &Path, settings: LogSettings) -> Result<Self, LogError> {
        let tables = Tables::open(PathBuf::from(path), settings.cache_bytes)?;
        let followed = Followed::default();
        let (writer, commands) = mpsc::channel(WAITING_MAX);
        let thread = Writer::new(tables.clone(), settings, followed.clone());
        let thread = std::thread::Builder::new()
            .name("log-writer".to_owned())
            .spawn(move || thread.run(commands))
            .expect("the system starts one more thread");
        Ok(Self { tables, writer, followed, thread: Arc::new(Mutex::new(Some(thread))) })
    }

    /// Commits the waiting batches, joins the writer's thread, and closes the file. Later calls fail, also those of
    /// clones.
    pub async fn close(&self) {
        let thread = lock(&self.thread).take();
        let Some(thread) = thread else { return };
        // Fails if the thread has panicked; `join` reports that.
        let _ = self.writer.send(Command::Close).await;
        let joined = spawn_blocking(move || thread.join()).await;
        if !matches!(joined, Ok(Ok(()))) {
            error!("the log writer has panicked");
        }
        self.tables.close();
    }

    /// Passes `lines` to the writer, and waits only while the writer is far behind. `first` is the number of the first
    /// line; without it the lines follow the stored ones. Lines that are stored already are skipped.
    ///
    /// # Errors
    /// [`AppendError::NotStored`] when the store is closed.
    pub async fn append(
        &self,
        log: impl Into<LogId>,
        first: Option<u64>,
        lines: &[LogLine<'_>],
    ) -> Result<Receipt, AppendError> {
        let log = log.into();
        let (stored, receipt) = oneshot::channel();
        let chunks = Chunk::several_of(lines);
        let message = self.followed.encode(log, first, lines);
        let command = Command::Append(AppendCommand { log, first, chunks, message, stored });
        let closed = |_| AppendError::NotStored("the log store is closed".into());
        self.writer.send(command).await.map_err(closed)?;
        Ok(Receipt(receipt))
    }

    /// The number of the next line. Dropped lines are counted.
    ///
    /// # Errors
    /// [`AppendError::NotStored`] when the database cannot be read.
    pub async fn next_line(&self, log: impl Into<LogId>) -> Result<u64, AppendError> {
        let (tables, log) = (self.tables.clone(), log.into());
        let extent = spawn_blocking(move || tables.checked(|tables| tables.extent(log))).await;
        match extent {
            Ok(Ok(extent)) => Ok(extent.next_line),
            Ok(Err(error)) => Err(AppendError::NotStored(ErrorChain(&error).to_string())),
            Err(error) => Err(AppendError::NotStored(error.to_string())),
        }
    }

    /// Reads at most about `lines_max` lines or half a megabyte of text from line `from` on, or from the first one that
    /// is still there. Empty at the end of the log. Also returns the number of the first of them.
    ///
    /// # Errors
    /// [`LogError`].
    pub async fn read(
        &self,
        log: impl Into<LogId>,
        from: u64,
        lines_max: usize,
    ) -> Result<(u64, Vec<StoredLine>), LogError> {
        let (tables, log) = (self.tables.clone(), log.into());
        spawn_blocking(move || tables.checked(|tables| tables.read(log, from, lines_max)))
            .await
            .unwrap_or(Err(LogError::Closed))
    }

    /// Reads the last `lines_max` lines, or fewer long ones: half a megabyte of text, and the rest of one chunk. Also
    /// returns the number of the first of them.
    ///
    /// # Errors
    /// [`LogError`].
    pub async fn tail(
        &self,
        log: impl Into<LogId>,
        lines_max: usize,
    ) -> Result<(u64, Vec<StoredLine>), LogError> {
        let (tables, log) = (self.tables.clone(), log.into());
        spawn_blocking(move || tables.checked(|tables| tables.tail(log, lines_max)))
            .await
            .unwrap_or(Err(LogError::Closed))
    }

    /// Notifies of lines that are stored after this call. Callers read earlier lines after it.
    pub fn follow(&self, log: impl Into<LogId>) -> LiveLines {
        self.followed.follow(log.into())
    }

    /// Deletes the logs of all attempts of `jobs`, in small transactions.
    ///
    /// # Errors
    /// [`LogError`].
    pub async fn forget(&self, jobs: &[JobId]) -> Result<(), LogError> {
        for job in jobs {
            self.forget_logs(LogId::of_job(*job)).await?;
        }
        Ok(())
    }

    /// Deletes the logs of the services of `preview` before those of a deployment.
    ///
    /// # Errors
    /// [`LogError`].
    pub async fn forget_services(
        &self,
        preview: PreviewId,
        generation: u64,
    ) -> Result<(), LogError> {
        self.forget_logs(LogId::of_services_before(preview, generation)).await
    }

    /// The previews that have logs.
    ///
    /// # Errors
    /// [`LogError`].
    pub async fn logged_previews(&self) -> Result<BTreeSet<PreviewId>, LogError> {
        let tables = self.tables.clone();
        spawn_blocking(move || tables.checked(Tables::previews))
            .await
            .unwrap_or(Err(LogError::Closed))
    }

    async fn forget_logs(&self, keys: Range<LogKey>) -> Result<(), LogError> {
        let (done, forgotten) = oneshot::channel();
        let command = Command::Forget { keys, done };
        self.writer.send(command).await.map_err(|_| LogError::Closed)?;
        forgotten.await.map_err(|_| LogError::Closed)?
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
