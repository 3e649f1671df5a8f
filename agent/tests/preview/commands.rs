//! Commands in the containers of a preview, through a tunnel.

use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::json;
use stagely_protocol::{EXEC_STDOUT, ExecCommand, StatusState, TunnelMessage};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;

use crate::core::{Agent, Core, Session};
use crate::setup::Setup;

const LIMIT: Duration = Duration::from_secs(30);

pub(crate) type Tunnel = WebSocketStream<TcpStream>;

async fn deployed(setup: &Setup, core: &mut Core) -> (Agent, Session) {
    let agent = Agent::start(core.config(setup.machine.as_str(), setup.work_dir.path()));
    let (mut session, _) = core.session().await;
    session.send(setup.deploy(1, &setup.web("one"), json!({}))).await;
    assert_eq!(session.end().await.state, StatusState::Completed);
    (agent, session)
}

/// Starts a command in the only service.
pub(crate) async fn run(setup: &Setup, core: &mut Core, script: &str) -> Tunnel {
    let mut tunnel = core.tunnel().await;
    let command = TunnelMessage::Exec(ExecCommand {
        preview_id: setup.preview.parse().unwrap(),
        service: "app".to_owned(),
        command: ["sh", "-c", script].map(str::to_owned).into(),
        terminal: None,
    });
    tunnel.send(Message::text(command.to_json())).await.unwrap();
    let answer = next(&mut tunnel).await.unwrap();
    assert_eq!(answer, Message::text(TunnelMessage::Opened.to_json()));
    tunnel
}

/// The next message other than pings; `None` at the end of the tunnel.
async fn next(tunnel: &mut Tunnel) -> Option<Message> {
    loop {
        let message = timeout(LIMIT, tunnel.next()).await.expect("a message or the end");
        match message {
            Some(Ok(Message::Ping(_))) => {}
            Some(Ok(Message::Close(_)) | Err(_)) | None => return None,
            Some(Ok(message)) => return Some(message),
        }
    }
}

#[tokio::test]
async fn a_command_that_reads_nothing_holds_up_neither_its_output_nor_the_end_of_its_tunnel() {
    let (setup, mut core) = (Setup::new("unread"), Core::start().await);
    let (agent, session) = deployed(&setup, &mut core).await;
    let mut tunnel = run(&setup, &mut core, "while true; do echo tick; sleep 0.1; done").await;
    // More than the pipes on the way have space for.
    for _ in 0..15 {
        tunnel.send(Message::binary(vec![b'x'; 64 * 1024])).await.unwrap();
    }
    let is_output =
        |message: &Message| matches!(message, Message::Binary(bytes) if bytes[0] == EXEC_STDOUT);
    for _ in 0..10 {
        assert!(next(&mut tunnel).await.is_some_and(|message| is_output(&message)));
    }

    tunnel.send(Message::Close(None)).await.unwrap();

    let end = timeout(LIMIT, async { while next(&mut tunnel).await.is_some() {} }).await;
    end.expect("the agent closes the tunnel, too");
    drop(session);
    agent.kill().await;
}

#[tokio::test]
async fn a_command_gets_all_its_input_however_late_it_reads_it() {
    let (setup, mut core) = (Setup::new("input"), Core::start().await);
    let (agent, session) = deployed(&setup, &mut core).await;
    let mut tunnel = run(&setup, &mut core, "sleep 2; wc -c; echo done; exit 3").await;
    for _ in 0..64 {
        tunnel.send(Message::binary(vec![b'x'; 64 * 1024])).await.unwrap();
    }
    tunnel.send(Message::text(TunnelMessage::End.to_json())).await.unwrap();
    let mut output = Vec::new();
    let exited = loop {
        match next(&mut tunnel).await.expect("an end") {
            Message::Binary(bytes) => output.extend_from_slice(&bytes[1..]),
            message => break message,
        }
    };
    assert_eq!(String::from_utf8(output).unwrap(), "4194304\ndone\n");
    assert_eq!(exited, Message::text(TunnelMessage::Exited { code: 3 }.to_json()));
    assert_eq!(next(&mut tunnel).await, None);
    drop(session);
    agent.kill().await;
}
