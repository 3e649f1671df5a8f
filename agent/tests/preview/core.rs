//! A server in place of core: sessions of an agent, and archives in memory. And the agent.

use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::future::{pending, poll_fn};
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use hyper::body::{Body as _, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use reqwest::Body;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use stagely_agent::{AgentExit, run};
use stagely_protocol::agent_config::AgentConfig;
use stagely_protocol::{
    ARCHIVES_PATH, AgentMessage, CONNECT_PATH, Hello, Preview, Status, StatusState, TUNNEL_PATH,
    TUNNELS_IDLE,
};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{WebSocketStream, accept_async};
use tokio_util::sync::CancellationToken;

const WAIT_LIMIT: Duration = Duration::from_mins(2);

/// What the server does with archives.
#[derive(Default)]
pub(crate) struct Archives {
    pub(crate) stored: BTreeMap<String, Vec<u8>>,
    /// So many uploads are answered with 503.
    pub(crate) failures: usize,
    /// Uploads are neither read nor answered.
    pub(crate) is_silent: bool,
    /// The heads of all requests.
    pub(crate) requests: Vec<String>,
}

pub(crate) struct Core {
    port: u16,
    sessions: mpsc::Receiver<TcpStream>,
    tunnels: mpsc::Receiver<TcpStream>,
    pub(crate) archives: Arc<Mutex<Archives>>,
}

impl Core {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (opened, sessions) = mpsc::channel(8);
        let (offered, tunnels) = mpsc::channel(TUNNELS_IDLE);
        let archives: Arc<Mutex<Archives>> = Arc::default();
        let shared = Arc::clone(&archives);
        tokio::spawn(async move {
            loop {
                let (socket, _) = listener.accept().await.unwrap();
                let (opened, offered) = (opened.clone(), offered.clone());
                let shared = Arc::clone(&shared);
                tokio::spawn(async move {
                    let mut head = [0; 64];
                    let length = socket.peek(&mut head).await.unwrap_or(0);
                    let head = String::from_utf8_lossy(&head[..length]).into_owned();
                    let is_at = |path: &str| head.starts_with(&format!("GET {path} "));
                    if is_at(CONNECT_PATH) {
                        let _ = opened.send(socket).await;
                        return;
                    }
                    if is_at(TUNNEL_PATH) {
                        // Most tests use none.
                        let _ = offered.try_send(socket);
                        return;
                    }
                    let service = service_fn(move |request| answer(Arc::clone(&shared), request));
                    let _ =
                        http1::Builder::new().serve_connection(TokioIo::new(socket), service).await;
                });
            }
        });
        Self { port, sessions, tunnels, archives }
    }

    pub(crate) fn config(&self, machine: &str, work_dir: &Path) -> AgentConfig {
        let config = json!({
            "core_url": format!("http://127.0.0.1:{}", self.port),
            "agent_id": machine,
            "token": "machine-token",
            "work_dir": work_dir,
            "give_up_after": "60s",
            "kill_grace": "5s",
        });
        serde_json::from_value(config).unwrap()
    }

    /// Waits for a tunnel.
    pub(crate) async fn tunnel(&mut self) -> WebSocketStream<TcpStream> {
        loop {
            let socket = timeout(WAIT_LIMIT, self.tunnels.recv()).await.unwrap().unwrap();
            // The agent may have given it up meanwhile.
            if let Ok(socket) = accept_async(socket).await {
                return socket;
            }
        }
    }

    /// Waits for the next session.
    pub(crate) async fn session(&mut self) -> (Session, Hello) {
        self.session_with(&[]).await
    }

    /// Waits for the next session, in which core has so many lines of these logs.
    pub(crate) async fn session_with(&mut self, logs: &[(&str, u64)]) -> (Session, Hello) {
        let socket = timeout(WAIT_LIMIT, self.sessions.recv()).await.unwrap().unwrap();
        let socket = accept_async(socket).await.unwrap();
        let mut session = Session { socket, lines: BTreeMap::new(), previews: VecDeque::new() };
        let text = session.text().await;
        let AgentMessage::Hello(hello) = AgentMessage::parse(&text).unwrap() else {
            panic!("{text}")
        };
        let jobs: Vec<_> = logs
            .iter()
            .map(|(id, next_line)| json!({ "job_id": id, "next_line": next_line }))
            .collect();
        session.send(json!({ "type": "HELLO_ACK", "heartbeat_interval": 5, "jobs": jobs })).await;
        (session, hello)
    }
}

async fn answer(
    archives: Arc<Mutex<Archives>>,
    request: Request<Incoming>,
) -> Result<Response<Body>, Infallible> {
    let (head, mut body) = request.into_parts();
    let path = head.uri.path().to_owned();
    assert!(path.starts_with(ARCHIVES_PATH), "{path}");
    archives.lock().unwrap().requests.push(format!("{} {path} {:?}", head.method, head.headers));
    let answer = |status: StatusCode, body: Vec<u8>| {
        let mut response = Response::new(Body::from(body));
        *response.status_mut() = status;
        Ok(response)
    };
    if head.method == Method::GET {
        let (_, digest) = path.rsplit_once('/').unwrap();
        let archive = archives.lock().unwrap().stored.get(digest).cloned();
        return match archive {
            Some(archive) => answer(StatusCode::OK, archive),
            None => answer(StatusCode::NOT_FOUND, Vec::new()),
        };
    }
    if archives.lock().unwrap().is_silent {
        pending::<()>().await;
    }
    let mut bytes = Vec::new();
    while let Some(frame) = poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await {
        // Broken off: nothing is stored.
        let Ok(frame) = frame else { return answer(StatusCode::BAD_REQUEST, Vec::new()) };
        bytes.extend_from_slice(frame.data_ref().map_or(&[][..], |piece| piece));
    }
    let mut archives = archives.lock().unwrap();
    if archives.failures > 0 {
        archives.failures -= 1;
        return answer(StatusCode::SERVICE_UNAVAILABLE, b"starting".to_vec());
    }
    let digest: String =
        Sha256::digest(&bytes).iter().fold(String::new(), |text, byte| format!("{text}{byte:02x}"));
    let digest = format!("sha256:{digest}");
    archives.stored.insert(digest.clone(), bytes);
    answer(StatusCode::OK, json!({ "digest": digest }).to_string().into_bytes())
}

