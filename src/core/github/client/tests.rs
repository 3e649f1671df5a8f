//! The client against a server on loopback.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, Response};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use openssl::hash::MessageDigest;
use openssl::pkey::{PKey, Private};
use openssl::rsa::Rsa;
use openssl::sign::Verifier;
use secrecy::{ExposeSecret as _, SecretString};
use serde_json::{Value, json};
use stagely_protocol::CommitSha;
use stagely_state::ids::ProjectId;
use stagely_state::{ForkPolicy, GithubLink, Project, Timestamp};
use tempfile::TempDir;
use tokio::net::TcpListener;

use super::credentials::Variables;
use super::*;
use crate::config::Config;
use crate::core::clock::now;
use crate::core::secrets::SecretStore;
use crate::core::secrets::keyring::Keyring;
use crate::core::store::Store;

const TOKEN: &str = "github_pat_0815";

/// What the client asked.
#[derive(Clone, Debug)]
struct Asked {
    /// Method, path and query.
    line: String,
    headers: HeaderMap,
    body: Value,
}

impl Asked {
    fn bearer(&self) -> &str {
        self.headers["authorization"].to_str().unwrap().strip_prefix("Bearer ").unwrap()
    }
}

type Answers = Arc<Mutex<VecDeque<Response<Body>>>>;

/// Gives its answers one after the other, whatever it is asked.
#[derive(Clone)]
struct Server {
    url: String,
    asked: Arc<Mutex<Vec<Asked>>>,
    answers: Answers,
}

impl Server {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let server = Self { url, asked: Arc::default(), answers: Answers::default() };
        let router = Router::new().fallback(serve).with_state(server.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        server
    }

    fn answers(&self, status: u16, headers: &[(&str, &str)], body: impl Into<Body>) {
        let mut response = Response::builder().status(status);
        for (name, value) in headers {
            response = response.header(*name, *value);
        }
        self.answers.lock().unwrap().push_back(response.body(body.into()).unwrap());
    }

    fn answers_json(&self, status: u16, body: &Value) {
        self.answers(status, &[], body.to_string());
    }

    fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }

    fn lines(&self) -> Vec<String> {
        self.asked().into_iter().map(|asked| asked.line).collect()
    }
}

async fn serve(State(server): State<Server>, request: Request) -> Response<Body> {
    let (parts, body) = request.into_parts();
    let body = to_bytes(body, 1024 * 1024).await.unwrap();
    server.asked.lock().unwrap().push(Asked {
        line: format!("{} {}", parts.method, parts.uri),
        headers: parts.headers,
        body: serde_json::from_slice(&body).unwrap_or_default(),
    });
    let answer = server.answers.lock().unwrap().pop_front();
    // No status of GitHub's: a test that asks once more than it says sees it.
    answer.unwrap_or_else(|| Response::builder().status(418).body(Body::empty()).unwrap())
}

/// A client that asks `server`, with the folder that holds its store.
fn client(server: &Server, app_id: Option<u64>, variables: Variables) -> (Github, TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let (store, _) = Store::open(&folder.path().join("core.redb")).unwrap();
    let keyring = Keyring::open(&folder.path().join("key")).unwrap();
    let secrets = SecretStore::new(keyring, store, Vec::new(), Vec::new(), Vec::new());
    let mut config = Config::default();
    config.github.api_url = server.url.parse().unwrap();
    config.github.app_id = app_id;
    (Github::with_variables(Arc::new(config), secrets, variables).unwrap(), folder)
}

fn with_token(server: &Server) -> (Github, TempDir) {
    let token = Some(SecretString::from(TOKEN));
    client(server, None, Variables { token, private_key: None })
}

fn with_app(server: &Server, key: &PKey<Private>) -> (Github, TempDir) {
    let pem = String::from_utf8(key.rsa().unwrap().private_key_to_pem().unwrap()).unwrap();
    let private_key = Some(SecretString::from(pem));
    client(server, Some(815), Variables { token: None, private_key })
}

fn new_key() -> PKey<Private> {
    PKey::from_rsa(Rsa::generate(2048).unwrap()).unwrap()
}

fn project() -> Project {
    let repository = "acme/shop".parse().unwrap();
    let github = GithubLink { repository, forks: ForkPolicy::default(), is_configured: true };
    let project = Project::new(ProjectId::from_bits(1), "shop".to_owned(), String::new());
    Project { github: Some(github), ..project }
}

fn commit() -> CommitSha {
    "c".repeat(40).parse().unwrap()
}

fn repository() -> Value {
    json!({ "full_name": "acme/shop", "default_branch": "main", "private": true })
}

