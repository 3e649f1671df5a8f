//! A client of core's HTTP API: what the commands speak with core through.

use std::time::Duration;

use backon::{ExponentialBuilder, Retryable as _};
use bytes::Bytes;
use futures_util::{SinkExt as _, StreamExt as _};
use reqwest::{Method, RequestBuilder, Response};
use secrecy::{ExposeSecret as _, SecretString};
use serde::Serialize;
use serde::de::DeserializeOwned;
use stagely_state::ids::{EnvironmentId, JobId, MachineId, RunId};
use thiserror::Error;
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::http::header::AUTHORIZATION;
use tokio_tungstenite::tungstenite::http::{HeaderValue, StatusCode};
use tokio_tungstenite::tungstenite::{self, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async};
use url::{Url, form_urlencoded};

use crate::api::{
    AddMachine, AddProject, AddedMachine, BASE_PATH, CreateRun, CreateToken, CreateWarmUp,
    CreatedToken, EnvironmentView, ErrorBody, FollowMessage, FollowedLine, GithubView, JobStatus,
    JobView, ListEnvironments, ListMachines, ListRuns, LogRange, MachineView, ProjectView,
    QueueView, RebuildEnvironment, RebuildRun, RunView, SweepView, WarmUpView,
};

/// How long a connection may take.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);

/// How long the answer to a request may take, logs and what is followed excepted.
const ANSWER_LIMIT: Duration = Duration::from_mins(1);

/// How long a sweep may take: providers are asked for all their pages, and machines are ended.
const SWEEP_LIMIT: Duration = Duration::from_mins(10);

/// The waits before core is asked again after it went away: about 90 s in all, which is more than
/// a restart takes.
const RECONNECT: ExponentialBuilder = ExponentialBuilder::new()
    .with_min_delay(Duration::from_millis(250))
    .with_max_delay(Duration::from_secs(10))
    .with_max_times(14)
    .with_jitter();

/// A quiet connection is asked this often whether it is one; a link that was cut says nothing.
const PING_INTERVAL: Duration = Duration::from_secs(15);

/// Pings in a row that may go unanswered.
const SILENT_PINGS: u32 = 2;

/// The wait before a connection that ended is dialled anew, should every one end at once.
const REDIAL_WAIT: Duration = Duration::from_millis(100);

/// A request that was not served.
#[derive(Debug, Error)]
pub enum ClientError {
    /// Nobody answered, or the connection broke.
    #[error("cannot reach core at {server}; is `stagely core` running there?")]
    Unreachable {
        /// Core's address.
        server: Url,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Core refused. Its message says what to do.
    #[error("core refused: {message}")]
    Refused {
        /// The HTTP status.
        status: u16,
        /// A word for programs.
        code: String,
        /// A sentence for people.
        message: String,
    },
    /// What answered is not a core that this version understands.
    #[error("{server} does not answer as this version of core does: {detail}")]
    Answer {
        /// Core's address.
        server: Url,
        /// What is wrong.
        detail: String,
        /// The HTTP status, where that is all it said.
        status: Option<u16>,
    },
}

impl ClientError {
    const fn is_unreachable(&self) -> bool {
        match self {
            Self::Unreachable { .. } => true,
            // A proxy answers so for a core that is away.
            Self::Refused { status, .. } | Self::Answer { status: Some(status), .. } => {
                *status >= 500
            }
            Self::Answer { status: None, .. } => false,
        }
    }
}

/// Speaks with one core. Clones share connections.
#[derive(Clone, Debug)]
pub struct Client {
    http: reqwest::Client,
    server: Url,
    token: SecretString,
}

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

/// What a followed log brings.
#[derive(Debug)]
pub enum LogEvent {
    /// Lines, in order, each once.
    Lines {
        /// The attempt that they belong to.
        attempt: u32,
        /// The lines.
        lines: Vec<FollowedLine>,
    },
    /// The job has ended, and every line was sent.
    End(JobStatus),
}

/// Text as a part of a path. Paths write a space as `%20`, forms as `+`.
fn path_part(text: &str) -> String {
    let part: String = form_urlencoded::byte_serialize(text.as_bytes()).collect();
    part.replace('+', "%20")
}

impl Client {
    /// A client of the core at `server`.
    ///
    /// # Errors
    /// [`ClientError::Answer`] when this machine's TLS cannot be set up.
    pub fn new(server: Url, token: SecretString) -> Result<Self, ClientError> {
        let http = reqwest::Client::builder()
            .connect_timeout(CONNECT_LIMIT)
            .user_agent(concat!("stagely/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|error| ClientError::Answer {
                server: server.clone(),
                detail: error.to_string(),
                status: None,
            })?;
        Ok(Self { http, server, token })
    }

