//! The user's terminal during a command elsewhere.

use std::io::stdin;

use console::Term;
use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};
use stagely_protocol::TerminalSize;

/// Standard input without echo and without keys of its own, until it is dropped.
pub(super) struct RawTerminal {
    before: Termios,
}

impl RawTerminal {
    pub(super) fn enter() -> nix::Result<Self> {
        let before = tcgetattr(stdin())?;
        let mut raw = before.clone();
        cfmakeraw(&mut raw);
        tcsetattr(stdin(), SetArg::TCSANOW, &raw)?;
        Ok(Self { before })
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        // It may be gone.
        let _ = tcsetattr(stdin(), SetArg::TCSANOW, &self.before);
    }
}

/// The size of the terminal; the usual one if it has none.
pub(super) fn size() -> TerminalSize {
    let size = Term::stdout().size_checked().filter(|(rows, columns)| *rows > 0 && *columns > 0);
    let (rows, columns) = size.unwrap_or((24, 80));
    TerminalSize { columns, rows }
}
