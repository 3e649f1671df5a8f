//! SIGINT and SIGTERM, for commands that shut down cleanly.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// The exit code of a service after a second signal: 128 + SIGINT.
const EXIT_INTERRUPTED: i32 = 130;

/// Counts SIGINT and SIGTERM signals.
#[derive(Debug)]
pub struct Interrupts {
    interrupt: Signal,
    terminate: Signal,
    count: u32,
}

impl Interrupts {
    /// Starts to receive the signals.
    ///
    /// # Errors
    /// The signal handlers cannot be installed.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            count: 0,
        })
    }

    /// Waits for the next signal and returns the number of signals so far. Cancel safe.
    pub async fn next(&mut self) -> u32 {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
        self.count += 1;
        self.count
    }
}

/// Returns a token that the first signal cancels. The second signal exits the process immediately.
///
/// # Errors
/// The signal handlers cannot be installed.
pub fn stop_token() -> io::Result<CancellationToken> {
    let mut interrupts = Interrupts::new()?;
    let stop = CancellationToken::new();
    let stopping = stop.clone();
    tokio::spawn(async move {
        interrupts.next().await;
        stopping.cancel();
        interrupts.next().await;
        #[expect(clippy::disallowed_methods, reason = "the second signal leaves at once")]
        std::process::exit(EXIT_INTERRUPTED);
    });
    Ok(stop)
}
