//! The body of a request on its way to the app.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Bytes;
use http_body_util::BodyExt as _;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use stagely_protocol::WireId;
use tokio::runtime::Handle;
use tokio::time::{Instant, Sleep, sleep, timeout};

use crate::core::previews::PreviewActivity;

/// A browser that sends nothing more of a request for this long is disconnected.
const STALL_LIMIT: Duration = Duration::from_mins(1);

/// Notes what a browser sends. Clones share it.
#[derive(Clone, Debug)]
pub(super) struct Sender {
    /// `None` if the sender was not authorized.
    activity: Option<(PreviewActivity, WireId)>,
    last: Arc<Mutex<Instant>>,
}

impl Sender {
    pub(super) fn new(activity: Option<(PreviewActivity, WireId)>) -> Self {
        Self { activity, last: Arc::new(Mutex::new(Instant::now())) }
    }

    pub(super) fn has_sent(&self) {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        if let Some((activity, preview)) = &self.activity {
            activity.touch(preview);
        }
    }

    /// When the browser sent something last.
    pub(super) fn last(&self) -> Instant {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How long the rest of a body is read that the app does not want.
const DRAIN_LIMIT: Duration = Duration::from_secs(10);

/// Passes a body on. An app may answer without reading all of it. The rest is read and dropped then, because a client
/// that still sends does not see the answer if the connection is closed.
pub(super) struct RequestBody {
    /// Absent only in `drop`.
    inner: Option<Incoming>,
    sender: Sender,
    /// Fires when the browser sends nothing more, while the app could take more.
    stalled: Option<Pin<Box<Sleep>>>,
}

impl RequestBody {
    pub(super) fn new(inner: Incoming, sender: Sender) -> Self {
        Self { inner: Some(inner), sender, stalled: None }
    }

    fn inner(&self) -> &Incoming {
        self.inner.as_ref().expect("it is taken when the value is dropped")
    }
}

impl Drop for RequestBody {
    fn drop(&mut self) {
        let Some(mut rest) = self.inner.take().filter(|inner| !inner.is_end_stream()) else {
            return;
        };
        let Ok(runtime) = Handle::try_current() else { return };
        runtime.spawn(timeout(DRAIN_LIMIT, async move {
            while let Some(Ok(_)) = rest.frame().await {}
        }));
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        let inner = self.inner.as_mut().expect("it is taken when the value is dropped");
        if let Poll::Ready(frame) = Pin::new(inner).poll_frame(cx) {
            self.stalled = None;
            self.sender.has_sent();
            return Poll::Ready(frame.map(|frame| frame.map_err(io::Error::other)));
        }
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(sleep(STALL_LIMIT)));
        stalled.as_mut().poll(cx).map(|()| {
            let message = format!("the client sent nothing for {STALL_LIMIT:?}");
            Some(Err(io::Error::new(io::ErrorKind::TimedOut, message)))
        })
    }

    fn is_end_stream(&self) -> bool {
        self.inner().is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner().size_hint()
    }
}
