//! The process group of a child: signals, and the end of the child.

use std::io;
use std::process::ExitStatus;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::process::Child;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

/// The process group of a child. Dropping the value kills all processes of the group.
pub(super) struct ProcessGroup(Pid);

impl ProcessGroup {
    pub(super) fn of(child: &Child) -> io::Result<Self> {
        let id = child.id().and_then(|id| i32::try_from(id).ok());
        let group = id.map(|id| Self(Pid::from_raw(id)));
        group.ok_or_else(|| io::Error::other("the child has no process id"))
    }

    pub(super) fn signal(&self, signal: Signal) {
        match killpg(self.0, signal) {
            // ESRCH: the group has no processes any more.
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(error) => tracing::warn!(group = %self.0, %signal, %error, "cannot signal a group"),
        }
    }
}

impl Drop for ProcessGroup {
    fn drop(&mut self) {
        // The leader may be reaped already. The kernel does not reuse its id while the group has members, and
        // without members this is ESRCH.
        self.signal(Signal::SIGKILL);
    }
}

/// How a child ended.
pub(super) enum ChildExit {
    Exited(ExitStatus),
    /// SIGTERM was sent at `stopped_at`.
    Stopped {
        stopped_at: Instant,
    },
}

/// Waits for the end of `child`. When `stop` fires the group gets SIGTERM, and SIGKILL after `grace`.
pub(super) async fn wait_for_exit(
    child: &mut Child,
    group: &ProcessGroup,
    grace: Duration,
    stop: &CancellationToken,
) -> io::Result<ChildExit> {
    tokio::select! {
        status = child.wait() => return Ok(ChildExit::Exited(status?)),
        () = stop.cancelled() => {}
    }
    let stopped_at = Instant::now();
    group.signal(Signal::SIGTERM);
    if timeout(grace, child.wait()).await.is_err() {
        group.signal(Signal::SIGKILL);
        child.wait().await?;
    }
    Ok(ChildExit::Stopped { stopped_at })
}
