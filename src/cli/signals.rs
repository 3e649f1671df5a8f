//! SIGINT and SIGTERM, for commands that end cleanly.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// The exit code of a service that is told to end twice: 128 + SIGINT.
const EXIT_INTERRUPTED: i32 = 130;

/// Counts the wishes of somebody at the terminal, or of a supervisor, that the command ends.
#[derive(Debug)]
pub struct Interrupts {
    interrupt: Signal,
    terminate: Signal,
    count: u32,
}

impl Interrupts {
    /// Listens from now on.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            count: 0,
        })
    }

    /// Waits for the next; returns how many there were. May be dropped and called again.
    pub async fn next(&mut self) -> u32 {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
        self.count += 1;
        self.count
    }
}

/// A token that fires at the first signal. The second ends the process at once.
///
/// # Errors
/// When the system refuses.
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
