//! The open WebSocket connections: those of agents, of viewers, and of previews.

use std::time::Duration;

use axum::extract::ws::{WebSocket, WebSocketUpgrade};
use axum::response::Response;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// The open connections. Clones share them.
#[derive(Clone, Debug)]
pub(crate) struct WebSockets {
    pub(super) stop: CancellationToken,
    pub(super) open: TaskTracker,
    ping_interval: Duration,
}

impl WebSockets {
    pub(crate) fn new(stop: CancellationToken, ping_interval: Duration) -> Self {
        Self { stop, open: TaskTracker::new(), ping_interval }
    }

    /// Accepts the WebSocket of `upgrade` and serves it in a task of its own.
    pub(super) fn open<F: Future<Output = ()> + Send>(
        &self,
        upgrade: WebSocketUpgrade,
        serve: impl FnOnce(WebSocket) -> F + Send + 'static,
    ) -> Response {
        let is_open = self.open.token();
        upgrade.on_upgrade(async move |socket| {
            serve(socket).await;
            drop(is_open);
        })
    }

    /// Runs `exchange`, that of a WebSocket of a preview, until it ends or core stops.
    pub(super) fn spawn(&self, exchange: impl Future<Output = ()> + Send + 'static) {
        let stop = self.stop.clone();
        self.open.spawn(async move {
            stop.run_until_cancelled(exchange).await;
        });
    }

    /// The times of pings to a peer. Every WebSocket library answers them, and the system notices only during sending
    /// that a peer has vanished.
    pub(super) fn pings(&self) -> Interval {
        let mut pings = interval_at(Instant::now() + self.ping_interval, self.ping_interval);
        pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
        pings
    }
}
