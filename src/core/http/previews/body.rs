//! The body of a request on its way to the app.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use stagely_protocol::WireId;
use thiserror::Error;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, Sleep, sleep};

use super::super::client_body::ClientBody;
use crate::core::previews::PreviewActivity;

/// A browser that sends nothing more of a request for this long is disconnected.
const STALL_LIMIT: Duration = Duration::from_mins(1);

/// Why the body of a request does not arrive.
#[derive(Debug, Error)]
pub(super) enum BodyError {
    #[error("the client sent nothing for {STALL_LIMIT:?}")]
    Stalled,
    #[error("the client sent a body that is none, or broke off")]
    Invalid(#[source] hyper::Error),
}

/// Notes what a browser sends. Clones share it.
#[derive(Clone, Debug)]
pub(super) struct BrowserActivity {
    /// `None` if the sender was not authorized.
    activity: Option<(PreviewActivity, WireId)>,
    /// The place that a request without a key takes.
    _share: Option<Arc<OwnedSemaphorePermit>>,
    last: Arc<Mutex<Instant>>,
}

impl BrowserActivity {
    pub(super) fn new(
        activity: Option<(PreviewActivity, WireId)>,
        share: Option<OwnedSemaphorePermit>,
    ) -> Self {
        let last = Arc::new(Mutex::new(Instant::now()));
        Self { activity, _share: share.map(Arc::new), last }
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

/// Passes a body on to the app, which may answer without reading all of it.
pub(super) struct RequestBody {
    inner: ClientBody,
    sender: BrowserActivity,
    /// Fires when the browser sends nothing more, while the app could take more.
    stalled: Option<Pin<Box<Sleep>>>,
}

impl RequestBody {
    pub(super) fn new(inner: ClientBody, sender: BrowserActivity) -> Self {
        Self { inner, sender, stalled: None }
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if let Poll::Ready(frame) = Pin::new(&mut self.inner).poll_frame(cx) {
            self.stalled = None;
            self.sender.has_sent();
            return Poll::Ready(frame.map(|frame| frame.map_err(BodyError::Invalid)));
        }
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(sleep(STALL_LIMIT)));
        stalled.as_mut().poll(cx).map(|()| Some(Err(BodyError::Stalled)))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
