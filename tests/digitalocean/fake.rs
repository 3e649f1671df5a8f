//! A fake of `DigitalOcean`'s API over HTTP on loopback: an account that keeps state, and faults in front of it.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use serde_json::Value;
use stagely::config::Config;
use stagely::core::clock::new_id;
use stagely_protocol::Arch;
use stagely_provider::digitalocean::DigitalOcean;
use stagely_provider::digitalocean::DigitalOceanSettings;
use stagely_provider::settings::MarketPolicy;
use stagely_provider::{AgentEnvironment, CertificateAuthorities, LaunchRequest, MachineSpec};
use stagely_state::ids::MachineId;
use stagely_state::{Fleet, MachineSize};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::time::{Instant, sleep};
use tokio_util::task::AbortOnDropHandle;

use crate::checked;
use crate::world::{Answer, Call, World, refuse};

const BODY_BYTES_MAX: usize = 1024 * 1024;

/// One account.
pub(crate) type Shared = Arc<Mutex<World>>;

#[derive(Clone, Debug)]
pub(crate) enum Fault {
    /// The response has this status, message and headers, and nothing is done.
    Status(u16, &'static str, &'static [(&'static str, &'static str)]),
    /// The request is done, and the response is lost.
    Lost,
    /// The request is done, and the response has this status.
    DoneBut(u16),
    /// The request takes this long.
    Slow(Duration),
}

/// A request and its status.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    /// Method and path: `POST droplets`.
    pub(crate) what: String,
    pub(crate) body: Value,
    pub(crate) status: u16,
    pub(crate) at: Instant,
}

/// A running `DigitalOcean` with one account.
pub(crate) struct Cloud {
    pub(crate) url: String,
    folder: TempDir,
    front: Arc<Front>,
    _server: AbortOnDropHandle<()>,
}

/// The server that requests reach first. It adds the faults.
struct Front {
    world: Shared,
    faults: Mutex<Vec<(&'static str, u32, Fault)>>,
    seen: Mutex<Vec<Seen>>,
    creating: AtomicUsize,
    creating_max: AtomicUsize,
    prism: Option<&'static str>,
    http: reqwest::Client,
}

impl Cloud {
    pub(crate) async fn start() -> Self {
        let token = format!("dop_v1_{:032x}", rand::random::<u128>());
        let world = Arc::new(Mutex::new(World::new()));
        checked::add(&token, Arc::clone(&world));
        // The first call starts prism, which takes seconds.
        let prism = tokio::task::spawn_blocking(checked::address).await.unwrap();
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        let front = Arc::new(Front {
            world,
            faults: Mutex::default(),
            seen: Mutex::default(),
            creating: AtomicUsize::new(0),
            creating_max: AtomicUsize::new(0),
            prism,
            http,
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let app = Router::new().fallback(arrive).with_state(Arc::clone(&front));
        let server = tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("token"), format!("{token}\n")).unwrap();
        Self { url, folder, front, _server: AbortOnDropHandle::new(server) }
    }

    pub(crate) fn world(&self) -> MutexGuard<'_, World> {
        locked(&self.front.world)
    }

    pub(crate) fn token_file(&self) -> String {
        self.folder.path().join("token").display().to_string()
    }

    pub(crate) fn token(&self) -> String {
        std::fs::read_to_string(self.token_file()).unwrap().trim().to_owned()
    }

    /// A `[digitalocean]` table with this server's address and `more` settings.
    pub(crate) fn settings(&self, more: &str) -> String {
        let (url, token_file) = (&self.url, self.token_file());
        format!(
            "api-url = \"{url}\"\ntoken-file = \"{token_file}\"\nregions = [\"fra1\", \"ams3\"]\n{more}"
        )
    }

    pub(crate) fn config(&self, more: &str) -> DigitalOceanSettings {
        toml::from_str(&self.settings(more)).unwrap()
    }

    /// The provider of the core with the id `core1`.
    pub(crate) fn provider(&self, more: &str) -> DigitalOcean {
        DigitalOcean::new(&self.config(more), "core1".into()).unwrap()
    }

    /// The next `times` requests called `what` have a fault.
    pub(crate) fn fails(&self, what: &'static str, times: u32, fault: Fault) {
        locked(&self.front.faults).push((what, times, fault));
    }

    /// The requests so far that are called `what`.
    pub(crate) fn seen(&self, what: &str) -> Vec<Seen> {
        let seen = locked(&self.front.seen);
        seen.iter().filter(|request| request.what == what).cloned().collect()
    }

