//! What core itself says to the registry: to let a tag name a digest, and to list and delete tags.
//!
//! `oci-client` cannot delete, and brings what pulling and pushing of layers needs and this does not. So
//! this is plain HTTP, with `http-auth` to read challenges.

use std::collections::BTreeSet;
use std::fmt::{self, Display};
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderValue, LINK, WWW_AUTHENTICATE};
use reqwest::redirect::Policy;
use reqwest::{Method, RequestBuilder, Response, StatusCode};
use secrecy::{ExposeSecret as _, SecretString};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use stagely_protocol::{Digest, ImageRef};
use thiserror::Error;
use tokio::task::spawn_blocking;
use tokio::time::timeout;
use tracing::warn;
use url::Url;

use super::retry::{Retry, RetryPolicy};
use crate::config::{ConfigError, RegistryConfig};

/// How long a connection may take.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);

/// How long one answer may take.
const ANSWER_LIMIT: Duration = Duration::from_mins(1);

/// How long tagging or deleting may take with all that is asked again.
const LIMIT: Duration = Duration::from_mins(5);

/// The last attempt begins before [`LIMIT`] ends, so that the error of a registry that refuses at once is
/// the outcome.
const RETRIES: RetryPolicy = RetryPolicy::new(Duration::from_millis(500), Duration::from_secs(20))
    .jitter()
    .retries_max(18)
    .time_limit(Duration::from_mins(4));

/// The largest manifest that registries take.
const MANIFEST_BYTES_MAX: usize = 4 * 1024 * 1024;

/// The largest answer of a token server, and the most of a refusal that is read.
const ANSWER_BYTES_MAX: usize = 64 * 1024;

/// The most characters of a refusal that are shown.
const DETAIL_CHARS_MAX: usize = 300;

/// Most tags of one page. Registries may give fewer.
const PAGE_TAGS: usize = 100;

/// The largest page of tags. 100 of 128 characters are far less, but some registries give all at once.
const TAGS_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Most pages of tags that are read, should a registry's never end. What is left stays.
const PAGES_MAX: usize = 1_000;

const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// Everything that a digest may name. Without them a registry converts, or says that there is nothing.
const MANIFESTS: &str = "application/vnd.oci.image.index.v1+json, \
                         application/vnd.oci.image.manifest.v1+json, \
                         application/vnd.docker.distribution.manifest.list.v2+json, \
                         application/vnd.docker.distribution.manifest.v2+json";

/// Why the registry did not do what was asked.
#[derive(Debug, Error)]
pub enum RegistryError {
    /// Nobody answered, or the connection broke.
    #[error("the registry does not answer")]
    Unreachable(#[source] reqwest::Error),
    /// It answered too slowly, or not in time.
    #[error("the registry took longer than 5 minutes")]
    TooSlow,
    /// It cannot answer at the moment.
    #[error("the registry cannot answer (status {status}): {detail}")]
    Unavailable {
        /// The HTTP status.
        status: u16,
        /// What it said.
        detail: String,
    },
    /// It does not take the credentials, or they do not allow this.
    #[error(
        "the registry refuses access (status {status}): {detail}; see registry.username and \
         registry.password-file"
    )]
    Access {
        /// The HTTP status.
        status: u16,
        /// What it said.
        detail: String,
    },
    /// It asks for the credentials in a way in which they are not given away.
    #[error("the registry's way of login cannot be used: {0}")]
    Login(String),
    /// The password cannot be read.
    #[error(transparent)]
    Password(#[from] ConfigError),
    /// It has no such manifest.
    #[error("the registry does not have {0}")]
    Missing(ImageRef),
    /// The reference is of another registry.
    #[error("{image} does not lie in {registry}, which core is configured for")]
    Elsewhere {
        /// The reference.
        image: ImageRef,
        /// The configured registry's host.
        registry: String,
    },
    /// It answered what makes no sense here.
    #[error("the registry's answer cannot be used: {0}")]
    Answer(String),
}

