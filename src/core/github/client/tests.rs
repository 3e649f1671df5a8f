//! The client against a server on loopback.

use std::collections::{BTreeSet, VecDeque};
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
use super::deployments::NewDeployment;
use super::*;
use crate::config::Config;
use crate::core::clock::now;
use crate::core::secrets::SecretStore;
use crate::core::secrets::keyring::Keyring;
use crate::core::store::Store;

const TOKEN: &str = "github_pat_0815";

#[derive(Clone, Debug)]
struct ReceivedRequest {
    /// Method, path and query.
    line: String,
    headers: HeaderMap,
    body: Value,
}

impl ReceivedRequest {
    fn bearer(&self) -> &str {
        self.headers["authorization"].to_str().unwrap().strip_prefix("Bearer ").unwrap()
    }
}

type Responses = Arc<Mutex<VecDeque<Response<Body>>>>;

/// Sends its responses one after the other, whatever the requests are.
#[derive(Clone)]
struct Server {
    url: String,
    requests: Arc<Mutex<Vec<ReceivedRequest>>>,
    responses: Responses,
}

impl Server {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let server = Self { url, requests: Arc::default(), responses: Responses::default() };
        let router = Router::new().fallback(serve).with_state(server.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        server
    }

    fn respond(&self, status: u16, headers: &[(&str, &str)], body: impl Into<Body>) {
        let mut response = Response::builder().status(status);
        for (name, value) in headers {
            response = response.header(*name, *value);
        }
        self.responses.lock().unwrap().push_back(response.body(body.into()).unwrap());
    }

    fn respond_json(&self, status: u16, body: &Value) {
        self.respond(status, &[], body.to_string());
    }

    fn requests(&self) -> Vec<ReceivedRequest> {
        self.requests.lock().unwrap().clone()
    }

    fn lines(&self) -> Vec<String> {
        self.requests().into_iter().map(|request| request.line).collect()
    }
}

async fn serve(State(server): State<Server>, request: Request) -> Response<Body> {
    let (parts, body) = request.into_parts();
    let body = to_bytes(body, 1024 * 1024).await.unwrap();
    server.requests.lock().unwrap().push(ReceivedRequest {
        line: format!("{} {}", parts.method, parts.uri),
        headers: parts.headers,
        body: serde_json::from_slice(&body).unwrap_or_default(),
    });
    let response = server.responses.lock().unwrap().pop_front();
    // GitHub never sends this status, so a test fails that sends more requests than it expects.
    response.unwrap_or_else(|| Response::builder().status(418).body(Body::empty()).unwrap())
}