    /// The most droplets that were being created at the same time.
    pub(crate) fn creating_max(&self) -> usize {
        self.front.creating_max.load(Ordering::SeqCst)
    }
}

impl Drop for Cloud {
    /// A request or response that does not match the description fails the test.
    fn drop(&mut self) {
        let complaints = self.world().complaints.join("\n");
        if !std::thread::panicking() {
            assert!(complaints.is_empty(), "{complaints}");
        }
    }
}

/// Ignores the poison of a failed test, whose own message is more useful.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A medium builder on demand.
pub(crate) fn spec(arch: Arch) -> MachineSpec {
    MachineSpec {
        fleet: Fleet::Builder,
        arch,
        size: MachineSize::Medium,
        market: MarketPolicy::OnDemand,
        on_demand: false,
        max_price: None,
        disk_gib: None,
    }
}

/// A request for a medium AMD64 builder.
pub(crate) fn request(machine: MachineId) -> LaunchRequest {
    LaunchRequest {
        machine,
        job: Some(new_id()),
        preview: None,
        spec: spec(Arch::Amd64),
        agent: Config::default().agent_config(machine, "the machine's token".into()),
        environment: AgentEnvironment::default(),
        authorities: CertificateAuthorities::default(),
        lease: Duration::from_hours(1),
        insecure_registry: None,
        binary: None,
    }
}

/// Answers for the account of the request's token.
pub(crate) async fn answer(request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let body = to_bytes(body, BODY_BYTES_MAX).await.unwrap();
    let token = parts.headers.get("authorization").and_then(|value| value.to_str().ok());
    let world = token.and_then(|token| checked::account(token.strip_prefix("Bearer ")?));
    let Some(world) = world else {
        return respond(refuse(401, "unauthorized", "Unable to authenticate you"));
    };
    let uri = &parts.uri;
    let query = url::form_urlencoded::parse(uri.query().unwrap_or_default().as_bytes());
    let call = Call {
        method: parts.method.to_string(),
        path: uri.path().strip_prefix("/v2/").unwrap().to_owned(),
        query: query.into_owned().collect(),
        body: serde_json::from_slice(&body).unwrap_or_default(),
    };
    let answer = locked(&world).answer(&call);
    respond(answer)
}

fn respond(answer: Answer) -> Response {
    let mut response = Response::new(match answer.body {
        Value::Null => Body::empty(),
        body => Body::from(body.to_string()),
    });
    *response.status_mut() = StatusCode::from_u16(answer.status).unwrap();
    let reset = (jiff::Timestamp::now().as_second() + 3_600).to_string();
    for (name, value) in [
        ("content-type", "application/json; charset=utf-8"),
        ("ratelimit-limit", "5000"),
        ("ratelimit-remaining", "4816"),
        ("ratelimit-reset", &reset),
    ] {
        response.headers_mut().insert(name, value.parse().unwrap());
    }
    response
}

async fn arrive(State(front): State<Arc<Front>>, request: Request) -> Response {
    let what = format!("{} {}", request.method(), request.uri().path().trim_start_matches("/v2/"));
    let is_creation = what == "POST droplets";
    if is_creation {
        let creating = front.creating.fetch_add(1, Ordering::SeqCst) + 1;
        front.creating_max.fetch_max(creating, Ordering::SeqCst);
    }
    let response = front.go_on(&what, request).await;
    if is_creation {
        front.creating.fetch_sub(1, Ordering::SeqCst);
    }
    response
}

impl Front {
    fn next_fault(&self, what: &str) -> Option<Fault> {
        let mut faults = locked(&self.faults);
        let (_, times, fault) = faults.iter_mut().find(|(of, ..)| *of == what)?;
        let fault = fault.clone();
        *times -= 1;
        faults.retain(|(_, times, _)| *times > 0);
        Some(fault)
    }

    async fn go_on(&self, what: &str, request: Request) -> Response {
        let at = Instant::now();
        let (parts, body) = request.into_parts();
        let body = to_bytes(body, BODY_BYTES_MAX).await.unwrap();
        let fault = self.next_fault(what);
        if let Some(Fault::Slow(time)) = fault {
            sleep(time).await;
        }
        let seen = |status: u16| {
            let body = serde_json::from_slice(&body).unwrap_or_default();
            locked(&self.seen).push(Seen { what: what.to_owned(), body, status, at });
        };
        if let Some(Fault::Status(status, message, headers)) = fault {
            seen(status);
            let mut response = respond(refuse(status, "an_error", message));
            for (name, value) in headers {
                response.headers_mut().insert(*name, value.parse().unwrap());
            }
            return response;
        }
        let response = self.forward(Request::from_parts(parts, Body::from(body.clone()))).await;
        seen(response.status().as_u16());
        match fault {
            Some(Fault::Lost) => cut(),
            Some(Fault::DoneBut(status)) => respond(refuse(status, "server_error", "Server Error")),
            _ => response,
        }
    }

    async fn forward(&self, request: Request) -> Response {
        let Some(prism) = self.prism else { return answer(request).await };
        let (parts, body) = request.into_parts();
        let body = to_bytes(body, BODY_BYTES_MAX).await.unwrap();
        let mut headers = parts.headers.clone();
        headers.remove("host");
        let url = format!("{prism}{}", parts.uri);
        let sent = self.http.request(parts.method.clone(), url).headers(headers).body(body);
        let answer = sent.send().await.unwrap();
        let (status, headers) = (answer.status(), answer.headers().clone());
        let body = answer.bytes().await.unwrap();
        if is_complaint(&headers) {
            let text = String::from_utf8_lossy(&body).into_owned();
            let complaint = format!("{} {}: {text}", parts.method, parts.uri);
            locked(&self.world).complaints.push(complaint);
        }
        let mut response = Response::new(Body::from(body));
        *response.status_mut() = status;
        for (name, value) in &headers {
            if name != "content-length" && name != "connection" && name != "keep-alive" {
                response.headers_mut().insert(name, value.clone());
            }
        }
        response
    }
}

/// Whether the response is prism's own: the request or the fake's response does not match the description.
fn is_complaint(headers: &HeaderMap) -> bool {
    headers
        .get("content-type")
        .is_some_and(|kind| kind.as_bytes().starts_with(b"application/problem"))
}

/// A connection that breaks before the response.
fn cut() -> Response {
    let broken = futures_util::stream::once(async {
        Err::<Bytes, _>(std::io::Error::other("the connection breaks"))
    });
    Response::new(Body::from_stream(broken))
}
