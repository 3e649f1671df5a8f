//! Serves the repositories with `git http-backend` to clients that may read them.

use std::path::PathBuf;
use std::process::Stdio;

use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, Method, StatusCode, Uri};
use axum::response::Response;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

use super::world::{GitRequest, World, now};
use super::{Shared, plain};

/// `owner/name` and the path after `.git`, if this is a path of Git.
pub(super) fn parse(path: &str) -> Option<(&str, &str)> {
    let (repository, rest) = path.strip_prefix('/')?.split_once(".git/")?;
    (repository.split('/').count() == 2).then_some((repository, rest))
}

/// The password, as which Git's clients send a token. Any user name is accepted.
fn token(headers: &HeaderMap) -> Option<String> {
    let value = headers.get("authorization")?.to_str().ok()?.strip_prefix("Basic ")?;
    let text = String::from_utf8(BASE64_STANDARD.decode(value).ok()?).ok()?;
    Some(text.split_once(':')?.1.to_owned())
}

fn may_read(world: &World, repository: &str, token: Option<&str>) -> bool {
    let Some(repo) = world.repository(repository) else { return false };
    let Some(token) = token else { return !repo.is_private };
    world.tokens.get(token).is_some_and(|token| {
        let is_meant =
            token.repositories.iter().any(|allowed| allowed.eq_ignore_ascii_case(repository));
        is_meant && token.permissions.contains_key("contents") && token.expires_at > now()
    })
}

pub(super) async fn serve(
    shared: &Shared,
    method: &Method,
    uri: &Uri,
    headers: &HeaderMap,
    body: Bytes,
) -> Response {
    let (repository, rest) = parse(uri.path()).expect("it was looked at before");
    let token = token(headers);
    let folder = {
        let mut world = shared.world();
        if !may_read(&world, repository, token.as_deref()) {
            let mut refusal = plain(401, "Repository not found.");
            let realm = "Basic realm=\"GitHub\"".parse().unwrap();
            refusal.headers_mut().insert("www-authenticate", realm);
            return refusal;
        }
        world.clones.push(GitRequest { repository: repository.to_owned(), token });
        world.repository(repository).unwrap().git.path.join(".git")
    };
    run(folder, rest, method, uri, headers, &body).await
}

async fn run(
    folder: PathBuf,
    rest: &str,
    method: &Method,
    uri: &Uri,
    headers: &HeaderMap,
    body: &[u8],
) -> Response {
    let header =
        |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let mut process = Command::new("git")
        .arg("http-backend")
        .env("GIT_PROJECT_ROOT", &folder)
        .env("GIT_HTTP_EXPORT_ALL", "1")
        .env("PATH_INFO", format!("/{rest}"))
        .env("QUERY_STRING", uri.query().unwrap_or_default())
        .env("REQUEST_METHOD", method.as_str())
        .env("CONTENT_TYPE", header("content-type"))
        .env("CONTENT_LENGTH", body.len().to_string())
        .env("HTTP_CONTENT_ENCODING", header("content-encoding"))
        .env("GIT_PROTOCOL", header("git-protocol"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut input = process.stdin.take().unwrap();
    let ((), output) = tokio::join!(
        async move {
            // The program may end before it has read the whole input.
            let _ = input.write_all(body).await;
        },
        process.wait_with_output()
    );
    answer(&output.unwrap().stdout)
}

/// Parses the output of a CGI program.
fn answer(output: &[u8]) -> Response {
    let end = output.windows(4).position(|part| part == b"\r\n\r\n").unwrap();
    let (head, content) = (str::from_utf8(&output[..end]).unwrap(), &output[end + 4..]);
    let mut response = Response::new(Body::from(content.to_vec()));
    for (name, value) in head.lines().filter_map(|line| line.split_once(": ")) {
        if name == "Status" {
            let code = value.split(' ').next().unwrap();
            *response.status_mut() = StatusCode::from_bytes(code.as_bytes()).unwrap();
        } else {
            let name = axum::http::HeaderName::from_bytes(name.as_bytes()).unwrap();
            response.headers_mut().insert(name, value.parse().unwrap());
        }
    }
    response
}
