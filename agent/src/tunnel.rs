//! The tunnels of this machine, through which core forwards connections to previews, and runs commands in them.
//!
//! Each tunnel carries one connection, so a slow one holds up no other.

mod exec;
mod forward;
mod idle;

use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use secrecy::SecretString;
use stagely_protocol::agent_config::AgentConfig;
use stagely_protocol::{TUNNELS_IDLE, TUNNELS_MAX, WireId};
use tokio::sync::mpsc;
use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, sleep_until};
use tokio_util::task::AbortOnDropHandle;
use url::Url;

use self::exec::exec;
use self::forward::forward;
use self::idle::Idle;
use crate::endpoints::Endpoints;
use crate::preview::Previews;
use crate::retry::Backoff;

/// The shortest delay before tunnels are opened again after one was lost or refused.
const RETRY_DELAY_MIN: Duration = Duration::from_secs(1);

/// The longest such delay, without its random part.
const RETRY_DELAY_MAX: Duration = Duration::from_secs(30);

/// How long a tunnel that core asked for waits for a connection. The [`TUNNELS_IDLE`] others wait without a limit.
const DIALED_IDLE_LIMIT: Duration = Duration::from_mins(1);

/// Keeps tunnels open while core is connected and the machine has a preview. Dropping the value closes them all.
#[derive(Debug)]
pub(crate) struct Tunnels {
    commands: mpsc::UnboundedSender<Command>,
    _pool: AbortOnDropHandle<()>,
}

#[derive(Debug)]
enum Command {
    /// The session with core has begun or ended.
    SetConnected(bool),
    /// Open so many tunnels besides those that are open.
    Dial(usize),
}

impl Tunnels {
    pub(crate) fn start(
        config: &AgentConfig,
        endpoints: Endpoints,
        previews: Arc<Previews>,
    ) -> Self {
        let (commands, queue) = mpsc::unbounded_channel();
        let core = Core {
            url: config.core_url.clone(),
            machine: config.agent_id.clone(),
            token: config.token.clone(),
        };
        let pool = Pool {
            core,
            endpoints,
            previews,
            is_connected: false,
            idle: JoinSet::new(),
            open: JoinSet::new(),
            backoff: new_backoff(),
            retry_at: None,
        };
        Self { commands, _pool: AbortOnDropHandle::new(tokio::spawn(pool.run(queue))) }
    }

    /// The session with core has begun or ended. Open connections go on without it.
    pub(crate) fn set_connected(&self, is_connected: bool) {
        self.send(Command::SetConnected(is_connected));
    }

    /// Opens `connections` tunnels besides those that are open, as far as there may be so many.
    pub(crate) fn dial(&self, connections: u32) {
        self.send(Command::Dial(usize::try_from(connections).unwrap_or(usize::MAX)));
    }

    fn send(&self, command: Command) {
        // The pool ends only when `self` is dropped or the runtime ends.
        let _ = self.commands.send(command);
    }
}

/// Where tunnels lead, and as whom.
#[derive(Clone, Debug)]
struct Core {
    url: Url,
    machine: WireId,
    token: SecretString,
}

struct Pool {
    core: Core,
    endpoints: Endpoints,
    previews: Arc<Previews>,
    is_connected: bool,
    /// Tunnels that are being opened or wait for a connection.
    idle: JoinSet<Idle>,
    /// Tunnels that carry a connection.
    open: JoinSet<()>,
    backoff: Backoff,
    /// No tunnel is opened before, except those that core asks for.
    retry_at: Option<Instant>,
}

fn new_backoff() -> Backoff {
    Backoff::jittered(RETRY_DELAY_MIN, RETRY_DELAY_MAX)
}

impl Pool {
    async fn run(mut self, mut commands: mpsc::UnboundedReceiver<Command>) {
        let mut changes = self.endpoints.changes();
        loop {
            self.fill();
            tokio::select! {
                command = commands.recv() => match command {
                    Some(command) => self.handle(&command),
                    None => return,
                },
                () = changes.next() => {}
                Some(ended) = self.idle.join_next() => self.idle_ended(ended),
                Some(_) = self.open.join_next() => {}
                () = until(self.retry_at) => self.retry_at = None,
            }
        }
    }

    /// Opens as many tunnels as wait at all times, or closes them if there is no preview.
    fn fill(&mut self) {
        if self.endpoints.is_empty() {
            self.idle.abort_all();
        } else if self.is_connected && self.retry_at.is_none() {
            let missing = TUNNELS_IDLE.saturating_sub(self.idle.len());
            self.add(missing, None);
        }
    }

    fn add(&mut self, count: usize, idle_limit: Option<Duration>) {
        let room = TUNNELS_MAX.saturating_sub(self.idle.len() + self.open.len());
        for _ in 0..count.min(room) {
            self.idle.spawn(idle::wait(self.core.clone(), idle_limit));
        }
    }

    fn handle(&mut self, command: &Command) {
        match *command {
            Command::SetConnected(is_connected) => {
                self.is_connected = is_connected;
                self.retry_at = None;
            }
            Command::Dial(_) if self.endpoints.is_empty() => {
                tracing::debug!("no tunnel is opened: the machine has no preview");
            }
            Command::Dial(connections) => self.add(connections, Some(DIALED_IDLE_LIMIT)),
        }
    }

    fn idle_ended(&mut self, ended: Result<Idle, JoinError>) {
        match ended {
            Ok(Idle::Opened { socket, preview, endpoint }) => {
                self.backoff = new_backoff();
                self.open.spawn(forward(*socket, self.endpoints.clone(), preview, endpoint));
            }
            Ok(Idle::Exec { socket, command }) => {
                self.backoff = new_backoff();
                self.open.spawn(exec(*socket, Arc::clone(&self.previews), command));
            }
            // `fill` has aborted it.
            Ok(Idle::Expired) | Err(_) => {}
            Ok(Idle::Lost) => {
                if self.retry_at.is_none() {
                    self.retry_at = self.backoff.delay().map(|delay| Instant::now() + delay);
                }
            }
        }
    }
}

/// Waits for the time; without end if there is none.
async fn until(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => pending().await,
    }
}
