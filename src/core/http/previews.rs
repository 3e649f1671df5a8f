//! The previews' proxy: requests to the hosts of previews go to the apps, through tunnels.

mod access;
mod answers;
mod automatic;
mod body;
mod cookie_names;
mod headers;
mod holding;
mod keyless_tunnels;
mod login;
mod origin;
mod places;

mod tls_ask;
mod tunnel_stream;
mod tunnels;
mod upstream;

use std::error::Error;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::request::Parts;
use axum::http::uri::PathAndQuery;
use axum::http::{Method, StatusCode};
use axum::response::Response;
use http_body_util::BodyExt as _;
use hyper::Request;
use hyper::body::{Body as _, Incoming};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use stagely_protocol::ErrorChain;
use stagely_state::ids::MachineId;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf, copy_bidirectional};
use tokio::time::{Instant, sleep_until};
use tracing::debug;

use self::access::Decision;
use self::answers::Answer;
use self::body::{BodyError, BrowserActivity, RequestBody};
use self::holding::{Holding, Visit};
use self::keyless_tunnels::KeylessTunnels;
use self::tunnels::TunnelError;
use self::upstream::{Destination, Upstream};
use super::auth::ApiTokens;
use super::client_body::ClientBody;
use super::websockets::WebSockets;
use crate::core::previews::{Access, PreviewActivity, PreviewHosts, PreviewRoutes, Route};
use crate::core::records::SharedRecords;

pub(super) use self::headers::Client;
pub(crate) use self::tunnels::Tunnels;

/// How long an app may take to answer after the browser has sent something last.
const ANSWER_LIMIT: Duration = Duration::from_mins(10);

/// The parts that core and its previews' proxy share.
#[derive(Clone, Debug)]
pub(crate) struct PreviewParts {
    pub(crate) hosts: PreviewHosts,
    pub(crate) routes: PreviewRoutes,
    pub(crate) activity: PreviewActivity,
}

/// Forwards requests to previews. Clones share its connections.
#[derive(Clone, Debug)]
pub(crate) struct PreviewProxy {
    parts: PreviewParts,
    tokens: ApiTokens,
    tunnels: Tunnels,
    upstream: Upstream,
    sockets: WebSockets,
    holding: Holding,
    keyless_tunnels: KeylessTunnels,
}

/// A request to a host of previews.
pub(super) struct PreviewRequest {
    pub(super) label: String,
    pub(super) client: Client,
    pub(super) request: Request<ClientBody>,
}

impl PreviewProxy {
    pub(crate) fn new(
        parts: PreviewParts,
        tokens: ApiTokens,
        tunnels: Tunnels,
        sockets: WebSockets,
    ) -> Self {
        let upstream = Upstream::new(tunnels.clone(), parts.routes.clone());
        let holding = Holding::new(parts.clone());
        Self {
            parts,
            tokens,
            tunnels,
            upstream,
            sockets,
            holding,
            keyless_tunnels: KeylessTunnels::default(),
        }
    }

