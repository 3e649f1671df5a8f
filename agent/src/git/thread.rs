//! Runs libgit2 on a thread of its own, which the caller can cancel and leave behind.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::{Mode, umask};
use tokio::sync::oneshot;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;

use super::error::{CloneError, without_credentials};

/// A server that sends nothing for this long counts as unreachable.
const SILENCE_MAX: Duration = Duration::from_mins(1);

/// How long a cancelled fetch may make no progress before its thread is left behind.
const CANCEL_GRACE: Duration = Duration::from_secs(1);

/// Git's own modes, 644 and 755, without changes.
const UMASK: Mode = Mode::from_bits_truncate(0o022);

/// The state that a fetching thread and its caller share.
#[derive(Debug, Default)]
pub(super) struct FetchMonitor {
    pub(super) is_cancelled: AtomicBool,
    /// Rises with every callback of libgit2.
    pub(super) progress_count: AtomicU64,
    /// The bytes received by transfers that have ended.
    bytes_before: AtomicU64,
    /// The bytes received by the running transfer.
    bytes_now: AtomicU64,
    /// The thread writes files and does not wait for a server.
    is_on_disk: AtomicBool,
}

impl FetchMonitor {
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

    pub(super) fn received(&self, bytes: u64) {
        self.bytes_now.store(bytes, Ordering::Relaxed);
    }

    pub(super) fn transfer_ended(&self) {
        let bytes = self.bytes_now.swap(0, Ordering::Relaxed);
        self.bytes_before.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes_before.load(Ordering::Relaxed) + self.bytes_now.load(Ordering::Relaxed)
    }
}

/// Runs `work` on a thread of its own, until it ends, `cancel` fires or the server is silent for too long.
pub(super) async fn run_on_thread<T: Send + 'static>(
    url: String,
    cancel: &CancellationToken,
    work: impl FnOnce(Arc<FetchMonitor>) -> Result<T, CloneError> + Send + 'static,
) -> Result<T, CloneError> {
    let monitor = Arc::new(FetchMonitor::default());
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
        () = silence(&monitor) => {
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
async fn silence(monitor: &FetchMonitor) {
    let mut ticks = interval(Duration::from_secs(1));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut count, mut since) = (0, Instant::now());
    while since.elapsed() < SILENCE_MAX {
        ticks.tick().await;
        let new_count = monitor.progress_count.load(Ordering::Relaxed);
        if new_count != count || monitor.is_on_disk.load(Ordering::Relaxed) {
            (count, since) = (new_count, Instant::now());
        }
    }
}
