//! Asks EC2's metadata service whether the cloud will interrupt this machine.

use std::env;
use std::future::pending;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use reqwest::{Client, Method, Response, StatusCode};
use serde::Deserialize;
use stagely_protocol::{ErrorChain, Interrupted, Notice};
use thiserror::Error;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::task::AbortOnDropHandle;
use url::Url;

/// The address of the metadata service on an EC2 machine.
pub const SERVICE: &str = "http://169.254.169.254";

/// The environment variable with another address of the metadata service. The SDKs of AWS use the same variable.
pub const SERVICE_VARIABLE: &str = "AWS_EC2_METADATA_SERVICE_ENDPOINT";

/// The time between two requests. AWS recommends it, because a notice comes two minutes before the interruption.
pub const POLL_INTERVAL: Duration = Duration::from_secs(5);

/// The time between a notice and the interruption. Source: Amazon EC2 user guide, "Spot Instance interruption notices".
const NOTICE_TIME: Duration = Duration::from_mins(2);

/// How long one response may take. The service runs on the machine's own host.
const RESPONSE_LIMIT: Duration = Duration::from_secs(2);

/// The most bytes of a response that are read. A notice has less than 100 bytes.
const RESPONSE_BYTES_MAX: usize = 16 * 1024;

/// The requested lifetime of a token: the longest that the service allows.
const TOKEN_LIFETIME: Duration = Duration::from_hours(6);

/// A token is renewed this long before it expires.
const TOKEN_MARGIN: Duration = Duration::from_mins(1);

const TOKEN_PATH: &str = "latest/api/token";
const ACTION_PATH: &str = "latest/meta-data/spot/instance-action";
const REBALANCE_PATH: &str = "latest/meta-data/events/recommendations/rebalance";

/// The newest interruption notice of the machine. Dropping the value stops the requests.
#[derive(Debug)]
pub struct SpotWatch {
    notice: watch::Receiver<Option<Interrupted>>,
    _task: Option<AbortOnDropHandle<()>>,
}

impl SpotWatch {
    /// Asks the service at `service` now and after every `interval`, until an interruption is certain.
    pub fn start(service: Url, interval: Duration) -> Self {
        let (sender, notice) = watch::channel(None);
        let task = tokio::spawn(poll(MetadataService::new(service), interval, sender));
        Self { notice, _task: Some(AbortOnDropHandle::new(task)) }
    }

    /// Like [`start`](Self::start), with the service and the interval of a real machine.
    pub fn of_this_machine() -> Self {
        let default = || Url::parse(SERVICE).expect("the constant is a URL");
        let service = match env::var(SERVICE_VARIABLE).as_deref() {
            Err(_) | Ok("") => default(),
            Ok(address) => {
                let url = Url::parse(address).ok().filter(|url| url.scheme().starts_with("http"));
                url.unwrap_or_else(|| {
                    tracing::error!("{SERVICE_VARIABLE} is not an http address; using {SERVICE}");
                    default()
                })
            }
        };
        Self::start(service, POLL_INTERVAL)
    }

    /// A watch for a machine that is never interrupted.
    pub fn none() -> Self {
        Self { notice: watch::channel(None).1, _task: None }
    }

    /// The newest notice, if there was one.
    pub fn notice(&mut self) -> Option<Interrupted> {
        self.notice.borrow_and_update().clone()
    }

    /// Waits for a notice that neither this nor [`notice`](Self::notice) has returned yet. Cancel-safe.
    pub async fn next(&mut self) -> Interrupted {
        while self.notice.changed().await.is_ok() {
            if let Some(notice) = self.notice() {
                return notice;
            }
        }
        pending().await
    }
}