fn pull_request(number: u64) -> Value {
    json!({
        "number": number,
        "state": "open",
        "head": { "sha": "c".repeat(40), "ref": "fix", "repo": { "id": 1 } },
        "base": { "ref": "main", "repo": { "id": 1 } },
        "user": { "login": "alice" },
        "created_at": "2026-01-02T03:04:05Z",
        "updated_at": "2026-01-02T03:04:05Z",
    })
}

fn minted(token: &str, ends_in: Duration) -> Value {
    let ends = jiff::Timestamp::from_millisecond(i64::try_from(now().after(ends_in).0).unwrap());
    json!({ "token": token, "expires_at": ends.unwrap().to_string() })
}

/// Checks who signed a JSON web token, and returns what it claims.
fn claims(jwt: &str, key: &PKey<Private>) -> Value {
    let (signed, signature) = jwt.rsplit_once('.').unwrap();
    let mut verifier = Verifier::new(MessageDigest::sha256(), key).unwrap();
    verifier.update(signed.as_bytes()).unwrap();
    assert!(verifier.verify(&URL_SAFE_NO_PAD.decode(signature).unwrap()).unwrap());
    let payload = signed.split('.').nth(1).unwrap();
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(payload).unwrap()).unwrap()
}

const HOUR: Duration = Duration::from_hours(1);

#[tokio::test]
async fn a_request_has_the_token_and_says_who_asks_and_which_api() {
    let server = Server::start().await;
    server.answers_json(200, &repository());
    let (github, _folder) = with_token(&server);

    let read = github.repository(&project()).await.unwrap();

    assert_eq!((read.default_branch.as_str(), read.is_private), ("main", true));
    let asked = server.asked().remove(0);
    assert_eq!(asked.line, "GET /repos/acme/shop");
    assert_eq!(asked.bearer(), TOKEN);
    // GitHub answers nobody who does not say who asks.
    assert_eq!(asked.headers.get_all("user-agent").iter().count(), 1);
    assert_eq!(asked.headers["x-github-api-version"], "2022-11-28");
}

#[tokio::test]
async fn the_app_signs_who_it_is_and_its_own_token_is_made_once() {
    let server = Server::start().await;
    server.answers_json(200, &json!({ "id": 42 }));
    server.answers_json(201, &minted("ghs_own", HOUR));
    server.answers_json(200, &repository());
    server.answers_json(200, &repository());
    let key = new_key();
    let (github, _folder) = with_app(&server, &key);

    github.repository(&project()).await.unwrap();
    github.repository(&project()).await.unwrap();

    let expected = [
        "GET /repos/acme/shop/installation",
        "POST /app/installations/42/access_tokens",
        "GET /repos/acme/shop",
        "GET /repos/acme/shop",
    ];
    assert_eq!(server.lines(), expected);
    let asked = server.asked();
    let seconds = now().0 / 1000;
    for of_app in &asked[..2] {
        let claims = claims(of_app.bearer(), &key);
        assert!(claims["iss"] == 815 || claims["iss"] == "815", "{claims}");
        let (from, until) = (claims["iat"].as_u64().unwrap(), claims["exp"].as_u64().unwrap());
        assert!(from <= seconds && until > seconds && until - from <= 660, "{claims}");
    }
    let permissions = json!({
        "contents": "read", "issues": "write", "metadata": "read", "pull_requests": "write",
        "statuses": "write",
    });
    assert_eq!(asked[1].body, json!({ "repositories": ["shop"], "permissions": permissions }));
    assert_eq!((asked[2].bearer(), asked[3].bearer()), ("ghs_own", "ghs_own"));
}

#[tokio::test]
async fn an_own_token_that_ends_soon_is_made_anew() {
    let server = Server::start().await;
    server.answers_json(200, &json!({ "id": 42 }));
    for token in ["ghs_1", "ghs_2"] {
        server.answers_json(201, &minted(token, Duration::from_mins(4)));
        server.answers_json(200, &repository());
    }
    let (github, _folder) = with_app(&server, &new_key());

    github.repository(&project()).await.unwrap();
    github.repository(&project()).await.unwrap();

    let asked = server.asked();
    assert_eq!((asked[2].bearer(), asked[4].bearer()), ("ghs_1", "ghs_2"));
}

