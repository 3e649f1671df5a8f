//! A registry and an engine that are not there yet: the job waits for them.

use serde_json::json;
use stagely_protocol::StatusState;
use tokio::net::{TcpListener, TcpStream};

use crate::setup::{Setup, setting};

/// Passes connections on to `to` from the time it is started.
async fn proxy(listener: TcpListener, to: String) {
    loop {
        let (mut client, _) = listener.accept().await.unwrap();
        let mut server = TcpStream::connect(&to).await.unwrap();
        tokio::spawn(async move { tokio::io::copy_bidirectional(&mut client, &mut server).await });
    }
}

#[tokio::test]
async fn a_job_waits_for_a_registry_that_restarts() {
    let setup = Setup::new("restart");
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let away = Setup { registry: address.to_string(), ..setup };
    let message = away.build(&[("Dockerfile", "FROM debian:13-slim\n")], json!({}));
    let registry = setting("STAGELY_REGISTRY");
    let back = async {
        away.log_has("trying again in 1s, for ").await;
        away.log_has(" at most: ").await;
        proxy(TcpListener::bind(address).await.unwrap(), registry).await;
    };
    let status = tokio::select! {
        status = away.run(message) => status,
        () = back => panic!("the proxy ended"),
    };
    assert_eq!(status.state, StatusState::Completed, "{}", away.log());
}

/// The socket of the engine that the other tests use.
fn engine_socket() -> String {
    let host = std::env::var("DOCKER_HOST");
    let host = host.as_deref().unwrap_or("unix:///var/run/docker.sock");
    host.strip_prefix("unix://").unwrap_or_else(|| panic!("{host} is no socket")).to_owned()
}

#[tokio::test]
async fn a_job_waits_for_an_engine_that_is_starting() {
    let setup = Setup::new("starting");
    let socket = setup.work_dir.path().join("docker.sock");
    let setup = Setup { docker_host: Some(format!("unix://{}", socket.display())), ..setup };
    let message = setup.build(&[("Dockerfile", "FROM debian:13-slim\n")], json!({}));
    let (status, ()) = tokio::join!(setup.run(message), async {
        setup.log_has("Waiting for the Docker engine").await;
        std::os::unix::fs::symlink(engine_socket(), &socket).unwrap();
    });
    assert_eq!(status.state, StatusState::Completed, "{}", setup.log());
}
