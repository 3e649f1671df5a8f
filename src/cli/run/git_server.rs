//! Serves a bare repository and its submodules over loopback, by Git's smart HTTP protocol, to clients with the token.
//!
//! Git's `upload-pack` does the work; this module adds HTTP.
//!
//! Source: Git documentation, `gitprotocol-http`.

mod large_files;

use std::net::Ipv4Addr;
use std::process::Stdio;
use std::sync::Arc;

use anyhow::Context as _;
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{FromRequest as _, Query, Request, State};
use axum::http::header::{
    AUTHORIZATION, CACHE_CONTROL, CONNECTION, CONTENT_TYPE, WWW_AUTHENTICATE,
};
use axum::http::{HeaderMap, Method, StatusCode};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse as _, Response};
use axum::serve::ListenerExt as _;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use secrecy::SecretString;
use serde::Deserialize;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpListener;
use tokio::process::Command;
use tokio_util::io::ReaderStream;
use tokio_util::task::AbortOnDropHandle;
use tower_http::decompression::RequestDecompressionLayer;
use tower_http::limit::RequestBodyLimitLayer;
use tracing::warn;
use url::Url;

use super::served_repository::ServedPath;
use super::user_git::UserGit;
use crate::core::tokens::{TokenHash, random_token};

/// The largest request of a client: enough for a repository with a hundred thousand references.
const REQUEST_BYTES_MAX: usize = 16 * 1024 * 1024;

/// A served repository. Dropping the value stops the server.
#[derive(Debug)]
pub(super) struct GitServer {
    pub(super) url: Url,
    /// The password, for any user name.
    pub(super) token: SecretString,
    _task: AbortOnDropHandle<()>,
}

#[derive(Clone, Debug)]
struct ServerState {
    repositories: Arc<[ServedPath]>,
    token: TokenHash,
}

impl ServerState {
    /// The repository of a request, and the rest of its path.
    fn find<'a>(&self, path: &'a str) -> Option<(&ServedPath, &'a str)> {
        // The addresses of submodules begin with that of the repository.
        let rest = |served: &ServedPath| path.strip_prefix(&*served.address)?.strip_prefix('/');
        let found = self.repositories.iter().filter_map(|served| Some((served, rest(served)?)));
        found.min_by_key(|(_, rest)| rest.len())
    }
}

impl GitServer {
    /// Serves `repositories`, of which the one at `address` is the main one.
    ///
    /// # Errors
    /// No port is free.
    pub(super) async fn start(
        repositories: Vec<ServedPath>,
        address: &str,
    ) -> anyhow::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await;
        let listener = listener.context("cannot serve the repository on loopback")?;
        let url = format!("http://{}{address}", listener.local_addr()?).parse()?;
        let token = random_token("");
        let state = ServerState { repositories: repositories.into(), token: TokenHash::of(&token) };
        let routes = Router::new()
            .fallback(serve)
            .layer(RequestBodyLimitLayer::new(REQUEST_BYTES_MAX))
            .layer(RequestDecompressionLayer::new())
            .layer(middleware::from_fn_with_state(state.clone(), authorize))
            .with_state(state);
        // Without TCP_NODELAY the second part of a response waits 40 ms for the acknowledgement of the first.
        let listener = listener.tap_io(|connection| {
            // The server also works without it.
            let _ = connection.set_nodelay(true);
        });
        let task = tokio::spawn(async move {
            if let Err(error) = axum::serve(listener, routes).await {
                warn!(%error, "the repository is no longer served");
            }
        });
        Ok(Self { url, token, _task: AbortOnDropHandle::new(task) })
    }
}

/// Checks the password, because other users of this machine can reach the port.
async fn authorize(State(state): State<ServerState>, request: Request, next: Next) -> Response {
    let offered = password(request.headers());
    if offered.is_some_and(|offered| TokenHash::of(&offered).matches(&state.token)) {
        return next.run(request).await;
    }
    (StatusCode::UNAUTHORIZED, [(WWW_AUTHENTICATE, "Basic realm=\"stagely\"")]).into_response()
}

fn password(headers: &HeaderMap) -> Option<SecretString> {
    let basic = headers.get(AUTHORIZATION)?.to_str().ok()?.strip_prefix("Basic ")?;
    let pair = String::from_utf8(BASE64_STANDARD.decode(basic).ok()?).ok()?;
    pair.split_once(':').map(|(_, password)| password.into())
}

