//! A tunnel as a stream of bytes.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use axum::body::Bytes;
use axum::extract::ws::{Message, WebSocket};
use futures_util::{Sink as _, Stream as _};
use hyper_util::client::legacy::connect::{Connected, Connection};
use stagely_protocol::{TUNNEL_BYTES_MAX, TunnelMessage};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::tunnels::OpenTunnel;

/// The bytes of one connection to an endpoint.
pub(super) struct TunnelStream {
    socket: WebSocket,
    /// Received and not read yet.
    received: Bytes,
    /// The app has no more bytes.
    has_ended: bool,
    /// END was sent.
    is_shut_down: bool,
    /// Ends when the machine serves no preview any more.
    unused: Pin<Box<dyn Future<Output = ()> + Send>>,
    _open: OpenTunnel,
}

impl TunnelStream {
    pub(super) fn new(
        socket: WebSocket,
        open: OpenTunnel,
        unused: impl Future<Output = ()> + Send + 'static,
    ) -> Self {
        Self {
            socket,
            received: Bytes::new(),
            has_ended: false,
            is_shut_down: false,
            unused: Box::pin(unused),
            _open: open,
        }
    }

    /// Reads until there are bytes or the app has no more.
    fn poll_receive(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.received.is_empty() && !self.has_ended {
            let Poll::Ready(received) = Pin::new(&mut self.socket).poll_next(cx) else {
                // Only a connection that waits is worth the check.
                ready!(self.unused.as_mut().poll(cx));
                return Poll::Ready(Err(broken("the preview's machine is gone")));
            };
            match received {
                Some(Ok(Message::Binary(data))) => self.received = data,
                Some(Ok(Message::Text(text))) => match TunnelMessage::parse(&text) {
                    Ok(TunnelMessage::End) => self.has_ended = true,
                    Ok(_) | Err(_) => return Poll::Ready(Err(broken("the agent sent no END"))),
                },
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                Some(Ok(Message::Close(_))) | None => {
                    return Poll::Ready(Err(broken("the agent has closed the tunnel")));
                }
                Some(Err(error)) => return Poll::Ready(Err(io::Error::other(error))),
            }
        }
        Poll::Ready(Ok(()))
    }
}

fn broken(reason: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionAborted, reason)
}

impl fmt::Debug for TunnelStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TunnelStream").field("has_ended", &self.has_ended).finish_non_exhaustive()
    }
}

impl AsyncRead for TunnelStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        ready!(self.poll_receive(cx))?;
        let count = self.received.len().min(buffer.remaining());
        buffer.put_slice(&self.received.split_to(count));
        if self.received.is_empty() {
            // An empty slice would keep the buffer of the message alive.
            self.received = Bytes::new();
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for TunnelStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        ready!(Pin::new(&mut self.socket).poll_ready(cx)).map_err(io::Error::other)?;
        let count = data.len().min(TUNNEL_BYTES_MAX);
        let message = Message::Binary(Bytes::copy_from_slice(&data[..count]));
        Pin::new(&mut self.socket).start_send(message).map_err(io::Error::other)?;
        Poll::Ready(Ok(count))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx).map_err(io::Error::other)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.is_shut_down {
            ready!(Pin::new(&mut self.socket).poll_ready(cx)).map_err(io::Error::other)?;
            let end = Message::text(TunnelMessage::End.to_json());
            Pin::new(&mut self.socket).start_send(end).map_err(io::Error::other)?;
            self.is_shut_down = true;
        }
        self.poll_flush(cx)
    }
}

impl Connection for TunnelStream {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}
