//! The tunnels that agents have opened: accepts them, keeps those that wait, and asks agents for more.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::extract::{FromRef, State};
use axum::response::Response;
use axum::routing::get;
use stagely_protocol::{
    CoreMessage, Dial, TUNNEL_BYTES_MAX, TUNNEL_PATH, TUNNELS_MAX, TunnelMessage, WireId,
};
use stagely_state::ids::MachineId;
use thiserror::Error;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep_until, timeout};
use tracing::debug;

use super::super::auth::AgentMachine;
use super::super::websockets::WebSockets;
use crate::core::secrets::SecretStore;
use crate::core::sessions::Sessions;

/// How long a request waits for a tunnel.
pub(super) const TUNNEL_LIMIT: Duration = Duration::from_secs(10);

/// How long the agent may take to connect to the app. It waits for a minute itself while containers are replaced.
const OPEN_LIMIT: Duration = Duration::from_secs(75);

/// How long an idle tunnel may take to accept a ping.
const PING_LIMIT: Duration = Duration::from_secs(10);

/// An idle tunnel on which nothing arrives for so many pings is lost.
const SILENT_PINGS_MAX: u32 = 3;

/// Tunnels that an agent was asked for and has not opened after this time do not come any more.
const DIAL_LIMIT: Duration = Duration::from_secs(3);

/// A larger buffer reads downloads with fewer system calls.
const READ_BUFFER_BYTES: usize = 16 * 1024;

/// Why a connection to an endpoint cannot be opened, or a command not be started. The messages are for people.
#[derive(Clone, Debug, Error)]
pub(in crate::core::http) enum TunnelError {
    #[error(
        "the preview's machine is not connected; it may be back in a moment, and `stagely machines` shows it"
    )]
    Disconnected,
    #[error(
        "all {TUNNELS_MAX} connections to the preview's machine are in use; try again when some have ended"
    )]
    Busy,
    #[error("the preview's machine did not connect to the app within {OPEN_LIMIT:?}")]
    TimedOut,
    #[error("{0}")]
    Refused(String),
}

/// An idle tunnel: the task that holds it sends it to the channel that it gets.
type Idle = oneshot::Sender<oneshot::Sender<WebSocket>>;

/// The tunnels of all machines. Clones share them.
#[derive(Clone, Debug)]
pub(crate) struct Tunnels {
    secrets: SecretStore,
    sessions: Sessions,
    sockets: WebSockets,
    machines: Arc<Mutex<HashMap<MachineId, MachineTunnels>>>,
}

#[derive(Debug, Default)]
struct MachineTunnels {
    /// The newest is used first, so that surplus ones expire.
    idle: Vec<Idle>,
    waiting: VecDeque<oneshot::Sender<Idle>>,
    /// All tunnels, idle or not.
    open: usize,
    /// Tunnels that the agent was asked for and has not opened yet.
    dialed: usize,
    dialed_at: Option<Instant>,
}

impl MachineTunnels {
    /// The number of tunnels that the agent must be asked for, so that none waits for long.
    fn missing(&mut self) -> usize {
        if self.dialed_at.is_some_and(|at| at.elapsed() > DIAL_LIMIT) {
            self.dialed = 0;
        }
        self.waiting.retain(|waiting| !waiting.is_closed());
        let missing = self.waiting.len().saturating_sub(self.dialed);
        let room = TUNNELS_MAX.saturating_sub(self.open + self.dialed);
        let missing = missing.min(room);
        if missing > 0 {
            self.dialed += missing;
            self.dialed_at = Some(Instant::now());
        }
        missing
    }

    /// Gives an idle tunnel to a request that waits, or keeps it.
    fn offer(&mut self, mut idle: Idle) {
        while let Some(waiting) = self.waiting.pop_front() {
            match waiting.send(idle) {
                Ok(()) => return,
                Err(returned) => idle = returned,
            }
        }
        self.idle.push(idle);
    }
}

/// Counts one open tunnel of a machine.
#[derive(Debug)]
pub(in crate::core::http) struct OpenTunnel {
    machine: MachineId,
    machines: Arc<Mutex<HashMap<MachineId, MachineTunnels>>>,
}

impl Drop for OpenTunnel {
    fn drop(&mut self) {
        let mut machines = self.machines.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(tunnels) = machines.get_mut(&self.machine) {
            tunnels.open -= 1;
            tunnels.idle.retain(|idle| !idle.is_closed());
            if tunnels.open == 0 && tunnels.waiting.is_empty() {
                machines.remove(&self.machine);
            }
        }
    }
}

impl Tunnels {
    pub(crate) fn new(secrets: SecretStore, sessions: Sessions, sockets: WebSockets) -> Self {
        Self { secrets, sessions, sockets, machines: Arc::default() }
    }

