//! A GitHub that keeps state, over HTTP on loopback: repositories that real Git serves, pull requests,
//! comments, statuses, the tokens of an app, deliveries, limits and failures.
//!
//! It refuses the requests that GitHub refuses, and a request outside GitHub's description fails the test.

mod api;
mod app;
pub(crate) mod description;
mod git;
pub(crate) mod hooks;
mod itself;
pub(crate) mod people;
mod shapes;
pub(crate) mod world;

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use serde_json::Value;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio_util::task::AbortOnDropHandle;

use self::api::{Answer, Call};
use self::description::{Asked, Description};
use self::world::{ApiRequest, Fault, FaultKind, Limit, REQUESTS_PER_HOUR, World, now};

pub(crate) use self::hooks::{Forged, SECRET};
pub(crate) use self::people::PullRequest;

/// The largest request, in bytes.
const BODY_BYTES_MAX: usize = 16 * 1024 * 1024;

/// The path of the API of GitHub Enterprise.
pub(crate) const ENTERPRISE: &str = "/api/v3";

pub(crate) struct GitHub {
    shared: Shared,
    folder: TempDir,
    /// The URL of the webhook.
    hook: Mutex<Option<String>>,
    http: reqwest::Client,
    _server: AbortOnDropHandle<()>,
}

#[derive(Clone)]
struct Shared(Arc<Mutex<World>>);

impl Shared {
    fn world(&self) -> MutexGuard<'_, World> {
        // A test that has failed shows its own message and not the poisoned lock.
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl GitHub {
    /// Starts one whose API is below `api_path`.
    pub(crate) async fn start_at(api_path: &'static str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let site = format!("http://{}", listener.local_addr().unwrap());
        let world = World {
            site,
            api_path,
            app: app::App::new(),
            repositories: std::collections::BTreeMap::new(),
            comments: Vec::new(),
            statuses: Vec::new(),
            deployments: Vec::new(),
            tokens: std::collections::BTreeMap::new(),
            deliveries: Vec::new(),
            requests: Vec::new(),
            clones: Vec::new(),
            complaints: Vec::new(),
            faults: Vec::new(),
            limit: Limit::fresh(),
            last_id: 1_000,
        };
        // Reading it takes a second, so it is read before the first request.
        tokio::task::spawn_blocking(Description::get).await.unwrap();
        let shared = Shared(Arc::new(Mutex::new(world)));
        let router = Router::new().fallback(serve).with_state(shared.clone());
        let server = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self {
            shared,
            folder: tempfile::tempdir().unwrap(),
            hook: Mutex::default(),
            http: reqwest::Client::new(),
            _server: AbortOnDropHandle::new(server),
        }
    }

    pub(crate) fn world(&self) -> MutexGuard<'_, World> {
        self.shared.world()
    }

    pub(crate) fn api(&self) -> String {
        self.world().api()
    }

    /// The next requests to operations with `operation` in their name fail.
    pub(crate) fn fails(&self, operation: &'static str, times: u32, kind: FaultKind) {
        self.world().faults.push(Fault { operation, times, kind });
    }

    /// Every request fails with this status until [`recovers`](Self::recovers).
    pub(crate) fn is_down_with(&self, status: u16) {
        self.fails("", u32::MAX, FaultKind::Status(status));
    }

    pub(crate) fn recovers(&self) {
        self.world().faults.clear();
    }

    /// Limits the number of requests until the limit is renewed.
    pub(crate) fn allows_only(&self, remaining: u64, resets_in: Duration) {
        self.world().limit = Limit { remaining, resets_at: now() + resets_in };
    }

    /// The requests so far to operations with `operation` in their name.
    pub(crate) fn requests(&self, operation: &str) -> Vec<ApiRequest> {
        let world = self.world();
        let of = world.requests.iter().filter(|seen| seen.operation.contains(operation));
        of.cloned().collect()
    }

    /// Fails the test if GitHub does not know one of core's requests.
    pub(crate) fn has_no_complaints(&self) {
        let complaints = self.world().complaints.clone();
        assert!(complaints.is_empty(), "{}", complaints.join("\n"));
    }
}

fn plain(status: u16, text: &str) -> Response {
    let mut response = Response::new(Body::from(text.to_owned()));
    *response.status_mut() = StatusCode::from_u16(status).unwrap();
    response
}