/// A session, which acknowledges everything.
pub(crate) struct Session {
    socket: WebSocketStream<TcpStream>,
    /// The lines of each log, with the number of each.
    pub(crate) lines: BTreeMap<String, Vec<(u64, String)>>,
    /// What came before the end of the last job: the state of a preview and the end of its deployment have no order.
    previews: VecDeque<Preview>,
}

impl Session {
    pub(crate) async fn send(&mut self, message: Value) {
        self.socket.send(Message::text(message.to_string())).await.unwrap();
    }

    async fn text(&mut self) -> String {
        loop {
            let message = timeout(WAIT_LIMIT, self.socket.next()).await.unwrap().unwrap().unwrap();
            if let Message::Text(text) = message {
                return text.to_string();
            }
        }
    }

    /// The first message for which `wanted` returns something, of those that [`take`](Self::take) leaves.
    ///
    /// The limit is for the whole wait, since heartbeats never end.
    async fn wait_for<T>(
        &mut self,
        what: &str,
        mut wanted: impl FnMut(&mut Self, AgentMessage) -> Option<T>,
    ) -> T {
        let wait = async {
            loop {
                let text = self.text().await;
                if self.take(&text).await {
                    continue;
                }
                if let Some(found) = wanted(self, AgentMessage::parse(&text).unwrap()) {
                    return found;
                }
            }
        };
        timeout(WAIT_LIMIT, wait)
            .await
            .unwrap_or_else(|_| panic!("not within {WAIT_LIMIT:?}: {what}"))
    }

    /// Keeps and acknowledges log lines, and acknowledges that a job runs. Returns false for messages other than these and
    /// heartbeats.
    async fn take(&mut self, text: &str) -> bool {
        match AgentMessage::parse(text).unwrap() {
            AgentMessage::Heartbeat(_) => {}
            AgentMessage::Log(log) => {
                let first = log.first.unwrap();
                let known = self.lines.entry(log.job_id.to_string()).or_default();
                let lines = log.lines.iter().map(|line| line.data.to_string());
                known.extend((first..).zip(lines));
                let stored = first + log.lines.len() as u64;
                self.send(json!({ "type": "LOG_ACK", "job_id": log.job_id, "lines": stored }))
                    .await;
            }
            AgentMessage::Status(status) if status.state == StatusState::Running => {
                self.acknowledge(&status).await;
            }
            _ => return false,
        }
        true
    }

    /// The end of a job.
    pub(crate) async fn end(&mut self) -> Status {
        self.previews.clear();
        let status = self.wait_for("the end of a job", |session, message| match message {
            AgentMessage::Status(status) => Some(status),
            AgentMessage::Preview(preview) => {
                session.previews.push_back(preview);
                None
            }
            _ => None,
        });
        let status = status.await;
        self.acknowledge(&status).await;
        status
    }

    async fn acknowledge(&mut self, status: &Status) {
        self.send(json!({ "type": "STATUS_ACK", "job_id": status.job_id })).await;
    }

    /// The next PREVIEW, also if it came before the end of the last job.
    pub(crate) async fn preview(&mut self) -> Preview {
        if let Some(preview) = self.previews.pop_front() {
            return preview;
        }
        let preview = self.wait_for("the state of a preview", |_, message| match message {
            AgentMessage::Preview(preview) => Some(preview),
            AgentMessage::Error(error) => panic!("{error:?}"),
            _ => None,
        });
        preview.await
    }

    /// Waits until the log `id` has a line that contains `text`.
    pub(crate) async fn line(&mut self, id: &str, text: &str) {
        let has_line = |session: &Self| {
            let mut lines = session.lines.get(id).into_iter().flatten();
            lines.any(|(_, line)| line.contains(text))
        };
        let wait = async {
            while !has_line(self) {
                let text = self.text().await;
                self.take(&text).await;
            }
        };
        timeout(WAIT_LIMIT, wait)
            .await
            .unwrap_or_else(|_| panic!("the log {id} has no line `{text}`"));
    }

    /// Receives messages, and acknowledges lines, for so long.
    pub(crate) async fn receive_for(&mut self, time: Duration) {
        let end = Instant::now() + time;
        while let Ok(text) = timeout_at(end, self.text()).await {
            self.take(&text).await;
        }
    }

    /// The code of the next ERROR.
    pub(crate) async fn error(&mut self) -> String {
        let code = self.wait_for("an error", |_, message| match message {
            AgentMessage::Error(error) => Some(error.code),
            _ => None,
        });
        code.await
    }
}

/// A running agent.
pub(crate) struct Agent {
    task: JoinHandle<AgentExit>,
    pub(crate) stop: CancellationToken,
}

impl Agent {
    pub(crate) fn start(config: AgentConfig) -> Self {
        let stop = CancellationToken::new();
        let token = stop.clone();
        Self { task: tokio::spawn(async move { run(config, token).await.unwrap() }), stop }
    }

    /// Ends it as SIGKILL does: without a word.
    pub(crate) async fn kill(self) {
        self.task.abort();
        self.task.await.unwrap_err();
    }

    pub(crate) async fn exit(self) -> AgentExit {
        timeout(WAIT_LIMIT, self.task).await.unwrap().unwrap()
    }
}
