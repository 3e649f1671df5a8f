//! The agent: the time from its start to HELLO, its idle memory, and its size.

use std::fs;
use std::net::Ipv4Addr;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use futures_util::{SinkExt as _, StreamExt as _};
use stagely_protocol::{AgentMessage, CoreMessage, HelloAck};
use tempfile::TempDir;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{WebSocketStream, accept_async};

use crate::STAGELY;
use crate::core::Memory;
use crate::load::as_f64;
use crate::report::{Pairs, Row, print, quantile};

const STARTS: usize = 30;

/// The time before memory is measured: several heartbeats.
const IDLE: Duration = Duration::from_secs(6);

pub(crate) async fn measure() -> anyhow::Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let mut starts = Pairs::default();
    for _ in 0..STARTS {
        let (agent, seconds) = Agent::start(&listener).await?;
        drop(agent);
        starts.0.push((seconds, start_and_end()?));
    }
    let (mut agent, _) = Agent::start(&listener).await?;
    agent.stay_idle().await?;
    let memory = Memory::of(agent.process.id())?;
    let bytes = fs::metadata(STAGELY)?.len();
    print(rows(&starts, memory, bytes));
    Ok(())
}

fn rows(starts: &Pairs, memory: Memory, bytes: u64) -> Vec<Row> {
    let (hello, exit) = starts.medians();
    let hellos: Vec<f64> = starts.0.iter().map(|(hello, _)| *hello).collect();
    let worst = quantile(&hellos, 0.95);
    let mib = |bytes: u64| as_f64(bytes) / as_f64(1 << 20);
    vec![
        Row {
            what: "agent: start to HELLO, p50 / p95 (raw: `stagely --version`)".to_owned(),
            stagely: format!("{:.1} / {:.1} ms", hello * 1e3, worst * 1e3),
            raw: format!("{:.1} ms", exit * 1e3),
            ratio: format!("{:.1}", starts.ratio()),
            aim: "≤ 50 ms".to_owned(),
            is_met: Some(hello <= 0.05),
        },
        Row {
            what: "agent: idle memory, RSS / PSS".to_owned(),
            stagely: format!("{:.1} / {:.1} MiB", mib(memory.rss), mib(memory.pss)),
            aim: "≤ 15 MB".to_owned(),
            is_met: Some(memory.rss <= 15_000_000),
            ..Row::default()
        },
        Row {
            what: "agent: binary, stripped (core and commands are in it)".to_owned(),
            stagely: format!("{:.1} MiB", mib(bytes)),
            aim: "≤ 25 MB".to_owned(),
            is_met: Some(bytes <= 25_000_000),
            ..Row::default()
        },
    ]
}

/// The time of starting the program without any work.
fn start_and_end() -> anyhow::Result<f64> {
    let begin = Instant::now();
    let status = Command::new(STAGELY).arg("--version").stdout(Stdio::null()).status()?;
    ensure!(status.success(), "`stagely --version` failed");
    Ok(begin.elapsed().as_secs_f64())
}

/// An agent that has sent HELLO to this process. Dropping the value kills it.
struct Agent {
    process: Child,
    socket: WebSocketStream<TcpStream>,
    _folder: TempDir,
}

impl Drop for Agent {
    fn drop(&mut self) {
        // It may have exited already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Agent {
    /// Starts an agent; returns it and the seconds until its HELLO arrived.
    async fn start(listener: &TcpListener) -> anyhow::Result<(Self, f64)> {
        let folder = tempfile::tempdir()?;
        let config = folder.path().join("agent.json");
        let json = serde_json::json!({
            "core_url": format!("http://{}", listener.local_addr()?),
            "agent_id": "vm_01k9x3v5c8q2m4n6p8r0s2t4v6",
            "token": "a token of this measurement",
            "work_dir": folder.path().join("work"),
        });
        fs::write(&config, json.to_string())?;
        let begin = Instant::now();
        let process = Command::new(STAGELY)
            .arg("agent")
            .arg("--config")
            .arg(&config)
            .stderr(Stdio::null())
            .spawn()?;
        let (stream, _) = listener.accept().await?;
        let mut agent = Self { process, socket: accept_async(stream).await?, _folder: folder };
        let hello = agent.socket.next().await.context("the agent closed the connection")??;
        let seconds = begin.elapsed().as_secs_f64();
        let hello = AgentMessage::parse(hello.to_text()?)?;
        ensure!(matches!(hello, AgentMessage::Hello(_)), "{hello:?} came before HELLO");
        Ok((agent, seconds))
    }

    /// Responds as core does, and sends no work.
    async fn stay_idle(&mut self) -> anyhow::Result<()> {
        let ack = CoreMessage::HelloAck(HelloAck {
            heartbeat_interval: 1,
            jobs: Vec::new(),
            lease_seconds: None,
        });
        self.socket.send(Message::text(ack.to_json())).await?;
        let until = Instant::now() + IDLE;
        while Instant::now() < until {
            // Reading also responds to the agent's pings.
            match timeout(until - Instant::now(), self.socket.next()).await {
                Ok(message) => drop(message.context("the agent closed the connection")??),
                Err(_) => break,
            }
        }
        Ok(())
    }
}
