//! Asks EC2's metadata service whether the cloud takes this machine back.

use std::env;
use std::future::pending;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use reqwest::{Client, Method, Response, StatusCode};
use serde::Deserialize;
use stagely_protocol::{Interrupted, Notice};
use thiserror::Error;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::task::AbortOnDropHandle;
use url::Url;

/// Where the metadata service of an EC2 machine is.
pub const SERVICE: &str = "http://169.254.169.254";

/// Names another metadata service, as for the SDKs of AWS.
pub const SERVICE_VARIABLE: &str = "AWS_EC2_METADATA_SERVICE_ENDPOINT";

/// Between two questions. AWS recommends this: a notice comes two minutes before the end.
pub const INTERVAL: Duration = Duration::from_secs(5);

/// How long before the end a notice comes. Source: Amazon EC2 user guide, "Spot Instance interruption notices".
const NOTICE_TIME: Duration = Duration::from_mins(2);

/// How long one answer may take. The service is on the machine's own host.
const ANSWER_LIMIT: Duration = Duration::from_secs(2);

/// The most that is read of an answer. A notice has less than 100 bytes.
const ANSWER_BYTES_MAX: usize = 16 * 1024;

/// How long a token is asked for: the longest there is.
const TOKEN_LIFE: Duration = Duration::from_hours(6);

/// A token is renewed this long before its end.
const TOKEN_MARGIN: Duration = Duration::from_mins(1);

const TOKEN_PATH: &str = "latest/api/token";
const ACTION_PATH: &str = "latest/meta-data/spot/instance-action";
const REBALANCE_PATH: &str = "latest/meta-data/events/recommendations/rebalance";

/// What is known of the machine's end. Watches until the value is dropped.
#[derive(Debug)]
pub struct SpotWatch {
    notice: watch::Receiver<Option<Interrupted>>,
    _task: Option<AbortOnDropHandle<()>>,
}

impl SpotWatch {
    /// Asks the service at `service` now and after every `interval`, until the end is certain.
    pub fn start(service: Url, interval: Duration) -> Self {
        let (sender, notice) = watch::channel(None);
        let task = tokio::spawn(watch(Service::new(service), interval, sender));
        Self { notice, _task: Some(AbortOnDropHandle::new(task)) }
    }

    /// As [`start`](Self::start), with the service and the interval of a real machine.
    pub fn of_this_machine() -> Self {
        let default = || Url::parse(SERVICE).expect("it is a URL");
        let service = match env::var(SERVICE_VARIABLE).as_deref() {
            Err(_) | Ok("") => default(),
            Ok(address) => {
                let url = Url::parse(address).ok().filter(|url| url.scheme().starts_with("http"));
                url.unwrap_or_else(|| {
                    tracing::error!("{SERVICE_VARIABLE} is no http address; {SERVICE} is asked");
                    default()
                })
            }
        };
        Self::start(service, INTERVAL)
    }

    /// For a machine that nobody takes back.
    pub fn none() -> Self {
        Self { notice: watch::channel(None).1, _task: None }
    }

    /// The notice that stands, if any.
    pub fn notice(&mut self) -> Option<Interrupted> {
        self.notice.borrow_and_update().clone()
    }

    /// Waits for a notice that nobody has taken yet. May be dropped and called again.
    pub async fn next(&mut self) -> Interrupted {
        while self.notice.changed().await.is_ok() {
            if let Some(notice) = self.notice() {
                return notice;
            }
        }
        pending().await
    }
}

async fn watch(mut service: Service, every: Duration, found: watch::Sender<Option<Interrupted>>) {
    let mut ticks = interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut is_likely = false;
    let mut is_silent = false;
    loop {
        ticks.tick().await;
        match service.ask(is_likely).await {
            Ok(answer) => {
                is_silent = false;
                let Some(notice) = answer else { continue };
                tracing::warn!(?notice, "the cloud takes this machine back");
                is_likely = true;
                let is_certain = notice.notice == Notice::Certain;
                found.send_replace(Some(notice));
                if is_certain {
                    return;
                }
            }
            // Said once: with a service that is not there every log would be full of it.
            Err(error) if is_silent => tracing::debug!(%error, "the metadata service"),
            Err(error) => {
                is_silent = true;
                let error = with_causes(&error);
                tracing::warn!(error, "the metadata service says nothing of interruptions");
            }
        }
    }
}

/// An error and its causes, in one line.
fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

