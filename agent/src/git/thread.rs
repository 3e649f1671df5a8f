//! Runs libgit2 on a thread of its own, which the caller can cancel and leave behind.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::{Mode, umask};
use tokio::sync::oneshot;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;

use super::error::{CloneError, without_credentials};

/// The most files and folders of a commit and its submodules. The largest public monorepos have half a million.
pub(super) const ENTRIES_MAX: usize = 1_000_000;

/// The most bytes of a commit and its submodules, received and checked out.
pub const BYTES_MAX: u64 = 64 * 1024 * 1024 * 1024;

/// A server that sends nothing for this long counts as unreachable.
pub(super) const SILENCE_MAX: Duration = Duration::from_mins(1);

/// A server that sends nothing for this long is reported.
const SHOWN_AFTER: Duration = Duration::from_millis(1_500);

/// How long a cancelled fetch may make no progress before its thread is left behind.
const CANCEL_GRACE: Duration = Duration::from_secs(1);

/// Git's own modes, 644 and 755, without changes.
const UMASK: Mode = Mode::from_bits_truncate(0o022);

/// The state that a fetching thread and its caller share, for a commit and all its submodules.
#[derive(Debug)]
pub(super) struct FetchMonitor {
    /// The most bytes that may be received, and the most that may be written.
    bytes_max: u64,
    pub(super) is_cancelled: AtomicBool,
    /// Rises with every callback of libgit2.
    pub(super) progress_count: AtomicU64,
    /// The bytes received by transfers that have ended.
    bytes_before: AtomicU64,
    /// The bytes received by the running transfer.
    bytes_now: AtomicU64,
    /// The files and folders of all checkouts.
    entries: AtomicUsize,
    /// The bytes of all checkouts.
    bytes_written: AtomicU64,
    /// The thread writes files and does not wait for a server.
    is_on_disk: AtomicBool,
}

impl Default for FetchMonitor {
    fn default() -> Self {
        Self::new(BYTES_MAX)
    }
}

impl FetchMonitor {
    /// `bytes_max` is the most that may be received, and the most that may be written.
    pub(super) fn new(bytes_max: u64) -> Self {
        Self {
            bytes_max,
            is_cancelled: AtomicBool::default(),
            progress_count: AtomicU64::default(),
            bytes_before: AtomicU64::default(),
            bytes_now: AtomicU64::default(),
            entries: AtomicUsize::default(),
            bytes_written: AtomicU64::default(),
            is_on_disk: AtomicBool::default(),
        }
    }

    /// Counts a callback of libgit2. `false`: the operation must stop.
    pub(super) fn may_continue(&self) -> bool {
        self.progress_count.fetch_add(1, Ordering::Relaxed);
        !self.is_cancelled.load(Ordering::Relaxed)
    }

    /// Runs `work`, which writes files. A cancelled caller waits for its end.
    pub(super) fn on_disk<T>(&self, work: impl FnOnce() -> T) -> T {
        self.is_on_disk.store(true, Ordering::Relaxed);
        let result = work();
        self.is_on_disk.store(false, Ordering::Relaxed);
        result
    }

    /// Counts the bytes of the running transfer. `false`: it must stop.
    pub(super) fn received(&self, bytes: u64) -> bool {
        self.bytes_now.store(bytes, Ordering::Relaxed);
        self.may_continue() && self.check_received().is_ok()
    }

    /// # Errors
    /// More was received than may be.
    pub(super) fn check_received(&self) -> Result<(), CloneError> {
        self.check_bytes(self.bytes(), "sends")
    }

    /// Counts files and folders that are about to be checked out, and their bytes.
    ///
    /// # Errors
    /// There are too many.
    pub(super) fn check_out(&self, entries: usize, bytes: u64) -> Result<(), CloneError> {
        let entries = self.entries.fetch_add(entries, Ordering::Relaxed).saturating_add(entries);
        if entries > ENTRIES_MAX {
            return Err(CloneError::TooLarge(format!("has more than {ENTRIES_MAX} files")));
        }
        let bytes = self.bytes_written.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes);
        self.check_bytes(bytes, "has")
    }

    fn check_bytes(&self, bytes: u64, verb: &str) -> Result<(), CloneError> {
        if bytes > BYTES_MAX {
            let gib = BYTES_MAX >> 30;
            return Err(CloneError::TooLarge(format!("{verb} more than {gib} GiB")));
        }
        if bytes > self.bytes_max { Err(CloneError::DiskFull) } else { Ok(()) }
    }

    pub(super) fn transfer_ended(&self) {
        let bytes = self.bytes_now.swap(0, Ordering::Relaxed);
        self.bytes_before.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes_before.load(Ordering::Relaxed) + self.bytes_now.load(Ordering::Relaxed)
    }
}

