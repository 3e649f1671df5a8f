//! `stagely core` as a process with a folder and an address of its own.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use nix::sys::signal::Signal;
use reqwest::{Method, StatusCode};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::{Error as WebSocketError, http::HeaderValue};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async};

use crate::files::files_below;
use crate::ports::free_port;
use crate::processes::ChildProcess;
use crate::program;
use crate::settings::with_defaults;
use crate::wait::eventually;

/// In core's data folder.
const ADMIN_TOKEN_FILE: &str = "admin.token";

/// The log of core, in its folder.
const LOG_FILE: &str = "core.log";

pub type Socket = WebSocketStream<MaybeTlsStream<tokio::net::TcpStream>>;

/// A core that can be stopped, killed and started again. Dropping the value kills it.
///
/// Its folder contains `stagely.toml`, `data`, `core.log`, and `home` and `tmp`, which its environment names.
pub struct CoreProcess {
    /// The URL for agents and clients.
    pub url: String,
    program: String,
    folder: PathBuf,
    environment: Vec<(&'static str, OsString)>,
    process: Option<ChildProcess>,
    http: reqwest::Client,
}

impl CoreProcess {
    /// The resident memory of the process, in bytes.
    pub fn resident_bytes(&self) -> u64 {
        let id = self.process.as_ref().expect("core runs").id();
        let status = fs::read_to_string(format!("/proc/{id}/status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
    }

    /// Prepares a core in `folder`, whose address for others is `host`. `settings` is TOML that goes before the
    /// defaults.
    pub fn new(program: &str, folder: PathBuf, host: &str, settings: &str) -> Self {
        let port = free_port();
        let url = format!("http://{host}:{port}");
        let data_dir = folder.join("data");
        let is_loopback = host == "127.0.0.1";
        let listen = format!("{}:{port}", if is_loopback { host } else { "0.0.0.0" });
        let mut defaults = toml::toml! {
            [core]
            listen = (listen.as_str())
            data-dir = (data_dir.to_str().unwrap())
            disk-free-min-mib = 1
        };
        if !is_loopback {
            defaults["core"]
                .as_table_mut()
                .unwrap()
                .insert("public-url".into(), url.clone().into());
        }
        let settings = with_defaults(settings, defaults);
        fs::write(folder.join("stagely.toml"), settings.to_string()).unwrap();
        for private in ["home", "tmp"] {
            fs::create_dir(folder.join(private)).unwrap();
        }
        // Core closes connections that are idle for 30 seconds, and a test that blocks its thread does not notice.
        let http = reqwest::Client::builder().pool_idle_timeout(Duration::from_secs(20));
        let http = http.build().unwrap();
        let (program, environment) = (program.to_owned(), Vec::new());
        Self { url, program, folder, environment, process: None, http }
    }

    #[must_use]
    pub fn with_variable(mut self, name: &'static str, value: impl Into<OsString>) -> Self {
        self.environment.push((name, value.into()));
        self
    }

    /// Starts the process and waits until it serves.
    pub async fn launch(&mut self) {
        let mut command = program::command(&self.program);
        command
            .args(["core", "--config"])
            .arg(self.path("stagely.toml"))
            .env("HOME", self.path("home"))
            .env("TMPDIR", self.path("tmp"))
            .env("NO_COLOR", "1")
            .envs(self.environment.iter().cloned());
        self.process = Some(program::start(&mut command, self.open_log(LOG_FILE)));
        eventually("core is healthy", async || {
            let ended = self.process.as_mut().unwrap().status();
            assert!(ended.is_none(), "core has ended: {ended:?}\n{}", self.log());
            self.http.get(format!("{}/healthz", self.url)).send().await.ok()
        })
        .await;
    }

    /// Opens a log in core's folder, which is shown if the test fails. `name` ends in `.log`.
    pub fn open_log(&self, name: &str) -> fs::File {
        fs::OpenOptions::new().create(true).append(true).open(self.path(name)).unwrap()
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.path(LOG_FILE)).unwrap()
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The path of `name` in core's folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    pub fn id(&self) -> u32 {
        self.process.as_ref().expect("core runs").id()
    }

    /// Kills the process as a power cut would. Its machines go on.
    pub fn crash(&mut self) {
        self.process.take().expect("core runs").kill();
    }

    /// Stops the process as a service manager does.
    pub async fn shut_down(&mut self) -> ExitStatus {
        let process = self.process.as_mut().expect("core runs");
        process.signal(Signal::SIGTERM);
        let status = process.ended().await;
        self.process = None;
        status
    }

    /// Kills the process if it runs.
    pub fn end(&mut self) {
        self.process = None;
    }

    pub fn admin_token(&self) -> String {
        let text = fs::read_to_string(self.path("data").join(ADMIN_TOKEN_FILE)).unwrap();
        text.trim().to_owned()
    }

    /// Sends a request with `token`. Returns the response's status and text.
    pub async fn call(
        &self,
        token: Option<&str>,
        method: Method,
        path: &str,
        body: Option<Value>,
    ) -> (StatusCode, String) {
        let mut request = self.http.request(method, format!("{}{path}", self.url));
        if let Some(token) = token {
            request = request.bearer_auth(token);
        }
        if let Some(body) = body {
            request = request.json(&body);
        }
        let response = request.send().await.unwrap();
        (response.status(), response.text().await.unwrap())
    }

    /// Sends a request of the admin to the API. Returns the response's text.
    ///
    /// # Panics
    /// If core refuses.
    pub async fn request_text(&self, method: Method, path: &str, body: Option<Value>) -> String {
        let path = format!("/api/v1{path}");
        let (status, text) = self.call(Some(&self.admin_token()), method, &path, body).await;
        assert!(status.is_success(), "{path}: {status} {text}");
        text
    }

    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> T {
        parse(path, &self.request_text(Method::GET, path, None).await)
    }

    pub async fn post<T: DeserializeOwned>(&self, path: &str, body: Value) -> T {
        parse(path, &self.request_text(Method::POST, path, Some(body)).await)
    }

    /// Opens a WebSocket at `path`.
    ///
    /// # Errors
    /// If core refuses.
    pub async fn socket(&self, path: &str, token: Option<&str>) -> Result<Socket, WebSocketError> {
        let url = format!("{}{path}", self.url.replace("http", "ws"));
        let mut request = url.into_client_request().unwrap();
        if let Some(token) = token {
            let value = HeaderValue::try_from(format!("Bearer {token}")).unwrap();
            request.headers_mut().insert("Authorization", value);
        }
        Ok(connect_async(request).await?.0)
    }
}

fn parse<T: DeserializeOwned>(path: &str, text: &str) -> T {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{path}: {error}: {text}"))
}

impl Drop for CoreProcess {
    fn drop(&mut self) {
        self.end();
        if std::thread::panicking() {
            let mut logs = files_below(&self.folder);
            logs.retain(|path| path.extension().is_some_and(|extension| extension == "log"));
            for log in logs {
                let text = fs::read_to_string(&log).unwrap_or_default();
                eprintln!("{}:\n{text}", log.display());
            }
        }
    }
}
