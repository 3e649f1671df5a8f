//! A server in place of core: it takes artifacts, and can do so badly, and it opens sessions.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use hyper::body::{Body as _, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use reqwest::{Body, Url};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use stagely_protocol::{
    ARTIFACT_PIECE_BYTES_MAX, ARTIFACTS_PATH, AgentMessage, CONNECT_PATH, DIGEST_HEADER, Hello,
    MACHINE_HEADER, OFFSET_HEADER, StoredArtifacts,
};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{WebSocketStream, accept_async};

pub(crate) const TOKEN: &str = "machine-token";

const WAIT_LIMIT: Duration = Duration::from_mins(2);

/// What happens to one PUT instead of what should.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Fault {
    /// The connection ends after so many bytes, which are kept.
    Cut(usize),
    /// This answer, and nothing is kept.
    Answer(StatusCode),
    /// So many bytes stay of those that are there, as after a crash, and the piece begins elsewhere.
    Forget(usize),
}

#[derive(Default)]
pub(crate) struct Artifacts {
    pub(crate) stored: Vec<u8>,
    pub(crate) faults: VecDeque<Fault>,
    /// The method, path, range and answer of each request.
    pub(crate) requests: Vec<String>,
}

pub(crate) struct Core {
    port: u16,
    sessions: mpsc::Receiver<TcpStream>,
    artifacts: Arc<Mutex<Artifacts>>,
}

impl Core {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (opened, sessions) = mpsc::channel(8);
        let artifacts: Arc<Mutex<Artifacts>> = Arc::default();
        let shared = Arc::clone(&artifacts);
        tokio::spawn(async move {
            loop {
                let (socket, _) = listener.accept().await.unwrap();
                let (opened, shared) = (opened.clone(), Arc::clone(&shared));
                tokio::spawn(async move {
                    let mut head = [0; 64];
                    let length = socket.peek(&mut head).await.unwrap_or(0);
                    let head = String::from_utf8_lossy(&head[..length]).into_owned();
                    if head.starts_with(&format!("GET {CONNECT_PATH} ")) {
                        let _ = opened.send(socket).await;
                    } else if head.starts_with("PUT") || head.starts_with("HEAD") {
                        let answer = |request| answer(Arc::clone(&shared), request);
                        let connection = http1::Builder::new();
                        let _ = connection
                            .serve_connection(TokioIo::new(socket), service_fn(answer))
                            .await;
                    }
                });
            }
        });
        Self { port, sessions, artifacts }
    }

    pub(crate) fn url(&self) -> Url {
        format!("http://127.0.0.1:{}", self.port).parse().unwrap()
    }

    pub(crate) fn artifacts(&self) -> std::sync::MutexGuard<'_, Artifacts> {
        self.artifacts.lock().unwrap()
    }

    /// Checks that everything is there, and returns the names and the contents of the files.
    pub(crate) fn files(&self, expected: &StoredArtifacts) -> Vec<(String, Vec<u8>)> {
        let stored = self.artifacts().stored.clone();
        assert_eq!(
            (digest_of(&stored), stored.len() as u64),
            (expected.digest.to_string(), expected.bytes)
        );
        let mut archive = tar::Archive::new(&*stored);
        let files = archive.entries().unwrap().map(|entry| {
            let mut entry = entry.unwrap();
            assert!(entry.header().entry_type().is_file());
            let (mut content, name) = (Vec::new(), entry.path().unwrap().display().to_string());
            io::Read::read_to_end(&mut entry, &mut content).unwrap();
            (name, content)
        });
        let files: Vec<_> = files.collect();
        assert_eq!(files.len() as u64, expected.files);
        files
    }

    /// Waits for the next session.
    pub(crate) async fn session(&mut self) -> (Session, Hello) {
        let socket = timeout(WAIT_LIMIT, self.sessions.recv()).await.unwrap().unwrap();
        let mut session = Session(accept_async(socket).await.unwrap());
        let text = session.text().await;
        let AgentMessage::Hello(hello) = AgentMessage::parse(&text).unwrap() else {
            panic!("{text}")
        };
        session.send(json!({ "type": "HELLO_ACK", "heartbeat_interval": 5 })).await;
        (session, hello)
    }
}