#[derive(Deserialize)]
struct Service {
    service: Option<String>,
}

async fn serve(State(state): State<ServerState>, request: Request) -> Response {
    let path = request.uri().path().to_owned();
    let Some((served, service)) = state.find(&path) else {
        return StatusCode::NOT_FOUND.into_response();
    };
    match (request.method(), service) {
        (&Method::GET, "info/refs") => match Query::try_from_uri(request.uri()) {
            Ok(Query(service)) => refs(served, &service).await,
            Err(error) => error.into_response(),
        },
        (&Method::POST, "git-upload-pack") => match Bytes::from_request(request, &()).await {
            Ok(body) => upload_pack(served, body),
            Err(error) => error.into_response(),
        },
        _ => match service.strip_prefix("info/lfs/objects/") {
            Some(object) => large_files::serve(served, object, request).await,
            None => StatusCode::NOT_FOUND.into_response(),
        },
    }
}

async fn refs(served: &ServedPath, service: &Service) -> Response {
    if service.service.as_deref() != Some("git-upload-pack") {
        return (StatusCode::FORBIDDEN, "this repository is read-only").into_response();
    }
    let output = git_upload_pack(served, &["--advertise-refs"]).output().await;
    match output {
        Ok(output) if output.status.success() => {
            let mut body = b"001e# service=git-upload-pack\n0000".to_vec();
            body.extend(without_shallow(&output.stdout));
            respond("application/x-git-upload-pack-advertisement", body)
        }
        Ok(output) => failed(&String::from_utf8_lossy(&output.stderr)),
        Err(error) => failed(&error.to_string()),
    }
}

/// The advertised references without the `shallow` lines of a shallow clone, which libgit2 cannot read. Clients ask for
/// a depth, so they learn from the response where the history ends.
///
/// Source: Git documentation, `gitprotocol-pack`, "Reference Discovery".
fn without_shallow(advertisement: &[u8]) -> Vec<u8> {
    let mut kept = Vec::with_capacity(advertisement.len());
    let mut rest = advertisement;
    while let Some((length, _)) = rest.split_at_checked(4) {
        let length = std::str::from_utf8(length).ok();
        let length = length.and_then(|text| usize::from_str_radix(text, 16).ok());
        // 0000 ends the list.
        let line = length.and_then(|length| rest.split_at_checked(length.max(4)));
        let Some((line, after)) = line else { break };
        if !line[4..].starts_with(b"shallow ") {
            kept.extend_from_slice(line);
        }
        rest = after;
    }
    kept
}

fn upload_pack(served: &ServedPath, request: Bytes) -> Response {
    let mut command = git_upload_pack(served, &[]);
    let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
    let mut child = match child {
        Ok(child) => child,
        Err(error) => return failed(&error.to_string()),
    };
    let (Some(mut input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
        return failed("git has no pipes");
    };
    tokio::spawn(async move {
        // If the client disconnects, the output is closed and git exits.
        let _ = input.write_all(&request).await;
        drop(input);
        let _ = child.wait().await;
    });
    respond("application/x-git-upload-pack-result", Body::from_stream(ReaderStream::new(output)))
}

fn git_upload_pack(served: &ServedPath, options: &[&str]) -> Command {
    let mut arguments = vec!["upload-pack", "--stateless-rpc"];
    arguments.extend(options);
    arguments.push(".");
    let mut command = Command::from(UserGit::isolated(&served.repository).command(&arguments));
    command.kill_on_drop(true);
    command
}

fn respond(content_type: &'static str, body: impl Into<Body>) -> Response {
    // libgit2 sends the head and the body of a request separately and without TCP_NODELAY. On a reused
    // connection the body waits 40 ms for the acknowledgement of the head; on a new connection it does not.
    let headers =
        [(CONTENT_TYPE, content_type), (CACHE_CONTROL, "no-cache"), (CONNECTION, "close")];
    (headers, body.into()).into_response()
}

fn failed(detail: &str) -> Response {
    warn!(detail, "git cannot serve the repository");
    StatusCode::INTERNAL_SERVER_ERROR.into_response()
}