/// A client of `server`, with the folder that holds its store.
fn client(server: &Server, app_id: Option<u64>, variables: Variables) -> (Github, TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let (store, _) = Store::open(&folder.path().join("core.redb")).unwrap();
    let keyring = Keyring::open(&folder.path().join("key")).unwrap();
    let secrets = SecretStore::new(keyring, store, Vec::new(), Vec::new());
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

/// Checks the signature of a JSON web token, and returns its claims.
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
async fn a_request_has_the_token_the_user_agent_and_the_api_version() {
    let server = Server::start().await;
    server.respond_json(200, &repository());
    let (github, _folder) = with_token(&server);

    let read = github.repository(&project()).await.unwrap();

    assert_eq!((read.default_branch.as_str(), read.is_private), ("main", true));
    let request = server.requests().remove(0);
    assert_eq!(request.line, "GET /repos/acme/shop");
    assert_eq!(request.bearer(), TOKEN);
    // GitHub refuses requests without a user agent.
    assert_eq!(request.headers.get_all("user-agent").iter().count(), 1);
    assert_eq!(request.headers["x-github-api-version"], "2022-11-28");
}

#[tokio::test]
async fn the_app_signs_its_identity_and_its_own_token_is_made_once() {
    let server = Server::start().await;
    server.respond_json(200, &json!({ "id": 42 }));
    server.respond_json(201, &minted("ghs_own", HOUR));
    server.respond_json(200, &repository());
    server.respond_json(200, &repository());
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
    let requests = server.requests();
    let seconds = now().0 / 1000;
    for of_app in &requests[..2] {
        let claims = claims(of_app.bearer(), &key);
        assert!(claims["iss"] == 815 || claims["iss"] == "815", "{claims}");
        let (from, until) = (claims["iat"].as_u64().unwrap(), claims["exp"].as_u64().unwrap());
        assert!(from <= seconds && until > seconds && until - from <= 660, "{claims}");
    }
    let permissions = json!({
        "contents": "read", "issues": "write", "metadata": "read", "pull_requests": "write",
        "statuses": "write",
    });
    assert_eq!(requests[1].body, json!({ "repositories": ["shop"], "permissions": permissions }));
    assert_eq!((requests[2].bearer(), requests[3].bearer()), ("ghs_own", "ghs_own"));
}

#[tokio::test]
async fn an_own_token_that_expires_soon_is_replaced() {
    let server = Server::start().await;
    server.respond_json(200, &json!({ "id": 42 }));
    for token in ["ghs_1", "ghs_2"] {
        server.respond_json(201, &minted(token, Duration::from_mins(4)));
        server.respond_json(200, &repository());
    }
    let (github, _folder) = with_app(&server, &new_key());

    github.repository(&project()).await.unwrap();
    github.repository(&project()).await.unwrap();

    let requests = server.requests();
    assert_eq!((requests[2].bearer(), requests[4].bearer()), ("ghs_1", "ghs_2"));
}

#[tokio::test]
async fn every_clone_gets_its_own_token_which_only_reads_this_repository() {
    let server = Server::start().await;
    server.respond_json(200, &json!({ "id": 42 }));
    server.respond_json(201, &minted("ghs_1", HOUR));
    server.respond_json(201, &minted("ghs_2", HOUR));
    let (github, _folder) = with_app(&server, &new_key());

    for expected in ["ghs_1", "ghs_2"] {
        let token = github.clone_token(&project(), true).await.unwrap().unwrap();
        assert_eq!(token.expose_secret(), expected);
    }

    let requests = server.requests();
    assert_eq!(requests.len(), 3);
    let scope = json!({ "repositories": ["shop"], "permissions": { "contents": "read" } });
    assert_eq!((&requests[1].body, &requests[2].body), (&scope, &scope));
}

fn new_deployment() -> NewDeployment {
    NewDeployment {
        commit: "a".repeat(40).parse().unwrap(),
        environment: "pr-7".to_owned(),
        is_transient: true,
        marker: "env_1".to_owned(),
        replaced: BTreeSet::new(),
    }
}

#[tokio::test]
async fn deployments_have_a_token_of_their_own_and_are_created_once() {
    let server = Server::start().await;
    server.respond_json(200, &json!({ "id": 42 }));
    server.respond_json(201, &minted("ghs_deploy", HOUR));
    server.respond_json(200, &json!([{ "id": 5, "payload": "{\"other\":1}" }]));
    server.respond_json(201, &json!({ "id": 6, "payload": { "stagely": "env_1" } }));
    server.respond_json(200, &json!([{ "id": 6, "payload": { "stagely": "env_1" } }]));
    let (github, _folder) = with_app(&server, &new_key());

    for _ in 0..2 {
        assert_eq!(github.create_deployment(&project(), &new_deployment()).await.unwrap(), 6);
    }

    let requests = server.requests();
    assert_eq!(requests.len(), 5);
    let scope = json!({ "repositories": ["shop"], "permissions": { "deployments": "write" } });
    assert_eq!((&requests[1].body, requests[3].bearer()), (&scope, "ghs_deploy"));
    let body = &requests[3].body;
    assert_eq!((&body["auto_merge"], &body["required_contexts"]), (&json!(false), &json!([])));
    assert_eq!(github.deployments_problem(&project()), None);
}

#[tokio::test]
async fn a_missing_permission_for_deployments_is_remembered_and_is_no_failure_of_core() {
    let refused = json!({ "message": "The permissions requested are not granted." });
    let server = Server::start().await;
    server.respond_json(200, &json!({ "id": 42 }));
    server.respond_json(422, &refused);
    let (github, _folder) = with_app(&server, &new_key());
    github.create_deployment(&project(), &new_deployment()).await.unwrap_err();
    let problem = github.deployments_problem(&project()).unwrap();
    assert!(problem.contains("not granted"), "{problem}");
    assert_eq!(github.health().problem, None);

    // A person's token may read deployments, and not create them.
    for status in [403, 404] {
        let server = Server::start().await;
        server.respond_json(200, &json!([]));
        server.respond_json(status, &json!({ "message": "Resource not accessible" }));
        let (github, _folder) = with_token(&server);
        github.create_deployment(&project(), &new_deployment()).await.unwrap_err();
        assert!(github.deployments_problem(&project()).is_some());
    }
    // Other refusals say nothing about permissions.
    for status in [409, 422, 500] {
        let server = Server::start().await;
        server.respond_json(200, &json!([]));
        server.respond_json(status, &json!({ "message": "No ref found" }));
        let (github, _folder) = with_token(&server);
        github.create_deployment(&project(), &new_deployment()).await.unwrap_err();
        assert_eq!(github.deployments_problem(&project()), None, "{status}");
    }
}

#[tokio::test]
async fn a_persons_token_is_not_given_to_the_build_of_a_fork() {
    let server = Server::start().await;
    let (github, _folder) = with_token(&server);
    assert!(github.clone_token(&project(), true).await.unwrap().is_none());
    let own = github.clone_token(&project(), false).await.unwrap().unwrap();
    assert_eq!(own.expose_secret(), TOKEN);
    assert!(server.requests().is_empty());
}

#[tokio::test]
async fn the_error_of_a_missing_installation_says_what_to_do() {
    let server = Server::start().await;
    server.respond_json(404, &json!({ "message": "Not Found" }));
    let (github, _folder) = with_app(&server, &new_key());
    let error = github.repository(&project()).await.unwrap_err();
    assert!(matches!(error, GithubError::Credentials(_)), "{error:?}");
    assert!(error.to_string().contains("not installed for acme/shop: install it"), "{error}");
}

#[tokio::test]
async fn no_secret_is_in_messages_or_debug_output() {
    let server = Server::start().await;
    server.respond_json(401, &json!({ "message": "Bad credentials" }));
    let (github, _folder) = with_token(&server);
    let error = github.repository(&project()).await.unwrap_err();
    assert!(matches!(error, GithubError::Credentials(_)), "{error:?}");
    for text in [format!("{github:?} {:?}", github.health()), format!("{error:?} {error}")] {
        assert!(!text.contains(TOKEN), "{text}");
    }
}

#[tokio::test]
async fn all_pages_of_a_list_are_read_from_the_same_host() {
    let server = Server::start().await;
    let next = "<https://evil.example/repos/acme/shop/pulls?page=1>; rel=\"prev\", \
                <https://evil.example/repos/acme/shop/pulls?page=2>; rel=\"next\"";
    server.respond(200, &[("link", next)], json!([pull_request(1), pull_request(2)]).to_string());
    server.respond_json(200, &json!([pull_request(3)]));
    let (github, _folder) = with_token(&server);

    let all = github.open_pull_requests(&project()).await.unwrap();

    assert_eq!(all.iter().map(|pull_request| pull_request.number).collect::<Vec<_>>(), [1, 2, 3]);
    assert_eq!(server.lines()[1], "GET /repos/acme/shop/pulls?page=2");
}

#[tokio::test]
async fn the_first_comment_that_begins_with_the_marker_is_found() {
    let server = Server::start().await;
    let next = "</repos/acme/shop/issues/7/comments?page=2>; rel=\"next\"";
    server.respond(200, &[("link", next)], json!([{ "id": 1, "body": null }]).to_string());
    let found =
        json!([{ "id": 2, "body": "> marker: hello" }, { "id": 3, "body": "marker hello" }]);
    server.respond(200, &[("link", next)], found.to_string());
    let (github, _folder) = with_token(&server);
    assert_eq!(github.find_comment(&project(), 7, "marker").await.unwrap(), Some(3));
    assert_eq!(server.requests().len(), 2);
}

#[tokio::test]
async fn a_missing_file_and_a_missing_commit_are_distinguished() {
    let server = Server::start().await;
    let (github, _folder) = with_token(&server);
    let not_found = json!({ "message": "Not Found" });
    let file = async || github.file(&project(), "stagely.yaml", &commit()).await;

    server.respond(200, &[], "builds: {}");
    assert_eq!(file().await.unwrap().unwrap(), b"builds: {}");
    let contents = format!("GET /repos/acme/shop/contents/stagely.yaml?ref={}", commit());
    assert_eq!(server.lines(), [contents]);

    server.respond_json(404, &not_found);
    server.respond(200, &[], commit().as_str().to_owned());
    assert_eq!(file().await.unwrap(), None);

    for status in [404, 422] {
        server.respond_json(404, &not_found);
        server.respond_json(status, &json!({ "message": "No commit found" }));
        let error = file().await.unwrap_err();
        assert!(matches!(error, GithubError::NotFound(_)), "{error:?}");
        assert!(error.to_string().contains("commit cccc"), "{error}");
    }
}

#[tokio::test]
async fn a_response_that_is_too_large_is_not_read() {
    let server = Server::start().await;
    server.respond(200, &[], vec![b'#'; 1024 * 1024 + 1]);
    server.respond(403, &[], vec![b'#'; 1024 * 1024]);
    let (github, _folder) = with_token(&server);

    let error = github.file(&project(), "stagely.yaml", &commit()).await.unwrap_err();
    assert!(matches!(error, GithubError::TooLarge { bytes_max: 0x10_0000, .. }), "{error:?}");
    let error = github.repository(&project()).await.unwrap_err();
    assert!(matches!(error, GithubError::Refused { status: 403, .. }), "{error:?}");
    assert_eq!(server.requests().len(), 2);
}

#[tokio::test]
async fn reads_are_sent_up_to_three_times_and_writes_once() {
    let server = Server::start().await;
    let (github, _folder) = with_token(&server);

    for status in [500, 502, 503] {
        server.respond(status, &[], "");
    }
    let error = github.repository(&project()).await.unwrap_err();
    assert!(matches!(error, GithubError::Unavailable(_)), "{error:?}");
    assert_eq!(server.requests().len(), 3);

    server.respond(502, &[], "");
    let error = github.create_comment(&project(), 7, "hello").await.unwrap_err();
    assert!(matches!(error, GithubError::Unavailable(_)), "{error:?}");
    assert_eq!(server.requests().len(), 4);
    assert_eq!(server.requests()[3].body, json!({ "body": "hello" }));
}

/// How long this refusal blocks the account of its token.
async fn blocked_by(status: u16, headers: &[(&str, &str)], message: &str) -> Duration {
    let server = Server::start().await;
    server.respond(status, headers, json!({ "message": message }).to_string());
    let (github, _folder) = with_token(&server);
    let begin = now();
    let until = async || match github.repository(&project()).await {
        Err(GithubError::RateLimited { until }) => until,
        other => panic!("{other:?}"),
    };
    let first: Timestamp = until().await;
    // No second request is sent.
    assert_eq!(until().await, first);
    assert_eq!(server.requests().len(), 1);
    assert_eq!(github.health().blocked_until, Some(first));
    first.since(begin)
}

fn is_about(wait: Duration, seconds: u64) -> bool {
    (seconds.saturating_sub(2)..=seconds + 20).contains(&wait.as_secs())
}

#[tokio::test]
async fn the_primary_limit_blocks_until_its_reset() {
    let reset = (now().0 / 1000 + 600).to_string();
    let headers = [("x-ratelimit-remaining", "0"), ("x-ratelimit-reset", reset.as_str())];
    for status in [403, 429] {
        let wait = blocked_by(status, &headers, "API rate limit exceeded").await;
        assert!(is_about(wait, 600), "{wait:?}");
    }
}

#[tokio::test]
async fn a_secondary_limit_blocks_for_retry_after_or_for_a_minute() {
    let secondary = "You have exceeded a secondary rate limit.";
    for status in [403, 429] {
        let wait = blocked_by(status, &[("retry-after", "300")], secondary).await;
        assert!(is_about(wait, 300), "{wait:?}");
        let wait = blocked_by(status, &[], secondary).await;
        assert!(is_about(wait, 60), "{wait:?}");
    }
}

#[tokio::test]
async fn a_redirect_to_the_same_host_is_followed() {
    let server = Server::start().await;
    server.respond(301, &[("location", &format!("{}/repositories/1", server.url))], "");
    server.respond_json(200, &repository());
    let (github, _folder) = with_token(&server);
    github.repository(&project()).await.unwrap();
    assert_eq!(server.lines()[1], "GET /repositories/1");
}

#[tokio::test]
async fn another_host_gets_no_credentials() {
    let (server, other) = (Server::start().await, Server::start().await);
    for status in [301, 302, 307, 308] {
        server.respond(status, &[("location", &format!("{}/repos/acme/shop", other.url))], "");
        let (github, _folder) = with_token(&server);
        let error = github.repository(&project()).await.unwrap_err();
        assert!(matches!(error, GithubError::Refused { .. }), "{error:?}");
    }
    assert_eq!(other.lines(), [""; 0]);
}

#[tokio::test]
async fn redirects_in_a_circle_end_with_an_error() {
    let server = Server::start().await;
    for _ in 0..9 {
        server.respond(301, &[("location", "/repos/acme/shop")], "");
    }
    let (github, _folder) = with_token(&server);
    let error = github.repository(&project()).await.unwrap_err();
    assert!(matches!(error, GithubError::Refused { status: 301, .. }), "{error:?}");
    assert_eq!(server.requests().len(), 3);
}
