//! Core's own requests to the registry: it moves tags, lists them, and deletes them.
//!
//! `oci-client` cannot delete tags, and its code for layers is not needed here. So this is plain HTTP, with
//! `http-auth` to read challenges.

mod tag_list;

mod client;

mod challenge;
mod login;

mod address;
mod response;

mod error;

use std::collections::BTreeSet;
use std::fmt::{self, Display};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use reqwest::header::{ACCEPT, CONTENT_TYPE, HeaderValue};
use reqwest::{Method, Response, StatusCode};
use sha2::{Digest as _, Sha256};
use stagely_protocol::{Digest, ImageRef};
use tokio::time::timeout;
use tracing::warn;

use self::client::RegistryClient;
use self::response::{found, read};
use super::retry::{Retry, RetryPolicy};
use crate::config::RegistryConfig;

pub use error::RegistryError;

/// The time limit of an operation with all its attempts.
const LIMIT: Duration = Duration::from_mins(5);

/// The last attempt begins before [`LIMIT`] ends, so that an operation ends with the error of a registry that
/// refuses at once.
const RETRIES: RetryPolicy = RetryPolicy::new(Duration::from_millis(500), Duration::from_secs(20))
    .jitter()
    .retries_max(18)
    .time_limit(Duration::from_mins(4));

/// The largest manifest that registries accept.
const MANIFEST_BYTES_MAX: usize = 4 * 1024 * 1024;

const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// All types that a digest may name. A registry that is not offered the stored type converts it, or responds
/// that there is nothing.
const MANIFESTS: &str = "application/vnd.oci.image.index.v1+json, \
                         application/vnd.oci.image.manifest.v1+json, \
                         application/vnd.docker.distribution.manifest.list.v2+json, \
                         application/vnd.docker.distribution.manifest.v2+json";

/// The configured registry.
pub struct Registry {
    client: RegistryClient,
    /// Whether the log says already that the registry deletes nothing.
    refusal_is_logged: AtomicBool,
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Registry({})", self.image_prefix())
    }
}

impl Registry {
    /// # Errors
    /// This machine's TLS cannot be set up.
    pub fn new(config: RegistryConfig) -> Result<Self, reqwest::Error> {
        let client = RegistryClient::new(config)?;
        Ok(Self { client, refusal_is_logged: AtomicBool::new(false) })
    }

    /// The prefix of all images: a host, and a path if one is configured.
    pub(crate) fn image_prefix(&self) -> &str {
        self.client.config().url()
    }

    /// Moves `tag` to the manifest that `digest` names in the same repository, byte for byte. Repeats the
    /// requests for up to 5 minutes while the registry does not respond.
    ///
    /// # Errors
    /// [`RegistryError`].
    pub async fn tag(&self, tag: &ImageRef, digest: &Digest) -> Result<(), RegistryError> {
        retry(format!("tagging {tag}"), || self.tag_once(tag, digest)).await
    }

    /// Deletes `tag`, and no other tag of the same manifest. An absent tag, and a registry that deletes nothing,
    /// are no errors. Repeats the requests for up to 5 minutes while the registry does not respond.
    ///
    /// # Errors
    /// [`RegistryError`].
    pub async fn delete(&self, tag: &ImageRef) -> Result<(), RegistryError> {
        retry(format!("deleting {tag}"), || self.delete_once(tag)).await
    }

    /// The digest that `tag` names now.
    ///
    /// # Errors
    /// [`RegistryError`].
    pub async fn digest(&self, tag: &ImageRef) -> Result<Digest, RegistryError> {
        let get = self.client.manifest(Method::GET, tag)?.header(ACCEPT, MANIFESTS);
        let response = found(tag, self.client.send(get).await?).await?;
        let manifest = read(response, MANIFEST_BYTES_MAX).await?;
        Ok(digest_of(&manifest))
    }

    /// The tags of `repository`, which has the form `host/path`; none where there is no such repository. Repeats
    /// the requests for up to 5 minutes while the registry does not respond.
    ///
    /// # Errors
    /// [`RegistryError`].
    pub async fn tags(&self, repository: &str) -> Result<BTreeSet<ImageRef>, RegistryError> {
        let list = || tag_list::tags(&self.client, repository);
        retry(format!("listing the tags of {repository}"), list).await
    }