    /// Core's address.
    pub const fn server(&self) -> &Url {
        &self.server
    }

    /// Starts a run.
    ///
    /// # Errors
    /// [`ClientError`]
    pub async fn create_run(&self, run: &CreateRun) -> Result<RunView, ClientError> {
        self.post("runs", run).await
    }

    /// Lists runs, newest first.
    ///
    /// # Errors
    /// [`ClientError`]
    pub async fn runs(&self, which: &ListRuns) -> Result<Vec<RunView>, ClientError> {
        let request = self.request(Method::GET, "runs").query(which);
        self.json(request.timeout(ANSWER_LIMIT)).await
    }

    /// Gets a run and its jobs.
    ///
    /// # Errors
    /// [`ClientError`]
    pub async fn run(&self, id: RunId) -> Result<RunView, ClientError> {
        self.get(&format!("runs/{id}")).await
    }

    /// Stops a run.
    ///
    /// # Errors
    /// [`ClientError`]
    pub async fn cancel(&self, id: RunId) -> Result<RunView, ClientError> {
        self.post(&format!("runs/{id}/cancel"), &()).await
    }

    /// Builds a run's commit once more, as a new run.
    ///
    /// # Errors
    /// [`ClientError`]
    pub async fn rebuild(&self, id: RunId, rebuild: &RebuildRun) -> Result<RunView, ClientError> {
        self.post(&format!("runs/{id}/rebuild"), rebuild).await
    }

    /// Starts a run that fills the caches of the project of this name.
    ///
    /// # Errors
    /// [`ClientError`]
    pub async fn create_warm_up(
        &self,
        project: &str,
        warm_up: &CreateWarmUp,
    ) -> Result<RunView, ClientError> {
        self.post(&format!("projects/{}/warm-ups", path_part(project)), warm_up).await
    }

    /// Gets the schedule of warm-ups.
    ///
    /// # Errors
    /// [`ClientError`]
    pub async fn warm_up(&self) -> Result<WarmUpView, ClientError> {
        self.get("warm-up").await
    }

    /// Lists environments.
    ///
    /// # Errors
    /// [`ClientError`]
    pub async fn environments(
        &self,
        which: &ListEnvironments,
    ) -> Result<Vec<EnvironmentView>, ClientError> {
        let request = self.request(Method::GET, "environments").query(which);
        self.json(request.timeout(ANSWER_LIMIT)).await
    }

    /// Closes an environment: its runs are cancelled and its cache refs deleted.
    ///
    /// # Errors
    /// [`ClientError`]
    pub async fn close_environment(
        &self,
        id: EnvironmentId,
    ) -> Result<EnvironmentView, ClientError> {
        self.post(&format!("environments/{id}/close"), &()).await
    }

    /// Builds the newest run of an environment once more, as a new run.
    ///
    /// # Errors
    /// [`ClientError`]
    pub async fn rebuild_environment(
        &self,
        id: EnvironmentId,
        rebuild: &RebuildEnvironment,
    ) -> Result<RunView, ClientError> {
        self.post(&format!("environments/{id}/rebuild"), rebuild).await
    }

    /// Approves a run of a fork's commit.
    ///
    /// # Errors
    /// [`ClientError`]
    pub async fn approve(&self, id: RunId) -> Result<RunView, ClientError> {
        self.post(&format!("runs/{id}/approve"), &()).await
    }

    /// Lists projects.
    ///
    /// # Errors
    /// [`ClientError`]
    pub async fn projects(&self) -> Result<Vec<ProjectView>, ClientError> {
        self.get("projects").await
    }