    /// The endpoints on core's own host.
    pub(super) fn router<S: Clone + Send + Sync + 'static>(
        &self,
        records: SharedRecords,
    ) -> Router<S> {
        self.tunnels.clone().router().merge(tls_ask::router(self.parts.clone(), records))
    }

    pub(super) fn hosts(&self) -> &PreviewHosts {
        &self.parts.hosts
    }

    /// Answers a request to a host of previews.
    pub(super) async fn serve(&self, request: PreviewRequest) -> Response {
        let PreviewRequest { label, client, request } = request;
        let (mut head, body) = request.into_parts();
        let wants_page = answers::wants_page(&head);
        let answered = self.answer(&label, &client, &mut head, body).await;
        let mut response = answered.unwrap_or_else(|answer| answer.into_response(wants_page));
        headers::hide_from_search(response.headers_mut());
        response
    }

    async fn answer(
        &self,
        label: &str,
        client: &Client,
        head: &mut Parts,
        body: ClientBody,
    ) -> Result<Response, Answer> {
        let route = self.parts.routes.find(label).ok_or(Answer::Unknown)?;
        let target = head.uri.path_and_query().filter(|target| target.path().starts_with('/'));
        let target = access::without_key(target.ok_or(Answer::BadTarget)?);
        if login::is_login(&route, head) {
            return login::log_in(&route, client, &self.tokens, body).await;
        }
        if access::is_forbidden_worker(&route, head) {
            return Err(Answer::ServiceWorker);
        }
        let may_use_cookie = origin::may_use_cookie(&self.parts, &route, head);
        let is_authorized = match access::decide(&route, head, &self.tokens, may_use_cookie) {
            Decision::Pass { is_authorized } => is_authorized,
            Decision::Foreign => return Err(Answer::ForeignOrigin),
            Decision::Enter => return login::enter(&route, client, target.as_str()),
            Decision::Refuse => {
                let next = if head.method == Method::GET { target.as_str() } else { "/" };
                return Err(Answer::refused(route.access, next));
            }
        };
        let is_use = is_authorized && !automatic::is_automatic(head);
        // Everybody passes where the preview is public.
        let is_stranger = !is_authorized || route.access == Access::Public;
        let visit = Visit { is_authorized, is_use, wants_page: answers::wants_page(head) };
        let serving = self.holding.serving(label, route, visit).await;
        let serving =
            serving.map_err(|answer| if is_stranger { answer.for_strangers() } else { answer })?;
        let share = if is_authorized {
            None
        } else {
            Some(self.keyless_tunnels.take(serving.machine).await?)
        };
        let activity = is_use.then(|| (self.parts.activity.clone(), serving.route.preview.clone()));
        let sender = BrowserActivity::new(activity, share);
        sender.has_sent();
        self.forward(&serving, client, head, &target, body, sender).await
    }

    async fn forward(
        &self,
        serving: &Serving,
        client: &Client,
        head: &mut Parts,
        target: &PathAndQuery,
        body: ClientBody,
        sender: BrowserActivity,
    ) -> Result<Response, Answer> {
        let upgrade = headers::is_upgrade(&head.headers);
        let browser = head.extensions.remove::<OnUpgrade>().filter(|_| upgrade);
        access::remove_credentials(&mut head.headers);
        headers::forward_request(&mut head.headers, client);
        head.uri = serving.destination().uri(target.clone()).ok_or(Answer::BadTarget)?;
        head.version = axum::http::Version::HTTP_11;
        head.extensions.clear();
        // An app may close a connection in the moment in which it gets a request. Repeating these does no harm.
        let is_repeatable =
            body.is_end_stream() && matches!(head.method, Method::GET | Method::HEAD);
        let repeated = is_repeatable.then(|| head.clone());
        let head = std::mem::replace(head, Request::new(()).into_parts().0);
        let body = if body.is_end_stream() {
            Body::empty()
        } else {
            Body::new(RequestBody::new(body, sender.clone()))
        };
        let mut sent = self.send(Request::from_parts(head, body), &sender).await;
        if let (Err(Answer::AppClosed), Some(head)) = (&sent, repeated) {
            sent = self.send(Request::from_parts(head, Body::empty()), &sender).await;
        }
        let mut response = sent?;
        let is_upgraded = response.status() == StatusCode::SWITCHING_PROTOCOLS;
        if is_upgraded {
            let app = hyper::upgrade::on(&mut response);
            let browser = browser.ok_or(Answer::BadUpgrade)?;
            self.sockets.spawn(exchange(browser, app, sender.clone()));
        }
        headers::forward_response(response.headers_mut(), is_upgraded);
        // The connection to the app is in use until the body has ended.
        Ok(response.map(|body| {
            Body::new(body.map_err(move |error| {
                let _sender = &sender;
                error
            }))
        }))
    }

    async fn send(
        &self,
        request: Request<Body>,
        sender: &BrowserActivity,
    ) -> Result<hyper::Response<Incoming>, Answer> {
        let mut sent = pin!(self.upstream.send(request));
        loop {
            let limit = sender.last() + ANSWER_LIMIT;
            tokio::select! {
                sent = &mut sent => return sent.map_err(|error| {
                    debug!(error = %ErrorChain(&error), "a preview did not answer");
                    answer_of(&error)
                }),
                () = sleep_until(limit) => if sender.last() + ANSWER_LIMIT <= Instant::now() {
                    return Err(Answer::Slow);
                },
            }
        }
    }
}

/// What a client gets after an error.
fn answer_of(error: &(dyn Error + 'static)) -> Answer {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<TunnelError>() {
            return Answer::Tunnel(error.clone());
        }
        match error.downcast_ref::<BodyError>() {
            Some(BodyError::Stalled) => return Answer::StalledBody,
            Some(BodyError::Invalid(_)) => return Answer::InvalidBody,
            None => {}
        }
        if let Some(error) = error.downcast_ref::<hyper::Error>() {
            if error.is_incomplete_message() {
                return Answer::AppClosed;
            }
            if error.is_parse() {
                return Answer::NotHttp;
            }
        }
        cause = error.source();
    }
    Answer::ConnectionLost
}

/// A route and where it leads.
struct Serving {
    route: Arc<Route>,
    machine: MachineId,
    generation: u64,
}

impl TryFrom<Arc<Route>> for Serving {
    type Error = Arc<Route>;

    fn try_from(route: Arc<Route>) -> Result<Self, Arc<Route>> {
        match route.state.serving() {
            Some((machine, generation)) => Ok(Self { route, machine, generation }),
            None => Err(route),
        }
    }
}

impl Serving {
    fn destination(&self) -> Destination<'_> {
        Destination {
            machine: self.machine,
            preview: &self.route.preview,
            generation: self.generation,
            endpoint: &self.route.endpoint,
        }
    }
}

/// Passes the bytes of a WebSocket on, in both directions.
async fn exchange(browser: OnUpgrade, app: OnUpgrade, sender: BrowserActivity) {
    let (browser, app) = match tokio::try_join!(browser, app) {
        Ok(both) => both,
        Err(error) => return debug!(error = %ErrorChain(&error), "a WebSocket was not opened"),
    };
    let mut browser = Watched { inner: TokioIo::new(browser), sender };
    if let Err(error) = copy_bidirectional(&mut browser, &mut TokioIo::new(app)).await {
        debug!(error = %ErrorChain(&error), "a WebSocket of a preview broke");
    }
}

/// Notes what a browser sends.
struct Watched<S> {
    inner: S,
    sender: BrowserActivity,
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let read = Pin::new(&mut self.inner).poll_read(cx, buffer);
        if read.is_ready() {
            self.sender.has_sent();
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, data)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}
