//! A fake GitHub with one repository. It responds at once and only stores open pull requests.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::{get, patch, post};
use axum::{Json, Router};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_util::task::AbortOnDropHandle;

pub(crate) const REPOSITORY: &str = "acme/shop";

const MANIFEST: &str = "builds: { app: { context: . } }\n";

/// The size of a pull request's description, in bytes: it makes deliveries about as large as GitHub's.
const TEXT_BYTES: usize = 20_000;

const MOMENT: &str = "2026-01-02T03:04:05Z";

type OpenPulls = Arc<Mutex<Vec<u64>>>;

/// A running fake GitHub. Dropping the value stops it.
pub(crate) struct FakeGithub {
    address: SocketAddr,
    open: OpenPulls,
    _server: AbortOnDropHandle<()>,
}

impl FakeGithub {
    pub(crate) async fn start() -> anyhow::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let (address, open) = (listener.local_addr()?, OpenPulls::default());
        let router = Router::new()
            .route("/repos/acme/shop", get(async || Json(repository())))
            .route("/repos/acme/shop/contents/stagely.yaml", get(async || MANIFEST))
            .route("/repos/acme/shop/pulls", get(pulls))
            .route("/repos/acme/shop/issues/{number}/comments", get(no_comments).post(comment))
            .route("/repos/acme/shop/issues/comments/{id}", patch(edited))
            .route("/repos/acme/shop/statuses/{commit}", post(status))
            .with_state(Arc::clone(&open));
        let server = tokio::spawn(async move {
            // The server runs until its task is aborted.
            let _ = axum::serve(listener, router).await;
        });
        Ok(Self { address, open, _server: AbortOnDropHandle::new(server) })
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Adds the pull request to the list.
    pub(crate) fn opens(&self, number: u64) {
        lock(&self.open).push(number);
    }
}

fn lock(open: &OpenPulls) -> MutexGuard<'_, Vec<u64>> {
    open.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn pulls(State(open): State<OpenPulls>) -> Json<Vec<Value>> {
    Json(lock(&open).iter().copied().map(pull_request).collect())
}

async fn no_comments() -> Json<Value> {
    Json(json!([]))
}

async fn comment(Path(number): Path<u64>) -> (StatusCode, Json<Value>) {
    (StatusCode::CREATED, Json(json!({ "id": number })))
}

async fn edited(Path(id): Path<u64>) -> Json<Value> {
    Json(json!({ "id": id }))
}

async fn status() -> (StatusCode, Json<Value>) {
    (StatusCode::CREATED, Json(json!({})))
}

fn repository() -> Value {
    json!({ "id": 1, "full_name": REPOSITORY, "default_branch": "main", "private": false })
}

fn pull_request(number: u64) -> Value {
    let (commit, branch) = (format!("{number:040x}"), format!("change-{number}"));
    json!({
        "number": number,
        "state": "open",
        "draft": false,
        "title": "A change",
        "body": "x".repeat(TEXT_BYTES),
        "head": { "sha": commit, "ref": branch, "repo": { "id": 1 } },
        "base": { "sha": "a".repeat(40), "ref": "main", "repo": { "id": 1 } },
        "user": { "login": "alice" },
        "author_association": "MEMBER",
        "created_at": MOMENT,
        "updated_at": MOMENT,
        "closed_at": null,
    })
}

/// The delivery for the opening of pull request `number`.
pub(crate) fn delivery(number: u64) -> Value {
    json!({
        "action": "opened",
        "number": number,
        "pull_request": pull_request(number),
        "repository": repository(),
        "sender": { "login": "alice" },
    })
}
