//! HTTP requests and WebSocket connections to one core.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt as _, StreamExt as _};
use reqwest::{Method, RequestBuilder, Response};
use secrecy::{ExposeSecret as _, SecretString};
use serde::Serialize;
use serde::de::DeserializeOwned;
use stagely_agent::proxy::{self, is_loopback};
use stagely_protocol::ErrorChain;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::http::header::AUTHORIZATION;
use tokio_tungstenite::tungstenite::http::{HeaderValue, StatusCode};
use tokio_tungstenite::tungstenite::{self, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, client_async_tls};
use url::Url;

use super::error::ClientError;
use super::retry::Waits;
use crate::api::{BASE_PATH, ErrorBody};

/// Core closes connections that are idle for 30 seconds. A request on one that is just being closed would fail.
const IDLE_MAX: Duration = Duration::from_secs(20);

/// The time limit of opening a connection.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);

/// The time limit of a request, except for logs and followed runs.
pub(super) const REQUEST_LIMIT: Duration = Duration::from_mins(1);

/// The interval of pings on a quiet connection. A link that was cut reports no error.
const PING_INTERVAL: Duration = Duration::from_secs(15);

/// The most unanswered pings in a row.
const UNANSWERED_PINGS_MAX: u32 = 2;

pub(super) type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

/// Sends requests to one core. Clones share connections.
#[derive(Clone, Debug)]
pub(super) struct Connection {
    http: reqwest::Client,
    server: Url,
    token: SecretString,
    pub(super) waits: Waits,
}

impl Connection {
    pub(super) fn new(server: Url, token: SecretString) -> Result<Self, ClientError> {
        let http = reqwest::Client::builder()
            .pool_idle_timeout(IDLE_MAX)
            .connect_timeout(CONNECT_LIMIT)
            .user_agent(concat!("stagely/", env!("CARGO_PKG_VERSION")));
        let http = if is_loopback(&server) { http.no_proxy() } else { http };
        let http = http.build().map_err(|error| ClientError::UnexpectedResponse {
            server: server.clone(),
            detail: error.to_string(),
            status: None,
        })?;
        let waits = Waits::new(server.clone(), |_| {});
        Ok(Self { http, server, token, waits })
    }

    pub(super) const fn server(&self) -> &Url {
        &self.server
    }

    pub(super) fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.http.request(method, self.url(path)).bearer_auth(self.token.expose_secret())
    }

    fn url(&self, path: &str) -> String {
        format!("{}{BASE_PATH}/{path}", self.server.as_str().trim_end_matches('/'))
    }

    pub(super) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.json(self.request(Method::GET, path).timeout(REQUEST_LIMIT)).await
    }

    pub(super) async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &(impl Serialize + Sync),
    ) -> Result<T, ClientError> {
        self.json(self.request(Method::POST, path).timeout(REQUEST_LIMIT).json(body)).await
    }

    pub(super) async fn json<T: DeserializeOwned>(
        &self,
        request: RequestBuilder,
    ) -> Result<T, ClientError> {
        let response = self.send(request).await?;
        response.json().await.map_err(|error| {
            if error.is_decode() {
                self.unexpected(error.to_string())
            } else {
                self.unreachable(error)
            }
        })
    }

    pub(super) async fn send(&self, request: RequestBuilder) -> Result<Response, ClientError> {
        let request = request.build().map_err(|error| self.unexpected(error.to_string()))?;
        let limit = request.timeout().copied();
        let response = self.waits.shown(limit, self.http.execute(request)).await;
        let response = response.map_err(|error| self.unreachable(error))?;
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
            Err(_) => ClientError::UnexpectedResponse {
                server: self.server.clone(),
                detail: format!("status {status}"),
                status: Some(status),
            },
        }
    }

    pub(super) fn unreachable(
        &self,
        source: impl std::error::Error + Send + Sync + 'static,
    ) -> ClientError {
        ClientError::Unreachable { server: self.server.clone(), source: Box::new(source) }
    }

    pub(super) fn unexpected(&self, detail: String) -> ClientError {
        ClientError::UnexpectedResponse { server: self.server.clone(), detail, status: None }
    }

    /// Opens a WebSocket; repeats the attempt while core is away.
    pub(super) async fn dial(&self, path: &str) -> Result<Socket, ClientError> {
        self.waits.retry(|| self.dial_once(path)).await
    }

    async fn dial_once(&self, path: &str) -> Result<Socket, ClientError> {
        let url = self.url(path).replacen("http", "ws", 1);
        let server: Url = url.parse().map_err(|error| self.unexpected(format!("{error}")))?;
        let mut request =
            url.into_client_request().map_err(|error| self.unexpected(error.to_string()))?;
        let bearer = HeaderValue::try_from(format!("Bearer {}", self.token.expose_secret()));
        let mut bearer =
            bearer.map_err(|_| self.unexpected("the token is not one of core's".to_owned()))?;
        bearer.set_sensitive(true);
        request.headers_mut().insert(AUTHORIZATION, bearer);
        let dial = async {
            let stream = proxy::connect(&server).await;
            let stream =
                stream.map_err(|error| io::Error::other(ErrorChain(&error).to_string()))?;
            client_async_tls(request, stream).await
        };
        let dialed = timeout(CONNECT_LIMIT, dial).await;
        match dialed.map_err(|elapsed| self.unreachable(elapsed))? {
            Ok((socket, _)) => Ok(socket),
            Err(tungstenite::Error::Http(response)) => {
                let status: StatusCode = response.status();
                let body = response.body().as_deref().unwrap_or_default();
                Err(self.refusal(status.as_u16(), body))
            }
            Err(error) => Err(self.unreachable(error)),
        }
    }

    /// Receives the next message; `None` if the connection is closed or broken.
    pub(super) async fn next<T: DeserializeOwned>(
        &self,
        socket: &mut Socket,
    ) -> Result<Option<T>, ClientError> {
        let mut unanswered = 0;
        while unanswered <= UNANSWERED_PINGS_MAX {
            match timeout(PING_INTERVAL, socket.next()).await {
                Ok(Some(Ok(Message::Text(text)))) => {
                    let message = serde_json::from_str(&text);
                    return message.map(Some).map_err(|error| self.unexpected(error.to_string()));
                }
                Ok(Some(Ok(Message::Close(_)) | Err(_)) | None) => return Ok(None),
                // Tungstenite answers pings itself.
                Ok(Some(Ok(_))) => unanswered = 0,
                Err(_) => {
                    unanswered += 1;
                    if socket.send(Message::Ping(Bytes::new())).await.is_err() {
                        return Ok(None);
                    }
                }
            }
        }
        Ok(None)
    }
}
