//! Serves the endpoints until core stops, and then joins the open connections.

use std::convert::Infallible;
use std::pin::pin;
use std::time::Duration;

use anyhow::Context as _;
use axum::body::Body;
use axum::http::StatusCode;
use axum::response::Response;
use http_body_util::BodyExt as _;
use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::debug;

use super::Endpoints;
use super::client_body::ClientBody;
use super::connections::{Activity, ConnectionLimits};
use super::front::{Front, HEAD_BYTES_MAX};
use super::half_closed::{HalfClosedStream, Responding};
use super::paced_stream::PacedStream;
use super::websockets::WebSockets;

/// The time limit of open requests and WebSocket connections at shutdown. Their changes are stored within
/// milliseconds.
const DRAIN_LIMIT: Duration = Duration::from_secs(2);

const TIME_LIMITS: TimeLimits = TimeLimits {
    head: Duration::from_secs(5),
    idle: Duration::from_secs(30),
    write: Duration::from_mins(1),
    half_closed: Duration::from_secs(10),
};

/// The most headers of a request.
const HEADERS_MAX: usize = 100;

/// The system asks a silent client after this time, and then as often, whether it is still there.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);

/// A client that does not answer so often is gone.
const KEEPALIVE_RETRIES: u32 = 4;

pub(crate) struct Server {
    listener: TcpListener,
    front: Front,
    sockets: WebSockets,
    limits: ConnectionLimits,
}

impl Server {
    pub(crate) fn new(listener: TcpListener, endpoints: Endpoints) -> Self {
        let sockets = endpoints.api.sockets.clone();
        let limits = ConnectionLimits::of_this_process();
        Self { listener, front: super::front(endpoints), sockets, limits }
    }

    /// Serves until core stops.
    ///
    /// # Errors
    /// The listener failed.
    pub(crate) async fn run(self) -> anyhow::Result<()> {
        let Self { listener, front, sockets: WebSockets { stop, open, .. }, limits } = self;
        let connections = TaskTracker::new();
        while let Some(accepted) = stop.run_until_cancelled(limits.accept(&listener)).await {
            let (stream, permit) = accepted.context("the HTTP server failed")?;
            let (front, stop) = (front.clone(), stop.clone());
            connections.spawn(async move {
                let Ok(peer) = stream.peer_addr() else { return };
                let service = service_fn(move |request| {
                    let front = front.clone();
                    async move { Ok::<_, Infallible>(front.serve(request, peer.ip()).await) }
                });
                serve_connection(stream, service, TIME_LIMITS, permit.activity(), &stop).await;
                drop(permit);
            });
        }
        drop(listener);
        open.close();
        connections.close();
        let drained = async { tokio::join!(connections.wait(), open.wait()) };
        // A client that does not read its answer, or sent half a request, does not delay the end of core.
        if timeout(DRAIN_LIMIT, drained).await.is_err() {
            debug!("connections were still open at the end");
        }
        Ok(())
    }
}

/// How long a client may take.
#[derive(Clone, Copy)]
struct TimeLimits {
    /// A connection whose first request's head is not complete after this time is closed.
    head: Duration,
    /// The same for each further head, counted from the response before.
    idle: Duration,
    /// How long a response may be blocked by a client that accepts next to nothing.
    write: Duration,
    /// How long a client that has closed its direction waits for the next byte of its response. One that has disconnected
    /// looks the same.
    half_closed: Duration,
}

