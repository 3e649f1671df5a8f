//! Requests to a preview through core, against the same requests to the app; and its deployment.
//!
//! Core is a process of its own; the agent, the app and the clients are in this one.

mod life;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::future::pending;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use axum::Router;
use axum::body::{Body, Bytes};
use axum::routing::get;
use futures_util::future::try_join_all;
use futures_util::{StreamExt as _, stream};
use secrecy::SecretString;
use stagely::api::AddMachine;
use stagely::client::Client;
use stagely::config::Config;
use stagely::core::previews::{Access, PreviewState, Route};
use stagely::core::{ADMIN_TOKEN_FILE, FolderCheck};
use stagely_agent::endpoints::Endpoints;
use stagely_agent::run_with;
use stagely_agent::spot::SpotWatch;
use stagely_protocol::agent_config::AgentConfig;
use stagely_protocol::{Arch, WireId};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::core::Memory;
use crate::load::as_f64;
use crate::report::{Row, print, quantile};

/// The role of the process that is core.
pub(crate) const CORE_ROLE: &str = "preview-core";

const LABEL: &str = "pr-7-app";
const KEY: &str = "the-key-of-this-measurement";
const ENDPOINT: &str = "web";

/// Clients at the same time.
const CLIENTS: usize = 64;

/// Requests of each client.
const REQUESTS: usize = 500;

/// The pause between two requests of one client, so that the clients do not wait for the processors.
const PAUSE: Duration = Duration::from_millis(25);

const DOWNLOAD_BYTES: u64 = 1_000_000_000;

const PIECE_BYTES: usize = 64 * 1024;

/// Connections whose memory is measured.
const OPEN: usize = 240;

/// The time before memory is measured.
const SETTLE: Duration = Duration::from_secs(3);

pub(crate) async fn measure() -> anyhow::Result<()> {
    let setup = Setup::start().await?;
    let mut rows = Vec::new();
    for clients in [1, CLIENTS] {
        let direct = latencies(setup.app, clients).await?;
        let through = latencies(setup.core, clients).await?;
        for (name, share, aim) in [("p50", 0.5, "≤ +0.5 ms"), ("p99", 0.99, "")] {
            let (through, direct) = (quantile(&through, share), quantile(&direct, share));
            rows.push(Row {
                what: format!(
                    "preview: a kept-alive request, {clients} clients, {name} (raw: the app)"
                ),
                stagely: format!("{through:.2} ms"),
                raw: format!("{direct:.2} ms"),
                ratio: format!("+{:.2} ms", through - direct),
                aim: aim.to_owned(),
                is_met: (!aim.is_empty()).then_some(through - direct <= 0.5),
            });
        }
    }
    let direct = download(setup.app).await?;
    let through = download(setup.core).await?;
    rows.push(Row {
        what: "preview: a download of 1 GB (raw: from the app)".to_owned(),
        stagely: format!("{through:.0} MB/s"),
        raw: format!("{direct:.0} MB/s"),
        ratio: format!("{:.2}", through / direct),
        aim: "≥ 500 MB/s".to_owned(),
        is_met: Some(through >= 500.0),
    });
    let memory = setup.memory_of_a_connection().await?;
    rows.push(Row {
        what: format!("preview: core's memory for each of {OPEN} open connections"),
        stagely: format!("{memory:.1} KB"),
        aim: "≤ 64 KB".to_owned(),
        is_met: Some(memory <= 64.0),
        ..Row::default()
    });
    drop(setup);
    rows.extend(life::measure().await?);
    print(rows);
    Ok(())
}

/// A core, an agent, and an app.
struct Setup {
    process: Child,
    core: SocketAddr,
    app: SocketAddr,
    _agent: AbortOnDropHandle<()>,
    _folder: TempDir,
}

impl Setup {
    async fn start() -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        let app = start_app().await?;
        let mut process = Command::new(std::env::current_exe()?)
            .arg(CORE_ROLE)
            .arg(folder.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut output = BufReader::new(process.stdout.take().context("core has no output")?);
        let mut line = String::new();
        output.read_line(&mut line)?;
        let url: url::Url = line.trim().parse()?;
        let token = std::fs::read_to_string(folder.path().join(ADMIN_TOKEN_FILE))?;
        let client = Client::new(url.clone(), SecretString::from(token.trim()))?;
        let machine = AddMachine::new(Arch::of_this_program());
        let added = client.add_machine(&machine).await?;
        let mut config: AgentConfig = serde_json::from_value(added.agent_json)?;
        config.work_dir = folder.path().join("work");
        let machine = config.agent_id.clone();
        let endpoints = Endpoints::default();
        endpoints.set(preview_id()?, BTreeMap::from([(ENDPOINT.to_owned(), app)]));
        let agent = tokio::spawn(async move {
            let ended = run_with(config, SpotWatch::none(), endpoints, CancellationToken::new());
            if let Err(error) = ended.await {
                eprintln!("the agent did not start: {error}");
            }
        });
        let agent = AbortOnDropHandle::new(agent);
        let input = process.stdin.as_mut().context("core has no input")?;
        writeln!(input, "{machine}")?;
        line.clear();
        output.read_line(&mut line)?;
        let core = SocketAddr::new(
            url.host_str().context("no host")?.parse()?,
            url.port().context("no port")?,
        );
        let setup = Self { process, core, app, _agent: agent, _folder: folder };
        // The first request waits until the agent has connected.
        request(&mut TcpStream::connect(setup.core).await?).await?;
        Ok(setup)
    }

