//! Connections whose client has closed its direction: the response that is under way is still sent.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep};

/// Whether a response is under way on a connection. Clones share it.
#[derive(Clone, Debug, Default)]
pub(super) struct Responding(Arc<AtomicBool>);

impl Responding {
    /// A response is under way until the value is dropped.
    pub(super) fn begin(&self) -> ResponseGuard {
        self.0.store(true, Ordering::Relaxed);
        ResponseGuard(self.clone())
    }
}

#[derive(Debug)]
pub(super) struct ResponseGuard(Responding);

impl Drop for ResponseGuard {
    fn drop(&mut self) {
        self.0.0.store(false, Ordering::Relaxed);
    }
}

/// Withholds the end of the client's direction while a response is under way. A client that has disconnected looks the same
/// until something is sent to it, so the end is withheld no longer than `limit` after the last written byte.
pub(super) struct HalfClosedStream<S> {
    stream: S,
    responding: Responding,
    limit: Duration,
    /// The body of a response is dropped before its last bytes are written.
    is_flushed: bool,
    /// Fires when the end is withheld no longer.
    end: Option<Pin<Box<Sleep>>>,
}

impl<S> HalfClosedStream<S> {
    pub(super) fn new(stream: S, responding: Responding, limit: Duration) -> Self {
        Self { stream, responding, limit, is_flushed: true, end: None }
    }

    fn is_responding(&self) -> bool {
        !self.is_flushed || self.responding.0.load(Ordering::Relaxed)
    }

    fn note_write(&mut self, written: &Poll<io::Result<usize>>) {
        self.is_flushed = false;
        if let (Some(end), Poll::Ready(Ok(1..))) = (&mut self.end, written) {
            end.as_mut().reset(Instant::now() + self.limit);
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for HalfClosedStream<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(context, buffer))?;
        let has_ended = buffer.filled().len() == before && buffer.remaining() > 0;
        if has_ended && self.is_responding() {
            let limit = self.limit;
            let end = self.end.get_or_insert_with(|| Box::pin(sleep(limit)));
            ready!(end.as_mut().poll(context));
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for HalfClosedStream<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.note_write(&written);
        written
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.note_write(&written);
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.stream).poll_flush(context))?;
        self.is_flushed = true;
        if !self.is_responding()
            && let Some(end) = &mut self.end
        {
            end.as_mut().reset(Instant::now());
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
