//! A tunnel before its connection: opens it, and waits until core uses it.

use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt as _, StreamExt as _};
use secrecy::ExposeSecret as _;
use stagely_protocol::{
    ErrorChain, ExecCommand, MACHINE_HEADER, TUNNEL_BYTES_MAX, TUNNEL_PATH, TunnelMessage, WireId,
};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::http::header::AUTHORIZATION;
use tokio_tungstenite::tungstenite::http::{HeaderName, HeaderValue};
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;

use super::{Core, until};
use crate::websocket::{self, Socket};

/// The interval of pings. Proxies close connections that are silent for longer.
const PING_INTERVAL: Duration = Duration::from_secs(20);

/// Core answers each ping. A tunnel on which nothing arrives for so many intervals is lost.
const SILENT_PINGS_MAX: u32 = 3;

/// How long a ping may take to be sent.
const SEND_LIMIT: Duration = Duration::from_secs(10);

/// A larger buffer reads uploads with fewer system calls.
const READ_BUFFER_BYTES: usize = 16 * 1024;

/// What became of a tunnel that waited.
pub(super) enum Idle {
    /// Core has a connection for it.
    Opened { socket: Box<Socket>, preview: WireId, endpoint: String },
    /// Core has a command for it.
    Exec { socket: Box<Socket>, command: ExecCommand },
    /// Core did not use it in time.
    Expired,
    /// Core cannot be reached, or has closed it.
    Lost,
}

/// Opens a tunnel and waits until core uses it, at most for `idle_limit`.
pub(super) async fn wait(core: Core, idle_limit: Option<Duration>) -> Idle {
    let config = WebSocketConfig::default()
        .read_buffer_size(READ_BUFFER_BYTES)
        .max_message_size(Some(TUNNEL_BYTES_MAX))
        .max_frame_size(Some(TUNNEL_BYTES_MAX));
    let Some(headers) = headers(&core) else { return Idle::Lost };
    let mut socket = match websocket::connect(&core.url, TUNNEL_PATH, headers, config).await {
        Ok(socket) => socket,
        Err(error) => {
            tracing::warn!(error = %ErrorChain(&error), "cannot open a tunnel to core");
            return Idle::Lost;
        }
    };
    let expires_at = idle_limit.map(|limit| Instant::now() + limit);
    let mut received_at = Instant::now();
    let mut pings = interval(PING_INTERVAL);
    pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            received = socket.next() => match received {
                Some(Ok(Message::Text(text))) => return opened(socket, &text),
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => received_at = Instant::now(),
                Some(Ok(_) | Err(_)) | None => {
                    tracing::debug!("core has closed a tunnel");
                    return Idle::Lost;
                }
            },
            _ = pings.tick() => {
                let ping = timeout(SEND_LIMIT, socket.send(Message::Ping(Bytes::new())));
                if received_at.elapsed() > PING_INTERVAL * SILENT_PINGS_MAX
                    || !matches!(ping.await, Ok(Ok(())))
                {
                    tracing::warn!("a tunnel to core is lost");
                    return Idle::Lost;
                }
            }
            () = until(expires_at) => {
                let _ = timeout(SEND_LIMIT, socket.close(None)).await;
                return Idle::Expired;
            }
        }
    }
}

fn opened(socket: Socket, text: &str) -> Idle {
    let socket = Box::new(socket);
    match TunnelMessage::parse(text) {
        Ok(TunnelMessage::Open { preview_id, endpoint }) => {
            Idle::Opened { socket, preview: preview_id, endpoint }
        }
        Ok(TunnelMessage::Exec(command)) => Idle::Exec { socket, command },
        Ok(_) | Err(_) => {
            tracing::warn!("core sent something other than OPEN and EXEC through an idle tunnel");
            Idle::Lost
        }
    }
}

/// The headers that authorize the machine; `None` if its token is no header's value.
fn headers(core: &Core) -> Option<Vec<(HeaderName, HeaderValue)>> {
    let bearer = format!("Bearer {}", core.token.expose_secret());
    let mut bearer = HeaderValue::try_from(bearer).ok()?;
    bearer.set_sensitive(true);
    let machine = HeaderValue::try_from(core.machine.as_str()).ok()?;
    Some(vec![(AUTHORIZATION, bearer), (HeaderName::from_static(MACHINE_HEADER), machine)])
}