    /// In kilobytes.
    async fn memory_of_a_connection(&self) -> anyhow::Result<f64> {
        sleep(SETTLE).await;
        let before = Memory::of(self.process.id())?.rss;
        let open = try_join_all((0..OPEN).map(|_| async {
            let mut stream = TcpStream::connect(self.core).await?;
            stream.write_all(head("/open").as_bytes()).await?;
            // The first byte of the body is there, so the connection is open to the app.
            read_head(&mut stream).await?;
            Ok::<_, anyhow::Error>(stream)
        }))
        .await?;
        sleep(SETTLE).await;
        let after = Memory::of(self.process.id())?.rss;
        drop(open);
        Ok(as_f64(after.saturating_sub(before)) / as_f64(OPEN as u64) / 1e3)
    }
}

impl Drop for Setup {
    fn drop(&mut self) {
        // It may have exited already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn preview_id() -> anyhow::Result<WireId> {
    Ok("prev_of_this_measurement".parse()?)
}

async fn start_app() -> anyhow::Result<SocketAddr> {
    let router = Router::new()
        .route("/", get(async || "ok"))
        .route(
            "/download",
            get(async || {
                let piece = Bytes::from(vec![7; PIECE_BYTES]);
                let pieces = DOWNLOAD_BYTES.div_ceil(PIECE_BYTES as u64);
                let pieces =
                    stream::iter((0..pieces).map(move |_| Ok::<_, Infallible>(piece.clone())));
                Body::from_stream(pieces)
            }),
        )
        .route(
            "/open",
            get(async || {
                let first = stream::iter([Ok::<_, Infallible>(Bytes::from_static(b"data: 1\n\n"))]);
                Body::from_stream(first.chain(stream::once(pending())))
            }),
        );
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let listener = axum::serve::ListenerExt::tap_io(listener, |stream| {
        // It also works without.
        let _ = stream.set_nodelay(true);
    });
    tokio::spawn(async move { axum::serve(listener, router).await });
    Ok(address)
}

fn head(target: &str) -> String {
    format!("GET {target} HTTP/1.1\r\nhost: {LABEL}.localhost\r\nx-stagely-access: {KEY}\r\n\r\n")
}

/// Reads the head of an answer, and returns what came after it.
async fn read_head(stream: &mut TcpStream) -> anyhow::Result<Vec<u8>> {
    let mut received = Vec::new();
    loop {
        ensure!(stream.read_buf(&mut received).await? > 0, "the connection ended");
        if let Some(end) = received.windows(4).position(|four| four == b"\r\n\r\n") {
            if !received.starts_with(b"HTTP/1.1 200 ") {
                bail!("the answer was {}", String::from_utf8_lossy(&received));
            }
            return Ok(received.split_off(end + 4));
        }
    }
}

/// One request whose answer is `ok`.
async fn request(stream: &mut TcpStream) -> anyhow::Result<()> {
    stream.write_all(head("/").as_bytes()).await?;
    let mut body = read_head(stream).await?;
    while body.len() < "ok".len() {
        ensure!(stream.read_buf(&mut body).await? > 0, "the connection ended");
    }
    Ok(())
}

/// The times of all requests, in milliseconds.
async fn latencies(server: SocketAddr, clients: usize) -> anyhow::Result<Vec<f64>> {
    let client = async |number: usize| {
        let mut stream = TcpStream::connect(server).await?;
        stream.set_nodelay(true)?;
        request(&mut stream).await?;
        // Otherwise all clients would send at the same moments.
        sleep(PAUSE.mul_f64(as_f64(number as u64) / as_f64(clients as u64))).await;
        let mut times = Vec::with_capacity(REQUESTS);
        for _ in 0..REQUESTS {
            let begin = Instant::now();
            request(&mut stream).await?;
            times.push(begin.elapsed().as_secs_f64() * 1e3);
            sleep(PAUSE).await;
        }
        Ok::<_, anyhow::Error>(times)
    };
    Ok(try_join_all((0..clients).map(client)).await?.concat())
}

/// Megabytes in a second.
async fn download(server: SocketAddr) -> anyhow::Result<f64> {
    let mut stream = TcpStream::connect(server).await?;
    let begin = Instant::now();
    stream.write_all(head("/download").as_bytes()).await?;
    let mut count = read_head(&mut stream).await?.len() as u64;
    let mut buffer = vec![0; 256 * 1024];
    // The lengths of the pieces and the end are a few bytes besides.
    while count < DOWNLOAD_BYTES {
        let read = stream.read(&mut buffer).await?;
        ensure!(read > 0, "the connection ended after {count} bytes");
        count += read as u64;
    }
    Ok(as_f64(count) / begin.elapsed().as_secs_f64() / 1e6)
}

/// Runs core in this process, with one preview, whose machine stands in the standard input.
pub(crate) async fn core(folder: &Path) -> anyhow::Result<()> {
    let settings = format!(
        "core.listen = \"127.0.0.1:0\"\ncore.data-dir = \"{}\"\nbuilders.provider = \"none\"\n",
        folder.display()
    );
    let config: Config = toml::from_str(&settings)?;
    let core = stagely::core::start(config, FolderCheck::None).await?;
    println!("{}", core.url);
    let mut machine = String::new();
    std::io::stdin().read_line(&mut machine)?;
    let route = Route {
        preview: preview_id()?,
        endpoint: ENDPOINT.to_owned(),
        access: Access::Link,
        access_key: KEY.into(),
        public_paths: Vec::new(),
        state: PreviewState::Serving { machine: machine.trim().parse()?, generation: 1 },
    };
    core.preview_routes.change(&[], BTreeMap::from([(LABEL.to_owned(), route)]));
    println!("ready");
    core.until(CancellationToken::new()).await
}
