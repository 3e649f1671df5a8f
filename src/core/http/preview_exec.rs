//! `/previews/{id}/exec`: commands in the containers of previews, over a WebSocket and a tunnel of the machine.

use std::time::Duration;

use axum::body::Bytes;
use axum::extract::State;
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::response::Response;
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt as _, StreamExt as _};
use stagely_protocol::{ExecCommand, TUNNEL_BYTES_MAX, TunnelMessage};
use stagely_state::ids::{MachineId, PreviewId};
use tokio::time::timeout;
use tracing::info;

use super::auth::Writer;
use super::previews_api::{conflict, find};
use super::{ApiError, ApiPath, ApiState};
use crate::api::{ErrorBody, ExecRequest, PreviewStatus};

/// How long a client may take to say what to run.
const REQUEST_LIMIT: Duration = Duration::from_secs(10);

/// The longest command with all its arguments, in bytes.
const COMMAND_BYTES_MAX: usize = 32 * 1024;

/// Runs a command in the container of a service of a live preview, over a WebSocket.
#[utoipa::path(get, path = "/previews/{id}/exec", params(("id" = String, Path)), responses(
    (status = 101, description = "The first message is text, an ExecRequest. See the documentation of the HTTP API."),
    (status = 404, body = ErrorBody),
    (status = 409, body = ErrorBody, description = "It is not live."),
))]
pub(super) async fn exec(
    State(api): State<ApiState>,
    writer: Writer,
    ApiPath(id): ApiPath<PreviewId>,
    upgrade: WebSocketUpgrade,
) -> Result<Response, ApiError> {
    let preview = find(&api, id, writer.role)?;
    let serves = matches!(preview.status, PreviewStatus::Live | PreviewStatus::Updating);
    let Some(machine) = preview.machine_id.filter(|_| serves) else {
        let advice = match preview.status {
            PreviewStatus::Asleep => "wake it first",
            _ => "commands run in previews that are live",
        };
        return Err(conflict(&preview, advice));
    };
    let upgrade = upgrade.max_message_size(TUNNEL_BYTES_MAX).max_frame_size(TUNNEL_BYTES_MAX);
    let sockets = api.sockets.clone();
    let exec = Exec { api, id, machine, by: writer.name };
    Ok(sockets.open(upgrade, move |socket| exec.run(socket)))
}

/// One command of one client.
struct Exec {
    api: ApiState,
    id: PreviewId,
    machine: MachineId,
    /// The name of the client's token.
    by: String,
}

impl Exec {
    async fn run(self, mut client: WebSocket) {
        let stop = self.api.sockets.stop.clone();
        let refused = match stop.run_until_cancelled(self.exchange(&mut client)).await {
            Some(Ok(())) => None,
            Some(Err(message)) => Some(message),
            None => Some("core is shutting down".to_owned()),
        };
        if let Some(message) = refused {
            let refused = TunnelMessage::Refused { message }.to_json();
            let _ = client.send(Message::text(refused)).await;
        }
        let _ = client.send(Message::Close(None)).await;
    }

    /// # Errors
    /// A sentence for people, if the command cannot be started or its machine is lost.
    async fn exchange(&self, client: &mut WebSocket) -> Result<(), String> {
        let request = timeout(REQUEST_LIMIT, request(client)).await;
        let ExecRequest { service, command, terminal } = request
            .map_err(|_| "the first message must be an ExecRequest, as text".to_owned())??;
        // Its arguments may contain secrets.
        let (program, arguments) = (command.first(), command.len().saturating_sub(1));
        info!(preview = %self.id, by = self.by, service, program, arguments, "a command runs in a preview");
        let preview_id = self.id.wire();
        self.api.preview_activity.touch(&preview_id);
        let exec = TunnelMessage::Exec(ExecCommand { preview_id, service, command, terminal });
        let tunnel = self.api.tunnels.request(self.machine, &exec).await;
        let (tunnel, _open) = tunnel.map_err(|error| error.to_string())?;
        client
            .send(Message::text(TunnelMessage::Opened.to_json()))
            .await
            .map_err(|error| error.to_string())?;
        let (to_agent, from_agent) = tunnel.split();
        let (to_client, from_client) = client.split();
        tokio::select! {
            // The client has disconnected. Dropping the tunnel ends the command's input.
            () = self.forward_input(from_client, to_agent) => Ok(()),
            ended = self.forward_output(from_agent, to_client) => ended,
        }
    }

    /// Forwards what the client sends.
    async fn forward_input(
        &self,
        mut client: SplitStream<&mut WebSocket>,
        mut agent: SplitSink<WebSocket, Message>,
    ) {
        while let Some(Ok(message)) = client.next().await {
            let is_forwarded = match &message {
                Message::Binary(_) => true,
                Message::Text(text) => matches!(
                    TunnelMessage::parse(text),
                    Ok(TunnelMessage::End | TunnelMessage::Resize(_))
                ),
                Message::Ping(_) | Message::Pong(_) => continue,
                Message::Close(_) => return,
            };
            if !is_forwarded || agent.send(message).await.is_err() {
                return;
            }
        }
    }

    /// Forwards the command's output and its end. The preview is in use until then.
    async fn forward_output(
        &self,
        mut agent: SplitStream<WebSocket>,
        mut client: SplitSink<&mut WebSocket, Message>,
    ) -> Result<(), String> {
        let preview = self.id.wire();
        let mut pings = self.api.sockets.pings();
        loop {
            let received = tokio::select! {
                received = agent.next() => received,
                _ = pings.tick() => {
                    self.api.preview_activity.touch(&preview);
                    if client.send(Message::Ping(Bytes::new())).await.is_err() {
                        return Ok(());
                    }
                    continue;
                }
            };
            let Some(Ok(message)) = received else { return Err(LOST.to_owned()) };
            let is_end = match &message {
                Message::Binary(_) => false,
                Message::Text(_) => true,
                Message::Ping(_) | Message::Pong(_) => continue,
                Message::Close(_) => return Err(LOST.to_owned()),
            };
            if client.send(message).await.is_err() || is_end {
                return Ok(());
            }
        }
    }
}

const LOST: &str = "the connection to the preview's machine was lost";

/// What the client wants to run.
async fn request(client: &mut WebSocket) -> Result<ExecRequest, String> {
    loop {
        match client.recv().await {
            Some(Ok(Message::Text(text))) => {
                let request: ExecRequest =
                    serde_json::from_str(&text).map_err(|error| error.to_string())?;
                let bytes = request.command.iter().map(String::len).sum::<usize>();
                if request.command.is_empty() || bytes > COMMAND_BYTES_MAX {
                    return Err(format!("command: must have 1 to {COMMAND_BYTES_MAX} bytes"));
                }
                return Ok(request);
            }
            Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
            _ => return Err("the first message must be an ExecRequest, as text".to_owned()),
        }
    }
}
