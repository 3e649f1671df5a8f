//! Core's requests to a registry: against a real one with a password, and against a fake one that behaves as other
//! registries do.

#![expect(clippy::unwrap_used, reason = "a helper's failure fails the test")]

use std::fmt::Write as _;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use sha2::{Digest as _, Sha256};
use stagely::config::RegistryConfig;
use stagely::core::registry::{Registry, RegistryError};
use stagely_protocol::{Digest, ImageRef};
use stagely_test_support::ports::free_port;
use stagely_test_support::registry::PrivateRegistry;
use stagely_test_support::wait::eventually;
use tokio::net::TcpListener;

const USER: &str = "stagely";
const PASSWORD: &str = "correct horse: battery";
const IMAGE: &str = "application/vnd.oci.image.manifest.v1+json";

fn digest_of(bytes: &[u8]) -> Digest {
    let mut text = "sha256:".to_owned();
    for byte in Sha256::digest(bytes) {
        write!(text, "{byte:02x}").unwrap();
    }
    text.parse().unwrap()
}

/// A `docker-registry` with a password, and a client that is not core's.
struct RealRegistry {
    server: PrivateRegistry,
    address: SocketAddr,
    http: reqwest::Client,
}

impl RealRegistry {
    async fn start(deletes: bool) -> Self {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
        let server = PrivateRegistry::start(address, Some((USER, PASSWORD)), deletes);
        fs::write(server.folder().join("password"), format!("{PASSWORD}\n")).unwrap();
        let real = Self { server, address, http: reqwest::Client::new() };
        eventually("the registry answers", async || {
            real.http.get(format!("http://{address}/v2/")).send().await.ok()
        })
        .await;
        real
    }

    fn client(&self, password_file: &str) -> Registry {
        Registry::new(RegistryConfig {
            url: Some(self.address.to_string()),
            username: Some(USER.to_owned()),
            password_file: Some(self.server.folder().join(password_file)),
            insecure: false,
        })
        .unwrap()
    }

    fn image(&self, tag: &str) -> ImageRef {
        format!("{}/app/cache:{tag}", self.address).parse().unwrap()
    }

    async fn ask(
        &self,
        method: &str,
        path: &str,
        body: Vec<u8>,
        media_type: &str,
    ) -> reqwest::Response {
        let url = if path.starts_with("http") {
            path.to_owned()
        } else {
            format!("http://{}/v2/app/cache/{path}", self.address)
        };
        self.http
            .request(method.parse().unwrap(), url)
            .basic_auth(USER, Some(PASSWORD))
            .header("Content-Type", media_type)
            .header("Accept", IMAGE)
            .body(body)
            .send()
            .await
            .unwrap()
    }

    /// Pushes an image without layers under each of `tags`.
    async fn push(&self, tags: &[&str], name: &str) -> (Digest, Vec<u8>) {
        let config = format!("{{\"name\":\"{name}\"}}").into_bytes();
        let upload = self.ask("POST", "blobs/uploads/", Vec::new(), "text/plain").await;
        let place = upload.headers()["Location"].to_str().unwrap().to_owned();
        let place = format!("{place}&digest={}", digest_of(&config));
        let media_type = "application/octet-stream";
        assert_eq!(self.ask("PUT", &place, config.clone(), media_type).await.status(), 201);
        // With unusual spaces, so that a client that serializes the manifest again changes the digest.
        let manifest = format!(
            "{{ \"schemaVersion\" : 2,\n\t\"mediaType\" : \"{IMAGE}\", \"config\": {{\"size\": {}, \"digest\":\"{}\",\
             \"mediaType\":\"application/vnd.oci.image.config.v1+json\"}}, \"layers\": [ ] }}\n",
            config.len(),
            digest_of(&config),
        )
        .into_bytes();
        for tag in tags {
            let path = format!("manifests/{tag}");
            assert_eq!(self.ask("PUT", &path, manifest.clone(), IMAGE).await.status(), 201);
        }
        (digest_of(&manifest), manifest)
    }

    /// The manifest that `tag` points to.
    async fn manifest(&self, tag: &str) -> Option<Vec<u8>> {
        let response = self.ask("GET", &format!("manifests/{tag}"), Vec::new(), IMAGE).await;
        match response.status().as_u16() {
            200 => Some(response.bytes().await.unwrap().to_vec()),
            404 => None,
            status => panic!("{status}"),
        }
    }
}

