//! The memory that core needs for connected, idle agents.

use std::io::{BufRead as _, BufReader};
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::Context as _;
use futures_util::{SinkExt as _, StreamExt as _};
use secrecy::SecretString;
use stagely_protocol::agent_config::AgentConfig;
use stagely_protocol::{AgentMessage, CoreMessage, Heartbeat, HelloAck};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{interval, sleep};
use tokio_tungstenite::accept_async_with_config;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;

use crate::core::{Core, Memory};
use crate::load::as_f64;
use crate::report::{Row, print};
use crate::sim::{self, Socket};

/// The role of a server that only holds connections, for comparison.
pub(crate) const BARE_SERVER_ROLE: &str = "bare-websocket-server";

const AGENTS: [usize; 2] = [1_000, 5_000];

/// The number of agents that connect at the same time.
const AT_ONCE: usize = 32;

const HEARTBEAT: Duration = Duration::from_secs(3);

/// The time before memory is measured: three heartbeats.
const SETTLE: Duration = Duration::from_secs(10);

/// Core's buffer for a connection, in bytes.
const READ_BUFFER_BYTES: usize = 4 * 1024;

pub(crate) async fn measure() -> anyhow::Result<()> {
    let mut rows = Vec::new();
    for agents in AGENTS {
        let settings = "[builders]\nprovider = \"none\"\n[agents]\nheartbeat-interval = \"3s\"\n";
        let core = Core::start(settings).await?;
        sleep(Duration::from_millis(500)).await;
        let base = core.memory()?.rss;
        let configs = register(&core, agents).await?;
        let registered = core.memory()?.rss;
        let held = hold(configs).await?;
        let stagely = core.memory()?.rss;
        drop(held);
        drop(core);
        let raw = bare(agents).await?;
        let per_agent = |bytes: u64| as_f64(bytes) / as_f64(agents as u64) / 1e3;
        let used = per_agent(stagely.saturating_sub(base));
        let of_records = per_agent(registered.saturating_sub(base));
        rows.push(Row {
            what: format!(
                "core: memory for each of {agents} idle agents (raw: bare WebSocket server)"
            ),
            stagely: format!("{used:.1} KB ({of_records:.1} before they connect)"),
            raw: format!("{:.1} KB", per_agent(raw)),
            ratio: format!("{:.1}", used / per_agent(raw)),
            aim: "≤ 25 KB".to_owned(),
            is_met: Some(used <= 25.0),
        });
    }
    print(rows);
    Ok(())
}

/// Registers machines and returns the configurations of their agents.
async fn register(core: &Core, agents: usize) -> anyhow::Result<Vec<AgentConfig>> {
    let mut configs = Vec::new();
    for begin in (0..agents).step_by(AT_ONCE) {
        let some = (begin..agents.min(begin + AT_ONCE)).map(|_| core.add_machine());
        configs.extend(futures_util::future::try_join_all(some).await?);
    }
    Ok(configs)
}

/// Connects agents and waits for some heartbeats.
async fn hold(configs: Vec<AgentConfig>) -> anyhow::Result<JoinSet<anyhow::Result<()>>> {
    let mut held = JoinSet::new();
    for some in configs.chunks(AT_ONCE) {
        for socket in futures_util::future::try_join_all(some.iter().map(sim::connect)).await? {
            held.spawn(idle(socket));
        }
    }
    tokio::select! {
        // A failed agent invalidates the measurement.
        Some(ended) = held.join_next() => ended??,
        () = sleep(SETTLE) => {}
    }
    Ok(held)
}

/// Runs an idle agent.
async fn idle(mut socket: Socket) -> anyhow::Result<()> {
    let mut beat = interval(HEARTBEAT);
    loop {
        tokio::select! {
            message = socket.next() => drop(message.context("core closed the connection")??),
            _ = beat.tick() => {
                let beat = AgentMessage::Heartbeat(Heartbeat::default());
                socket.send(Message::text(beat.to_json())).await?;
            }
        }
    }
}

/// The memory that the bare server needs for that many agents, in bytes.
async fn bare(agents: usize) -> anyhow::Result<u64> {
    let mut server = BareServer::start(BARE_SERVER_ROLE, None)?;
    let base = Memory::of(server.process.id())?.rss;
    let config = AgentConfig {
        core_url: server.url()?.parse()?,
        agent_id: "vm_01k9x3v5c8q2m4n6p8r0s2t4v6".parse()?,
        token: SecretString::from("a token of this measurement"),
        work_dir: "/nonexistent".into(),
        run_dir: None,
        parent: None,
        user_logins: false,
        watch_spot: false,
        docker_host: None,
        give_up_after: SETTLE,
        kill_grace: SETTLE,
    };
    let held = hold(vec![config; agents]).await?;
    let used = Memory::of(server.process.id())?.rss.saturating_sub(base);
    drop(held);
    Ok(used)
}

/// A process of this program in another role.
pub(crate) struct BareServer {
    process: Child,
}

impl BareServer {
    /// Starts a process that may write to `folder`.
    pub(crate) fn start(role: &str, folder: Option<&Path>) -> anyhow::Result<Self> {
        let program = std::env::current_exe()?;
        let mut command = Command::new(program);
        let process = command.arg(role).args(folder).stdout(Stdio::piped()).spawn()?;
        Ok(Self { process })
    }

    pub(crate) fn url(&mut self) -> anyhow::Result<String> {
        let output = self.process.stdout.take().context("its address was asked for before")?;
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line)?;
        Ok(line.trim().to_owned())
    }
}

impl Drop for BareServer {
    fn drop(&mut self) {
        // It may have exited already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Responds to HELLO and sends pings as core does, without machines, tokens or jobs.
pub(crate) async fn bare_server() -> anyhow::Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    println!("http://{}", listener.local_addr()?);
    loop {
        let (stream, _) = listener.accept().await?;
        tokio::spawn(serve(stream));
    }
}

async fn serve(stream: TcpStream) -> anyhow::Result<()> {
    let config =
        WebSocketConfig::default().read_buffer_size(READ_BUFFER_BYTES).write_buffer_size(0);
    let mut socket = accept_async_with_config(stream, Some(config)).await?;
    socket.next().await.context("no HELLO came")??;
    let ack =
        HelloAck { heartbeat_interval: HEARTBEAT.as_secs(), jobs: Vec::new(), lease_seconds: None };
    socket.send(Message::text(CoreMessage::HelloAck(ack).to_json())).await?;
    let mut beat = interval(HEARTBEAT);
    loop {
        tokio::select! {
            message = socket.next() => drop(message.context("the agent has gone")??),
            _ = beat.tick() => socket.send(Message::Ping(Vec::new().into())).await?,
        }
    }
}