impl RegistryError {
    /// Whether the same may succeed in a moment.
    pub const fn is_transient(&self) -> bool {
        match self {
            Self::Unreachable(_) | Self::TooSlow | Self::Unavailable { .. } => true,
            Self::Access { .. }
            | Self::Login(_)
            | Self::Password(_)
            | Self::Missing(_)
            | Self::Elsewhere { .. }
            | Self::Answer(_) => false,
        }
    }
}

impl From<reqwest::Error> for RegistryError {
    fn from(error: reqwest::Error) -> Self {
        Self::Unreachable(error.without_url())
    }
}

/// The configured registry.
pub struct Registry {
    config: RegistryConfig,
    /// For reading.
    http: reqwest::Client,
    /// For writing. It follows no redirect: a PUT or DELETE may become a GET by one, whose success says
    /// nothing.
    writing: reqwest::Client,
    /// Whether the log says already that it deletes nothing.
    refusal_is_told: AtomicBool,
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Registry({})", self.config.url)
    }
}

impl Registry {
    /// A client of the registry that `config` names.
    ///
    /// # Errors
    /// When this machine's TLS cannot be set up.
    pub fn new(config: RegistryConfig) -> Result<Self, reqwest::Error> {
        let client = || {
            let http = reqwest::Client::builder()
                .connect_timeout(CONNECT_LIMIT)
                .timeout(ANSWER_LIMIT)
                .user_agent(concat!("stagely/", env!("CARGO_PKG_VERSION")));
            // As Docker does: what listens here is not behind a proxy.
            if is_loopback(host_of(&config.url)) { http.no_proxy() } else { http }
        };
        let (http, writing) = (client().build()?, client().redirect(Policy::none()).build()?);
        Ok(Self { config, http, writing, refusal_is_told: AtomicBool::new(false) })
    }

    /// The prefix of all images: a host, and a path where there is one.
    pub(crate) fn image_prefix(&self) -> &str {
        &self.config.url
    }

    /// Lets `tag` name the manifest that `digest` names in the same repository, byte for byte. A
    /// registry that does not answer is asked again for about 5 minutes.
    ///
    /// # Errors
    /// [`RegistryError`].
    pub async fn tag(&self, tag: &ImageRef, digest: &Digest) -> Result<(), RegistryError> {
        retry(format!("tagging {tag}"), || self.tag_once(tag, digest)).await
    }

    /// Deletes `tag` and no other tag, also if they name the same manifest. One that is not there, and
    /// a registry that deletes nothing, are success. A registry that does not answer is asked again for
    /// about 5 minutes.
    ///
    /// # Errors
    /// [`RegistryError`].
    pub async fn delete(&self, tag: &ImageRef) -> Result<(), RegistryError> {
        retry(format!("deleting {tag}"), || self.delete_once(tag)).await
    }

    /// The digest of what `tag` names now.
    ///
    /// # Errors
    /// [`RegistryError`].
    pub async fn digest(&self, tag: &ImageRef) -> Result<Digest, RegistryError> {
        let get = self.manifest(Method::GET, tag)?.header(ACCEPT, MANIFESTS);
        let response = accepted(tag, self.send(get).await?).await?;
        let manifest = read(response, MANIFEST_BYTES_MAX).await?;
        Ok(digest_of(&manifest).parse().expect("a SHA-256 is a digest"))
    }

    /// The tags of `repository`, which is `host/path` as an image's reference has it; none where there is
    /// no such repository. A registry that does not answer is asked again for about 5 minutes.
    ///
    /// # Errors
    /// [`RegistryError`].
    pub async fn tags(&self, repository: &str) -> Result<BTreeSet<ImageRef>, RegistryError> {
        retry(format!("listing the tags of {repository}"), || self.tags_once(repository)).await
    }

