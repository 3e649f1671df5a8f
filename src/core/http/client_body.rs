//! Bodies of requests, which a handler may leave unread.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Bytes;
use http_body_util::BodyExt as _;
use hyper::Request;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::header::EXPECT;
use tokio::runtime::Handle;
use tokio::time::timeout;

/// How long the rest of a body is read that nobody wants.
const DRAIN_LIMIT: Duration = Duration::from_secs(10);

/// The body of a request. If it is dropped before its end, the rest is read and discarded: a client that still sends
/// does not see its response if the connection is closed, and fails at its next request on the same connection.
pub(super) struct ClientBody {
    /// Absent only in `drop`.
    inner: Option<Incoming>,
    /// Whether the client sends nothing before it is asked to.
    expects_continue: bool,
}

impl ClientBody {
    pub(super) fn of(request: Request<Incoming>) -> Request<Self> {
        let expects_continue = request.headers().contains_key(EXPECT);
        request.map(|inner| Self { inner: Some(inner), expects_continue })
    }

    fn inner(&self) -> &Incoming {
        self.inner.as_ref().expect("it is taken when the value is dropped")
    }
}

impl Drop for ClientBody {
    fn drop(&mut self) {
        let unread = self.inner.take().filter(|inner| !inner.is_end_stream());
        let (Some(mut unread), false, Ok(runtime)) =
            (unread, self.expects_continue, Handle::try_current())
        else {
            return;
        };
        runtime.spawn(timeout(DRAIN_LIMIT, async move {
            while let Some(Ok(_)) = unread.frame().await {}
        }));
    }
}

impl Body for ClientBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let inner = self.inner.as_mut().expect("it is taken when the value is dropped");
        let frame = Pin::new(inner).poll_frame(context);
        // Now it was asked to.
        self.expects_continue = false;
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.inner().is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner().size_hint()
    }
}
