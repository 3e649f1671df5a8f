//! The export of layer caches, which comes after the image.

use std::io::Write as _;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use stagely_protocol::{FailureReason, RegistryProblem, Status, StatusState};
use stagely_test_support::wait::eventually;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use crate::setup::{Setup, runs_on_host, setting};

/// How a [`proxy`] treats the upload of a cache's manifest.
#[derive(Clone)]
enum CacheUpload {
    /// `reached` fires when the upload begins, and the upload goes on when `released` fires.
    Held {
        reached: CancellationToken,
        released: CancellationToken,
    },
    Refused,
}

/// Passes connections on to the registry, but for the upload of `cache`'s manifest.
async fn proxy(listener: TcpListener, upload: CacheUpload) {
    loop {
        let (client, _) = listener.accept().await.unwrap();
        let server = TcpStream::connect(setting("STAGELY_REGISTRY")).await.unwrap();
        tokio::spawn(pass(client, server, upload.clone()));
    }
}

async fn pass(client: TcpStream, server: TcpStream, upload: CacheUpload) {
    let ((mut from_client, mut to_client), (mut from_server, mut to_server)) =
        (client.into_split(), server.into_split());
    let answers = async {
        let _ = tokio::io::copy(&mut from_server, &mut to_client).await;
    };
    let requests = async {
        let mut buffer = vec![0; 64 * 1024];
        while let Ok(length @ 1..) = from_client.read(&mut buffer).await {
            let text = String::from_utf8_lossy(&buffer[..length]);
            if text.starts_with("PUT ") && text.contains("/manifests/cache HTTP/") {
                match &upload {
                    CacheUpload::Held { reached, released } => {
                        reached.cancel();
                        released.cancelled().await;
                    }
                    CacheUpload::Refused => return,
                }
            }
            if to_server.write_all(&buffer[..length]).await.is_err() {
                return;
            }
        }
    };
    // If one direction ends, the other one ends as well.
    tokio::select! {
        () = answers => {}
        () = requests => {}
    }
}

impl Setup {
    /// A registry that treats the manifest of [`Self::cached_build`]'s cache as `upload` says.
    async fn with_proxy(name: &str, upload: CacheUpload) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let registry = listener.local_addr().unwrap().to_string();
        tokio::spawn(proxy(listener, upload));
        Self { registry, ..Self::new(name) }
    }

    /// A build with a cache, and with a step that no other build has.
    fn cached_build(&self, config: Value) -> Value {
        let dockerfile = format!("FROM busybox\nRUN echo {}\n", self.name);
        let mut message = self.build(&[("Dockerfile", &dockerfile)], config);
        message["build_config"]["cache_to"] = self.image("cache").into();
        message
    }

    async fn pushed(&self) -> Status {
        eventually("the push is reported", async || self.lines.pushed.lock().unwrap().clone()).await
    }

    fn is_in_registry(&self, tag: &str) -> bool {
        let user = format!("user = \"{}:{}\"", setting("STAGELY_REGISTRY_USERNAME"), self.password);
        // Not through a proxy, whose task cannot run while this thread waits.
        let registry = setting("STAGELY_REGISTRY");
        let url = format!("http://{registry}/v2/{}/manifests/{tag}", self.name);
        let accept = "Accept: application/vnd.oci.image.manifest.v1+json";
        let mut curl = Command::new("curl")
            .args(["--silent", "--fail", "--output", "/dev/null", "--header", accept])
            .args(["--config", "-", &url])
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        curl.stdin.take().unwrap().write_all(user.as_bytes()).unwrap();
        curl.wait().unwrap().success()
    }
}

#[tokio::test]
async fn a_cache_that_cannot_be_read_or_written_never_fails_a_build() {
    let setup = Setup::new("nocache");
    let files = [("Dockerfile", "FROM debian:13-slim\nCOPY Dockerfile /\n")];
    let (missing, down) = (setup.image("nothing"), "127.0.0.1:1/cache:app".to_owned());
    for (cache_from, cache_to) in [(&missing, &down), (&down, &missing), (&down, &down)] {
        let config = json!({ "cache_from": [cache_from], "cache_to": cache_to });
        let status = setup.run(setup.build(&files, config)).await;
        assert_eq!(status.state, StatusState::Completed, "{status:?}\n{}", setup.log());
    }
}

