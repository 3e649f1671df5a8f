//! Which Docker engine is used, and how it is reached: a setting, `DOCKER_HOST`, or a Docker context.
//!
//! Sources: Docker documentation, "Docker contexts"; docker/cli, `cli/command/cli.go` (`resolveContextName`) and
//! `cli/context/store`.

use std::env;
use std::fmt::Write as _;
use std::fs;
use std::future::ready;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::time::Duration;

use bollard::errors::Error as EngineError;
use bollard::{API_DEFAULT_VERSION, BollardRequest, Docker};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::header::{HOST, HeaderValue};
use hyper::{Response, Uri};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use thiserror::Error;
use tokio::io::AsyncReadExt as _;
use tokio::process::ChildStderr;
use tokio::time::timeout;
use url::Url;

use super::user_config::{self, ConfigFile};
use crate::process::{last_line, piped_child};
use crate::proxy::is_loopback;

/// The name of the context without an entry, for Docker's own default.
const DEFAULT: &str = "default";

const DEFAULT_HOST: &str = "unix:///var/run/docker.sock";

/// How long a request through `docker system dial-stdio` may take, in seconds, as for other engines.
const REQUEST_SECONDS: u64 = 120;

/// How long the `docker` command of a closed connection may take to end by itself.
const END_LIMIT: Duration = Duration::from_secs(2);

/// Why it is not known which engine to use.
#[derive(Debug, Error)]
pub enum EndpointError {
    #[error(
        "there is no Docker context {name:?}, which {origin} names; `docker context ls` lists those that exist"
    )]
    NoSuchContext { name: String, origin: ContextOrigin },
    #[error("the Docker context {name:?} cannot be read")]
    Unreadable {
        name: String,
        #[source]
        source: io::Error,
    },
    #[error("the Docker context {name:?} has no Docker endpoint")]
    NoEndpoint { name: String },
    #[error("{host:?} ({origin}) is no address of a Docker engine: unix:///…, tcp://… or ssh://…")]
    Address { host: String, origin: &'static str },
    #[error(
        "DOCKER_TLS_VERIFY is set, and {file} cannot be read: name the folder with ca.pem, cert.pem and key.pem in \
         DOCKER_CERT_PATH"
    )]
    Certificate {
        file: String,
        #[source]
        source: io::Error,
    },
}

/// Where the name of a context comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContextOrigin {
    /// `DOCKER_CONTEXT`.
    Variable,
    /// `docker context use`.
    ConfigFile,
}

impl std::fmt::Display for ContextOrigin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Variable => "DOCKER_CONTEXT",
            Self::ConfigFile => "`docker context use`",
        })
    }
}

/// A Docker engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    host: String,
    source: Source,
    /// The variables that name the engine for `docker` commands.
    variables: Vec<(&'static str, String)>,
    has_tls: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Source {
    Setting,
    /// `DOCKER_HOST`.
    Variable,
    Context(String, ContextOrigin),
    Default,
}

/// The stored description of a context.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ContextFile {
    endpoints: ContextEndpoints,
}

#[derive(Deserialize)]
struct ContextEndpoints {
    docker: Option<ContextEndpoint>,
}

#[derive(Deserialize)]
#[serde(default, rename_all = "PascalCase")]
#[derive(Default)]
struct ContextEndpoint {
    host: String,
    #[serde(rename = "SkipTLSVerify")]
    skip_tls_verify: bool,
}

impl Endpoint {
    /// The engine at `setting`, or else the one that the user's `docker` commands use: `DOCKER_HOST`, or else the
    /// context of `DOCKER_CONTEXT`, or else the current context.
    ///
    /// # Errors
    /// [`EndpointError`] about a context.
    pub fn find(setting: Option<&str>) -> Result<Self, EndpointError> {
        let variable = |name| env::var(name).ok().filter(|value| !value.is_empty());
        if let Some(host) = setting {
            let endpoint = Self::at(host.to_owned(), Source::Setting);
            return endpoint.checked("Stagely's setting", verified_by(variable));
        }
        if let Some(host) = variable("DOCKER_HOST") {
            let endpoint = Self::at(host, Source::Variable);
            return endpoint.checked("DOCKER_HOST", verified_by(variable));
        }
        let Some(folder) = user_config::folder() else { return Ok(Self::of_default()) };
        let current = || {
            let current = ConfigFile::read(&folder).current_context;
            current.map(|name| (name, ContextOrigin::ConfigFile))
        };
        let variable = variable("DOCKER_CONTEXT").map(|name| (name, ContextOrigin::Variable));
        let named = variable.or_else(current);
        match named {
            Some((name, origin)) if !name.is_empty() && name != DEFAULT => {
                Self::of_context(&folder.join("contexts"), name, origin)
            }
            _ => Ok(Self::of_default()),
        }
    }