async fn serve(State(shared): State<Shared>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let Ok(body) = to_bytes(body, BODY_BYTES_MAX).await else { return plain(413, "too large") };
    if git::parse(parts.uri.path()).is_some() {
        return git::serve(&shared, &parts.method, &parts.uri, &parts.headers, body).await;
    }
    let api_path = shared.world().api_path;
    let Some(path) = parts.uri.path().strip_prefix(api_path) else {
        return plain(404, "a page for people");
    };
    let query = parts.uri.query().unwrap_or_default();
    let query: Vec<(String, String)> =
        url::form_urlencoded::parse(query.as_bytes()).into_owned().collect();
    let asked = Asked { method: parts.method.as_str(), path, query: &query, body: &body };
    let operation = match Description::get().check_request(&asked) {
        Ok(operation) => operation,
        Err(problem) => {
            let mut world = shared.world();
            world.complaints.push(format!("core's request is not one of GitHub's: {problem}"));
            return into_response(&world, Answer::error(422, &problem));
        }
    };
    if !parts.headers.contains_key("user-agent") {
        shared.world().complaints.push(format!("{}: no User-Agent", operation.name));
    }
    let fault = shared.world().next_fault(&operation.name);
    if let Some(FaultKind::Slow(time)) = fault {
        tokio::time::sleep(time).await;
    }
    let mut world = shared.world();
    let value: Value = serde_json::from_slice(&body).unwrap_or_default();
    let call = Call {
        operation: &operation.name,
        path,
        query: &query,
        headers: &parts.headers,
        body: &value,
    };
    let answer = world.answer_with_fault(&call, fault);
    if let Err(problem) = Description::get().check_answer(&operation, answer.status, &answer.body)
        && !is_raw(&parts.headers)
    {
        world.complaints.push(format!("an answer of this fake is wrong: {problem}"));
    }
    world.requests.push(ApiRequest {
        operation: operation.name.clone(),
        path: path.to_owned(),
        body: value,
        status: answer.status,
        at: jiff::Timestamp::now(),
    });
    match fault {
        Some(FaultKind::Lost) => cut(answer.status),
        Some(FaultKind::DoneBut(status)) => {
            into_response(&world, Answer::error(status, "Server Error"))
        }
        _ => into_response(&world, answer),
    }
}

/// Whether the client asked for the content of a file instead of JSON.
fn is_raw(headers: &HeaderMap) -> bool {
    headers.get("accept").is_some_and(|value| value.as_bytes().ends_with(b"raw+json"))
}

/// A connection that breaks before the answer.
fn cut(status: u16) -> Response {
    let broken = futures_util::stream::once(async {
        Err::<Bytes, _>(std::io::Error::other("the connection breaks"))
    });
    let mut response = Response::new(Body::from_stream(broken));
    *response.status_mut() = StatusCode::from_u16(status).unwrap();
    response
}

fn into_response(world: &World, answer: Answer) -> Response {
    let Limit { remaining, resets_at } = world.limit;
    let answer = answer
        .with("x-ratelimit-limit", REQUESTS_PER_HOUR)
        .with("x-ratelimit-remaining", remaining)
        .with("x-ratelimit-used", REQUESTS_PER_HOUR - remaining)
        .with("x-ratelimit-reset", resets_at.as_second())
        .with("x-ratelimit-resource", "core");
    let mut response = plain(answer.status, "");
    for (name, value) in answer.headers {
        response.headers_mut().insert(name, value.parse().unwrap());
    }
    *response.body_mut() = Body::from(answer.body);
    response
}

impl World {
    /// The fault of the next request to `operation`.
    fn next_fault(&mut self, operation: &str) -> Option<FaultKind> {
        let fault = self.faults.iter_mut().find(|fault| operation.contains(fault.operation))?;
        let kind = fault.kind;
        fault.times -= 1;
        self.faults.retain(|fault| fault.times > 0);
        Some(kind)
    }

    fn answer_with_fault(&mut self, call: &Call, fault: Option<FaultKind>) -> Answer {
        match fault {
            Some(FaultKind::Status(status)) => Answer::error(status, "Server Error"),
            Some(FaultKind::Secondary { retry_after }) => {
                let message =
                    "You have exceeded a secondary rate limit. Please wait a few minutes.";
                Answer::error(403, message).with("retry-after", retry_after.as_secs())
            }
            _ => self.answer_within_limit(call),
        }
    }

    fn answer_within_limit(&mut self, call: &Call) -> Answer {
        if now() >= self.limit.resets_at {
            self.limit = Limit::fresh();
        }
        if self.limit.remaining == 0 {
            return Answer::error(403, "API rate limit exceeded for installation ID 815.");
        }
        self.limit.remaining -= 1;
        self.answer(call)
    }
}