#[tokio::test]
async fn every_clone_has_a_token_of_its_own_that_only_reads_this_repository() {
    let server = Server::start().await;
    server.answers_json(200, &json!({ "id": 42 }));
    server.answers_json(201, &minted("ghs_1", HOUR));
    server.answers_json(201, &minted("ghs_2", HOUR));
    let (github, _folder) = with_app(&server, &new_key());

    for expected in ["ghs_1", "ghs_2"] {
        let token = github.clone_token(&project(), true).await.unwrap().unwrap();
        assert_eq!(token.expose_secret(), expected);
    }

    let asked = server.asked();
    assert_eq!(asked.len(), 3);
    let scope = json!({ "repositories": ["shop"], "permissions": { "contents": "read" } });
    assert_eq!((&asked[1].body, &asked[2].body), (&scope, &scope));
}

#[tokio::test]
async fn a_persons_token_is_not_given_to_the_build_of_a_fork() {
    let server = Server::start().await;
    let (github, _folder) = with_token(&server);
    assert!(github.clone_token(&project(), true).await.unwrap().is_none());
    let own = github.clone_token(&project(), false).await.unwrap().unwrap();
    assert_eq!(own.expose_secret(), TOKEN);
    assert!(server.asked().is_empty());
}

#[tokio::test]
async fn an_app_that_is_not_installed_says_what_to_do() {
    let server = Server::start().await;
    server.answers_json(404, &json!({ "message": "Not Found" }));
    let (github, _folder) = with_app(&server, &new_key());
    let error = github.repository(&project()).await.unwrap_err();
    assert!(matches!(error, GithubError::Credentials(_)), "{error:?}");
    assert!(error.to_string().contains("not installed for acme/shop: install it"), "{error}");
}

#[tokio::test]
async fn no_secret_is_in_what_is_printed() {
    let server = Server::start().await;
    server.answers_json(401, &json!({ "message": "Bad credentials" }));
    let (github, _folder) = with_token(&server);
    let error = github.repository(&project()).await.unwrap_err();
    assert!(matches!(error, GithubError::Credentials(_)), "{error:?}");
    for text in [format!("{github:?} {:?}", github.health()), format!("{error:?} {error}")] {
        assert!(!text.contains(TOKEN), "{text}");
    }
}

#[tokio::test]
async fn lists_are_read_to_the_last_page_from_this_host_alone() {
    let server = Server::start().await;
    let next = "<https://evil.example/repos/acme/shop/pulls?page=1>; rel=\"prev\", \
                <https://evil.example/repos/acme/shop/pulls?page=2>; rel=\"next\"";
    server.answers(200, &[("link", next)], json!([pull_request(1), pull_request(2)]).to_string());
    server.answers_json(200, &json!([pull_request(3)]));
    let (github, _folder) = with_token(&server);

    let all = github.open_pull_requests(&project()).await.unwrap();

    assert_eq!(all.iter().map(|it| it.number).collect::<Vec<_>>(), [1, 2, 3]);
    assert_eq!(server.lines()[1], "GET /repos/acme/shop/pulls?page=2");
}

#[tokio::test]
async fn comments_are_read_until_one_begins_with_the_marker() {
    let server = Server::start().await;
    let next = "</repos/acme/shop/issues/7/comments?page=2>; rel=\"next\"";
    server.answers(200, &[("link", next)], json!([{ "id": 1, "body": null }]).to_string());
    let found =
        json!([{ "id": 2, "body": "> marker: hello" }, { "id": 3, "body": "marker hello" }]);
    server.answers(200, &[("link", next)], found.to_string());
    let (github, _folder) = with_token(&server);
    assert_eq!(github.find_comment(&project(), 7, "marker").await.unwrap(), Some(3));
    assert_eq!(server.asked().len(), 2);
}

#[tokio::test]
async fn a_commit_without_the_file_is_told_from_a_missing_commit() {
    let server = Server::start().await;
    let (github, _folder) = with_token(&server);
    let not_found = json!({ "message": "Not Found" });
    let file = async || github.file(&project(), "stagely.yaml", &commit()).await;

    server.answers(200, &[], "builds: {}");
    assert_eq!(file().await.unwrap().unwrap(), b"builds: {}");
    let contents = format!("GET /repos/acme/shop/contents/stagely.yaml?ref={}", commit());
    assert_eq!(server.lines(), [contents]);

    server.answers_json(404, &not_found);
    server.answers(200, &[], commit().as_str().to_owned());
    assert_eq!(file().await.unwrap(), None);

    for status in [404, 422] {
        server.answers_json(404, &not_found);
        server.answers_json(status, &json!({ "message": "No commit found" }));
        let error = file().await.unwrap_err();
        assert!(matches!(error, GithubError::NotFound(_)), "{error:?}");
        assert!(error.to_string().contains("commit cccc"), "{error}");
    }
}