    /// Checks what another attempt does not change: the address, and that there is a certificate to check a remote
    /// engine with. `certificates` is the folder of the user's, if engines must be checked.
    fn checked(
        self,
        origin: &'static str,
        certificates: Option<PathBuf>,
    ) -> Result<Self, EndpointError> {
        if !is_address(&self.host) {
            return Err(EndpointError::Address { host: self.host, origin });
        }
        // As the `docker` command does, which takes no certificate for a socket either.
        let Some(folder) = certificates.filter(|_| self.host.starts_with("tcp://")) else {
            return Ok(self);
        };
        let file = folder.join("ca.pem");
        match fs::File::open(&file) {
            Ok(_) => Ok(self),
            Err(source) => {
                Err(EndpointError::Certificate { file: file.display().to_string(), source })
            }
        }
    }

    fn of_default() -> Self {
        Self { variables: Vec::new(), ..Self::at(DEFAULT_HOST.to_owned(), Source::Default) }
    }

    /// The engine at `host`, which may lack `tcp://`, as for Docker. Children inherit the variables about TLS.
    fn at(host: String, source: Source) -> Self {
        let host = if has_only_port(&host) { format!("tcp://{host}") } else { host };
        let is_set = |name| env::var_os(name).is_some_and(|value| !value.is_empty());
        let has_tls = is_set("DOCKER_TLS_VERIFY") || is_set("DOCKER_TLS");
        Self { variables: vec![("DOCKER_HOST", host.clone())], host, source, has_tls }
    }

    /// The engine of the context `name`, which is described in the folder `contexts`.
    fn of_context(
        contexts: &Path,
        name: String,
        origin: ContextOrigin,
    ) -> Result<Self, EndpointError> {
        let id: String = hex(&Sha256::digest(name.as_bytes()));
        let text = match fs::read(contexts.join("meta").join(&id).join("meta.json")) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(EndpointError::NoSuchContext { name, origin });
            }
            Err(source) => return Err(EndpointError::Unreadable { name, source }),
        };
        let file: ContextFile = match serde_json::from_slice(&text) {
            Ok(file) => file,
            Err(error) => {
                return Err(EndpointError::Unreadable { name, source: error.into() });
            }
        };
        let endpoint = file.endpoints.docker.filter(|endpoint| !endpoint.host.is_empty());
        let Some(ContextEndpoint { host, skip_tls_verify }) = endpoint else {
            return Err(EndpointError::NoEndpoint { name });
        };
        let tls = contexts.join("tls").join(&id).join("docker");
        let has_files = fs::read_dir(&tls).is_ok_and(|mut files| files.next().is_some());
        Ok(Self {
            variables: tls_variables(&host, has_files.then_some(&*tls), skip_tls_verify),
            has_tls: has_files || skip_tls_verify,
            source: Source::Context(name, origin),
            host,
        })
    }

    /// The engine's address.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Whether the engine's socket is a file or a port of this machine.
    pub fn is_on_this_machine(&self) -> bool {
        match self.host.split_once("://") {
            Some(("unix", _)) => true,
            // The parser knows IP addresses only in URLs of HTTP.
            Some(("tcp" | "http" | "https", rest)) => {
                Url::parse(&format!("http://{rest}")).is_ok_and(|url| is_loopback(&url))
            }
            _ => false,
        }
    }

    /// Whether the engine's socket is there, as far as this is known without a connection.
    pub fn has_socket(&self) -> bool {
        self.host.strip_prefix("unix://").is_none_or(|path| Path::new(path).exists())
    }

    /// Which engine it is and why, for people.
    pub fn description(&self) -> String {
        let host = &self.host;
        match &self.source {
            Source::Setting => format!("{host} (Stagely's setting)"),
            Source::Variable => format!("{host} (DOCKER_HOST)"),
            Source::Context(name, ContextOrigin::Variable) => {
                format!("{host} (context {name} of DOCKER_CONTEXT)")
            }
            Source::Context(name, ContextOrigin::ConfigFile) => {
                format!("{host} (context {name} of `docker context use`)")
            }
            Source::Default => format!("{host} (Docker's default)"),
        }
    }

    /// The variables that name the engine for `docker` commands.
    pub(super) fn variables(&self) -> &[(&'static str, String)] {
        &self.variables
    }

    /// A connection to the engine. Nothing is sent yet.
    ///
    /// # Errors
    /// If the address cannot be used.
    pub fn connect(&self) -> Result<Docker, EngineError> {
        if !self.has_tls && !self.host.starts_with("ssh://") {
            return Docker::connect_with_host(&self.host);
        }
        // The `docker` command knows how to reach any engine, with the user's keys and certificates.
        let variables = self.variables.clone();
        let transport = move |request| dial(&variables, request);
        let address = Some("http://docker");
        Docker::connect_with_custom_transport(
            transport,
            address,
            REQUEST_SECONDS,
            API_DEFAULT_VERSION,
        )
    }
}