#[tokio::test]
async fn a_tag_moves_to_a_digest_byte_for_byte_and_back() {
    let real = RealRegistry::start(true).await;
    let (first, first_bytes) = real.push(&["run-1", "app"], "first").await;
    let (second, second_bytes) = real.push(&["run-2"], "second").await;
    let (registry, app) = (real.client("password"), real.image("app"));

    registry.tag(&app, &second).await.unwrap();
    assert_eq!(real.manifest("app").await.unwrap(), second_bytes);

    registry.tag(&app, &first).await.unwrap();
    registry.tag(&app, &first).await.unwrap();
    assert_eq!(real.manifest("app").await.unwrap(), first_bytes);
    assert_eq!(real.manifest("run-2").await.unwrap(), second_bytes);
}

#[tokio::test]
async fn deleting_one_of_two_tags_of_a_manifest_leaves_the_other() {
    let real = RealRegistry::start(true).await;
    let (digest, bytes) = real.push(&["app", "app.pr-7"], "shared").await;
    let registry = real.client("password");

    registry.delete(&real.image("app.pr-7")).await.unwrap();

    assert_eq!(real.manifest("app.pr-7").await, None);
    assert_eq!(real.manifest("app").await.unwrap(), bytes);
    assert_eq!(real.manifest(digest.as_str()).await.unwrap(), bytes);
    registry.delete(&real.image("app.pr-7")).await.unwrap();
    registry.delete(&real.image("never-was")).await.unwrap();
}

#[tokio::test]
async fn a_registry_that_deletes_nothing_is_no_failure() {
    let real = RealRegistry::start(false).await;
    let (_, bytes) = real.push(&["app", "app.pr-7"], "shared").await;

    real.client("password").delete(&real.image("app.pr-7")).await.unwrap();

    assert_eq!(real.manifest("app").await.unwrap(), bytes);
}

#[tokio::test]
async fn the_tags_of_a_repository_are_listed_over_all_pages_and_can_all_be_deleted() {
    let real = RealRegistry::start(true).await;
    let names: Vec<String> = (0..250).map(|number| format!("app.{number:03}")).collect();
    real.push(&names.iter().map(String::as_str).collect::<Vec<_>>(), "app").await;
    let registry = real.client("password");
    let repository = format!("{}/app/cache", real.address);

    let tags = registry.tags(&repository).await.unwrap();

    assert_eq!(tags, names.iter().map(|name| real.image(name)).collect());
    for tag in &tags {
        registry.delete(tag).await.unwrap();
    }
    assert!(registry.tags(&repository).await.unwrap().is_empty());
    assert!(registry.tags(&format!("{}/never/was", real.address)).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_next_page_of_tags_at_another_host_is_refused() {
    let page =
        || async { ([("Link", "<http://127.0.0.2:9/v2/x>; rel=\"next\"")], "{\"tags\":[]}") };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, Router::new().fallback(page)).await });
    let config = RegistryConfig { url: Some(address.to_string()), ..RegistryConfig::default() };

    let error = Registry::new(config).unwrap().tags(&format!("{address}/app/pr-7")).await;

    assert!(matches!(error, Err(RegistryError::InvalidResponse(_))), "{error:?}");
}

#[tokio::test]
async fn permanent_errors_come_at_once_and_without_the_password() {
    let real = RealRegistry::start(true).await;
    let (digest, _) = real.push(&["app"], "app").await;
    fs::write(real.server.folder().join("wrong"), "not-the-password").unwrap();
    let absent = digest_of(b"nowhere");

    let refused = real.client("wrong").tag(&real.image("app"), &digest).await.unwrap_err();
    let missing = real.client("password").tag(&real.image("app"), &absent).await.unwrap_err();
    let unread = real.client("no-file").tag(&real.image("app"), &digest).await.unwrap_err();

    assert!(matches!(refused, RegistryError::AccessDenied { status: 401, .. }), "{refused}");
    assert!(!format!("{refused:?}").contains("not-the-password"));
    assert!(matches!(missing, RegistryError::Missing(_)), "{missing}");
    assert!(matches!(unread, RegistryError::Password(_)), "{unread}");
}