#[tokio::test]
async fn an_answer_that_is_too_large_is_not_read() {
    let server = Server::start().await;
    server.answers(200, &[], vec![b'#'; 1024 * 1024 + 1]);
    server.answers(403, &[], vec![b'#'; 1024 * 1024]);
    let (github, _folder) = with_token(&server);

    let error = github.file(&project(), "stagely.yaml", &commit()).await.unwrap_err();
    assert!(matches!(error, GithubError::TooLarge { bytes_max: 0x10_0000, .. }), "{error:?}");
    let error = github.repository(&project()).await.unwrap_err();
    assert!(matches!(error, GithubError::Refused { status: 403, .. }), "{error:?}");
    assert_eq!(server.asked().len(), 2);
}

#[tokio::test]
async fn what_is_read_is_asked_for_three_times_and_what_is_written_once() {
    let server = Server::start().await;
    let (github, _folder) = with_token(&server);

    for status in [500, 502, 503] {
        server.answers(status, &[], "");
    }
    let error = github.repository(&project()).await.unwrap_err();
    assert!(matches!(error, GithubError::Unavailable(_)), "{error:?}");
    assert_eq!(server.asked().len(), 3);

    server.answers(502, &[], "");
    let error = github.create_comment(&project(), 7, "hello").await.unwrap_err();
    assert!(matches!(error, GithubError::Unavailable(_)), "{error:?}");
    assert_eq!(server.asked().len(), 4);
    assert_eq!(server.asked()[3].body, json!({ "body": "hello" }));
}

/// How long a client that got this refusal lets be whose token it has.
async fn blocked_by(status: u16, headers: &[(&str, &str)], message: &str) -> Duration {
    let server = Server::start().await;
    server.answers(status, headers, json!({ "message": message }).to_string());
    let (github, _folder) = with_token(&server);
    let begin = now();
    let until = async || match github.repository(&project()).await {
        Err(GithubError::RateLimited { until }) => until,
        other => panic!("{other:?}"),
    };
    let first: Timestamp = until().await;
    // Nobody is asked a second time.
    assert_eq!(until().await, first);
    assert_eq!(server.asked().len(), 1);
    assert_eq!(github.health().blocked_until, Some(first));
    first.since(begin)
}

fn is_about(wait: Duration, seconds: u64) -> bool {
    (seconds.saturating_sub(2)..=seconds + 20).contains(&wait.as_secs())
}

#[tokio::test]
async fn nobody_is_asked_before_the_hour_of_the_primary_limit_is_over() {
    let reset = (now().0 / 1000 + 600).to_string();
    let headers = [("x-ratelimit-remaining", "0"), ("x-ratelimit-reset", reset.as_str())];
    for status in [403, 429] {
        let wait = blocked_by(status, &headers, "API rate limit exceeded").await;
        assert!(is_about(wait, 600), "{wait:?}");
    }
}

#[tokio::test]
async fn a_secondary_limit_is_waited_for_as_it_says_or_for_a_minute() {
    let secondary = "You have exceeded a secondary rate limit.";
    for status in [403, 429] {
        let wait = blocked_by(status, &[("retry-after", "300")], secondary).await;
        assert!(is_about(wait, 300), "{wait:?}");
        let wait = blocked_by(status, &[], secondary).await;
        assert!(is_about(wait, 60), "{wait:?}");
    }
}

#[tokio::test]
async fn a_renamed_repository_is_followed_at_the_same_host() {
    let server = Server::start().await;
    server.answers(301, &[("location", &format!("{}/repositories/1", server.url))], "");
    server.answers_json(200, &repository());
    let (github, _folder) = with_token(&server);
    github.repository(&project()).await.unwrap();
    assert_eq!(server.lines()[1], "GET /repositories/1");
}

#[tokio::test]
async fn another_host_gets_no_credentials() {
    let (server, other) = (Server::start().await, Server::start().await);
    for status in [301, 302, 307, 308] {
        server.answers(status, &[("location", &format!("{}/repos/acme/shop", other.url))], "");
        let (github, _folder) = with_token(&server);
        let error = github.repository(&project()).await.unwrap_err();
        assert!(matches!(error, GithubError::Refused { .. }), "{error:?}");
    }
    assert_eq!(other.lines(), [""; 0]);
}

#[tokio::test]
async fn a_repository_that_moves_in_a_circle_is_given_up() {
    let server = Server::start().await;
    for _ in 0..9 {
        server.answers(301, &[("location", "/repos/acme/shop")], "");
    }
    let (github, _folder) = with_token(&server);
    let error = github.repository(&project()).await.unwrap_err();
    assert!(matches!(error, GithubError::Refused { status: 301, .. }), "{error:?}");
    assert_eq!(server.asked().len(), 3);
}
