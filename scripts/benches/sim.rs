//! Simulated agents and viewers on real sockets.

use anyhow::{Context as _, bail};
use futures_util::{SinkExt as _, StreamExt as _};
use secrecy::ExposeSecret as _;
use stagely::api::BASE_PATH;
use stagely_protocol::agent_config::AgentConfig;
use stagely_protocol::{
    AgentMessage, Arch, CONNECT_PATH, CoreMessage, Hello, Status, StatusState, SystemInfo, WireId,
};
use stagely_state::ids::JobId;
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::http::HeaderValue;
use tokio_tungstenite::tungstenite::http::header::AUTHORIZATION;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{Message, Utf8Bytes};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async_with_config};

use crate::core::Core;

pub(crate) type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

/// The buffer size of a socket. Thousands of them share the machine with core.
const IDLE_BUFFER_BYTES: usize = 4 * 1024;

/// Connects as an agent and waits for the response to HELLO.
pub(crate) async fn connect(agent: &AgentConfig) -> anyhow::Result<Socket> {
    let url = agent.core_url.join(CONNECT_PATH)?.as_str().replacen("http", "ws", 1);
    let config = WebSocketConfig::default().read_buffer_size(IDLE_BUFFER_BYTES);
    let (mut socket, _) = connect_async_with_config(url, Some(config), true).await?;
    let hello = AgentMessage::Hello(Hello {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        agent_id: agent.agent_id.clone(),
        token: agent.token.clone(),
        system_info: SystemInfo {
            hostname: "simulated".to_owned(),
            architecture: Arch::of_this_program(),
            docker_version: String::new(),
            emulated: Vec::new(),
        },
        jobs: Vec::new(),
        previews: None,
    });
    socket.send(Message::text(hello.to_json())).await?;
    match CoreMessage::parse(&text(&mut socket).await?)? {
        CoreMessage::HelloAck(_) => Ok(socket),
        other => bail!("core answered HELLO with {other:?}"),
    }
}

/// Waits for a job and reports that it runs.
pub(crate) async fn take_job(socket: &mut Socket) -> anyhow::Result<WireId> {
    let CoreMessage::Build(build) = CoreMessage::parse(&text(socket).await?)? else {
        bail!("core sent something else than BUILD");
    };
    let status = Status::new(build.job_id.clone(), StatusState::Running);
    socket.send(Message::text(AgentMessage::Status(status).to_json())).await?;
    match CoreMessage::parse(&text(socket).await?)? {
        CoreMessage::StatusAck(_) => Ok(build.job_id),
        other => bail!("core answered STATUS with {other:?}"),
    }
}

/// Follows a job's log as a viewer.
pub(crate) async fn follow(core: &Core, job: JobId) -> anyhow::Result<Socket> {
    let url = core.url.as_str().replacen("http", "ws", 1);
    let url = format!("{}{BASE_PATH}/jobs/{job}/logs/follow", url.trim_end_matches('/'));
    let mut request = url.into_client_request()?;
    let bearer = HeaderValue::try_from(format!("Bearer {}", core.token.expose_secret()))?;
    request.headers_mut().insert(AUTHORIZATION, bearer);
    Ok(connect_async_with_config(request, None, true).await?.0)
}

/// The next text message.
pub(crate) async fn text(socket: &mut Socket) -> anyhow::Result<Utf8Bytes> {
    loop {
        match socket.next().await.context("core closed the connection")?? {
            Message::Text(text) => return Ok(text),
            Message::Close(_) => bail!("core closed the connection"),
            // Tungstenite responds to pings.
            _ => {}
        }
    }
}
