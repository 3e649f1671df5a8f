//! Agents that send log batches, as fast as core accepts them or paced, and a viewer for each.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt as _, StreamExt as _};
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use serde::Deserialize;
use stagely_protocol::{CoreMessage, Stream, WireId};
use stagely_test_support::git::GitServer;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_tungstenite::tungstenite::Message;

use crate::core::Core;
use crate::git::commit_builds;
use crate::sim::{self, Socket};
use crate::text::Output;

/// The number of different batches. Each is compressed alone, so repeating them makes no difference.
const BATCHES: usize = 256;

/// Milliseconds between two lines of a batch.
const LINE_MILLIS: u64 = 3;

/// The load to send.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Load {
    pub(crate) agents: usize,
    pub(crate) lines_of_batch: usize,
    pub(crate) batches: usize,
    /// The most batches of one agent that wait for their `LOG_ACK`.
    pub(crate) window: usize,
    /// The time between two batches of one agent. Without it, batches are sent as soon as the window allows.
    pub(crate) pace: Option<Duration>,
}

impl Load {
    pub(crate) const fn lines_of_agent(&self) -> u64 {
        (self.lines_of_batch * self.batches) as u64
    }

    pub(crate) const fn lines(&self) -> u64 {
        self.lines_of_agent() * self.agents as u64
    }
}

/// The result of a load.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// The time from the first batch until every line was acknowledged and shown.
    pub(crate) seconds: f64,
    /// The processor time that core used, in seconds.
    pub(crate) processor_seconds: f64,
    /// The times from sending a batch to its last line at the viewer, in milliseconds.
    pub(crate) latencies: Vec<f64>,
    /// The size of the log database on the disk.
    pub(crate) bytes: u64,
}

/// A line's time and text.
type Line = (u64, String);

/// The batches.
#[derive(Debug)]
pub(crate) struct Pool {
    lines: Vec<Vec<Line>>,
    /// The batches as the `lines` of LOG.
    json: Vec<String>,
}

impl Pool {
    pub(crate) fn new(lines_of_batch: usize) -> Self {
        let mut output = Output::new(StdRng::seed_from_u64(42));
        let mut batch = |_| -> Vec<Line> {
            let begin = 1_764_000_000_000;
            (0..lines_of_batch as u64)
                .map(|line| (begin + line * LINE_MILLIS, output.line()))
                .collect()
        };
        let lines: Vec<Vec<Line>> = (0..BATCHES).map(&mut batch).collect();
        let json = lines.iter().map(|batch| {
            let line = |(t, data): &Line| {
                serde_json::json!({"t": t, "stream": "stdout", "data": data}).to_string()
            };
            batch.iter().map(line).collect::<Vec<_>>().join(",")
        });
        Self { json: json.collect(), lines }
    }

    pub(crate) fn bytes_of_line(&self) -> f64 {
        let bytes: usize = self.lines.iter().flatten().map(|(_, data)| data.len()).sum();
        let lines = self.lines.iter().flatten().count();
        as_f64(bytes as u64) / as_f64(lines as u64)
    }

    /// The lines of an agent's batch.
    pub(crate) fn batch(&self, agent: usize, batch: usize) -> &[Line] {
        &self.lines[Self::index(agent, batch)]
    }

    fn index(agent: usize, batch: usize) -> usize {
        (agent * 31 + batch) % BATCHES
    }

    fn message(&self, job: &WireId, agent: usize, batch: usize, first: usize) -> String {
        let lines = &self.json[Self::index(agent, batch)];
        let mut text = String::with_capacity(lines.len() + 128);
        let job = job.as_str();
        write!(text, r#"{{"type":"LOG","job_id":"{job}","first":{first},"lines":[{lines}]}}"#)
            .expect("a string takes every text");
        text
    }
}

/// Sends `load` through a core of its own.
pub(crate) async fn run(load: Load, pool: &Arc<Pool>) -> anyhow::Result<Outcome> {
    let git = GitServer::start();
    commit_builds(&git.repository("logs", true), load.agents);
    let mut core = Core::start("[builders]\nprovider = \"none\"\n").await?;
    let mut agents = Vec::new();
    for _ in 0..load.agents {
        agents.push(sim::connect(&core.add_machine().await?).await?);
    }
    core.plan(&git.url("open", "logs/.git")).await?;
    let mut sessions = Vec::new();
    for (number, mut agent) in agents.into_iter().enumerate() {
        let job = sim::take_job(&mut agent).await?;
        let viewer = sim::follow(&core, job.as_str().parse()?).await?;
        sessions.push(Session {
            number,
            job,
            load,
            pool: Arc::clone(pool),
            sent: (0..load.batches).map(|_| AtomicU64::new(0)).collect(),
            window: Semaphore::new(load.window),
            begin: Instant::now(),
            sockets: Some((agent, viewer)),
        });
    }
    let used_before = core.processor_time()?;
    let begin = Instant::now();
    let mut tasks = JoinSet::new();
    for mut session in sessions {
        session.begin = begin;
        tasks.spawn(session.run());
    }
    let mut latencies = Vec::new();
    while let Some(ended) = tasks.join_next().await {
        latencies.extend(ended??);
    }
    let seconds = begin.elapsed().as_secs_f64();
    let processor_seconds = core.processor_time()?.saturating_sub(used_before).as_secs_f64();
    core.stop().await?;
    let bytes = bytes_on_disk(&core.log_database())?;
    Ok(Outcome { seconds, processor_seconds, latencies, bytes })
}

/// One agent and its viewer.
struct Session {
    number: usize,
    job: WireId,
    load: Load,
    pool: Arc<Pool>,
    /// When each batch was sent, in nanoseconds after `begin`.
    sent: Vec<AtomicU64>,
    window: Semaphore,
    begin: Instant,
    sockets: Option<(Socket, Socket)>,
}

impl Session {
    /// Returns the latencies of all batches, in milliseconds.
    async fn run(mut self) -> anyhow::Result<Vec<f64>> {
        let (agent, viewer) = self.sockets.take().context("a session runs once")?;
        let (sink, stream) = agent.split();
        let this = Arc::new(self);
        let sending = tokio::spawn(Arc::clone(&this).send(sink));
        let acknowledged = tokio::spawn(Arc::clone(&this).take_acks(stream));
        let latencies = this.view(viewer).await?;
        sending.await??;
        acknowledged.await??;
        Ok(latencies)
    }