    async fn tags_once(&self, repository: &str) -> Result<BTreeSet<ImageRef>, RegistryError> {
        let invalid = |tag: &str| RegistryError::Answer(format!("a tag of {repository}: {tag:?}"));
        // Only to find the host and the path.
        let any: ImageRef = repository.parse().map_err(|_| invalid("latest"))?;
        let first = self.url(&any, &format!("tags/list?n={PAGE_TAGS}"))?;
        let mut page: Url = first.parse().map_err(|_| invalid("latest"))?;
        let mut found = BTreeSet::new();
        for _ in 0..PAGES_MAX {
            let response = self.send(self.http.get(page.clone())).await?;
            if response.status() == StatusCode::NOT_FOUND {
                break;
            }
            let response = checked(response).await?;
            let next = next_page(&page, &response)?;
            let tags: TagsAnswer =
                serde_json::from_slice(&read(response, TAGS_BYTES_MAX).await?)
                    .map_err(|error| RegistryError::Answer(format!("no list of tags: {error}")))?;
            for tag in tags.tags.unwrap_or_default() {
                let image = format!("{repository}:{tag}").parse().map_err(|_| invalid(&tag))?;
                found.insert(image);
            }
            match next {
                Some(next) if next != page => page = next,
                _ => break,
            }
        }
        Ok(found)
    }

    async fn tag_once(&self, tag: &ImageRef, digest: &Digest) -> Result<(), RegistryError> {
        let image = tag.at_digest(digest);
        let get = self.manifest(Method::GET, &image)?.header(ACCEPT, MANIFESTS);
        let response = accepted(&image, self.send(get).await?).await?;
        let media_type =
            response.headers().get(CONTENT_TYPE).cloned().ok_or_else(|| {
                RegistryError::Answer(format!("{image} came without a Content-Type"))
            })?;
        let manifest = read(response, MANIFEST_BYTES_MAX).await?;
        if digest_of(&manifest) != digest.as_str() {
            return Err(RegistryError::Answer(format!("it sent something else as {image}")));
        }
        self.put(tag, media_type, manifest).await
    }

    async fn put(
        &self,
        tag: &ImageRef,
        media_type: HeaderValue,
        manifest: Bytes,
    ) -> Result<(), RegistryError> {
        let put = self.manifest(Method::PUT, tag)?.header(CONTENT_TYPE, media_type).body(manifest);
        accepted(tag, self.send(put).await?).await.map(drop)
    }

    async fn delete_once(&self, tag: &ImageRef) -> Result<(), RegistryError> {
        let head = self.manifest(Method::HEAD, tag)?.header(ACCEPT, MANIFESTS);
        match accepted(tag, self.send(head).await?).await {
            Err(RegistryError::Missing(_)) => return Ok(()),
            answer => answer?,
        };
        let response = self.send(self.manifest(Method::DELETE, tag)?).await?;
        match response.status() {
            // Registries that delete by digest alone say one of these to a tag.
            StatusCode::BAD_REQUEST
            | StatusCode::NOT_FOUND
            | StatusCode::METHOD_NOT_ALLOWED
            | StatusCode::NOT_IMPLEMENTED => self.overwrite_and_delete(tag).await,
            _ => self.deleted(tag, response).await,
        }
    }

    /// Deleting a digest takes every tag that names it, and a cache is often the same, byte for byte, as
    /// that of another branch. So the tag first gets a manifest that nobody else has.
    async fn overwrite_and_delete(&self, tag: &ImageRef) -> Result<(), RegistryError> {
        let manifest = serde_json::json!({
            "schemaVersion": 2,
            "mediaType": INDEX,
            "manifests": [],
            "annotations": { "org.stagely.deleted": format!("{:032x}", rand::random::<u128>()) },
        });
        let manifest = Bytes::from(manifest.to_string());
        let digest: Digest = digest_of(&manifest).parse().expect("a SHA-256 is a digest");
        self.put(tag, HeaderValue::from_static(INDEX), manifest).await?;
        let delete = self.manifest(Method::DELETE, &tag.at_digest(&digest))?;
        self.deleted(tag, self.send(delete).await?).await
    }

    async fn deleted(&self, tag: &ImageRef, response: Response) -> Result<(), RegistryError> {
        let status = response.status();
        match status {
            StatusCode::NOT_FOUND => Ok(()),
            // The last: a token server that gives no token for deletion.
            StatusCode::FORBIDDEN | StatusCode::METHOD_NOT_ALLOWED | StatusCode::UNAUTHORIZED => {
                if !self.refusal_is_told.swap(true, Ordering::Relaxed) {
                    let registry = self.host();
                    warn!(registry, %status, "the registry deletes nothing; caches and images stay in it");
                }
                Ok(())
            }
            _ => accepted(tag, response).await.map(drop),
        }
    }