pub(crate) struct Session(WebSocketStream<TcpStream>);

impl Session {
    pub(crate) async fn send(&mut self, message: Value) {
        self.0.send(Message::text(message.to_string())).await.unwrap();
    }

    async fn text(&mut self) -> String {
        loop {
            let message = timeout(WAIT_LIMIT, self.0.next()).await.unwrap().unwrap().unwrap();
            if let Message::Text(text) = message {
                return text.to_string();
            }
        }
    }
}

pub(crate) fn digest_of(bytes: &[u8]) -> String {
    let digest = Sha256::digest(bytes);
    let hex = digest.iter().fold(String::new(), |text, byte| format!("{text}{byte:02x}"));
    format!("sha256:{hex}")
}

async fn answer(
    artifacts: Arc<Mutex<Artifacts>>,
    request: Request<Incoming>,
) -> io::Result<Response<Body>> {
    let (head, body) = request.into_parts();
    let header = |name: &str| head.headers.get(name).map_or("", |value| value.to_str().unwrap());
    assert!(head.uri.path().starts_with(&format!("{ARTIFACTS_PATH}/")), "{}", head.uri);
    assert_eq!(header("authorization"), format!("Bearer {TOKEN}"));
    assert!(header(MACHINE_HEADER).starts_with("vm_"));
    let (digest, range) = (header(DIGEST_HEADER).to_owned(), header("content-range").to_owned());
    let (status, offset) = if head.method == Method::HEAD {
        (Some(StatusCode::OK), artifacts.lock().unwrap().stored.len())
    } else {
        put(&artifacts, &range, &digest, body).await
    };
    let shown = status.map_or("cut".to_owned(), |status| status.as_u16().to_string());
    let request = format!("{} {range} {shown}", head.method);
    artifacts.lock().unwrap().requests.push(request);
    let status = status.ok_or_else(|| io::Error::other("cut"))?;
    let mut response =
        Response::new(Body::from(if head.method == Method::HEAD { "" } else { "words" }));
    *response.status_mut() = status;
    response.headers_mut().insert(OFFSET_HEADER, offset.to_string().parse().unwrap());
    Ok(response)
}

/// The answer to a piece, and how much is there then. `None`: the connection ends.
async fn put(
    artifacts: &Mutex<Artifacts>,
    range: &str,
    digest: &str,
    mut body: Incoming,
) -> (Option<StatusCode>, usize) {
    let (piece, size) = range.strip_prefix("bytes ").unwrap().split_once('/').unwrap();
    let (first, last) = piece.split_once('-').unwrap();
    let number = |text: &str| text.parse::<usize>().unwrap();
    let (first, last, size) = (number(first), number(last), number(size));
    let fault = artifacts.lock().unwrap().faults.pop_front();
    let mut bytes = Vec::new();
    while let Some(frame) = poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await {
        bytes.extend_from_slice(frame.unwrap().data_ref().map_or(&[][..], |piece| piece));
        if let Some(Fault::Cut(max)) = fault
            && bytes.len() >= max
        {
            bytes.truncate(max);
            break;
        }
    }
    let mut artifacts = artifacts.lock().unwrap();
    match fault {
        Some(Fault::Answer(status)) => return (Some(status), artifacts.stored.len()),
        Some(Fault::Forget(max)) => artifacts.stored.truncate(max),
        Some(Fault::Cut(_)) | None => {}
    }
    let is_cut = matches!(fault, Some(Fault::Cut(_)));
    assert!(is_cut || bytes.len() == last + 1 - first, "{range}: {}", bytes.len());
    assert!(bytes.len() as u64 <= ARTIFACT_PIECE_BYTES_MAX);
    if artifacts.stored.len() != first {
        return (Some(StatusCode::CONFLICT), artifacts.stored.len());
    }
    artifacts.stored.extend(bytes);
    let stored = artifacts.stored.len();
    if is_cut {
        return (None, stored);
    }
    if stored < size {
        return (Some(StatusCode::ACCEPTED), stored);
    }
    assert_eq!(digest_of(&artifacts.stored), digest);
    (Some(StatusCode::OK), stored)
}
