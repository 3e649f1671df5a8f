//! Webhooks: the time from a webhook to the request for a machine, and the throughput of a burst.

use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{bail, ensure};
use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use hmac::{Hmac, KeyInit as _, Mac as _};
use redb::{Database, TableDefinition};
use reqwest::Client;
use sha2::Sha256;
use stagely::api::{DeliveryOutcome, DeliveryView, ListMachines, ListRuns, RunStatus};
use stagely_state::MachineKind;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::sleep;
use url::Url;

use crate::core::Core;
use crate::github::{FakeGithub, REPOSITORY, delivery};
use crate::idle::BareServer;
use crate::load::as_f64;
use crate::report::{Pairs, Row, median, print, quantile};

/// The role of a server that only checks signatures and stores bodies, for comparison.
pub(crate) const BARE_HOOK_ROLE: &str = "bare-webhook-server";

const SECRET: &str = "the secret of this measurement";

/// The number of pull requests that are opened one after the other.
const ONE_BY_ONE: u64 = 100;

const BURST: u64 = 1_000;
const CONNECTIONS: usize = 50;

/// The number of bursts on each side, in alternation.
const PAIRS: usize = 3;

/// The time limit of each step, generous for a busy machine.
const LIMIT: Duration = Duration::from_mins(3);

/// The interval of reading core's machines.
const POLL: Duration = Duration::from_millis(1);

pub(crate) async fn measure() -> anyhow::Result<()> {
    println!("webhooks of {} bytes; GitHub answers from memory", signed(1).body.len());
    let mut rows = vec![one_by_one().await?];
    rows.extend(bursts().await?);
    print(rows);
    Ok(())
}

/// Opens pull requests one after the other, and waits each time until a machine is requested.
async fn one_by_one() -> anyhow::Result<Row> {
    let subject = Subject::start(2 * ONE_BY_ONE).await?;
    let mut times = Vec::new();
    // The first connects and warms up, and is not counted.
    for number in 0..=ONE_BY_ONE {
        times.push(subject.time_to_machine(number + 1).await? * 1e3);
    }
    times.remove(0);
    let (p50, p99) = (median(&times), quantile(&times, 0.99));
    Ok(Row {
        what: format!(
            "webhook sent to machine asked for, {ONE_BY_ONE} pull requests, p50 / p99 \
             (with GitHub's answer)"
        ),
        stagely: format!("{p50:.1} / {p99:.1} ms"),
        aim: "p50 < 50 ms".to_owned(),
        is_met: Some(p50 < 50.0),
        ..Row::default()
    })
}

/// Core's memory around a burst, in bytes.
#[derive(Clone, Copy, Debug)]
struct Used {
    before: u64,
    peak: u64,
    after: u64,
    /// After a second burst of other pull requests.
    again: u64,
}

#[derive(Debug)]
struct BurstResponses {
    seconds: f64,
    /// The response time of each webhook, in milliseconds.
    times: Vec<f64>,
}

impl BurstResponses {
    fn per_second(&self) -> f64 {
        as_f64(BURST) / self.seconds
    }

    fn shown(many: &[Self]) -> String {
        let times: Vec<f64> = many.iter().flat_map(|burst| burst.times.iter().copied()).collect();
        let (p50, p99, max) = (median(&times), quantile(&times, 0.99), quantile(&times, 1.0));
        format!("{p50:.1} / {p99:.1} / {max:.1} ms")
    }
}

async fn bursts() -> anyhow::Result<Vec<Row>> {
    let (mut pairs, mut stagely, mut raw) = (Pairs::default(), Vec::new(), Vec::new());
    let (mut used, mut planned) = (Vec::new(), Vec::new());
    for pair in 0..PAIRS {
        let (responses, memory, seconds) = burst_on_core().await?;
        let bare = burst_on_bare().await?;
        eprintln!(
            "webhooks, pair {}: {:.0} per second, raw {:.0}; {memory:?}",
            pair + 1,
            responses.per_second(),
            bare.per_second(),
        );
        pairs.0.push((responses.per_second(), bare.per_second()));
        stagely.push(responses);
        raw.push(bare);
        used.push(memory);
        planned.push(seconds);
    }
    let (core_speed, raw_speed) = pairs.medians();
    let of_each = |bytes: &dyn Fn(&Used) -> u64| {
        median(&used.iter().map(|memory| as_f64(bytes(memory)) / 1e6).collect::<Vec<_>>())
    };
    let (before, peak) = (of_each(&|memory| memory.before), of_each(&|memory| memory.peak));
    let (after, again) = (of_each(&|memory| memory.after), of_each(&|memory| memory.again));
    let burst = format!("{BURST} webhooks over {CONNECTIONS} connections");
    Ok(vec![
        Row {
            what: format!("{burst}, all stored (raw: signature checked, a redb row for each)"),
            stagely: format!("{core_speed:.0}/s"),
            raw: format!("{raw_speed:.0}/s"),
            ratio: format!("{:.2}", pairs.ratio()),
            ..Row::default()
        },
        Row {
            what: "the same: sent to answered, p50 / p99 / max".to_owned(),
            stagely: BurstResponses::shown(&stagely),
            raw: BurstResponses::shown(&raw),
            aim: "max < 10 s, GitHub's limit".to_owned(),
            is_met: Some(
                stagely.iter().flat_map(|burst| &burst.times).all(|time| *time < 10_000.0),
            ),
            ..Row::default()
        },
        Row {
            what: "the same: first sent to all planned".to_owned(),
            stagely: format!("{:.1} s", median(&planned)),
            ..Row::default()
        },
        Row {
            what: "core's resident memory before / at most / when all are planned / after as many \
                   again"
                .to_owned(),
            stagely: format!("{before:.0} / {peak:.0} / {after:.0} / {again:.0} MB"),
            ..Row::default()
        },
    ])
}