    fn host(&self) -> &str {
        host_of(&self.config.url)
    }

    /// A request for the manifest that `image` names.
    fn manifest(&self, method: Method, image: &ImageRef) -> Result<RequestBuilder, RegistryError> {
        let reference = image.as_str()[image.repository().len()..].trim_start_matches([':', '@']);
        let reference = if reference.is_empty() { "latest" } else { reference };
        let url = self.url(image, &format!("manifests/{reference}"))?;
        let client = if method.is_safe() { &self.http } else { &self.writing };
        Ok(client.request(method, url))
    }

    /// Where `what` of the repository of `image` is.
    fn url(&self, image: &ImageRef, what: &str) -> Result<String, RegistryError> {
        let host = self.host();
        // The credentials are this registry's, so nobody else is asked.
        let Some(path) =
            image.repository().strip_prefix(host).and_then(|path| path.strip_prefix('/'))
        else {
            let (image, registry) = (image.clone(), host.to_owned());
            return Err(RegistryError::Elsewhere { image, registry });
        };
        // Docker Hub's API has another name than its images.
        let api = if host == "docker.io" { "registry-1.docker.io" } else { host };
        let scheme = if self.config.insecure || is_loopback(host) { "http" } else { "https" };
        Ok(format!("{scheme}://{api}/v2/{path}/{what}"))
    }

    /// Sends `request`; once more, with credentials, if the registry asks for them.
    async fn send(&self, request: RequestBuilder) -> Result<Response, RegistryError> {
        let again = request.try_clone().expect("a body of bytes can be sent twice");
        let response = request.send().await?;
        if response.status() != StatusCode::UNAUTHORIZED {
            return Ok(response);
        }
        let challenges: Vec<Challenge> =
            response.headers().get_all(WWW_AUTHENTICATE).iter().flat_map(Challenge::read).collect();
        let authorization = self.authorization(&challenges).await?;
        Ok(again.header(AUTHORIZATION, authorization).send().await?)
    }

    /// What satisfies one of `challenges`.
    async fn authorization(&self, challenges: &[Challenge]) -> Result<HeaderValue, RegistryError> {
        let login = self.login().await?;
        for challenge in challenges {
            match (challenge, &login) {
                (Challenge::Bearer { realm, query }, _) => {
                    let token = self.token(realm, query, login.as_ref()).await?;
                    return header(&format!("Bearer {}", token.expose_secret()));
                }
                (Challenge::Basic, Some(login)) => return login.basic(),
                (Challenge::Basic, None) => {}
            }
        }
        let detail = "it asks for a login, and none is configured".to_owned();
        Err(RegistryError::Access { status: StatusCode::UNAUTHORIZED.as_u16(), detail })
    }

    /// The user and password, read again each time: they may have been changed.
    async fn login(&self) -> Result<Option<Login>, RegistryError> {
        let config = self.config.clone();
        let password = spawn_blocking(move || config.password()).await;
        let password = password.expect("reading a file does not panic")?;
        let username = self.config.username.clone();
        Ok(username.zip(password).map(|(username, password)| Login { username, password }))
    }

