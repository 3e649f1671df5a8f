//! Reads a line from the terminal without showing it.

use std::io::{self, stdin};
use std::os::fd::AsFd as _;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::termios::{LocalFlags, SetArg, Termios, tcgetattr, tcsetattr};
use secrecy::SecretString;
use tokio::time::sleep;

use super::output::note;
use super::signals::Interrupts;

/// The interval of checks whether a line was typed. A thread that waits for one would delay the end of the command.
const INPUT_POLL: Duration = Duration::from_millis(50);

/// The terminal of standard input, which does not show what is typed. Dropped, it shows it again.
struct HiddenInput {
    shown: Termios,
}

impl HiddenInput {
    fn begin() -> io::Result<Self> {
        let shown = tcgetattr(stdin())?;
        let mut hidden = shown.clone();
        hidden.local_flags.remove(LocalFlags::ECHO);
        tcsetattr(stdin(), SetArg::TCSAFLUSH, &hidden)?;
        Ok(Self { shown })
    }
}

impl Drop for HiddenInput {
    fn drop(&mut self) {
        let _ = tcsetattr(stdin(), SetArg::TCSAFLUSH, &self.shown);
        // The end of the line was not shown either.
        note("");
    }
}

/// Asks for a line on the terminal of standard input. `None` after Ctrl-C.
///
/// # Errors
/// The terminal cannot be used.
pub(super) async fn hidden_line(question: &str) -> io::Result<Option<SecretString>> {
    let mut interrupts = Interrupts::new()?;
    let _hidden = HiddenInput::begin()?;
    note(question);
    tokio::select! {
        line = line() => line.map(Some),
        _ = interrupts.next() => Ok(None),
    }
}

/// The next line, without its end.
async fn line() -> io::Result<SecretString> {
    while !has_input()? {
        sleep(INPUT_POLL).await;
    }
    let mut line = String::new();
    stdin().read_line(&mut line)?;
    Ok(SecretString::from(line.trim_end_matches(['\r', '\n'])))
}

/// Whether a line was typed, or the terminal is closed.
fn has_input() -> io::Result<bool> {
    let stdin = stdin();
    let mut inputs = [PollFd::new(stdin.as_fd(), PollFlags::POLLIN)];
    Ok(poll(&mut inputs, PollTimeout::ZERO)? > 0)
}