async fn serve_connection<S>(
    stream: TcpStream,
    service: S,
    limits: TimeLimits,
    activity: &Activity,
    stop: &CancellationToken,
) where
    S: Service<Request<ClientBody>, Response = Response, Error = Infallible>,
    S::Future: Send + 'static,
{
    // Small messages follow each other closely: the second would wait until the first is acknowledged. The server also
    // works without it.
    let _ = stream.set_nodelay(true);
    // A client that has vanished shows only when something is sent to it, or by this.
    let keepalive = TcpKeepalive::new()
        .with_time(KEEPALIVE_INTERVAL)
        .with_interval(KEEPALIVE_INTERVAL)
        .with_retries(KEEPALIVE_RETRIES);
    let _ = SockRef::from(&stream).set_tcp_keepalive(&keepalive);
    let responding = Responding::default();
    let stream = PacedStream::new(stream, limits.write);
    let stream = HalfClosedStream::new(stream, responding.clone(), limits.half_closed);
    let service = service_fn(|request: Request<Incoming>| {
        let busy = activity.begin_request();
        let responds = responding.begin();
        let response = service.call(ClientBody::of(request));
        async move {
            let response = response.await?;
            if response.status() == StatusCode::SWITCHING_PROTOCOLS {
                busy.forever();
                return Ok::<_, Infallible>(response);
            }
            // The body goes when it is sent.
            Ok(response.map(|body| {
                Body::new(body.map_err(move |error| {
                    let _until_sent = (&busy, &responds);
                    error
                }))
            }))
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.idle)
        .max_headers(HEADERS_MAX)
        .max_buf_size(HEAD_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    let mut connection = pin!(connection);
    let result = tokio::select! {
        result = connection.as_mut() => result,
        () = activity.closed() => return debug!("a connection without a request made room"),
        () = activity.no_request_within(limits.head) => return debug!("a connection sent no request"),
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = result {
        debug!(%error, "a connection broke");
    }
}

#[cfg(test)]
mod tests {
    use axum::Router;
    use axum::routing::{get, post};
    use hyper_util::service::TowerToHyperService;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::task::JoinHandle;

    use super::*;

    const SHORT: Duration = Duration::from_millis(200);

    const LIMITS: TimeLimits =
        TimeLimits { head: SHORT, idle: SHORT, write: SHORT, half_closed: SHORT };

    /// A client of a server with short limits, and the task that serves it.
    async fn client() -> (TcpStream, JoinHandle<()>) {
        client_with(LIMITS).await
    }

    async fn client_with(limits: TimeLimits) -> (TcpStream, JoinHandle<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = Router::new()
            .route("/small", get(async || "a response"))
            .route("/refused", post(async || StatusCode::PAYLOAD_TOO_LARGE))
            .route("/never", get(std::future::pending::<()>))
            .route(
                "/slow",
                get(async || {
                    tokio::time::sleep(SHORT / 2).await;
                    "a late response"
                }),
            )
            .route("/large", get(async || vec![0_u8; 64 * 1024 * 1024]));
        let served = tokio::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            let service = TowerToHyperService::new(router);
            let (activity, stop) = (Activity::default(), CancellationToken::new());
            serve_connection(stream, service, limits, &activity, &stop).await;
        });
        (TcpStream::connect(address).await.unwrap(), served)
    }

    /// Reads until the server closes the connection. A reset closes it as well.
    async fn rest(client: &mut TcpStream) -> usize {
        let (mut buffer, mut bytes) = (vec![0; 64 * 1024], 0);
        loop {
            match client.read(&mut buffer).await {
                Ok(0) | Err(_) => return bytes,
                Ok(count) => bytes += count,
            }
        }
    }

    #[tokio::test]
    async fn a_connection_without_a_whole_head_is_closed() {
        for sent in ["", "GET /small HTTP/1.1\r\nhost: a\r\n"] {
            let (mut client, _) = client().await;
            client.write_all(sent.as_bytes()).await.unwrap();
            rest(&mut client).await;
        }
    }

    #[tokio::test]
    async fn a_connection_may_be_idle_for_longer_after_its_first_request() {
        let limits = TimeLimits { idle: Duration::from_mins(1), ..LIMITS };
        let (mut client, _) = client_with(limits).await;
        for _ in 0..2 {
            client.write_all(b"GET /small HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
            let mut response = vec![0; 1024];
            assert!(client.read(&mut response).await.unwrap() > "a response".len());
            tokio::time::sleep(2 * SHORT).await;
        }
        let (mut client, _) = client_with(limits).await;
        assert_eq!(timeout(10 * SHORT, rest(&mut client)).await, Ok(0));
    }

    #[tokio::test]
    async fn an_idle_connection_is_closed_after_its_response() {
        let (mut client, _) = client().await;
        client.write_all(b"GET /small HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
        assert!(rest(&mut client).await > "a response".len());
    }

    #[tokio::test]
    async fn a_client_sees_its_response_and_goes_on_although_nobody_reads_its_body() {
        const BODY_BYTES: usize = 16 * 1024 * 1024;
        let limits = TimeLimits { idle: Duration::from_mins(1), ..LIMITS };
        let (mut client, _) = client_with(limits).await;
        for _ in 0..3 {
            let head = format!(
                "POST /refused HTTP/1.1\r\nhost: a\r\ncontent-length: {BODY_BYTES}\r\n\r\n"
            );
            client.write_all(head.as_bytes()).await.unwrap();
            client.write_all(&vec![b'x'; BODY_BYTES]).await.unwrap();
            let mut response = vec![0; 1024];
            let bytes = client.read(&mut response).await.unwrap();
            assert!(response[..bytes].starts_with(b"HTTP/1.1 413 "));
        }
    }

    #[tokio::test]
    async fn a_body_that_was_not_asked_for_is_not_waited_for() {
        let (mut client, served) = client().await;
        let head = "POST /refused HTTP/1.1\r\nhost: a\r\ncontent-length: 9\r\nexpect: 100-continue\r\n\r\n";
        client.write_all(head.as_bytes()).await.unwrap();
        let mut response = String::new();
        client.read_to_string(&mut response).await.unwrap();
        assert!(response.starts_with("HTTP/1.1 413 "), "{response}");
        timeout(Duration::from_secs(5), served).await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_client_that_does_not_read_is_disconnected() {
        let (mut client, served) = client().await;
        client.write_all(b"GET /large HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
        served.await.unwrap();
        assert!(rest(&mut client).await < 64 * 1024 * 1024);
    }

    #[tokio::test]
    async fn a_client_that_has_closed_its_direction_gets_its_response() {
        let limits = TimeLimits { idle: Duration::from_mins(1), ..LIMITS };
        for (path, least) in [("small", 10), ("slow", 15), ("large", 64 * 1024 * 1024)] {
            let (mut client, served) = client_with(limits).await;
            let request = format!("GET /{path} HTTP/1.1\r\nhost: a\r\n\r\n");
            client.write_all(request.as_bytes()).await.unwrap();
            client.shutdown().await.unwrap();
            let bytes = rest(&mut client).await;
            assert!(bytes > least, "{path}: {bytes}");
            // The connection does not wait for another request.
            timeout(Duration::from_secs(20), served).await.unwrap().unwrap();
        }
    }

    #[tokio::test]
    async fn a_client_that_disconnects_does_not_wait_for_its_response() {
        let limits = TimeLimits { idle: Duration::from_mins(1), ..LIMITS };
        let (mut client, served) = client_with(limits).await;
        client.write_all(b"GET /never HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
        tokio::time::sleep(SHORT).await;
        drop(client);
        timeout(Duration::from_secs(20), served).await.unwrap().unwrap();
    }
}