/// The folder of the certificates with which `variable` says that engines must be checked.
fn verified_by(variable: impl Fn(&'static str) -> Option<String>) -> Option<PathBuf> {
    variable("DOCKER_TLS_VERIFY")?;
    variable("DOCKER_CERT_PATH").map(PathBuf::from).or_else(user_config::folder)
}

/// Whether `host` is like `127.0.0.1:2375`.
fn has_only_port(host: &str) -> bool {
    !host.contains("://")
        && host
            .rsplit_once(':')
            .is_some_and(|(name, port)| !name.is_empty() && port.parse::<u16>().is_ok())
}

fn is_address(host: &str) -> bool {
    match host.split_once("://") {
        Some(("unix", path)) => path.starts_with('/'),
        Some(("tcp" | "http" | "https" | "ssh", _)) => {
            Url::parse(host).is_ok_and(|url| url.host_str().is_some_and(|host| !host.is_empty()))
        }
        _ => false,
    }
}

/// The variables of `docker` commands for an engine of a context, whose files for TLS are in `tls`. An empty variable
/// counts as not set.
fn tls_variables(host: &str, tls: Option<&Path>, skip_verify: bool) -> Vec<(&'static str, String)> {
    let switch = |is_on: bool| if is_on { "1".to_owned() } else { String::new() };
    let path = tls.map(|path| path.display().to_string()).unwrap_or_default();
    vec![
        ("DOCKER_HOST", host.to_owned()),
        ("DOCKER_TLS_VERIFY", switch(tls.is_some() && !skip_verify)),
        ("DOCKER_TLS", switch(skip_verify)),
        ("DOCKER_CERT_PATH", path),
    ]
}

type Answer = Pin<Box<dyn Future<Output = Result<Response<Incoming>, EngineError>> + Send>>;

/// Sends one request to the engine through a `docker` command of its own.
fn dial(variables: &[(&'static str, String)], request: BollardRequest) -> Answer {
    match piped_child("docker", &["system", "dial-stdio"], variables) {
        Err(error) => Box::pin(ready(Err(error.into()))),
        Ok(mut child) => Box::pin(async move {
            let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
            let (Some(stdin), Some(stdout)) = (stdin, stdout) else {
                return Err(io::Error::other("docker has no pipes").into());
            };
            let stream = TokioIo::new(tokio::io::join(stdout, stdin));
            let (mut sender, connection) = http1::handshake(stream).await?;
            let stderr = child.stderr.take();
            tokio::spawn(async move {
                let _ = connection.with_upgrades().await;
                // It may still say why it ends.
                let _ = timeout(END_LIMIT, child.wait()).await;
            });
            match sender.send_request(to_origin_form(request)).await {
                Ok(response) => Ok(response),
                Err(error) => Err(explained(error, stderr).await),
            }
        }),
    }
}

/// The request as a server gets it, without the server's address in its target.
fn to_origin_form(mut request: BollardRequest) -> BollardRequest {
    if let Some(target) = request.uri().path_and_query().cloned() {
        *request.uri_mut() = Uri::from(target);
    }
    request.headers_mut().insert(HOST, HeaderValue::from_static("docker"));
    request
}

/// The words of the `docker` command, if it ended with some.
async fn explained(error: hyper::Error, stderr: Option<ChildStderr>) -> EngineError {
    let mut words = Vec::new();
    if let Some(stderr) = stderr {
        let _ = stderr.take(64 * 1024).read_to_end(&mut words).await;
    }
    match last_line(&words) {
        words if words.is_empty() => error.into(),
        words => io::Error::other(words).into(),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("a String takes every write");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder with the context `remote`.
    fn contexts(meta: &str) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        // As `printf remote | sha256sum` prints it.
        let id = hex(&Sha256::digest("remote"));
        let meta_folder = folder.path().join("meta").join(&id);
        fs::create_dir_all(&meta_folder).unwrap();
        fs::write(meta_folder.join("meta.json"), meta).unwrap();
        folder
    }

    fn endpoint(folder: &Path) -> Result<Endpoint, EndpointError> {
        Endpoint::of_context(folder, "remote".to_owned(), ContextOrigin::ConfigFile)
    }

    #[test]
    fn a_context_names_the_engine_and_its_certificates() {
        let meta = r#"{"Name":"remote","Metadata":{},"Endpoints":{"docker":{"Host":"tcp://engine:2376"}}}"#;
        let folder = contexts(meta);
        let plain = endpoint(folder.path()).unwrap();
        assert!(!plain.has_tls);
        assert!(plain.variables.contains(&("DOCKER_HOST", "tcp://engine:2376".to_owned())));
        // A variable of the user is for another engine.
        assert!(plain.variables.contains(&("DOCKER_TLS_VERIFY", String::new())));

        let tls = folder.path().join("tls").join(hex(&Sha256::digest("remote"))).join("docker");
        fs::create_dir_all(&tls).unwrap();
        fs::write(tls.join("ca.pem"), "").unwrap();
        let secured = endpoint(folder.path()).unwrap();
        assert!(secured.has_tls);
        assert!(secured.variables.contains(&("DOCKER_TLS_VERIFY", "1".to_owned())));
        assert!(secured.variables.contains(&("DOCKER_CERT_PATH", tls.display().to_string())));
    }

    #[test]
    fn nonsense_is_no_address_of_an_engine() {
        for host in ["nonsense", "", "tcp://", "ftp://engine", "unix://engine.sock", "tcp://a b"] {
            let error =
                Endpoint::at(host.to_owned(), Source::Variable).checked("DOCKER_HOST", None);
            let error = error.unwrap_err().to_string();
            assert!(error.starts_with(&format!("{host:?} (DOCKER_HOST)")), "{error}");
        }
        for host in [
            "unix:///run/docker.sock",
            "tcp://engine:2376",
            "tcp://[::1]:1",
            "ssh://me@engine",
            "127.0.0.1:2375",
        ] {
            let endpoint = Endpoint::at(host.to_owned(), Source::Variable);
            assert!(endpoint.checked("DOCKER_HOST", None).is_ok(), "{host}");
        }
    }

    #[test]
    fn an_engine_on_loopback_is_on_this_machine() {
        let endpoint = |host: &str| Endpoint::at(host.to_owned(), Source::Variable);
        for host in [
            "unix:///run/docker.sock",
            "tcp://127.0.0.1:2375",
            "tcp://localhost:2376",
            "tcp://[::1]:1",
            "127.0.0.1:2375",
        ] {
            assert!(endpoint(host).is_on_this_machine(), "{host}");
        }
        for host in
            ["tcp://engine:2375", "10.0.0.2:2375", "ssh://localhost", "tcp://localhost.example:1"]
        {
            assert!(!endpoint(host).is_on_this_machine(), "{host}");
        }
        let variables = [("DOCKER_HOST", "tcp://127.0.0.1:2375".to_owned())];
        assert_eq!(endpoint("127.0.0.1:2375").variables, variables);
    }

    #[test]
    fn an_engine_that_must_be_checked_needs_a_certificate() {
        let folder = tempfile::tempdir().unwrap();
        let checked = |host: &str| {
            let endpoint = Endpoint::at(host.to_owned(), Source::Variable);
            endpoint.checked("DOCKER_HOST", Some(folder.path().to_owned()))
        };
        let error = checked("tcp://engine:2376").unwrap_err().to_string();
        assert!(error.contains("DOCKER_TLS_VERIFY") && error.contains("ca.pem"), "{error}");
        assert!(checked("unix:///run/docker.sock").is_ok());
        fs::write(folder.path().join("ca.pem"), "").unwrap();
        assert!(checked("tcp://engine:2376").is_ok());
    }

    #[test]
    fn a_context_that_does_not_exist_or_has_no_engine_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let error = endpoint(folder.path()).unwrap_err().to_string();
        assert!(error.contains("\"remote\"") && error.contains("`docker context use`"), "{error}");
        for meta in [r#"{"Endpoints":{}}"#, r#"{"Endpoints":{"docker":{"Host":""}}}"#, "{"] {
            let error = endpoint(contexts(meta).path()).unwrap_err().to_string();
            assert!(error.contains("\"remote\""), "{error}");
        }
    }
}
