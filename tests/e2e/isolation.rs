//! A preview machine to which nobody can connect.

use std::fs;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use stagely_state::Fleet;
use stagely_test_core::Core;
use stagely_test_support::engine::PrivateEngine;
use stagely_test_support::files::write_private;
use stagely_test_support::network::IsolatedNetwork;
use stagely_test_support::program;
use url::Url;

use crate::STAGELY;

/// Whether somebody at the host can connect to the machine.
fn is_reachable(network: &IsolatedNetwork, port: u16) -> bool {
    let address = SocketAddr::from((network.machine, port));
    match TcpStream::connect_timeout(&address, Duration::from_secs(2)) {
        Ok(_) => true,
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::TimedOut, "{error}");
            false
        }
    }
}

#[tokio::test]
async fn a_machine_that_drops_all_inbound_traffic_serves_a_preview() {
    let network = IsolatedNetwork::new();
    let mut core = Core::start(STAGELY, "isolated", "[builders]\nprovider = \"none\"\n").await;
    core.listen_for(network.host).await;
    let git: Url = core.git.url("private", "app/.git").parse().unwrap();
    let registry: SocketAddr = core.registry.url.parse().unwrap();
    let _servers = [git.port().unwrap(), registry.port()].map(|port| network.forward(port));
    let engine = PrivateEngine::start_in(&network).await;
    let (_, builder) = core.add_machine("builder").await;
    let builder =
        core.start_agent("builder", STAGELY, &["agent".as_ref(), "--config".as_ref(), &builder]);
    let (_, config) = core.add_machine_for(Fleet::Preview, "isolated").await;
    let mut agent: Value = serde_json::from_slice(&fs::read(&config).unwrap()).unwrap();
    agent["docker_host"] = engine.host().into();
    write_private(&config, &agent.to_string());
    let mut agent = network.command(STAGELY);
    agent.args(["agent", "--config"]).arg(&config);
    let agent = program::start(&mut agent, core.open_log("isolated.log"));

    core.preview_of("one").await;

    // What it serves listens on its loopback alone, and it lets nobody in anyway.
    let listener = network.listen(Ipv4Addr::UNSPECIFIED, 0);
    assert!(!is_reachable(&network, listener.local_addr().unwrap().port()));
    let list = ["--host", &engine.host(), "ps", "--format", "{{.Ports}}"];
    let ports = Command::new("docker").args(list).output().unwrap();
    let ports = String::from_utf8(ports.stdout).unwrap();
    let port = ports.trim().strip_prefix("127.0.0.1:").and_then(|port| port.split('-').next());
    let port = port.unwrap_or_else(|| panic!("{ports}")).parse().unwrap();
    assert!(!is_reachable(&network, port));
    // Its containers are not on the engine of the host.
    assert!(
        stagely_test_support::previews::on_engine(&core.preview_machine().await.id.to_string())
            .is_empty()
    );

    core.preview_of("two").await;

    core.end_preview().await;
    assert!(agent.stop().await.success() && builder.stop().await.success());
    core.finish().await;
}