    /// Gets a token for what the registry's challenge names.
    ///
    /// Source: distribution documentation, "Token Authentication Specification".
    async fn token(
        &self,
        realm: &str,
        query: &[(&'static str, String)],
        login: Option<&Login>,
    ) -> Result<SecretString, RegistryError> {
        let realm: Url = realm
            .parse()
            .map_err(|_| RegistryError::Login("its token server's address is none".to_owned()))?;
        let is_private = realm.scheme() == "https" || realm.host_str().is_some_and(is_loopback);
        if !is_private {
            let problem = "its token server would get the password without encryption".to_owned();
            return Err(RegistryError::Login(problem));
        }
        let mut request = self.http.get(realm).query(query);
        if let Some(login) = login {
            request = request.header(AUTHORIZATION, login.basic()?);
        }
        let response = checked(request.send().await?).await?;
        let answer = read(response, ANSWER_BYTES_MAX).await?;
        let answer: TokenAnswer = serde_json::from_slice(&answer)
            // Without the error, which may quote the token.
            .map_err(|_| {
                RegistryError::Login("its token server's answer is no token".to_owned())
            })?;
        answer
            .token
            .or(answer.access_token)
            .ok_or_else(|| RegistryError::Login("its token server sent no token".to_owned()))
    }
}

/// A page of a repository's tags. Some registries write `null` for none.
#[derive(Deserialize)]
struct TagsAnswer {
    tags: Option<Vec<String>>,
}

#[derive(Deserialize)]
struct TokenAnswer {
    token: Option<SecretString>,
    access_token: Option<SecretString>,
}

struct Login {
    username: String,
    password: SecretString,
}

impl Login {
    fn basic(&self) -> Result<HeaderValue, RegistryError> {
        use base64::Engine as _;
        let pair = format!("{}:{}", self.username, self.password.expose_secret());
        header(&format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(pair)))
    }
}

/// A header that is not shown by `Debug`.
fn header(text: &str) -> Result<HeaderValue, RegistryError> {
    let mut value = HeaderValue::try_from(text)
        .map_err(|_| RegistryError::Login("the token fits in no header".to_owned()))?;
    value.set_sensitive(true);
    Ok(value)
}

/// How a registry wants to be told who asks.
#[derive(Debug, PartialEq, Eq)]
enum Challenge {
    Basic,
    Bearer { realm: String, query: Vec<(&'static str, String)> },
}

impl Challenge {
    /// Those of a `WWW-Authenticate` that are known here.
    fn read(header: &HeaderValue) -> Vec<Self> {
        let text = header.to_str().unwrap_or_default();
        let challenges = http_auth::parse_challenges(text).unwrap_or_default();
        challenges.iter().filter_map(Self::of).collect()
    }

    fn of(challenge: &http_auth::ChallengeRef<'_>) -> Option<Self> {
        let parameter = |name: &str| {
            let found = challenge.params.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
            found.map(|(_, value)| value.to_unescaped())
        };
        if challenge.scheme.eq_ignore_ascii_case("basic") {
            return Some(Self::Basic);
        }
        if !challenge.scheme.eq_ignore_ascii_case("bearer") {
            return None;
        }
        let query = ["service", "scope"].into_iter();
        let query = query.filter_map(|name| Some((name, parameter(name)?))).collect();
        Some(Self::Bearer { realm: parameter("realm")?, query })
    }
}

/// The page after `page`, which the answer names in `Link: </v2/…?last=…>; rel="next"`. One that lies
/// elsewhere is not asked for: it would get the password.
///
/// Source: OCI distribution specification, "Listing Tags".
fn next_page(page: &Url, response: &Response) -> Result<Option<Url>, RegistryError> {
    let Some(link) = response.headers().get(LINK) else { return Ok(None) };
    let address = link.to_str().ok().and_then(|link| {
        let (address, _) = link.trim_start().strip_prefix('<')?.split_once('>')?;
        page.join(address).ok()
    });
    match address {
        Some(next) if next.origin() == page.origin() => Ok(Some(next)),
        _ => Err(RegistryError::Answer("its next page of tags lies elsewhere".to_owned())),
    }
}

/// Repeats a request while the registry does not answer.
async fn retry<T, F: Future<Output = Result<T, RegistryError>>>(
    what: impl Display,
    request: impl FnMut() -> F,
) -> Result<T, RegistryError> {
    let is_transient = |error: &RegistryError| Retry::if_transient(error.is_transient());
    timeout(LIMIT, RETRIES.run(what, is_transient, request))
        .await
        .unwrap_or(Err(RegistryError::TooSlow))
}

/// The answer, where it says that `image` was served.
async fn accepted(image: &ImageRef, response: Response) -> Result<Response, RegistryError> {
    if response.status() == StatusCode::NOT_FOUND {
        return Err(RegistryError::Missing(image.clone()));
    }
    checked(response).await
}

async fn checked(response: Response) -> Result<Response, RegistryError> {
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    let text = read(response, ANSWER_BYTES_MAX).await.unwrap_or_default();
    let shown = |c: char| if c.is_control() { ' ' } else { c };
    let detail = String::from_utf8_lossy(&text).chars().map(shown).take(DETAIL_CHARS_MAX).collect();
    Err(match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            RegistryError::Access { status: status.as_u16(), detail }
        }
        StatusCode::TOO_MANY_REQUESTS => {
            RegistryError::Unavailable { status: status.as_u16(), detail }
        }
        _ if status.is_server_error() => {
            RegistryError::Unavailable { status: status.as_u16(), detail }
        }
        _ => RegistryError::Answer(format!("status {}: {detail}", status.as_u16())),
    })
}

async fn read(mut response: Response, bytes_max: usize) -> Result<Bytes, RegistryError> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        if body.len() + chunk.len() > bytes_max {
            return Err(RegistryError::Answer(format!("it is longer than {bytes_max} bytes")));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body.into())
}

