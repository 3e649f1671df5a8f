//! An app that runs as a preview.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::ws::{Message, WebSocketUpgrade};
use axum::extract::{Path, Request, State};
use axum::http::header::{CONTENT_TYPE, SET_COOKIE};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get, post};
use axum::{Json, Router};
use futures_util::{StreamExt as _, stream};
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

/// The size of a piece of a body.
pub(crate) const PIECE_BYTES: usize = 32 * 1024;

#[derive(Debug)]
pub(crate) struct App {
    name: &'static str,
    /// All requests.
    pub(crate) requests: AtomicUsize,
    /// Accepted connections.
    pub(crate) connections: AtomicUsize,
    /// Bytes of `/endless`.
    pub(crate) produced: AtomicU64,
    /// Requests in `/hold`.
    pub(crate) held: AtomicUsize,
    /// Lets requests of `/hold` go.
    pub(crate) release: Semaphore,
}

/// The bytes of piece `number` of a body.
pub(crate) fn piece(number: u64) -> Bytes {
    let mut bytes = vec![0; PIECE_BYTES];
    for (position, eight) in bytes.chunks_exact_mut(8).enumerate() {
        let value = (number << 16 | position as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        eight.copy_from_slice(&value.to_le_bytes());
    }
    bytes.into()
}

/// Compares what arrives with the pieces of a body.
#[derive(Debug, Default)]
pub(crate) struct Comparison {
    number: u64,
    rest: Bytes,
    pub(crate) count: u64,
}

impl Comparison {
    pub(crate) fn add(&mut self, mut data: Bytes) {
        self.count += data.len() as u64;
        while !data.is_empty() {
            if self.rest.is_empty() {
                self.rest = piece(self.number);
                self.number += 1;
            }
            let length = data.len().min(self.rest.len());
            let (got, expected) = (data.split_to(length), self.rest.split_to(length));
            assert!(got == expected, "piece {} differs", self.number - 1);
        }
    }
}

impl App {
    /// Starts an app whose pages say `name`.
    pub(crate) async fn start(name: &'static str) -> (Arc<Self>, SocketAddr) {
        let app = Arc::new(Self {
            name,
            requests: AtomicUsize::new(0),
            connections: AtomicUsize::new(0),
            produced: AtomicU64::new(0),
            held: AtomicUsize::new(0),
            release: Semaphore::new(0),
        });
        let router = Router::new()
            .route("/download/{pieces}", get(download))
            .route("/upload", post(upload))
            .route("/endless", get(endless))
            .route("/events", get(events))
            .route("/hold", get(hold))
            .route("/socket", get(socket))
            .route("/cookies", get(cookies))
            .fallback(any(echo))
            .layer(axum::extract::DefaultBodyLimit::disable())
            .with_state(Arc::clone(&app));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let counted = Arc::clone(&app);
        let listener = axum::serve::ListenerExt::tap_io(listener, move |stream| {
            counted.connections.fetch_add(1, Ordering::Relaxed);
            stream.set_nodelay(true).unwrap();
        });
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        (app, address)
    }
}

/// Says what the app got.
async fn echo(State(app): State<Arc<App>>, request: Request) -> Response {
    app.requests.fetch_add(1, Ordering::Relaxed);
    let (head, body) = request.into_parts();
    let headers: Vec<(String, String)> = head
        .headers
        .iter()
        .map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned()))
        .collect();
    let body = axum::body::to_bytes(body, 1024 * 1024).await.unwrap();
    Json(json!({
        "app": app.name,
        "method": head.method.as_str(),
        "target": head.uri.to_string(),
        "headers": headers,
        "body": String::from_utf8_lossy(&body),
    }))
    .into_response()
}

async fn download(Path(pieces): Path<u64>) -> Body {
    Body::from_stream(stream::iter((0..pieces).map(|number| Ok::<_, Infallible>(piece(number)))))
}

async fn upload(body: Body) -> String {
    let mut comparison = Comparison::default();
    let mut stream = body.into_data_stream();
    while let Some(data) = stream.next().await {
        comparison.add(data.unwrap());
    }
    comparison.count.to_string()
}

async fn endless(State(app): State<Arc<App>>) -> Body {
    let piece = piece(0);
    Body::from_stream(stream::repeat_with(move || {
        app.produced.fetch_add(PIECE_BYTES as u64, Ordering::Relaxed);
        Ok::<_, Infallible>(piece.clone())
    }))
}

/// Sends an event at once and another one when it is released.
async fn events(State(app): State<Arc<App>>) -> Response {
    let events = stream::unfold(0, move |number| {
        let app = Arc::clone(&app);
        async move {
            if number > 0 {
                app.release.acquire().await.unwrap().forget();
            }
            let event = Bytes::from(format!("data: {number}\n\n"));
            Some((Ok::<_, Infallible>(event), number + 1))
        }
    });
    ([(CONTENT_TYPE, "text/event-stream")], Body::from_stream(events)).into_response()
}

async fn hold(State(app): State<Arc<App>>) -> &'static str {
    app.held.fetch_add(1, Ordering::Relaxed);
    app.release.acquire().await.unwrap().forget();
    "released"
}

/// Repeats what it gets, and says `quiet` after a silence.
async fn socket(upgrade: WebSocketUpgrade) -> Response {
    upgrade.on_upgrade(async |mut socket| {
        while let Some(Ok(message)) = socket.recv().await {
            match message {
                Message::Text(text) if text == "be quiet" => {
                    tokio::time::sleep(Duration::from_secs(3)).await;
                    socket.send(Message::text("quiet")).await.unwrap();
                }
                message @ (Message::Text(_) | Message::Binary(_)) => {
                    socket.send(message).await.unwrap();
                }
                _ => {}
            }
        }
    })
}

async fn cookies() -> Response {
    let cookies = ["session=1; Path=/", "__Host-stagely-access=mine; Secure; Path=/"];
    let mut response = "cookies".into_response();
    for cookie in cookies {
        response.headers_mut().append(SET_COOKIE, cookie.parse().unwrap());
    }
    response
}