    async fn send(self: Arc<Self>, mut sink: SplitSink<Socket, Message>) -> anyhow::Result<()> {
        let Load { agents, lines_of_batch, batches, pace, .. } = self.load;
        let pace = pace.unwrap_or_default();
        // Paced agents start at different times.
        let offset = pace.mul_f64(as_f64(self.number as u64) / as_f64(agents as u64));
        for batch in 0..batches {
            if !pace.is_zero() {
                let due = offset + pace * u32::try_from(batch)?;
                sleep(due.saturating_sub(self.begin.elapsed())).await;
            }
            self.window.acquire().await?.forget();
            let message = self.pool.message(&self.job, self.number, batch, batch * lines_of_batch);
            let now = u64::try_from(self.begin.elapsed().as_nanos())?;
            self.sent[batch].store(now, Ordering::Relaxed);
            sink.send(Message::text(message)).await?;
        }
        Ok(())
    }

    async fn take_acks(self: Arc<Self>, mut stream: SplitStream<Socket>) -> anyhow::Result<()> {
        let mut acknowledged = 0;
        while acknowledged < self.load.lines_of_agent() {
            let message = stream.next().await.context("core closed the connection")??;
            let Message::Text(text) = message else { continue };
            match CoreMessage::parse(&text)? {
                CoreMessage::LogAck(ack) => {
                    let batches = (ack.lines - acknowledged) / self.load.lines_of_batch as u64;
                    self.window.add_permits(usize::try_from(batches)?);
                    acknowledged = ack.lines;
                }
                other => bail!("core answered LOG with {other:?}"),
            }
        }
        Ok(())
    }

    /// Receives lines until all were shown, and compares each with the line that was sent.
    async fn view(&self, mut viewer: Socket) -> anyhow::Result<Vec<f64>> {
        let lines_of_batch = self.load.lines_of_batch as u64;
        let mut latencies = Vec::with_capacity(self.load.batches);
        let mut next = 0;
        while next < self.load.lines_of_agent() {
            let text = sim::text(&mut viewer).await?;
            let now = u64::try_from(self.begin.elapsed().as_nanos())?;
            let shown: LogView<'_> = serde_json::from_str(&text)?;
            ensure!(shown.first == next, "line {next} is missing: {} came", shown.first);
            for line in &shown.lines {
                self.check(next, line)?;
                next += 1;
                if next % lines_of_batch == 0 {
                    let batch = usize::try_from(next / lines_of_batch)? - 1;
                    let sent = self.sent[batch].load(Ordering::Relaxed);
                    latencies.push(as_f64(now.saturating_sub(sent)) / 1e6);
                }
            }
        }
        Ok(latencies)
    }

    fn check(&self, number: u64, line: &LineView<'_>) -> anyhow::Result<()> {
        let number = usize::try_from(number)?;
        let Load { lines_of_batch, .. } = self.load;
        let batch = self.pool.batch(self.number, number / lines_of_batch);
        let (_, sent) = &batch[number % lines_of_batch];
        ensure!(*sent == line.data, "line {number} is {:?} and was {sent:?}", line.data);
        Ok(())
    }
}

/// A message to a viewer, read without copying: viewers share the machine with core.
#[derive(Deserialize)]
struct LogView<'a> {
    first: u64,
    #[serde(borrow)]
    lines: Vec<LineView<'a>>,
}

#[derive(Deserialize)]
struct LineView<'a> {
    #[serde(borrow)]
    data: Cow<'a, str>,
}

/// A line like `LogLine`, for the raw alternative.
pub(crate) type RawLine<'a> = (u64, Stream, &'a str);

/// The disk space of a file: a database file is sparse.
pub(crate) fn bytes_on_disk(path: &Path) -> anyhow::Result<u64> {
    use std::os::unix::fs::MetadataExt as _;
    Ok(path.metadata()?.blocks() * 512)
}

#[expect(clippy::cast_precision_loss, reason = "nothing here is near 2^52")]
pub(crate) const fn as_f64(value: u64) -> f64 {
    value as f64
}