/// Returns the responses, the memory, and the seconds until all runs were planned.
async fn burst_on_core() -> anyhow::Result<(BurstResponses, Used, f64)> {
    let subject = Subject::start(CONNECTIONS as u64).await?;
    let core = &subject.core;
    for number in 1..=2 * BURST {
        subject.github.opens(number);
    }
    let before = core.memory()?.rss;
    core.forget_peak()?;
    let begin = Instant::now();
    let responses = burst(&subject.hook, 1).await?;
    all_planned(core).await?;
    let planned = begin.elapsed().as_secs_f64();
    let (peak, after) = (core.peak()?, core.memory()?.rss);
    burst(&subject.hook, 1 + BURST).await?;
    all_planned(core).await?;
    let used = Used { before, peak, after, again: core.memory()?.rss };
    Ok((responses, used, planned))
}

/// Waits until the runs of the newest burst are planned.
async fn all_planned(core: &Core) -> anyhow::Result<()> {
    let begin = Instant::now();
    let all = ListRuns { limit: Some(usize::try_from(BURST)?), ..ListRuns::default() };
    loop {
        let runs = core.client.runs(&all).await?;
        let stored = runs.len() as u64;
        ensure!(stored == BURST, "{stored} of {BURST} runs are stored");
        if let Some(error) = runs.iter().find_map(|run| run.error.as_ref()) {
            bail!("a run was not planned: {error}");
        }
        if runs.iter().all(|run| run.status != RunStatus::Pending) {
            return Ok(());
        }
        ensure!(begin.elapsed() < LIMIT, "not all runs were planned in {LIMIT:?}");
        sleep(Duration::from_millis(200)).await;
    }
}

async fn burst_on_bare() -> anyhow::Result<BurstResponses> {
    let folder = tempfile::tempdir()?;
    let mut server = BareServer::start(BARE_HOOK_ROLE, Some(folder.path()))?;
    let hook = server.url()?.parse()?;
    burst(&hook, 1).await
}

/// Opens a burst of pull requests, starting with the number `first`.
async fn burst(hook: &Url, first: u64) -> anyhow::Result<BurstResponses> {
    let webhooks: Vec<Webhook> = (first..first + BURST).map(signed).collect();
    let http = Client::new();
    let mut tasks = JoinSet::new();
    let begin = Instant::now();
    for some in webhooks.chunks(webhooks.len().div_ceil(CONNECTIONS)) {
        let (some, http, hook) = (some.to_vec(), http.clone(), hook.clone());
        tasks.spawn(async move {
            let mut times = Vec::new();
            for webhook in some {
                let begin = Instant::now();
                webhook.send(&http, &hook).await?;
                times.push(begin.elapsed().as_secs_f64() * 1e3);
            }
            anyhow::Ok(times)
        });
    }
    let mut times = Vec::new();
    while let Some(ended) = tasks.join_next().await {
        times.extend(ended??);
    }
    Ok(BurstResponses { seconds: begin.elapsed().as_secs_f64(), times })
}

/// A core with a fake GitHub. Its machines are idle processes.
pub(crate) struct Subject {
    pub(crate) core: Core,
    github: FakeGithub,
    http: Client,
    hook: Url,
}

impl Subject {
    async fn start(machines: u64) -> anyhow::Result<Self> {
        Self::start_in(tempfile::tempdir()?, machines).await
    }

    /// Starts core in the folder `data`, which may hold its database already.
    pub(crate) async fn start_in(data: TempDir, machines: u64) -> anyhow::Result<Self> {
        let github = FakeGithub::start().await?;
        let program = idle_machine(&data)?;
        let secret = data.path().join("webhook-secret");
        let token = data.path().join("token");
        fs::write(&secret, SECRET)?;
        fs::write(&token, "a token of this measurement")?;
        let settings = format!(
            "[builders]\nprovider = \"local\"\nmax-concurrent = {machines}\n\
             [local]\nagent-program = \"{}\"\n\
             [github]\napi-url = \"{}\"\nwebhook-secret-file = \"{}\"\ntoken-file = \"{}\"\n\
             [[projects]]\ngithub = \"{REPOSITORY}\"\n",
            program.display(),
            github.url(),
            secret.display(),
            token.display(),
        );
        let core = Core::start_in(data, &settings).await?;
        let hook = core.url.join("/api/v1/webhooks/github")?;
        Ok(Self { core, github, http: Client::new(), hook })
    }