    async fn tag_once(&self, tag: &ImageRef, digest: &Digest) -> Result<(), RegistryError> {
        let image = tag.at_digest(digest);
        let get = self.client.manifest(Method::GET, &image)?.header(ACCEPT, MANIFESTS);
        let response = found(&image, self.client.send(get).await?).await?;
        let invalid = RegistryError::InvalidResponse;
        let media_type = response.headers().get(CONTENT_TYPE).cloned();
        let media_type =
            media_type.ok_or_else(|| invalid(format!("{image} came without a Content-Type")))?;
        let manifest = read(response, MANIFEST_BYTES_MAX).await?;
        if digest_of(&manifest) != *digest {
            return Err(invalid(format!("it sent something else as {image}")));
        }
        self.put(tag, media_type, manifest).await
    }

    async fn put(
        &self,
        tag: &ImageRef,
        media_type: HeaderValue,
        manifest: Bytes,
    ) -> Result<(), RegistryError> {
        let put = self.client.manifest(Method::PUT, tag)?;
        let put = put.header(CONTENT_TYPE, media_type).body(manifest);
        found(tag, self.client.send(put).await?).await.map(drop)
    }

    async fn delete_once(&self, tag: &ImageRef) -> Result<(), RegistryError> {
        let head = self.client.manifest(Method::HEAD, tag)?.header(ACCEPT, MANIFESTS);
        match found(tag, self.client.send(head).await?).await {
            Err(RegistryError::Missing(_)) => return Ok(()),
            response => response?,
        };
        let response = self.client.send(self.client.manifest(Method::DELETE, tag)?).await?;
        match response.status() {
            // Registries that delete by digest alone respond to a tag with one of these.
            StatusCode::BAD_REQUEST
            | StatusCode::NOT_FOUND
            | StatusCode::METHOD_NOT_ALLOWED
            | StatusCode::NOT_IMPLEMENTED => self.overwrite_and_delete(tag).await,
            _ => self.check_deletion(tag, response).await,
        }
    }

    /// Deleting a digest deletes every tag that names it, and a cache is often the same, byte for byte, as that
    /// of another branch. So the tag is first moved to a manifest of its own.
    async fn overwrite_and_delete(&self, tag: &ImageRef) -> Result<(), RegistryError> {
        let manifest = serde_json::json!({
            "schemaVersion": 2,
            "mediaType": INDEX,
            "manifests": [],
            "annotations": { "org.stagely.deleted": format!("{:032x}", rand::random::<u128>()) },
        });
        let manifest = Bytes::from(manifest.to_string());
        let digest = digest_of(&manifest);
        self.put(tag, HeaderValue::from_static(INDEX), manifest).await?;
        let delete = self.client.manifest(Method::DELETE, &tag.at_digest(&digest))?;
        self.check_deletion(tag, self.client.send(delete).await?).await
    }

    async fn check_deletion(
        &self,
        tag: &ImageRef,
        response: Response,
    ) -> Result<(), RegistryError> {
        let status = response.status();
        match status {
            StatusCode::NOT_FOUND => Ok(()),
            // UNAUTHORIZED comes from a token server that gives no token for deletion.
            StatusCode::FORBIDDEN | StatusCode::METHOD_NOT_ALLOWED | StatusCode::UNAUTHORIZED => {
                if !self.refusal_is_logged.swap(true, Ordering::Relaxed) {
                    let registry = self.client.config().host();
                    warn!(registry, %status, "the registry deletes nothing; caches and images stay in it");
                }
                Ok(())
            }
            _ => found(tag, response).await.map(drop),
        }
    }
}

/// Repeats `request` while the registry does not respond.
async fn retry<T, F: Future<Output = Result<T, RegistryError>>>(
    what: impl Display,
    request: impl FnMut() -> F,
) -> Result<T, RegistryError> {
    let is_transient = |error: &RegistryError| Retry::if_transient(error.is_transient());
    timeout(LIMIT, RETRIES.run(what, is_transient, request))
        .await
        .unwrap_or(Err(RegistryError::TimedOut))
}

fn digest_of(bytes: &[u8]) -> Digest {
    use fmt::Write as _;
    let mut text = "sha256:".to_owned();
    for byte in Sha256::digest(bytes) {
        write!(text, "{byte:02x}").expect("a String takes every write");
    }
    text.parse().expect("a SHA-256 is a digest")
}
