//! The proxies of the environment: `HTTP_PROXY`, `HTTPS_PROXY`, `ALL_PROXY` and `NO_PROXY`, in either case.
//!
//! The variables mean here what they mean to reqwest, whose code reads them. Addresses of this machine are never behind a
//! proxy.

use std::io;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use hyper_util::client::proxy::matcher::Matcher;
use thiserror::Error;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;
use url::{Host, Url};

/// How long a proxy may take to connect to a server.
const TUNNEL_LIMIT: Duration = Duration::from_secs(15);

/// The longest head of a proxy's answer.
const HEAD_BYTES_MAX: usize = 16 * 1024;

/// A proxy, for one server.
pub(crate) struct Proxy {
    /// Without credentials.
    address: Url,
    credentials: Option<(String, String)>,
}

/// Why a server cannot be reached through its proxy. Messages contain no credentials.
#[derive(Debug, Error)]
pub enum ProxyError {
    #[error(
        "the proxy {0} of the environment is none that Stagely can use: it must begin with http://"
    )]
    Scheme(String),
    #[error("cannot connect to {address}")]
    Connect {
        /// Of the proxy, or of the server if there is no proxy.
        address: String,
        #[source]
        source: io::Error,
    },
    #[error("the proxy {proxy} does not connect to {server}: {answer}")]
    Refused { proxy: String, server: String, answer: String },
}

/// Whether a server is on this machine.
pub fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(domain)) => domain == "localhost",
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}

impl Proxy {
    /// The proxy for requests to `server`, if there is one.
    ///
    /// # Errors
    /// [`ProxyError::Scheme`]
    pub(crate) fn of(server: &Url) -> Result<Option<Self>, ProxyError> {
        Self::find(&Matcher::from_env(), server)
    }

    fn find(proxies: &Matcher, server: &Url) -> Result<Option<Self>, ProxyError> {
        let scheme = match server.scheme() {
            "http" | "ws" => "http",
            "https" | "wss" => "https",
            _ => return Ok(None),
        };
        if is_loopback(server) {
            return Ok(None);
        }
        let address = format!("{scheme}://{}/", authority(server));
        let Ok(address) = address.parse() else { return Ok(None) };
        let Some(found) = proxies.intercept(&address) else { return Ok(None) };
        let address = found.uri().to_string();
        let unusable = || ProxyError::Scheme(address.clone());
        let address = Url::parse(&address).map_err(|_| unusable())?;
        if address.scheme() != "http" {
            return Err(unusable());
        }
        let decoded = found.basic_auth().and_then(|value| {
            let encoded = value.to_str().ok()?.strip_prefix("Basic ")?;
            let pair = String::from_utf8(BASE64_STANDARD.decode(encoded).ok()?).ok()?;
            let (user, password) = pair.split_once(':')?;
            Some((user.to_owned(), password.to_owned()))
        });
        Ok(Some(Self { address, credentials: decoded }))
    }

    /// Its host and port.
    pub(crate) fn name(&self) -> String {
        authority(&self.address)
    }

    /// Connects to `server` through the proxy.
    async fn tunnel(&self, server: &Url) -> Result<TcpStream, ProxyError> {
        let (proxy, server) = (self.name(), authority(server));
        let refused = |answer: String| ProxyError::Refused {
            proxy: proxy.clone(),
            server: server.clone(),
            answer,
        };
        let broken = |error: io::Error| refused(error.to_string());
        let mut stream = connect_to(&proxy).await?;
        let mut request = format!("CONNECT {server} HTTP/1.1\r\nHost: {server}\r\n");
        if let Some((user, password)) = &self.credentials {
            let pair = BASE64_STANDARD.encode(format!("{user}:{password}"));
            request.extend(["Proxy-Authorization: Basic ", &pair, "\r\n"]);
        }
        request.push_str("\r\n");
        stream.write_all(request.as_bytes()).await.map_err(broken)?;
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            // What follows the head is the server's.
            head.push(stream.read_u8().await.map_err(broken)?);
            if head.len() > HEAD_BYTES_MAX {
                return Err(refused("its answer is too long".to_owned()));
            }
        }
        let head = String::from_utf8_lossy(&head);
        let line = head.lines().next().unwrap_or_default();
        let status = line.split_once(' ').map_or("", |(_, status)| status);
        if status.starts_with('2') { Ok(stream) } else { Err(refused(status.trim().to_owned())) }
    }
}

/// Connects to the host and port of `server`, through its proxy if it has one.
///
/// # Errors
/// [`ProxyError`]
pub async fn connect(server: &Url) -> Result<TcpStream, ProxyError> {
    let Some(proxy) = Proxy::of(server)? else { return connect_to(&authority(server)).await };
    let tunnel = timeout(TUNNEL_LIMIT, proxy.tunnel(server)).await;
    tunnel.unwrap_or_else(|_| {
        Err(ProxyError::Refused {
            proxy: proxy.name(),
            server: authority(server),
            answer: format!("no answer within {TUNNEL_LIMIT:?}"),
        })
    })
}

async fn connect_to(address: &str) -> Result<TcpStream, ProxyError> {
    let connected = async {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(stream)
    };
    connected.await.map_err(|source| ProxyError::Connect { address: address.to_owned(), source })
}

/// `host:port`.
fn authority(url: &Url) -> String {
    let default = if matches!(url.scheme(), "https" | "wss") { 443 } else { 80 };
    format!("{}:{}", url.host_str().unwrap_or_default(), url.port().unwrap_or(default))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proxy(proxies: &Matcher, server: &str) -> Option<String> {
        let proxy = Proxy::find(proxies, &server.parse().unwrap()).unwrap();
        proxy.map(|proxy| format!("{} {:?}", proxy.name(), proxy.credentials))
    }

    #[test]
    fn each_scheme_has_its_proxy_and_this_machine_has_none() {
        let proxies = Matcher::builder()
            .http("http://plain.example:3128")
            .https("http://me:p%40ss@secure.example:3128")
            .no("internal.example,10.0.0.0/8")
            .build();
        let plain = Some("plain.example:3128 None".to_owned());
        let secure = Some("secure.example:3128 Some((\"me\", \"p@ss\"))".to_owned());
        assert_eq!(proxy(&proxies, "http://git.example/app"), plain);
        assert_eq!(proxy(&proxies, "ws://core.example:8080/v1"), plain);
        assert_eq!(proxy(&proxies, "https://git.example:8443/app"), secure);
        assert_eq!(proxy(&proxies, "wss://core.example/v1"), secure);
        for without in [
            "git://git.example/app",
            "http://127.0.0.1:8080/app",
            "https://localhost/app",
            "http://[::1]:80/",
            "https://git.internal.example/app",
            "http://10.1.2.3/app",
        ] {
            assert_eq!(proxy(&proxies, without), None, "{without}");
        }
    }

    #[test]
    fn a_proxy_of_another_kind_is_refused_without_its_credentials() {
        let proxies = Matcher::builder().all("socks5://me:secret@proxy.example:1080").build();
        let server = "https://git.example/app".parse().unwrap();
        let error = Proxy::find(&proxies, &server).err().unwrap().to_string();
        assert!(error.contains("socks5://proxy.example:1080"), "{error}");
        assert!(!error.contains("secret"), "{error}");
    }
}
