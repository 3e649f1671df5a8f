//! Opens each WebSocket to core, through the proxies of the environment.

use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use stagely_protocol::ErrorChain;
use thiserror::Error;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::http::{HeaderName, HeaderValue};
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{self};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, client_async_tls_with_config};
use url::Url;

use crate::proxy::{self, ProxyError};

/// How long connecting may take, TLS and the upgrade included.
const CONNECT_LIMIT: Duration = Duration::from_secs(15);

/// The system asks a silent peer after this time, and then as often, whether it is still there. Routers forget a silent
/// connection after some minutes.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);

/// A peer that does not answer so often is gone.
const KEEPALIVE_RETRIES: u32 = 4;

pub(crate) type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

/// Why core could not be reached.
#[derive(Debug, Error)]
pub(crate) enum ConnectError {
    #[error("{0} is not an http address")]
    Address(Url),
    #[error("no answer within {CONNECT_LIMIT:?}")]
    TimedOut,
    #[error(transparent)]
    Connect(#[from] ProxyError),
    #[error(transparent)]
    WebSocket(#[from] tungstenite::Error),
}

/// Connects to `path` below core's address.
pub(crate) async fn connect(
    core: &Url,
    path: &str,
    headers: Vec<(HeaderName, HeaderValue)>,
    config: WebSocketConfig,
) -> Result<Socket, ConnectError> {
    let url = socket_url(core, path).ok_or_else(|| ConnectError::Address(core.clone()))?;
    let connect = async {
        let stream = proxy::connect(&url).await?;
        keep_alive(&stream);
        let mut request = url.as_str().into_client_request()?;
        request.headers_mut().extend(headers);
        let opened = client_async_tls_with_config(request, stream, Some(config), None);
        Ok::<_, ConnectError>(opened.await?)
    };
    let connected = timeout(CONNECT_LIMIT, connect).await;
    let (socket, _) = connected.map_err(|_| ConnectError::TimedOut)??;
    Ok(socket)
}

/// Makes the system notice that the peer of a silent connection has vanished.
fn keep_alive(stream: &TcpStream) {
    let keepalive = TcpKeepalive::new()
        .with_time(KEEPALIVE_INTERVAL)
        .with_interval(KEEPALIVE_INTERVAL)
        .with_retries(KEEPALIVE_RETRIES);
    if let Err(error) = SockRef::from(stream).set_tcp_keepalive(&keepalive) {
        tracing::debug!(error = %ErrorChain(&error), "a connection has no keepalive");
    }
}

/// `https://core.example/base` → `wss://core.example/base/v1/agent/connect`.
fn socket_url(core: &Url, path: &str) -> Option<Url> {
    let mut url = core.clone();
    let scheme = match core.scheme() {
        "https" | "wss" => "wss",
        "http" | "ws" => "ws",
        _ => return None,
    };
    url.set_scheme(scheme).ok()?;
    url.set_path(&format!("{}{path}", core.path().trim_end_matches('/')));
    Some(url)
}

#[cfg(test)]
mod tests {
    use stagely_protocol::CONNECT_PATH;

    use super::*;

    #[test]
    fn the_path_is_added_to_cores_address() {
        let url = |core: &str| socket_url(&core.parse().unwrap(), CONNECT_PATH).map(String::from);
        assert_eq!(url("http://c:8080").unwrap(), "ws://c:8080/v1/agent/connect");
        assert_eq!(url("https://c/base/").unwrap(), "wss://c/base/v1/agent/connect");
        assert_eq!(url("ftp://c"), None);
    }
}
