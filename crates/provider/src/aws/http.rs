//! Sends the requests of AWS's SDK with reqwest, so that the program contains one HTTP client and one TLS library.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use aws_sdk_ec2::config::http::{HttpRequest, HttpResponse};
use aws_smithy_runtime_api::client::http::{
    HttpClient, HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpConnector,
};
use aws_smithy_runtime_api::client::result::ConnectorError;
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;
use aws_smithy_runtime_api::http::StatusCode;
use aws_smithy_types::body::SdkBody;
use reqwest::redirect::Policy;
use reqwest::{Client, Method};
use url::{Host, Url};

use crate::settings::is_this_host;

/// The longest response, in bytes. A page of `DescribeInstances` has some 100 KiB.
const RESPONSE_BYTES_MAX: usize = 64 * 1024 * 1024;

/// The limits of a connection: for connecting, and between two reads.
type Limits = (Option<Duration>, Option<Duration>);

/// Creates one connector for each pair of limits. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Http(Arc<Mutex<HashMap<Limits, SharedHttpConnector>>>);

impl HttpClient for Http {
    fn http_connector(
        &self,
        settings: &HttpConnectorSettings,
        _: &RuntimeComponents,
    ) -> SharedHttpConnector {
        let limits = (settings.connect_timeout(), settings.read_timeout());
        let mut connectors = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        connectors
            .entry(limits)
            .or_insert_with(|| SharedHttpConnector::new(Connector::new(limits)))
            .clone()
    }
}

#[derive(Debug)]
struct Connector(Result<Clients, String>);

/// Clients with and without the proxies of the environment.
#[derive(Clone, Debug)]
struct Clients {
    proxied: Client,
    direct: Client,
}

impl Connector {
    fn new((connect, read): Limits) -> Self {
        let client = || {
            let mut client = Client::builder().redirect(Policy::none());
            if let Some(limit) = connect {
                client = client.connect_timeout(limit);
            }
            if let Some(limit) = read {
                client = client.read_timeout(limit);
            }
            client
        };
        let clients = client().build().and_then(|proxied| {
            let direct = client().no_proxy().build()?;
            Ok(Clients { proxied, direct })
        });
        Self(clients.map_err(|error| format!("cannot set up TLS: {error}")))
    }
}

impl Clients {
    /// The client for a request to `uri`.
    fn for_uri(&self, uri: &str) -> &Client {
        let is_direct = Url::parse(uri).is_ok_and(|url| is_never_proxied(&url));
        if is_direct { &self.direct } else { &self.proxied }
    }
}

/// Whether a server is on this host, or is a metadata service. A proxy would use its own metadata service.
fn is_never_proxied(url: &Url) -> bool {
    let host = url.host();
    let is_metadata = match host {
        Some(Host::Ipv4(address)) => address.is_link_local(),
        // fd00:ec2::/32
        Some(Host::Ipv6(address)) => {
            address.segments()[..2] == [0xfd00, 0x0ec2] || address.is_unicast_link_local()
        }
        Some(Host::Domain(_)) | None => false,
    };
    is_metadata || is_this_host(host)
}

impl HttpConnector for Connector {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let clients = self.0.clone();
        HttpConnectorFuture::new(async move {
            let clients = clients.map_err(|problem| ConnectorError::other(problem.into(), None))?;
            send(clients.for_uri(request.uri()), request).await
        })
    }
}

async fn send(client: &Client, request: HttpRequest) -> Result<HttpResponse, ConnectorError> {
    let method = Method::from_bytes(request.method().as_bytes())
        .map_err(|error| ConnectorError::user(error.into()))?;
    let mut sent = client.request(method, request.uri());
    for (name, value) in request.headers() {
        sent = sent.header(name, value);
    }
    // The bodies of requests to EC2, STS and SSO are in memory.
    let body = request.body().bytes().ok_or_else(|| {
        ConnectorError::user("a request with a streamed body cannot be sent".into())
    })?;
    let mut response = sent.body(body.to_vec()).send().await.map_err(failure)?;
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(failure)? {
        if body.len() + chunk.len() > RESPONSE_BYTES_MAX {
            let problem = format!("the response is longer than {RESPONSE_BYTES_MAX} bytes");
            return Err(ConnectorError::other(problem.into(), None));
        }
        body.extend_from_slice(&chunk);
    }
    let status = StatusCode::try_from(response.status().as_u16())
        .map_err(|error| ConnectorError::other(error.into(), None))?;
    let mut converted = HttpResponse::new(status, SdkBody::from(body));
    for (name, value) in response.headers() {
        // The SDK reads no header whose value is not text.
        if let Ok(value) = value.to_str() {
            converted.headers_mut().append(name.as_str().to_owned(), value.to_owned());
        }
    }
    Ok(converted)
}

/// The kind decides whether the SDK sends the request again.
fn failure(error: reqwest::Error) -> ConnectorError {
    if error.is_timeout() {
        ConnectorError::timeout(error.into())
    } else if error.is_builder() {
        ConnectorError::user(error.into())
    } else {
        ConnectorError::io(error.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metadata_services_and_this_host_are_never_behind_a_proxy() {
        for (uri, is_direct) in [
            ("http://169.254.169.254/latest/api/token", true),
            ("http://169.254.170.2/v2/credentials", true),
            ("http://[fd00:ec2::254]/latest/api/token", true),
            ("http://127.0.0.1:5000/", true),
            ("http://localhost:5000/", true),
            ("https://ec2.eu-central-1.amazonaws.com/", false),
            ("https://10.0.0.7/", false),
        ] {
            assert_eq!(is_never_proxied(&uri.parse().unwrap()), is_direct, "{uri}");
        }
    }
}