#[tokio::test]
async fn an_image_is_reported_and_joined_while_its_cache_is_exported() {
    let (reached, released) = (CancellationToken::new(), CancellationToken::new());
    let upload = CacheUpload::Held { reached, released: released.clone() };
    let setup = Setup::with_proxy("first", upload).await;
    let message = setup.cached_build(json!({ "timeout_seconds": 60 }));
    let meanwhile = async {
        let status = setup.pushed().await;
        assert_eq!((status.state, status.exporting_cache), (StatusState::Completed, true));
        assert!(setup.is_in_registry("app") && !setup.is_in_registry("cache"));
        let image = status.artifact_url.as_ref().unwrap();
        let image = image.at_digest(status.digest.as_ref().unwrap()).to_string();
        // Another job on the same machine.
        let merge = Setup { registry: setup.registry.clone(), ..Setup::new("joined") };
        let joined = merge.merge(&[image], &["linux/amd64"]).await;
        assert_eq!(joined.state, StatusState::Completed, "{}", merge.log());
        assert!(!setup.is_in_registry("cache"));
        released.cancel();
        status
    };
    let (last, first) = tokio::join!(setup.run(message), meanwhile);
    assert_eq!(last, Status { exporting_cache: false, ..first });
    assert!(setup.is_in_registry("cache"));
    let log = setup.log();
    let after = log.split("steps cached, pushed").nth(1).unwrap();
    let lines: Vec<_> = after.lines().skip(2).collect();
    let cache = setup.image("cache");
    assert_eq!((lines.len(), lines[0]), (2, &*format!("Exporting the cache to {cache}")), "{log}");
    assert!(lines[1].starts_with(&format!("Cache exported to {cache} in ")), "{log}");
}

#[tokio::test]
async fn a_job_that_is_cancelled_while_it_exports_its_cache_has_completed() {
    let (reached, released) = (CancellationToken::new(), CancellationToken::new());
    let upload = CacheUpload::Held { reached: reached.clone(), released };
    let setup = Setup::with_proxy("stop", upload).await;
    let message = setup.cached_build(json!({}));
    let (status, first) = tokio::join!(setup.run(message), async {
        let status = setup.pushed().await;
        reached.cancelled().await;
        setup.cancel.cancel();
        status
    });
    // The fingerprint is missing, because it would describe a cache that the registry does not have.
    assert_eq!(status, Status { exporting_cache: false, fingerprint: None, ..first });
    assert!(setup.log().ends_with("The export of the cache was stopped"), "{}", setup.log());
    assert!(!runs_on_host(&setup.image("cache")));
    assert!(!setup.is_in_registry("cache"));
}

#[tokio::test]
async fn a_refused_cache_is_logged_and_fails_no_build() {
    let setup = Setup::with_proxy("refused", CacheUpload::Refused).await;
    let status = setup.run(setup.cached_build(json!({}))).await;
    assert_eq!(status.state, StatusState::Completed);
    assert!(status.warnings.is_empty() && setup.is_in_registry("app"));
    let log = setup.log();
    let last = log.lines().last().unwrap();
    assert!(last.starts_with("The cache was not exported: error writing manifest"), "{log}");
}

#[tokio::test]
async fn a_warm_up_exports_the_cache_and_pushes_nothing() {
    let setup = Setup::new("warm");
    let status = setup.run(setup.cached_build(json!({ "push": false }))).await;
    assert_eq!(status.state, StatusState::Completed, "{}", setup.log());
    assert_eq!((status.artifact_url, status.digest), (None, None));
    assert!(setup.lines.pushed.lock().unwrap().is_none(), "one STATUS is enough");
    assert!(setup.is_in_registry("cache") && !setup.is_in_registry("app"));
    assert!(setup.log().contains("steps cached, nothing to push"), "{}", setup.log());
    assert!(status.steps.iter().any(|step| step.name.contains("RUN") && !step.cached));
}

#[tokio::test]
async fn a_warm_up_whose_cache_is_refused_fails() {
    let setup = Setup::with_proxy("warm-refused", CacheUpload::Refused).await;
    let message = setup.cached_build(json!({ "push": false }));
    let status = setup.run_with(message, Duration::ZERO).await;
    let unavailable = FailureReason::Registry { problem: RegistryProblem::Unavailable };
    assert_eq!((status.state, status.error), (StatusState::Failed, Some(unavailable)));
    let message = status.error_message.unwrap();
    assert!(message.contains("error writing manifest"), "{message}");
    assert!(!status.steps.is_empty() && !setup.is_in_registry("cache"));
}
