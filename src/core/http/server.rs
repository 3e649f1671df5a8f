//! Serves the endpoints until core stops, and then joins the open connections.

use std::future::IntoFuture as _;
use std::time::Duration;

use anyhow::Context as _;
use axum::Router;
use axum::extract::ws::{WebSocket, WebSocketUpgrade};
use axum::response::Response;
use axum::serve::ListenerExt as _;
use tokio::net::TcpListener;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::debug;

use super::Endpoints;

/// The time limit of open requests and WebSocket connections at shutdown. Their changes are stored within
/// milliseconds.
const DRAIN_LIMIT: Duration = Duration::from_secs(2);

/// The HTTP server.
pub(crate) struct Server {
    listener: TcpListener,
    router: Router,
    sockets: WebSockets,
}

impl Server {
    pub(crate) fn new(listener: TcpListener, endpoints: Endpoints) -> Self {
        let sockets = endpoints.api.sockets.clone();
        Self { listener, router: super::router(endpoints), sockets }
    }

    /// Serves until core stops.
    ///
    /// # Errors
    /// The listener failed.
    pub(crate) async fn run(self) -> anyhow::Result<()> {
        let WebSockets { stop, open, .. } = self.sockets;
        // Small messages follow each other closely, and the second would wait for the acknowledgement of the first.
        let listener = self.listener.tap_io(|connection| {
            // Without it messages only arrive later.
            let _ = connection.set_nodelay(true);
        });
        let stopped = stop.clone();
        // Otherwise the router would be copied for every connection, route by route.
        let server = axum::serve(listener, self.router.into_make_service())
            .with_graceful_shutdown(async move { stopped.cancelled().await })
            .into_future();
        let mut server = std::pin::pin!(server);
        tokio::select! {
            ended = &mut server => return ended.context("the HTTP server failed"),
            () = stop.cancelled() => {}
        }
        open.close();
        let drained = async {
            let ended = server.await;
            open.wait().await;
            ended
        };
        // A client that does not read its response, or sends half a request, does not delay the shutdown.
        timeout(DRAIN_LIMIT, drained).await.unwrap_or_else(|_| {
            debug!("connections were still open at the end");
            Ok(())
        })?;
        Ok(())
    }
}

/// The open WebSocket connections, those of agents and of viewers. Clones share them.
#[derive(Clone, Debug)]
pub(crate) struct WebSockets {
    /// Fires when core stops.
    pub(super) stop: CancellationToken,
    open: TaskTracker,
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

    /// The times of pings to a peer. Every WebSocket library answers them, and the system notices only during sending
    /// that a peer has vanished.
    pub(super) fn pings(&self) -> Interval {
        let mut pings = interval_at(Instant::now() + self.ping_interval, self.ping_interval);
        pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
        pings
    }
}