    /// Lets the pull requests of a repository be built.
    ///
    /// # Errors
    /// [`ClientError`]
    pub async fn add_project(&self, project: &AddProject) -> Result<ProjectView, ClientError> {
        self.post("projects", project).await
    }

    /// Lets the pull requests of a project's repository be built no more.
    ///
    /// # Errors
    /// [`ClientError`]
    pub async fn remove_project(&self, name: &str) -> Result<(), ClientError> {
        let request = self.request(Method::DELETE, &format!("projects/{}", path_part(name)));
        self.send(request.timeout(ANSWER_LIMIT)).await.map(drop)
    }

    /// Gets how core gets on with GitHub.
    ///
    /// # Errors
    /// [`ClientError`]
    pub async fn github(&self) -> Result<GithubView, ClientError> {
        self.get("github").await
    }

    /// Gets a job.
    ///
    /// # Errors
    /// [`ClientError`]
    pub async fn job(&self, id: JobId) -> Result<JobView, ClientError> {
        self.get(&format!("jobs/{id}")).await
    }

    /// Reads a job's log, as text.
    ///
    /// # Errors
    /// [`ClientError`]
    pub async fn log(&self, id: JobId, range: &LogRange) -> Result<Response, ClientError> {
        self.send(self.request(Method::GET, &format!("jobs/{id}/logs")).query(range)).await
    }

    /// Lists machines, oldest first.
    ///
    /// # Errors
    /// [`ClientError`]
    pub async fn machines(&self, which: &ListMachines) -> Result<Vec<MachineView>, ClientError> {
        self.json(self.request(Method::GET, "machines").timeout(ANSWER_LIMIT).query(which)).await
    }

    /// Compares providers with the records, and does what follows unless this is a `dry_run`.
    ///
    /// # Errors
    /// [`ClientError`]. That a provider could not be asked is none: the answer says so.
    pub async fn sweep(&self, dry_run: bool) -> Result<SweepView, ClientError> {
        let method = if dry_run { Method::GET } else { Method::POST };
        self.json(self.request(method, "sweep").timeout(SWEEP_LIMIT)).await
    }

    /// Registers a machine.
    ///
    /// # Errors
    /// [`ClientError`]
    pub async fn add_machine(&self, machine: &AddMachine) -> Result<AddedMachine, ClientError> {
        self.post("machines", machine).await
    }

    /// Takes a registered machine back.
    ///
    /// # Errors
    /// [`ClientError`]
    pub async fn remove_machine(&self, id: MachineId) -> Result<(), ClientError> {
        let request = self.request(Method::DELETE, &format!("machines/{id}"));
        self.send(request.timeout(ANSWER_LIMIT)).await.map(drop)
    }

    /// Gets the jobs that wait.
    ///
    /// # Errors
    /// [`ClientError`]
    pub async fn queue(&self) -> Result<QueueView, ClientError> {
        self.get("queue").await
    }

    /// Makes a bearer token.
    ///
    /// # Errors
    /// [`ClientError`]
    pub async fn create_token(&self, token: &CreateToken) -> Result<CreatedToken, ClientError> {
        self.post("tokens", token).await
    }

    /// Follows a run until it has ended and its machines are gone.
    pub fn follow_run(&self, id: RunId) -> RunFollower {
        RunFollower { client: self.clone(), id, socket: None, is_over: false }
    }

    /// Follows a job's log: the lines that are there and those that come, over all attempts from
    /// `range.attempt` on (default: the newest), to the job's end.
    pub fn follow_log(&self, id: JobId, range: LogRange) -> LogFollower {
        LogFollower { client: self.clone(), id, range, socket: None, is_over: false, until: None }
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.http.request(method, self.url(path)).bearer_auth(self.token.expose_secret())
    }

    fn url(&self, path: &str) -> String {
        format!("{}{BASE_PATH}/{path}", self.server.as_str().trim_end_matches('/'))
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.json(self.request(Method::GET, path).timeout(ANSWER_LIMIT)).await
    }

