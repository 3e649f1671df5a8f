//! The two outputs of a child process.

use std::io;
use std::time::Duration;

use stagely_protocol::Stream;
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::process::{ChildStderr, ChildStdout};
use tokio::time::timeout;

/// The most bytes of one read: the size of a Linux pipe.
const READ_BYTES: usize = 64 * 1024;

/// How long an empty output may stay open after the whole group is dead. Only a process that left the group can
/// hold it open.
pub(super) const DRAIN_LIMIT: Duration = Duration::from_secs(2);

/// The most bytes that a dead group can have left in its two pipes, each of the largest size that Linux allows.
/// Later bytes come from a process that left the group.
const DRAIN_BYTES_MAX: usize = 2 * 1024 * 1024;

/// Both outputs, read alternately, so that no full pipe blocks the child.
pub(super) struct Outputs {
    stdout: OutputPipe<ChildStdout>,
    stderr: OutputPipe<ChildStderr>,
}

struct OutputPipe<R> {
    pipe: R,
    buffer: Vec<u8>,
    is_open: bool,
}

impl<R: AsyncRead + Unpin> OutputPipe<R> {
    fn new(pipe: R) -> Self {
        Self { pipe, buffer: vec![0; READ_BYTES], is_open: true }
    }

    /// Reads a piece, and returns its length. 0: the output has ended.
    async fn read(&mut self) -> io::Result<usize> {
        let length = self.pipe.read(&mut self.buffer).await?;
        self.is_open = length > 0;
        Ok(length)
    }
}

impl Outputs {
    pub(super) fn new(stdout: ChildStdout, stderr: ChildStderr) -> Self {
        Self { stdout: OutputPipe::new(stdout), stderr: OutputPipe::new(stderr) }
    }

    pub(super) const fn is_open(&self) -> bool {
        self.stdout.is_open || self.stderr.is_open
    }

    /// The next piece. `None`: one of the outputs has ended. Cancel-safe.
    pub(super) async fn next(&mut self) -> io::Result<Option<(Stream, &[u8])>> {
        let (stream, length) = tokio::select! {
            length = self.stdout.read(), if self.stdout.is_open => (Stream::Stdout, length?),
            length = self.stderr.read(), if self.stderr.is_open => (Stream::Stderr, length?),
            else => return Ok(None),
        };
        let buffer = match stream {
            Stream::Stdout => &self.stdout.buffer,
            Stream::Stderr => &self.stderr.buffer,
        };
        Ok((length > 0).then(|| (stream, &buffer[..length])))
    }

    /// Reads the rest of the outputs of a dead process group, however long `on_output` takes.
    pub(super) async fn read_rest(
        &mut self,
        on_output: &mut impl FnMut(Stream, &[u8]),
    ) -> io::Result<()> {
        let mut bytes_left = DRAIN_BYTES_MAX;
        while self.is_open() && bytes_left > 0 {
            match timeout(DRAIN_LIMIT, self.next()).await {
                Ok(Ok(Some((stream, bytes)))) => {
                    on_output(stream, bytes);
                    bytes_left = bytes_left.saturating_sub(bytes.len());
                }
                Ok(Ok(None)) => {}
                Ok(Err(error)) => return Err(error),
                Err(_) => break,
            }
        }
        Ok(())
    }
}

/// The last line of `output` that is not blank.
pub(crate) fn last_line(output: &[u8]) -> String {
    let output = String::from_utf8_lossy(output);
    output.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default().to_owned()
}
