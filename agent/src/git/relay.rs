//! A server on loopback that passes requests on to a Git server through the proxy of the environment.
//!
//! libgit2 1.9 cannot use proxies. With http it connects to the server itself, whatever its options say
//! (<https://github.com/libgit2/libgit2/issues/5650>). With https it waits for ever, on freed memory, after a certificate
//! that it does not trust.

use std::convert::Infallible;
use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::sync::{Arc, Mutex, PoisonError};

use hyper::body::Incoming;
use hyper::header::{CONNECTION, HOST, TRANSFER_ENCODING};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use reqwest::redirect::Policy;
use reqwest::{Body, Client};
use stagely_protocol::ErrorChain;
use tokio_util::sync::{CancellationToken, DropGuard};
use url::Url;

use crate::proxy::Proxy;

/// The relay of one server. It ends with the value.
#[derive(Debug)]
pub(super) struct Relay {
    /// The address that stands for the repository's.
    pub(super) url: Url,
    problem: Arc<Mutex<Option<String>>>,
    _stop: DropGuard,
}

struct Forwarder {
    client: Client,
    /// The server, without a path.
    server: Url,
    proxy: String,
    /// Begins the path of each request. Other users of this machine do not know it.
    prefix: String,
    problem: Arc<Mutex<Option<String>>>,
}

impl Relay {
    /// Starts a relay for the repository at `url`, which is behind `proxy`, on a thread of its own.
    ///
    /// # Errors
    /// There is no port or no thread.
    pub(super) fn start(url: &Url, proxy: &Proxy) -> io::Result<Self> {
        let client =
            Client::builder().redirect(Policy::none()).build().map_err(io::Error::other)?;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        listener.set_nonblocking(true)?;
        let prefix = format!("/{:032x}", rand::random::<u128>());
        let address = format!("http://{}{prefix}{}", listener.local_addr()?, url.path());
        let mut own = Url::parse(&address).map_err(io::Error::other)?;
        own.set_query(url.query());
        let mut server = url.clone();
        server.set_path("");
        server.set_query(None);
        let (stop, problem) = (CancellationToken::new(), Arc::default());
        let forwarder = Forwarder {
            client,
            server,
            proxy: proxy.name(),
            prefix,
            problem: Arc::clone(&problem),
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let stopping = stop.clone();
        let serve = move || {
            let serving = serve(listener, Arc::new(forwarder));
            runtime.block_on(stopping.run_until_cancelled_owned(serving));
        };
        std::thread::Builder::new().name("git-relay".to_owned()).spawn(serve)?;
        Ok(Self { url: own, problem, _stop: stop.drop_guard() })
    }

    /// Why the last request was not passed on.
    pub(super) fn problem(&self) -> Option<String> {
        self.problem.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

async fn serve(listener: TcpListener, forwarder: Arc<Forwarder>) {
    let Ok(listener) = tokio::net::TcpListener::from_std(listener) else { return };
    while let Ok((stream, _)) = listener.accept().await {
        let forwarder = Arc::clone(&forwarder);
        let service = service_fn(move |request| forward(Arc::clone(&forwarder), request));
        let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection to the relay of a proxy broke");
            }
        });
    }
}

async fn forward(
    forwarder: Arc<Forwarder>,
    request: Request<Incoming>,
) -> Result<Response<Body>, Infallible> {
    let path = request.uri().path_and_query().map_or("", |path| path.as_str());
    let Some(path) = path.strip_prefix(&forwarder.prefix) else {
        return Ok(answer(StatusCode::NOT_FOUND));
    };
    let target = format!("{}{path}", forwarder.server.as_str().trim_end_matches('/'));
    let (mut parts, body) = request.into_parts();
    let Ok(target) = target.parse() else { return Ok(answer(StatusCode::BAD_REQUEST)) };
    parts.uri = target;
    for name in [HOST, CONNECTION] {
        parts.headers.remove(name);
    }
    let sent = async {
        let request = Request::from_parts(parts, Body::wrap(body)).try_into()?;
        forwarder.client.execute(request).await
    };
    let note = |detail: &str| {
        let problem = format!("through the proxy {}: {detail}", forwarder.proxy);
        *forwarder.problem.lock().unwrap_or_else(PoisonError::into_inner) = Some(problem);
    };
    match sent.await {
        Ok(response) if response.status() == StatusCode::PROXY_AUTHENTICATION_REQUIRED => {
            note("it refuses its user name and password, or needs them");
            Ok(answer(StatusCode::BAD_GATEWAY))
        }
        Ok(response) => {
            let mut response = Response::from(response);
            for name in [CONNECTION, TRANSFER_ENCODING] {
                response.headers_mut().remove(name);
            }
            Ok(response)
        }
        Err(error) => {
            note(&ErrorChain(&error.without_url()).to_string());
            Ok(answer(StatusCode::BAD_GATEWAY))
        }
    }
}

fn answer(status: StatusCode) -> Response<Body> {
    let mut response = Response::new(Body::default());
    *response.status_mut() = status;
    response
}
