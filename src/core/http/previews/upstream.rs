//! Requests to the apps: an HTTP client whose connections are tunnels.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use axum::http::uri::{Authority, PathAndQuery, Scheme, Uri};
use hyper::body::Incoming;
use hyper::{Request, Response};
use hyper_util::client::legacy::{Client, Error};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use stagely_protocol::WireId;
use stagely_state::ids::MachineId;
use tower_service::Service;

use super::tunnel_stream::TunnelStream;
use super::tunnels::{TunnelError, Tunnels};
use crate::core::previews::PreviewRoutes;

/// Connections that no request uses are closed after this time. Each takes one of the machine's tunnels.
const IDLE_LIMIT: Duration = Duration::from_secs(30);

/// The most connections to one endpoint that no request uses.
const IDLE_MAX: usize = 64;

/// The longest head of an answer, and the most bytes of an answer or request that a connection holds.
const BUFFER_BYTES_MAX: usize = 64 * 1024;

/// The most headers of an answer.
const HEADERS_MAX: usize = 200;

/// Where a request goes. Requests share connections only if all of it is the same, so that none goes to a generation
/// that has ended.
#[derive(Clone, Debug)]
pub(super) struct Destination<'a> {
    pub(super) machine: MachineId,
    pub(super) preview: &'a WireId,
    pub(super) generation: u64,
    pub(super) endpoint: &'a str,
}

impl Destination<'_> {
    /// The URI of a request: the client pools connections by its authority. `None` if the endpoint's name is none that a
    /// DEPLOY may have.
    pub(super) fn uri(&self, target: PathAndQuery) -> Option<Uri> {
        let Self { machine, preview, generation, endpoint } = self;
        let authority = format!("{generation}.{machine}.{preview}.{endpoint}");
        let mut parts = axum::http::uri::Parts::default();
        parts.scheme = Some(Scheme::HTTP);
        parts.authority = Some(Authority::try_from(authority).ok()?);
        parts.path_and_query = Some(target);
        Uri::from_parts(parts).ok()
    }

    fn of(uri: &Uri) -> Option<(MachineId, WireId, String)> {
        let mut parts = uri.authority()?.as_str().splitn(4, '.').skip(1);
        let mut next = || parts.next();
        Some((next()?.parse().ok()?, next()?.parse().ok()?, next()?.to_owned()))
    }
}

/// Sends requests to apps.
#[derive(Clone, Debug)]
pub(super) struct Upstream(Client<Connector, Body>);

impl Upstream {
    pub(super) fn new(tunnels: Tunnels, routes: PreviewRoutes) -> Self {
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE_LIMIT)
            .pool_max_idle_per_host(IDLE_MAX)
            .http1_max_buf_size(BUFFER_BYTES_MAX)
            .http1_max_headers(HEADERS_MAX)
            .set_host(false)
            .build(Connector { tunnels, routes });
        Self(client)
    }

    pub(super) async fn send(&self, request: Request<Body>) -> Result<Response<Incoming>, Error> {
        self.0.request(request).await
    }
}

/// Opens connections through tunnels.
#[derive(Clone, Debug)]
struct Connector {
    tunnels: Tunnels,
    routes: PreviewRoutes,
}

impl Service<Uri> for Connector {
    type Response = TokioIo<TunnelStream>;
    type Error = TunnelError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, TunnelError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), TunnelError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let Self { tunnels, routes } = self.clone();
        Box::pin(async move {
            let (machine, preview, endpoint) =
                Destination::of(&uri).expect("`Destination::uri` made it");
            let (socket, open) = tunnels.open(machine, &preview, &endpoint).await?;
            let unused = async move { routes.wait_until_unused(machine).await };
            Ok(TokioIo::new(TunnelStream::new(socket, open, unused)))
        })
    }
}
