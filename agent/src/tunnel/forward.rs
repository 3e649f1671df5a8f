//! One connection through a tunnel: bytes in both directions, until both have ended.

use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::time::Duration;

use bytes::BytesMut;
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt as _, StreamExt as _};
use stagely_protocol::{ErrorChain, TUNNEL_BYTES_MAX, TunnelMessage, WireId};
use thiserror::Error;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::{self, Message};
use tokio_util::sync::CancellationToken;

use crate::endpoints::Endpoints;
use crate::websocket::Socket;

/// How long an endpoint may take to accept a connection. It is on this machine.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);

/// How long core may take to accept the answer to OPEN, or the end of the tunnel.
const SEND_LIMIT: Duration = Duration::from_secs(30);

/// The connection ends in both directions at once.
#[derive(Debug, Error)]
enum Broken {
    #[error("core has closed the tunnel")]
    Closed,
    #[error("the tunnel failed")]
    Tunnel(#[from] tungstenite::Error),
    #[error("the app's connection failed")]
    App(#[source] io::Error),
}

/// Connects to an endpoint, and forwards until both directions have ended.
pub(super) async fn forward(
    mut socket: Socket,
    endpoints: Endpoints,
    preview: WireId,
    endpoint: String,
) {
    let (answer, app) = match connect(endpoints.address(&preview, &endpoint).await).await {
        Ok(app) => (TunnelMessage::Opened, Some(app)),
        Err(problem) => {
            tracing::debug!(%preview, endpoint, problem, "a connection is refused");
            let message = format!("the endpoint `{endpoint}` {problem}");
            (TunnelMessage::Refused { message }, None)
        }
    };
    let sent = timeout(SEND_LIMIT, socket.send(Message::text(answer.to_json()))).await;
    let (Ok(Ok(())), Some(app)) = (sent, app) else {
        let _ = timeout(SEND_LIMIT, socket.close(None)).await;
        return;
    };
    let (mut sink, source) = socket.split();
    let (read, write) = app.into_split();
    if let Err(error) = exchange(&mut sink, source, read, write).await {
        tracing::debug!(%preview, endpoint, error = %ErrorChain(&error), "a connection broke");
    }
    let _ = timeout(SEND_LIMIT, sink.close()).await;
}

async fn connect(address: Option<SocketAddr>) -> Result<TcpStream, String> {
    let address = address.ok_or("has no container here that can be reached")?;
    let connected = timeout(CONNECT_LIMIT, TcpStream::connect(address)).await;
    let stream = connected
        .map_err(|_| format!("did not accept a connection within {CONNECT_LIMIT:?}"))?
        .map_err(|error| format!("does not accept connections: {error}"))?;
    // It also works without.
    let _ = stream.set_nodelay(true);
    Ok(stream)
}

async fn exchange(
    sink: &mut SplitSink<Socket, Message>,
    source: SplitStream<Socket>,
    read: OwnedReadHalf,
    write: OwnedWriteHalf,
) -> Result<(), Broken> {
    let core_has_ended = CancellationToken::new();
    let to_app = to_app(source, write, &core_has_ended);
    tokio::pin!(to_app);
    tokio::select! {
        broken = &mut to_app => return Err(broken),
        ended = to_core(sink, &read) => ended?,
    }
    // The app has no more bytes. Core may have.
    tokio::select! {
        broken = &mut to_app => Err(broken),
        () = core_has_ended.cancelled() => Ok(()),
    }
}

/// Forwards to the app until the tunnel ends. `has_ended` fires earlier, if core has no more bytes or the app takes none.
async fn to_app(
    mut source: SplitStream<Socket>,
    write: OwnedWriteHalf,
    has_ended: &CancellationToken,
) -> Broken {
    let mut app = Some(write);
    loop {
        let data = match source.next().await {
            Some(Ok(Message::Binary(data))) => data,
            Some(Ok(Message::Text(_))) => {
                // END. The tunnel is still read, because its end must be noticed.
                if let Some(mut app) = app.take() {
                    let _ = app.shutdown().await;
                }
                has_ended.cancel();
                continue;
            }
            Some(Ok(Message::Close(_))) | None => return Broken::Closed,
            Some(Ok(_)) => continue,
            Some(Err(error)) => return Broken::Tunnel(error),
        };
        let Some(stream) = &mut app else { continue };
        // An app may answer without reading the whole request. The rest is dropped, so that the answer arrives.
        if stream.write_all(&data).await.is_err() {
            app = None;
            has_ended.cancel();
        }
    }
}

/// Forwards to core until the app has no more bytes, and sends END.
async fn to_core(
    sink: &mut SplitSink<Socket, Message>,
    read: &OwnedReadHalf,
) -> Result<(), Broken> {
    loop {
        // The buffer is allocated when there is something to read, because most connections are quiet.
        read.readable().await.map_err(Broken::App)?;
        let mut buffer = BytesMut::with_capacity(TUNNEL_BYTES_MAX);
        match read.try_read_buf(&mut buffer) {
            Ok(0) => break,
            Ok(_) => sink.send(Message::Binary(buffer.freeze())).await?,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(Broken::App(error)),
        }
    }
    sink.send(Message::text(TunnelMessage::End.to_json())).await?;
    Ok(())
}