/// The metadata service did not say what it was asked.
#[derive(Debug, Error)]
enum AskError {
    #[error("no answer to {path}")]
    NoAnswer {
        path: &'static str,
        #[source]
        source: reqwest::Error,
    },
    #[error("{path} answers {status}")]
    Status { path: &'static str, status: StatusCode },
    #[error("{path} answers with more than {ANSWER_BYTES_MAX} bytes")]
    TooLong { path: &'static str },
    #[error("{path} answers with something unknown")]
    Unknown { path: &'static str },
}

/// What is at `spot/instance-action`. Whatever the action is, the work here ends.
#[derive(Deserialize)]
struct InstanceAction {
    #[serde(rename = "action")]
    _action: String,
    #[serde(default)]
    time: String,
}

/// What is at `events/recommendations/rebalance`.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Rebalance {
    notice_time: String,
}

/// The metadata service, version 2: it wants a token with every question.
struct Service {
    client: Client,
    base: Url,
    token: Option<Token>,
}

struct Token {
    text: String,
    good_until: Instant,
}

impl Service {
    fn new(mut base: Url) -> Self {
        if !base.path().ends_with('/') {
            base.set_path(&format!("{}/", base.path()));
        }
        // A proxy would ask its own metadata service.
        let client = Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(ANSWER_LIMIT)
            .timeout(ANSWER_LIMIT)
            .build()
            .expect("a client without TLS settings can always be made");
        Self { client, base, token: None }
    }

    /// What is new. Of a likely end only whether it is certain by now, where `is_likely` is known.
    async fn ask(&mut self, is_likely: bool) -> Result<Option<Interrupted>, AskError> {
        if let Some(action) = self.get::<InstanceAction>(ACTION_PATH).await? {
            // That there is an action is enough, whatever its time says.
            let soon = || unix_milliseconds(SystemTime::now() + NOTICE_TIME).unwrap_or_default();
            let at = milliseconds(&action.time, ACTION_PATH).unwrap_or_else(|_| soon());
            return Ok(Some(Interrupted { at, notice: Notice::Certain }));
        }
        if is_likely {
            return Ok(None);
        }
        let Some(rebalance) = self.get::<Rebalance>(REBALANCE_PATH).await? else { return Ok(None) };
        let at = milliseconds(&rebalance.notice_time, REBALANCE_PATH)?;
        Ok(Some(Interrupted { at, notice: Notice::Likely }))
    }

    /// What is at `path`; `None` where nothing is.
    async fn get<T: for<'de> Deserialize<'de>>(
        &mut self,
        path: &'static str,
    ) -> Result<Option<T>, AskError> {
        let mut response = self.get_with_token(path).await?;
        if response.status() == StatusCode::UNAUTHORIZED {
            // The machine slept, or the service has forgotten its tokens.
            self.token = None;
            response = self.get_with_token(path).await?;
        }
        match response.status() {
            StatusCode::NOT_FOUND => Ok(None),
            StatusCode::OK => {
                let text = body(response, path).await?;
                let value = serde_json::from_slice(&text);
                Ok(Some(value.map_err(|_| AskError::Unknown { path })?))
            }
            status => Err(AskError::Status { path, status }),
        }
    }

    async fn get_with_token(&mut self, path: &'static str) -> Result<Response, AskError> {
        let token = self.token().await?.to_owned();
        self.send(Method::GET, path, "x-aws-ec2-metadata-token", &token).await
    }

    async fn token(&mut self) -> Result<&str, AskError> {
        let now = Instant::now();
        let token = match self.token.take().filter(|token| now < token.good_until) {
            Some(token) => token,
            None => self.new_token(now).await?,
        };
        Ok(&self.token.insert(token).text)
    }

    async fn new_token(&self, now: Instant) -> Result<Token, AskError> {
        const LIFE_HEADER: &str = "x-aws-ec2-metadata-token-ttl-seconds";
        let path = TOKEN_PATH;
        let seconds = TOKEN_LIFE.as_secs().to_string();
        let response = self.send(Method::PUT, path, LIFE_HEADER, &seconds).await?;
        if response.status() != StatusCode::OK {
            return Err(AskError::Status { path, status: response.status() });
        }
        let life =
            response.headers().get(LIFE_HEADER).and_then(|life| life.to_str().ok()?.parse().ok());
        let life = life.map_or(TOKEN_LIFE, Duration::from_secs).min(TOKEN_LIFE);
        let text = String::from_utf8(body(response, path).await?).ok();
        let text = text.filter(|text| text.bytes().all(|byte| byte.is_ascii_graphic()));
        let text = text.ok_or(AskError::Unknown { path })?;
        Ok(Token { text, good_until: now + life.saturating_sub(TOKEN_MARGIN) })
    }

    async fn send(
        &self,
        method: Method,
        path: &'static str,
        header: &'static str,
        value: &str,
    ) -> Result<Response, AskError> {
        let url = self.base.join(path).expect("a path of ours fits below any http address");
        let request = self.client.request(method, url).header(header, value);
        request.send().await.map_err(|source| no_answer(path, source))
    }
}

async fn body(mut response: Response, path: &'static str) -> Result<Vec<u8>, AskError> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|source| no_answer(path, source))? {
        if body.len() + chunk.len() > ANSWER_BYTES_MAX {
            return Err(AskError::TooLong { path });
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

fn no_answer(path: &'static str, source: reqwest::Error) -> AskError {
    AskError::NoAnswer { path, source: source.without_url() }
}

/// `2026-01-01T00:00:00Z` in milliseconds since the Unix epoch.
fn milliseconds(time: &str, path: &'static str) -> Result<u64, AskError> {
    let time = humantime::parse_rfc3339(time).ok();
    time.and_then(unix_milliseconds).ok_or(AskError::Unknown { path })
}

fn unix_milliseconds(time: SystemTime) -> Option<u64> {
    u64::try_from(time.duration_since(UNIX_EPOCH).ok()?.as_millis()).ok()
}