    /// Opens a pull request. Returns the seconds until a machine is requested that was not there before.
    pub(crate) async fn time_to_machine(&self, number: u64) -> anyhow::Result<f64> {
        let launched = async || -> anyhow::Result<usize> {
            let machines = self.core.client.machines(&ListMachines::default()).await?;
            Ok(machines.iter().filter(|machine| machine.kind == MachineKind::Launched).count())
        };
        let (webhook, known) = (signed(number), launched().await?);
        self.github.opens(number);
        let begin = Instant::now();
        webhook.send(&self.http, &self.hook).await?;
        while launched().await? <= known {
            ensure!(begin.elapsed() < LIMIT, "no machine was asked for in {LIMIT:?}");
            sleep(POLL).await;
        }
        Ok(begin.elapsed().as_secs_f64())
    }
}

/// The program that core launches. It exits with core.
fn idle_machine(folder: &TempDir) -> anyhow::Result<PathBuf> {
    let program = folder.path().join("machine");
    fs::write(&program, "#!/bin/sh\nexec tail --pid=$PPID -s 2 -f /dev/null\n")?;
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
    Ok(program)
}

/// A delivery with its signature.
#[derive(Clone, Debug)]
struct Webhook {
    name: String,
    body: Bytes,
    signature: String,
}

/// The delivery for the opening of pull request `number`.
fn signed(number: u64) -> Webhook {
    let body = Bytes::from(delivery(number).to_string());
    let name = format!("00000000-0000-4000-8000-{number:012}");
    let mut signature = "sha256=".to_owned();
    for byte in mac(&body).finalize().into_bytes() {
        write!(signature, "{byte:02x}").expect("a string takes every text");
    }
    Webhook { name, body, signature }
}

fn mac(body: &[u8]) -> Hmac<Sha256> {
    let mut mac =
        Hmac::<Sha256>::new_from_slice(SECRET.as_bytes()).expect("HMAC takes a key of any length");
    mac.update(body);
    mac
}

impl Webhook {
    async fn send(&self, http: &Client, hook: &Url) -> anyhow::Result<()> {
        let request = http
            .post(hook.clone())
            .header("content-type", "application/json")
            .header("x-github-event", "pull_request")
            .header("x-github-delivery", &self.name)
            .header("x-hub-signature-256", &self.signature)
            .body(self.body.clone());
        let answer = request.send().await?;
        let (status, text) = (answer.status(), answer.text().await?);
        ensure!(status == StatusCode::ACCEPTED, "{} got {status}: {text}", self.name);
        let view: DeliveryView = serde_json::from_str(&text)?;
        ensure!(view.outcome == DeliveryOutcome::Accepted, "{} got {text}", self.name);
        Ok(())
    }
}

const BODIES: TableDefinition<'static, &str, &[u8]> = TableDefinition::new("bodies");

/// Checks the signature and commits the body of each request, without reading it.
pub(crate) async fn bare_server(folder: &Path) -> anyhow::Result<()> {
    let database = Arc::new(Database::create(folder.join("raw.redb"))?);
    let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
    println!("http://{}", listener.local_addr()?);
    let router = Router::new().fallback(post(take)).with_state(database);
    Ok(axum::serve(listener, router).await?)
}

async fn take(
    State(database): State<Arc<Database>>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<(StatusCode, String), StatusCode> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let claimed = text("x-hub-signature-256").and_then(bytes_of_hex);
    let claimed = claimed.ok_or(StatusCode::UNAUTHORIZED)?;
    mac(&body).verify_slice(&claimed).map_err(|_| StatusCode::UNAUTHORIZED)?;
    let name = text("x-github-delivery").ok_or(StatusCode::BAD_REQUEST)?.to_owned();
    let view = DeliveryView {
        delivery: name.clone(),
        outcome: DeliveryOutcome::Accepted,
        detail: String::new(),
    };
    let stored = spawn_blocking(move || store(&database, &name, &body)).await;
    stored.ok().and_then(Result::ok).ok_or(StatusCode::INTERNAL_SERVER_ERROR)?;
    let view = serde_json::to_string(&view).map_err(|_| StatusCode::INTERNAL_SERVER_ERROR)?;
    Ok((StatusCode::ACCEPTED, view))
}

fn store(database: &Database, name: &str, body: &[u8]) -> anyhow::Result<()> {
    let mut write = database.begin_write()?;
    // Like core.
    write.set_quick_repair(true);
    write.open_table(BODIES)?.insert(name, body)?;
    Ok(write.commit()?)
}

fn bytes_of_hex(text: &str) -> Option<Vec<u8>> {
    let digits = text.strip_prefix("sha256=")?;
    (0..digits.len() / 2)
        .map(|n| u8::from_str_radix(digits.get(2 * n..2 * n + 2)?, 16).ok())
        .collect()
}