    async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &(impl Serialize + Sync),
    ) -> Result<T, ClientError> {
        self.json(self.request(Method::POST, path).timeout(ANSWER_LIMIT).json(body)).await
    }

    async fn json<T: DeserializeOwned>(&self, request: RequestBuilder) -> Result<T, ClientError> {
        let response = self.send(request).await?;
        response.json().await.map_err(|error| {
            if error.is_decode() { self.answer(error.to_string()) } else { self.unreachable(error) }
        })
    }

    async fn send(&self, request: RequestBuilder) -> Result<Response, ClientError> {
        let response = request.send().await.map_err(|error| self.unreachable(error))?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let text = response.text().await.unwrap_or_default();
        Err(self.refusal(status.as_u16(), text.as_bytes()))
    }

    fn refusal(&self, status: u16, body: &[u8]) -> ClientError {
        match serde_json::from_slice(body) {
            Ok(ErrorBody { code, message }) => ClientError::Refused { status, code, message },
            Err(_) => ClientError::Answer {
                server: self.server.clone(),
                detail: format!("status {status}"),
                status: Some(status),
            },
        }
    }

    fn unreachable(&self, source: impl std::error::Error + Send + Sync + 'static) -> ClientError {
        ClientError::Unreachable { server: self.server.clone(), source: Box::new(source) }
    }

    fn answer(&self, detail: String) -> ClientError {
        ClientError::Answer { server: self.server.clone(), detail, status: None }
    }

    /// Opens a WebSocket, and waits for a core that is away.
    async fn dial(&self, path: &str) -> Result<Socket, ClientError> {
        (|| self.dial_once(path)).retry(RECONNECT).when(ClientError::is_unreachable).await
    }

    async fn dial_once(&self, path: &str) -> Result<Socket, ClientError> {
        let url = self.url(path).replacen("http", "ws", 1);
        let mut request =
            url.into_client_request().map_err(|error| self.answer(error.to_string()))?;
        let bearer = HeaderValue::try_from(format!("Bearer {}", self.token.expose_secret()));
        let mut bearer =
            bearer.map_err(|_| self.answer("the token is not one of core's".to_owned()))?;
        bearer.set_sensitive(true);
        request.headers_mut().insert(AUTHORIZATION, bearer);
        let dialled = timeout(CONNECT_LIMIT, connect_async(request)).await;
        match dialled.map_err(|too_late| self.unreachable(too_late))? {
            Ok((socket, _)) => Ok(socket),
            Err(tungstenite::Error::Http(response)) => {
                let status: StatusCode = response.status();
                let body = response.body().as_deref().unwrap_or_default();
                Err(self.refusal(status.as_u16(), body))
            }
            Err(error) => Err(self.unreachable(error)),
        }
    }

    /// The next message; `None` once the connection is closed or broken.
    async fn next<T: DeserializeOwned>(
        &self,
        socket: &mut Socket,
    ) -> Result<Option<T>, ClientError> {
        let mut silent = 0;
        while silent <= SILENT_PINGS {
            match timeout(PING_INTERVAL, socket.next()).await {
                Ok(Some(Ok(Message::Text(text)))) => {
                    let message = serde_json::from_str(&text);
                    return message.map(Some).map_err(|error| self.answer(error.to_string()));
                }
                Ok(Some(Ok(Message::Close(_)) | Err(_)) | None) => return Ok(None),
                // The library answers pings.
                Ok(Some(Ok(_))) => silent = 0,
                Err(_) => {
                    silent += 1;
                    if socket.send(Message::Ping(Bytes::new())).await.is_err() {
                        return Ok(None);
                    }
                }
            }
        }
        Ok(None)
    }
}

/// Follows one run. A core that restarts is waited for.
#[derive(Debug)]
pub struct RunFollower {
    client: Client,
    id: RunId,
    socket: Option<Socket>,
    is_over: bool,
}

