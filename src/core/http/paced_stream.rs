//! A connection whose client must read responses at a least rate.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep};

/// The bytes that a client accepts, at least, in the time that writes may be blocked.
const ACCEPTED_BYTES_MIN: usize = 256 * 1024;

/// Fails with [`TimedOut`](io::ErrorKind::TimedOut) when writes were blocked for the limit in all, while the client accepted
/// fewer than [`ACCEPTED_BYTES_MIN`]. Time without anything to write does not count.
#[derive(Debug)]
pub(super) struct PacedStream<S> {
    stream: S,
    limit: Duration,
    /// How long further writes may be blocked.
    left: Duration,
    /// Since `left` was the limit.
    accepted_bytes: usize,
    blocked: Option<BlockedWrite>,
}

#[derive(Debug)]
struct BlockedWrite {
    since: Instant,
    timer: Pin<Box<Sleep>>,
}

impl<S> PacedStream<S> {
    pub(super) fn new(stream: S, limit: Duration) -> Self {
        Self { stream, limit, left: limit, accepted_bytes: 0, blocked: None }
    }

    /// Counts the result of a write, which is `polled`.
    fn count(
        &mut self,
        context: &mut Context<'_>,
        polled: Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        let Poll::Ready(result) = polled else {
            let left = self.left;
            let blocked = self.blocked.get_or_insert_with(|| BlockedWrite {
                since: Instant::now(),
                timer: Box::pin(sleep(left)),
            });
            ready!(blocked.timer.as_mut().poll(context));
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        };
        if let Some(blocked) = self.blocked.take() {
            self.left = self.left.saturating_sub(blocked.since.elapsed());
        }
        self.accepted_bytes += result.as_ref().map_or(0, |bytes| *bytes);
        if self.accepted_bytes >= ACCEPTED_BYTES_MIN {
            (self.accepted_bytes, self.left) = (0, self.limit);
        }
        Poll::Ready(result)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for PacedStream<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for PacedStream<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.count(context, polled)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.count(context, polled)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

    use super::*;

    const LIMIT: Duration = Duration::from_mins(1);

    /// Writes `bytes` to a client that reads `chunk` bytes after each `pause`.
    async fn written(bytes: usize, chunk: usize, pause: Duration) -> io::Result<()> {
        let (server, mut client) = duplex(16 * 1024);
        let reader = tokio::spawn(async move {
            let mut buffer = vec![0; chunk];
            while client.read_exact(&mut buffer).await.is_ok() {
                sleep(pause).await;
            }
        });
        let result = PacedStream::new(server, LIMIT).write_all(&vec![0; bytes]).await;
        reader.abort();
        result
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_reads_a_few_bytes_now_and_then_is_disconnected() {
        let start = Instant::now();
        let error = written(1024 * 1024, 4 * 1024, Duration::from_secs(50)).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(start.elapsed() <= 2 * LIMIT, "{:?}", start.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_client_that_reads_steadily_gets_everything() {
        let start = Instant::now();
        written(4 * 1024 * 1024, 8 * 1024, Duration::from_secs(1)).await.unwrap();
        assert!(start.elapsed() > 4 * LIMIT, "{:?}", start.elapsed());
    }
}