/// Runs `work` on a thread of its own, until it ends, `cancel` fires or the server is silent for too long. `on_silence`
/// is called once when the server is silent for [`SHOWN_AFTER`].
pub(super) async fn run_on_thread<T: Send + 'static>(
    url: String,
    bytes_max: u64,
    on_silence: impl Fn(),
    cancel: &CancellationToken,
    work: impl FnOnce(Arc<FetchMonitor>) -> Result<T, CloneError> + Send + 'static,
) -> Result<T, CloneError> {
    let monitor = Arc::new(FetchMonitor::new(bytes_max));
    // Dropping this future stops the thread as well.
    let _guard = CancelOnDrop(Arc::clone(&monitor));
    let (sender, mut result) = oneshot::channel();
    let thread_monitor = Arc::clone(&monitor);
    // Not `spawn_blocking`: the runtime would wait at its end for a thread that is left behind.
    std::thread::Builder::new()
        .name("git".to_owned())
        .spawn(move || sender.send(set_umask().and_then(|()| work(thread_monitor))))
        .map_err(|error| CloneError::Internal(error.to_string()))?;

    let panicked = |_| Err(CloneError::Internal("the fetching thread panicked".to_owned()));
    tokio::select! {
        result = &mut result => result.unwrap_or_else(panicked),
        () = cancel.cancelled() => {
            monitor.is_cancelled.store(true, Ordering::Relaxed);
            // The thread must not touch files any more when this returns.
            let mut count = monitor.progress_count.load(Ordering::Relaxed);
            while timeout(CANCEL_GRACE, &mut result).await.is_err() {
                let new_count = monitor.progress_count.load(Ordering::Relaxed);
                if new_count == count && !monitor.is_on_disk.load(Ordering::Relaxed) {
                    break;
                }
                count = new_count;
            }
            Err(CloneError::Cancelled)
        }
        () = silence(&monitor, on_silence) => {
            let detail = format!("nothing was received for {} s", SILENCE_MAX.as_secs());
            Err(CloneError::Network { url: without_credentials(&url), detail })
        }
    }
}

/// Sets the umask of this thread alone. The modes of a checkout are part of the image, so they must not depend on the
/// umask of whoever started the agent.
fn set_umask() -> Result<(), CloneError> {
    match unshare(CloneFlags::CLONE_FS) {
        Ok(()) => {
            umask(UMASK);
            Ok(())
        }
        // A container may not allow it.
        Err(_) if has_umask(UMASK) => Ok(()),
        Err(error) => Err(CloneError::Internal(format!(
            "this process cannot change the umask of a thread ({error}): start it with umask 022"
        ))),
    }
}

/// Whether the process has this umask. Reading it does not change it, unlike `umask()`.
fn has_umask(mask: Mode) -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("Umask:"));
    line.and_then(|mask| u32::from_str_radix(mask.trim(), 8).ok()) == Some(mask.bits())
}

struct CancelOnDrop(Arc<FetchMonitor>);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.is_cancelled.store(true, Ordering::Relaxed);
    }
}

/// Returns once there was no progress for [`SILENCE_MAX`].
async fn silence(monitor: &FetchMonitor, on_silence: impl Fn()) {
    let mut on_silence = Some(on_silence);
    let mut ticks = interval(Duration::from_millis(250));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut count, mut since) = (0, Instant::now());
    while since.elapsed() < SILENCE_MAX {
        ticks.tick().await;
        let new_count = monitor.progress_count.load(Ordering::Relaxed);
        if new_count != count || monitor.is_on_disk.load(Ordering::Relaxed) {
            (count, since) = (new_count, Instant::now());
        } else if since.elapsed() >= SHOWN_AFTER
            && let Some(on_silence) = on_silence.take()
        {
            on_silence();
        }
    }
}