impl RunFollower {
    /// The run, at once and then after each change; `None` when it has ended and its machines are
    /// gone.
    ///
    /// # Errors
    /// [`ClientError`]
    pub async fn next(&mut self) -> Result<Option<RunView>, ClientError> {
        while !self.is_over {
            let socket = if let Some(socket) = &mut self.socket {
                socket
            } else {
                let path = format!("runs/{}/follow", self.id);
                self.socket.insert(self.client.dial(&path).await?)
            };
            if let Some(run) = self.client.next::<RunView>(socket).await? {
                self.is_over = run.status.is_final() && run.live_machines == 0;
                return Ok(Some(run));
            }
            self.socket = None;
            sleep(REDIAL_WAIT).await;
        }
        Ok(None)
    }
}

/// Follows one job's log. A core that restarts is waited for, and no line comes twice.
#[derive(Debug)]
pub struct LogFollower {
    client: Client,
    id: JobId,
    /// From where on nothing was returned yet.
    range: LogRange,
    socket: Option<Socket>,
    is_over: bool,
    /// Where it ends, if not with the job.
    until: Option<Position>,
}

/// An attempt, and a line of it.
type Position = (Option<u32>, u64);

impl LogFollower {
    /// The next lines; `None` after the job's end. May be dropped and called again.
    ///
    /// # Errors
    /// [`ClientError`]
    pub async fn next(&mut self) -> Result<Option<LogEvent>, ClientError> {
        while !self.is_over && self.until.is_none_or(|until| self.position() < until) {
            let socket = if let Some(socket) = &mut self.socket {
                socket
            } else {
                let path = format!("jobs/{}/logs/follow{}", self.id, query_of(&self.range));
                self.socket.insert(self.client.dial(&path).await?)
            };
            match self.client.next(socket).await? {
                Some(FollowMessage::Lines { attempt, first, lines }) => {
                    let from = first + lines.len() as u64;
                    self.range = LogRange { attempt: Some(attempt), from: Some(from) };
                    return Ok(Some(LogEvent::Lines { attempt, lines }));
                }
                Some(FollowMessage::End { status, attempt: newest }) => {
                    match self.range.attempt.filter(|attempt| *attempt < newest) {
                        // Also when the job has ended meanwhile: the later attempts were not sent.
                        Some(attempt) => {
                            self.range = LogRange { attempt: Some(attempt + 1), from: None };
                            self.socket = None;
                        }
                        None if status.is_final() => {
                            self.is_over = true;
                            return Ok(Some(LogEvent::End(status)));
                        }
                        None => {
                            self.socket = None;
                            sleep(REDIAL_WAIT).await;
                        }
                    }
                }
                None => {
                    self.socket = None;
                    sleep(REDIAL_WAIT).await;
                }
            }
        }
        Ok(None)
    }

    /// Lets [`next`](Self::next) end with the lines that core has now: the agent of a job that has
    /// completed goes on to speak for as long as it exports the cache.
    ///
    /// # Errors
    /// [`ClientError`]
    pub async fn end_with_stored(&mut self) -> Result<(), ClientError> {
        let stored = || timeout(ANSWER_LIMIT, self.stored());
        let stored = || async { stored().await.map_err(|late| self.client.unreachable(late))? };
        let until = stored.retry(RECONNECT).when(ClientError::is_unreachable).await?;
        self.until = Some(until);
        Ok(())
    }

    /// Behind the last line that core has of the newest attempt.
    async fn stored(&self) -> Result<Position, ClientError> {
        let attempt = Some(self.client.job(self.id).await?.attempt);
        let (at, from) = self.position();
        let mut next = if at == attempt { from } else { 0 };
        let range = LogRange { attempt, from: Some(next) };
        let mut text = self.client.log(self.id, &range).await?;
        while let Some(part) = text.chunk().await.map_err(|error| self.client.unreachable(error))? {
            next += part.split(|byte| *byte == b'\n').skip(1).count() as u64;
        }
        Ok((attempt, next))
    }

    fn position(&self) -> Position {
        (self.range.attempt, self.range.from.unwrap_or(0))
    }
}

fn query_of(range: &LogRange) -> String {
    let from = range.from.map(|from| format!("from={from}"));
    let attempt = range.attempt.map(|attempt| format!("attempt={attempt}"));
    let parameters: Vec<String> = from.into_iter().chain(attempt).collect();
    if parameters.is_empty() { String::new() } else { format!("?{}", parameters.join("&")) }
}