async fn poll(
    mut service: MetadataService,
    poll_interval: Duration,
    notices: watch::Sender<Option<Interrupted>>,
) {
    let mut ticks = interval(poll_interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut is_likely = false;
    let mut has_failed = false;
    loop {
        ticks.tick().await;
        match service.new_notice(is_likely).await {
            Ok(answer) => {
                has_failed = false;
                let Some(notice) = answer else { continue };
                tracing::warn!(?notice, "the cloud will interrupt this machine");
                is_likely = true;
                let is_certain = notice.notice == Notice::Certain;
                notices.send_replace(Some(notice));
                if is_certain {
                    return;
                }
            }
            // Logged once, because the service may be missing for as long as the machine runs.
            Err(error) if has_failed => {
                tracing::debug!(error = %ErrorChain(&error), "the metadata service");
            }
            Err(error) => {
                has_failed = true;
                let error = anyhow::Error::new(error);
                tracing::warn!("cannot ask the metadata service for interruptions: {error:#}");
            }
        }
    }
}

/// Why a request to the metadata service failed.
#[derive(Debug, Error)]
enum MetadataError {
    #[error("no response to {path}")]
    NoResponse {
        path: &'static str,
        #[source]
        source: reqwest::Error,
    },
    #[error("{path} answers {status}")]
    Status { path: &'static str, status: StatusCode },
    #[error("{path} answers with more than {RESPONSE_BYTES_MAX} bytes")]
    TooLong { path: &'static str },
    #[error("{path} answers with something unknown")]
    Unknown { path: &'static str },
}

/// The content of `spot/instance-action`. Each kind of action ends the work on the machine.
#[derive(Deserialize)]
struct InstanceAction {
    #[serde(rename = "action")]
    _action: String,
    #[serde(default)]
    time: String,
}

/// The content of `events/recommendations/rebalance`.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Rebalance {
    notice_time: String,
}

/// The metadata service, version 2: every request needs a token.
struct MetadataService {
    client: Client,
    base: Url,
    token: Option<MetadataToken>,
}

struct MetadataToken {
    text: String,
    renew_at: Instant,
}

impl MetadataService {
    fn new(mut base: Url) -> Self {
        if !base.path().ends_with('/') {
            base.set_path(&format!("{}/", base.path()));
        }
        // A proxy would use its own metadata service.
        let client = Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(RESPONSE_LIMIT)
            .timeout(RESPONSE_LIMIT)
            .build()
            .expect("building a client without TLS settings cannot fail");
        Self { client, base, token: None }
    }

    /// Asks for a new notice. If `is_likely`, the service has recommended to leave the machine already, and only a
    /// certain interruption is new.
    async fn new_notice(&mut self, is_likely: bool) -> Result<Option<Interrupted>, MetadataError> {
        if let Some(action) = self.get::<InstanceAction>(ACTION_PATH).await? {
            // An action with an unknown time is a notice, too.
            let default_time = || unix_time_ms(SystemTime::now() + NOTICE_TIME).unwrap_or_default();
            let at = parse_time_ms(&action.time, ACTION_PATH).unwrap_or_else(|_| default_time());
            return Ok(Some(Interrupted { at, notice: Notice::Certain }));
        }
        if is_likely {
            return Ok(None);
        }
        let Some(rebalance) = self.get::<Rebalance>(REBALANCE_PATH).await? else { return Ok(None) };
        let at = parse_time_ms(&rebalance.notice_time, REBALANCE_PATH)?;
        Ok(Some(Interrupted { at, notice: Notice::Likely }))
    }

    /// The content of `path`; `None` if the path has none.
    async fn get<T: for<'de> Deserialize<'de>>(
        &mut self,
        path: &'static str,
    ) -> Result<Option<T>, MetadataError> {
        let mut response = self.get_with_token(path).await?;
        if response.status() == StatusCode::UNAUTHORIZED {
            // The machine was suspended, or the service has restarted.
            self.token = None;
            response = self.get_with_token(path).await?;
        }
        match response.status() {
            StatusCode::NOT_FOUND => Ok(None),
            StatusCode::OK => {
                let text = body(response, path).await?;
                let value = serde_json::from_slice(&text);
                Ok(Some(value.map_err(|_| MetadataError::Unknown { path })?))
            }
            status => Err(MetadataError::Status { path, status }),
        }
    }

    async fn get_with_token(&mut self, path: &'static str) -> Result<Response, MetadataError> {
        let token = self.token().await?.to_owned();
        self.send(Method::GET, path, "x-aws-ec2-metadata-token", &token).await
    }

    async fn token(&mut self) -> Result<&str, MetadataError> {
        let now = Instant::now();
        let token = match self.token.take().filter(|token| now < token.renew_at) {
            Some(token) => token,
            None => self.new_token(now).await?,
        };
        Ok(&self.token.insert(token).text)
    }

    async fn new_token(&self, now: Instant) -> Result<MetadataToken, MetadataError> {
        const LIFETIME_HEADER: &str = "x-aws-ec2-metadata-token-ttl-seconds";
        let path = TOKEN_PATH;
        let seconds = TOKEN_LIFETIME.as_secs().to_string();
        let response = self.send(Method::PUT, path, LIFETIME_HEADER, &seconds).await?;
        if response.status() != StatusCode::OK {
            return Err(MetadataError::Status { path, status: response.status() });
        }
        let seconds = response.headers().get(LIFETIME_HEADER);
        let seconds = seconds.and_then(|seconds| seconds.to_str().ok()?.parse().ok());
        let lifetime = seconds.map_or(TOKEN_LIFETIME, Duration::from_secs).min(TOKEN_LIFETIME);
        let text = String::from_utf8(body(response, path).await?).ok();
        let text = text.filter(|text| text.bytes().all(|byte| byte.is_ascii_graphic()));
        let text = text.ok_or(MetadataError::Unknown { path })?;
        Ok(MetadataToken { text, renew_at: now + lifetime.saturating_sub(TOKEN_MARGIN) })
    }

    async fn send(
        &self,
        method: Method,
        path: &'static str,
        header: &'static str,
        value: &str,
    ) -> Result<Response, MetadataError> {
        let url =
            self.base.join(path).expect("the constant paths can be joined to any http address");
        let request = self.client.request(method, url).header(header, value);
        request.send().await.map_err(|source| no_response(path, source))
    }
}

async fn body(mut response: Response, path: &'static str) -> Result<Vec<u8>, MetadataError> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|source| no_response(path, source))? {
        if body.len() + chunk.len() > RESPONSE_BYTES_MAX {
            return Err(MetadataError::TooLong { path });
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

fn no_response(path: &'static str, source: reqwest::Error) -> MetadataError {
    MetadataError::NoResponse { path, source: source.without_url() }
}

/// Parses `2026-01-01T00:00:00Z`, in milliseconds since the Unix epoch.
fn parse_time_ms(time: &str, path: &'static str) -> Result<u64, MetadataError> {
    let time = humantime::parse_rfc3339(time).ok();
    time.and_then(unix_time_ms).ok_or(MetadataError::Unknown { path })
}

fn unix_time_ms(time: SystemTime) -> Option<u64> {
    u64::try_from(time.duration_since(UNIX_EPOCH).ok()?.as_millis()).ok()
}
