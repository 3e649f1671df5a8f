//! `stagely previews exec`: runs a command in the container of a service.

use std::io::{self, IsTerminal as _, Read as _, Write as _, stderr, stdin, stdout};
use std::process::ExitCode;

use clap::Args;
use stagely_protocol::Stream;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use super::WhichPreview;
use super::find::{FoundPreview, find};
use super::terminal::{RawTerminal, size};
use crate::api::ExecRequest;
use crate::client::{ExecEvent, ExecInput};

/// Pieces of input that wait. Then standard input is not read.
const PIECES_MAX: usize = 4;

const PIECE_BYTES: usize = 16 * 1024;

/// Runs a command in the container of a service
///
/// The exit code is that of the command. Core's log has the command and the name of the token: give secrets on standard
/// input.
#[derive(Args, Debug)]
pub(super) struct ExecArgs {
    #[command(flatten)]
    which: WhichPreview,
    /// The service of the compose file. A preview of one image has the service `app`
    #[arg(value_name = "SERVICE")]
    service: String,
    /// Do not allocate a terminal. The default if standard input or output is none
    #[arg(short = 'T', long)]
    no_terminal: bool,
    /// The command with its arguments
    #[arg(
        value_name = "COMMAND",
        required = true,
        trailing_var_arg = true,
        allow_hyphen_values = true
    )]
    command: Vec<String>,
}

/// Runs `stagely previews exec`.
///
/// # Errors
/// The preview does not exist or is not live; the command cannot be started; the connection is lost.
pub(super) async fn exec(arguments: ExecArgs) -> anyhow::Result<ExitCode> {
    let ExecArgs { which, service, no_terminal, command } = arguments;
    let FoundPreview { client, preview } = find(&which).await?;
    let has_terminal = !no_terminal && stdin().is_terminal() && stdout().is_terminal();
    let terminal = has_terminal.then(size);
    let request = ExecRequest { service, command, terminal };
    let (input, mut output) = client.exec(preview.id, &request).await?;
    let _raw = if has_terminal { Some(RawTerminal::enter()?) } else { None };
    let sending = tokio::spawn(send_input(input, has_terminal));
    let code = loop {
        match output.next().await? {
            ExecEvent::Output { stream: Stream::Stdout, bytes } => {
                let mut out = stdout().lock();
                out.write_all(&bytes)?;
                out.flush()?;
            }
            ExecEvent::Output { stream: Stream::Stderr, bytes } => stderr().write_all(&bytes)?,
            ExecEvent::Exited { code } => break code,
        }
    };
    sending.abort();
    Ok(ExitCode::from(u8::try_from(code).unwrap_or(u8::MAX)))
}

/// Sends what standard input has, and the sizes of the terminal. Goes on after the end of the input, because dropping
/// `input` would disconnect.
async fn send_input(mut input: ExecInput, has_terminal: bool) -> anyhow::Result<()> {
    let mut pieces = Some(read_input());
    let mut resized = signal(SignalKind::window_change())?;
    let mut sent = size();
    loop {
        tokio::select! {
            piece = next(&mut pieces) => if let Some(piece) = piece {
                input.send(&piece).await?;
            } else {
                pieces = None;
                input.end().await?;
            },
            _ = resized.recv(), if has_terminal => {
                let new = size();
                if new != sent {
                    sent = new;
                    input.resize(new).await?;
                }
            }
        }
    }
}

async fn next(pieces: &mut Option<mpsc::Receiver<Vec<u8>>>) -> Option<Vec<u8>> {
    match pieces {
        Some(pieces) => pieces.recv().await,
        None => std::future::pending().await,
    }
}

/// Reads standard input in a thread of its own, which does not keep the process alive.
fn read_input() -> mpsc::Receiver<Vec<u8>> {
    let (sender, pieces) = mpsc::channel(PIECES_MAX);
    std::thread::spawn(move || {
        let mut buffer = vec![0; PIECE_BYTES];
        loop {
            match stdin().read(&mut buffer) {
                Ok(0) => return,
                Ok(length) => {
                    if sender.blocking_send(buffer[..length].to_vec()).is_err() {
                        return;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return,
            }
        }
    });
    pieces
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Command {
        #[command(flatten)]
        exec: ExecArgs,
    }

    #[test]
    fn options_after_the_service_are_those_of_the_command() {
        for arguments in [
            &["exec", "pr-7", "web", "--", "ls", "-l", "--all"][..],
            &["exec", "--project", "app", "-T", "pr-7", "web", "ls", "-l", "--all"],
        ] {
            let ExecArgs { which, service, command, .. } =
                Command::try_parse_from(arguments).unwrap().exec;
            assert_eq!((&*which.name, &*service), ("pr-7", "web"));
            assert_eq!(command, ["ls", "-l", "--all"]);
        }
        assert!(Command::try_parse_from(["exec", "pr-7", "web"]).is_err());
    }
}