#[tokio::test]
async fn requests_are_repeated_while_the_registry_is_down() {
    let mut real = RealRegistry::start(true).await;
    let (digest, bytes) = real.push(&["run-1"], "app").await;
    let (registry, app) = (real.client("password"), real.image("app"));
    real.server.kill();
    let broken = TcpListener::bind(real.address).await.unwrap();
    let tagging = tokio::spawn(async move { registry.tag(&app, &digest).await });
    // Each attempt ends with a broken connection.
    for _ in 0..2 {
        drop(broken.accept().await.unwrap());
    }
    drop(broken);
    assert!(!tagging.is_finished());

    // The same data at the same address.
    real.server.launch();

    tagging.await.unwrap().unwrap();
    assert_eq!(real.manifest("app").await.unwrap(), bytes);
}

/// A registry with a token server, that deletes tags.
#[derive(Clone, Default)]
struct TokenRegistry {
    address: Arc<Mutex<Option<SocketAddr>>>,
    calls: Arc<Mutex<Vec<String>>>,
}

impl TokenRegistry {
    async fn start() -> Self {
        let registry = Self::default();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        *registry.address.lock().unwrap() = Some(listener.local_addr().unwrap());
        let app = Router::new().fallback(answer).with_state(registry.clone());
        tokio::spawn(async move { axum::serve(listener, app).await });
        registry
    }

    fn address(&self) -> SocketAddr {
        self.address.lock().unwrap().unwrap()
    }
}

async fn answer(State(registry): State<TokenRegistry>, request: Request) -> Response {
    use base64::Engine as _;
    let authorization = request.headers().get("Authorization");
    let authorization = authorization.map(|value| value.to_str().unwrap().to_owned());
    let call = format!("{} {}", request.method(), request.uri());
    if request.uri().path() == "/token" {
        let pair = base64::engine::general_purpose::STANDARD.encode(format!("{USER}:{PASSWORD}"));
        if authorization != Some(format!("Basic {pair}")) {
            return StatusCode::UNAUTHORIZED.into_response();
        }
        registry.calls.lock().unwrap().push(call);
        return "{\"token\":\"good-for-an-hour\"}".into_response();
    }
    if authorization.as_deref() != Some("Bearer good-for-an-hour") {
        let action = if request.method() == "DELETE" { "delete" } else { "pull" };
        let challenge = format!(
            "Bearer realm=\"http://{}/token\",service=\"test\",scope=\"repository:app/cache:{action}\"",
            registry.address(),
        );
        return (StatusCode::UNAUTHORIZED, [("WWW-Authenticate", challenge)]).into_response();
    }
    registry.calls.lock().unwrap().push(call);
    let is_delete = request.method() == "DELETE";
    if is_delete { StatusCode::ACCEPTED.into_response() } else { StatusCode::OK.into_response() }
}

#[tokio::test]
async fn a_tag_is_deleted_with_a_token_for_deletion() {
    let fake = TokenRegistry::start().await;
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("password"), PASSWORD).unwrap();
    let registry = Registry::new(RegistryConfig {
        url: Some(fake.address().to_string()),
        username: Some(USER.to_owned()),
        password_file: Some(folder.path().join("password")),
        insecure: false,
    })
    .unwrap();

    let tag: ImageRef = format!("{}/app/cache:app.pr-7", fake.address()).parse().unwrap();
    registry.delete(&tag).await.unwrap();

    assert_eq!(
        *fake.calls.lock().unwrap(),
        [
            "GET /token?service=test&scope=repository%3Aapp%2Fcache%3Apull",
            "HEAD /v2/app/cache/manifests/app.pr-7",
            "GET /token?service=test&scope=repository%3Aapp%2Fcache%3Adelete",
            "DELETE /v2/app/cache/manifests/app.pr-7",
        ]
    );
}

#[tokio::test]
async fn a_redirected_write_is_an_error() {
    let redirect = |request: Request| async move {
        match request.method().as_str() {
            "DELETE" => (StatusCode::FOUND, [("Location", "/elsewhere")]).into_response(),
            _ => StatusCode::OK.into_response(),
        }
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let app = Router::new().fallback(redirect);
    tokio::spawn(async move { axum::serve(listener, app).await });
    let config = RegistryConfig { url: Some(address.to_string()), ..RegistryConfig::default() };

    let tag: ImageRef = format!("{address}/app/cache:app.pr-7").parse().unwrap();
    let error = Registry::new(config).unwrap().delete(&tag).await.unwrap_err();

    assert!(matches!(error, RegistryError::InvalidResponse(_)), "{error}");
}