fn digest_of(bytes: &[u8]) -> String {
    use fmt::Write as _;
    let mut text = "sha256:".to_owned();
    for byte in Sha256::digest(bytes) {
        write!(text, "{byte:02x}").expect("a String takes every write");
    }
    text
}

/// Host and port of `registry.url`.
fn host_of(url: &str) -> &str {
    url.split_once('/').map_or(url, |(host, _)| host)
}

/// Whether `host`, with or without a port, is this machine: then Docker, too, speaks plain HTTP with it.
fn is_loopback(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    let name = name.trim_start_matches('[').trim_end_matches(']');
    name == "localhost" || name.parse().is_ok_and(|address: IpAddr| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_machine_is_spoken_with_in_the_clear() {
        for host in ["127.0.0.1:5000", "127.3.2.1", "localhost:80", "localhost", "[::1]:5000"] {
            assert!(is_loopback(host), "{host}");
        }
        for host in ["registry.example", "10.0.0.1:5000", "127.0.0.1.example", "localhost.example"]
        {
            assert!(!is_loopback(host), "{host}");
        }
    }

    #[test]
    fn challenges_are_read_as_registries_write_them() {
        let read = |text| Challenge::read(&HeaderValue::from_static(text));
        assert_eq!(read("Basic realm=\"Registry\""), [Challenge::Basic]);
        let bearer = "Bearer realm=\"https://auth.example/token\",service=\"registry\",\
                      scope=\"repository:a/b:pull,push\"";
        let expected = Challenge::Bearer {
            realm: "https://auth.example/token".to_owned(),
            query: vec![
                ("service", "registry".to_owned()),
                ("scope", "repository:a/b:pull,push".to_owned()),
            ],
        };
        assert_eq!(read(bearer), [expected]);
        assert_eq!(read("Negotiate"), []);
    }

    #[test]
    fn an_image_of_another_registry_is_not_asked_for_with_this_ones_password() {
        let config = RegistryConfig { url: "r.example/path".to_owned(), ..Default::default() };
        let registry = Registry::new(config).unwrap();
        let own = registry.manifest(Method::GET, &"r.example/path/app:x".parse().unwrap()).unwrap();
        let url = own.build().unwrap().url().to_string();
        assert_eq!(url, "https://r.example/v2/path/app/manifests/x");
        for image in ["r.example.evil/path/app:x", "other/path/app:x", "app:x"] {
            let refused = registry.manifest(Method::GET, &image.parse().unwrap());
            assert!(matches!(refused, Err(RegistryError::Elsewhere { .. })), "{image}");
        }
    }

    #[test]
    fn a_registry_that_is_said_to_have_no_tls_is_asked_without() {
        let config = RegistryConfig {
            url: "r.example:5000".to_owned(),
            insecure: true,
            ..Default::default()
        };
        let registry = Registry::new(config).unwrap();
        let own = registry.manifest(Method::GET, &"r.example:5000/app:x".parse().unwrap()).unwrap();
        let url = own.build().unwrap().url().to_string();
        assert_eq!(url, "http://r.example:5000/v2/app/manifests/x");
    }
}
