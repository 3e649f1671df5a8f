//! `/v1/agent`: what agents dial: the WebSocket of their session, the archives of previews, and the artifacts of tests.
//!
//! Each session is a task with bounded queues. Core stops reading from an agent that sends faster than the store
//! writes, and closes the connection of an agent that does not read. Neither delays other agents.

mod archives;
mod artifacts;
mod reports;
mod session;

use std::io;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use axum::Router;
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::extract::{FromRef, State};
use axum::response::Response;
use axum::routing::get;
use futures_util::FutureExt as _;
use stagely_protocol::{AgentMessage, CoreMessage, ErrorMessage, Hello, MESSAGE_BYTES_MAX};
use stagely_state::Event;
use stagely_state::ids::MachineId;
use thiserror::Error;
use tokio::time::timeout;
use tracing::{debug, error, info};

use self::session::AgentSession;
use super::websockets::WebSockets;
use crate::core::archives::Archives;
use crate::core::artifacts::Artifacts;
use crate::core::logs::{AppendError, LogStore};
use crate::core::orchestrator::{Events, ShuttingDown};
use crate::core::previews::PreviewReports;
use crate::core::records::SharedRecords;
use crate::core::secrets::SecretStore;
use crate::core::sessions::Sessions;

/// The time limit from the connection to HELLO.
const HELLO_LIMIT: Duration = Duration::from_secs(10);

/// The time limit for sending one message to an agent.
const SEND_LIMIT: Duration = Duration::from_secs(30);

/// The size of a socket's read buffer. With the default of 128 KiB a thousand idle agents would use 134 MB. This size
/// costs a tenth of the throughput of one connection.
const READ_BUFFER_BYTES: usize = 4 * 1024;

/// Most jobs of one agent. It gets one at a time; the others are jobs that it must still stop. As many previews have logs.
const HELD_JOBS_MAX: usize = 64;

/// Serves the connections of agents.
#[derive(Clone, Debug)]
pub(crate) struct AgentEndpoint {
    pub(crate) heartbeat_interval: Duration,
    pub(crate) job_grace: Duration,
    pub(crate) records: SharedRecords,
    pub(crate) events: Events,
    pub(crate) logs: LogStore,
    pub(crate) sessions: Sessions,
    pub(crate) secrets: SecretStore,
    pub(crate) preview_reports: PreviewReports,
    pub(crate) archives: Archives,
    pub(crate) artifacts: Artifacts,
    pub(crate) sockets: WebSockets,
}

impl FromRef<AgentEndpoint> for SecretStore {
    fn from_ref(endpoint: &AgentEndpoint) -> Self {
        endpoint.secrets.clone()
    }
}

impl AgentEndpoint {
    pub(super) fn router<S: Clone + Send + Sync + 'static>(self) -> Router<S> {
        Router::new()
            .route(stagely_protocol::CONNECT_PATH, get(connect))
            .merge(archives::router())
            .merge(artifacts::router())
            .with_state(self)
    }

    /// Serves one connection until it ends or core stops.
    async fn serve(self, mut socket: WebSocket) {
        let stop = self.sockets.stop.clone();
        // What is done once is in boxes, because the size of this future is that of an idle session.
        let hello = timeout(HELLO_LIMIT, Box::pin(self.receive_hello(&mut socket)));
        let (machine, hello) = match stop.run_until_cancelled(hello).await {
            Some(Ok(Ok(hello))) => hello,
            Some(Ok(Err(end))) => return Box::pin(refuse(&mut socket, &end)).await,
            Some(Err(_)) => return Box::pin(refuse(&mut socket, &SessionEnd::NoHello)).await,
            None => return,
        };
        let mut entry = self.sessions.open(machine);
        info!(%machine, version = hello.version, "an agent has connected");
        let mut session = AgentSession::new(&self, machine, socket);
        let session = stop.run_until_cancelled(session.run(hello, &mut entry));
        // Otherwise a machine would stay connected after a panic.
        if let Ok(end) = AssertUnwindSafe(session).catch_unwind().await {
            let end = end.unwrap_or(Err(ShuttingDown.into())).err().map(|end| end.to_string());
            info!(%machine, end, "an agent's session has ended");
        } else {
            error!(%machine, "an agent's session has panicked");
        }
        self.sessions.close(&entry);
        // The machine may have a newer session now. The state compares the numbers.
        let gone = Event::AgentDisconnected { machine, session: entry.id };
        let _ = Box::pin(self.events.store(gone)).await;
    }

    async fn receive_hello(
        &self,
        socket: &mut WebSocket,
    ) -> Result<(MachineId, Hello), SessionEnd> {
        let text = loop {
            match socket.recv().await.ok_or(SessionEnd::Closed)?? {
                Message::Text(text) => break text,
                Message::Ping(_) | Message::Pong(_) => {}
                Message::Binary(_) | Message::Close(_) => return Err(SessionEnd::Closed),
            }
        };
        let hello = match AgentMessage::parse(&text) {
            Ok(AgentMessage::Hello(hello)) => hello,
            Ok(_) => return Err(SessionEnd::BadHello("it must be the first message".to_owned())),
            Err(error) => return Err(SessionEnd::BadHello(error.to_string())),
        };
        if hello.jobs.len() > HELD_JOBS_MAX {
            return Err(SessionEnd::BadHello(format!("it names more than {HELD_JOBS_MAX} jobs")));
        }
        // An unknown machine and a wrong token get the same answer, so that guessing reveals nothing.
        let refused = || SessionEnd::BadHello("the agent id or the token is wrong".to_owned());
        let machine: MachineId = hello.agent_id.as_str().parse().map_err(|_| refused())?;
        if !self.secrets.is_machine_token(machine, &hello.token) {
            return Err(refused());
        }
        Ok((machine, hello))
    }
}

/// Accepts an agent's connection.
async fn connect(State(endpoint): State<AgentEndpoint>, upgrade: WebSocketUpgrade) -> Response {
    let upgrade = upgrade
        .read_buffer_size(READ_BUFFER_BYTES)
        .write_buffer_size(0)
        .max_message_size(MESSAGE_BYTES_MAX)
        .max_frame_size(MESSAGE_BYTES_MAX);
    let sockets = endpoint.sockets.clone();
    sockets.open(upgrade, move |socket| endpoint.serve(socket))
}

#[derive(Debug, Error)]
enum SessionEnd {
    #[error("no HELLO came in {HELLO_LIMIT:?}")]
    NoHello,
    #[error("HELLO was not good: {0}")]
    BadHello(String),
    #[error("the agent closed the connection")]
    Closed,
    #[error("the connection failed: {0}")]
    Broken(#[from] axum::Error),
    #[error("the agent does not read")]
    NotReading,
    #[error("the agent was silent for three heartbeats")]
    Silent,
    #[error("the session is not wanted any more")]
    Ended,
    #[error(transparent)]
    ShuttingDown(#[from] ShuttingDown),
    #[error("its log cannot be stored: {0}")]
    Log(#[from] AppendError),
    #[error("the archive of a preview cannot be looked for: {0}")]
    Archive(#[source] io::Error),
}

/// Sends the reason, for the agent's log, and closes the connection.
async fn refuse(socket: &mut WebSocket, end: &SessionEnd) {
    debug!(%end, "a connection was refused");
    let error = ErrorMessage { code: "refused".to_owned(), message: end.to_string() };
    let json = CoreMessage::Error(error).to_json();
    let _ = timeout(SEND_LIMIT, socket.send(Message::Text(json.into()))).await;
    let _ = timeout(SEND_LIMIT, socket.send(Message::Close(None))).await;
}