    pub(super) fn router<S: Clone + Send + Sync + 'static>(self) -> Router<S> {
        Router::new().route(TUNNEL_PATH, get(accept)).with_state(self)
    }

    /// Opens a connection to an endpoint of a preview. The tunnel carries nothing else.
    pub(super) async fn open(
        &self,
        machine: MachineId,
        preview: &WireId,
        endpoint: &str,
    ) -> Result<(WebSocket, OpenTunnel), TunnelError> {
        let (preview_id, endpoint) = (preview.clone(), endpoint.to_owned());
        self.request(machine, &TunnelMessage::Open { preview_id, endpoint }).await
    }

    /// Sends a request through a tunnel of the machine, and returns the tunnel once the agent has accepted it.
    pub(in crate::core::http) async fn request(
        &self,
        machine: MachineId,
        request: &TunnelMessage,
    ) -> Result<(WebSocket, OpenTunnel), TunnelError> {
        let limit = Instant::now() + TUNNEL_LIMIT;
        // A tunnel may have broken without anybody noticing. Nothing was sent through it then.
        loop {
            let (mut socket, open) = self.take(machine, limit).await?;
            let answer = async {
                socket.send(Message::text(request.to_json())).await.ok()?;
                receive(&mut socket).await
            };
            match timeout(OPEN_LIMIT, answer).await {
                Ok(Some(TunnelMessage::Opened)) => return Ok((socket, open)),
                Ok(Some(TunnelMessage::Refused { message })) => {
                    return Err(TunnelError::Refused(message));
                }
                Ok(_) => debug!(%machine, "an idle tunnel was lost"),
                Err(_) => return Err(TunnelError::TimedOut),
            }
        }
    }

    /// Takes an idle tunnel, and asks the agent for more if there is none.
    async fn take(
        &self,
        machine: MachineId,
        limit: Instant,
    ) -> Result<(WebSocket, OpenTunnel), TunnelError> {
        loop {
            let idle = match self.pop(machine) {
                Some(idle) => idle,
                None => self.wait(machine, limit).await?,
            };
            let (sender, socket) = oneshot::channel();
            // The task may have ended meanwhile.
            if idle.send(sender).is_ok()
                && let Ok(socket) = socket.await
            {
                let machines = Arc::clone(&self.machines);
                self.lock().entry(machine).or_default().open += 1;
                return Ok((socket, OpenTunnel { machine, machines }));
            }
        }
    }

    fn pop(&self, machine: MachineId) -> Option<Idle> {
        self.lock().get_mut(&machine)?.idle.pop()
    }

    /// Waits for a tunnel that the agent opens.
    async fn wait(&self, machine: MachineId, limit: Instant) -> Result<Idle, TunnelError> {
        let (sender, mut idle) = oneshot::channel();
        self.lock().entry(machine).or_default().waiting.push_back(sender);
        loop {
            let missing = self.lock().entry(machine).or_default().missing();
            if missing > 0 {
                let connections = u32::try_from(missing).unwrap_or(u32::MAX);
                self.sessions.send(machine, CoreMessage::Dial(Dial { connections }));
            }
            // The agent may have lost the message, or connect only now.
            let ask_again = limit.min(Instant::now() + DIAL_LIMIT);
            tokio::select! {
                idle = &mut idle => return idle.map_err(|_| TunnelError::Disconnected),
                () = sleep_until(ask_again) => {
                    if Instant::now() >= limit {
                        drop(idle);
                        return Err(self.give_up(machine));
                    }
                }
            }
        }
    }

    /// The reason why there is no tunnel, once a request waits no longer.
    fn give_up(&self, machine: MachineId) -> TunnelError {
        let mut machines = self.lock();
        let tunnels = machines.entry(machine).or_default();
        tunnels.waiting.retain(|waiting| !waiting.is_closed());
        if tunnels.open >= TUNNELS_MAX {
            return TunnelError::Busy;
        }
        if tunnels.open == 0 && tunnels.waiting.is_empty() {
            machines.remove(&machine);
        }
        TunnelError::Disconnected
    }

    /// Holds an idle tunnel until it is used or ends.
    async fn hold(self, machine: MachineId, mut socket: WebSocket) {
        let (idle, mut taken) = oneshot::channel();
        let open = {
            let mut machines = self.lock();
            let tunnels = machines.entry(machine).or_default();
            tunnels.open += 1;
            tunnels.dialed = tunnels.dialed.saturating_sub(1);
            if tunnels.open > TUNNELS_MAX {
                debug!(%machine, "an agent has opened too many tunnels");
            } else {
                tunnels.offer(idle);
            }
            OpenTunnel { machine, machines: Arc::clone(&self.machines) }
        };
        let mut pings = self.sockets.pings();
        let mut silent_pings = 0;
        loop {
            tokio::select! {
                () = self.sockets.stop.cancelled() => return,
                taken = &mut taken => {
                    // The receiver counts the tunnel from now on.
                    drop(open);
                    if let Ok(receiver) = taken {
                        let _ = receiver.send(socket);
                    }
                    return;
                }
                received = socket.recv() => match received {
                    Some(Ok(Message::Ping(_) | Message::Pong(_))) => silent_pings = 0,
                    Some(_) | None => return,
                },
                _ = pings.tick() => {
                    silent_pings += 1;
                    let ping = timeout(PING_LIMIT, socket.send(Message::Ping(Bytes::new())));
                    if silent_pings > SILENT_PINGS_MAX || !matches!(ping.await, Ok(Ok(()))) {
                        return;
                    }
                }
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<MachineId, MachineTunnels>> {
        self.machines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The next message other than pings and pongs; `None` if there is none that can be read.
async fn receive(socket: &mut WebSocket) -> Option<TunnelMessage> {
    loop {
        match socket.recv().await?.ok()? {
            Message::Text(text) => return TunnelMessage::parse(&text).ok(),
            Message::Ping(_) | Message::Pong(_) => {}
            Message::Binary(_) | Message::Close(_) => return None,
        }
    }
}

impl FromRef<Tunnels> for SecretStore {
    fn from_ref(tunnels: &Tunnels) -> Self {
        tunnels.secrets.clone()
    }
}

/// Accepts a tunnel.
async fn accept(
    State(tunnels): State<Tunnels>,
    AgentMachine(machine): AgentMachine,
    upgrade: WebSocketUpgrade,
) -> Response {
    let upgrade = upgrade
        .read_buffer_size(READ_BUFFER_BYTES)
        .write_buffer_size(0)
        .max_message_size(TUNNEL_BYTES_MAX)
        .max_frame_size(TUNNEL_BYTES_MAX);
    let sockets = tunnels.sockets.clone();
    sockets.open(upgrade, move |socket| tunnels.hold(machine, socket))
}
