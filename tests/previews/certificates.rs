//! Caddy in front of core, as `contrib/caddy/previews.Caddyfile` says, with a certificate authority of this machine.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};

use reqwest::{Certificate, Client};
use serde_json::json;
use stagely_test_support::certificates::SelfSigned;
use stagely_test_support::ports::free_port;
use stagely_test_support::processes::ChildProcess;
use stagely_test_support::wait::eventually;
use tempfile::TempDir;

use crate::world::{HOST_NAME, KEY, World};

/// pebble, the test server of Let's Encrypt, which issues certificates without looking.
struct Authority {
    directory: String,
    management: String,
    /// The certificate of its own server.
    certificate: Vec<u8>,
    _process: ChildProcess,
}

impl Authority {
    async fn start(folder: &Path) -> Self {
        let (listen, management) = (free_port(), free_port());
        let SelfSigned { key, certificate } = SelfSigned::for_host("127.0.0.1");
        let path = |name: &str| folder.join(name).display().to_string();
        fs::write(path("key.pem"), key).unwrap();
        fs::write(path("certificate.pem"), &certificate).unwrap();
        let settings = json!({ "pebble": {
            "listenAddress": format!("127.0.0.1:{listen}"),
            "managementListenAddress": format!("127.0.0.1:{management}"),
            "certificate": path("certificate.pem"),
            "privateKey": path("key.pem"),
            "httpPort": 80, "tlsPort": 443, "ocspResponderURL": "",
            "externalAccountBindingRequired": false,
        } });
        fs::write(path("pebble.json"), settings.to_string()).unwrap();
        let mut command = Command::new("pebble");
        command.args(["-config", &path("pebble.json")]);
        command.env("PEBBLE_VA_ALWAYS_VALID", "1").env("PEBBLE_VA_NOSLEEP", "1");
        let process = start(command, &folder.join("pebble.log"));
        let authority = Self {
            directory: format!("https://127.0.0.1:{listen}/dir"),
            management: format!("https://127.0.0.1:{management}"),
            certificate,
            _process: process,
        };
        let client = authority.client();
        eventually("pebble answers", async || client.get(&authority.directory).send().await.ok())
            .await;
        authority
    }

    fn client(&self) -> Client {
        let certificate = Certificate::from_pem(&self.certificate).unwrap();
        Client::builder().no_proxy().add_root_certificate(certificate).build().unwrap()
    }

    /// The certificate that signs all others.
    async fn root(&self) -> Certificate {
        let root = self.client().get(format!("{}/roots/0", self.management)).send().await.unwrap();
        Certificate::from_pem(&root.bytes().await.unwrap()).unwrap()
    }
}

fn start(mut command: Command, log: &Path) -> ChildProcess {
    let log = File::create(log).unwrap();
    command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
    let child = command.spawn().unwrap_or_else(|error| {
        panic!("cannot start {command:?}: {error}; scripts/setup test installs it")
    });
    ChildProcess::new(child)
}

/// The Caddyfile of `contrib` with this test's addresses.
fn caddyfile(world: &World, authority: &Authority, folder: &Path, https_port: u16) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("contrib/caddy/previews.Caddyfile");
    let text = fs::read_to_string(path).unwrap();
    let own = format!(
        "{{\n\tadmin off\n\thttp_port {}\n\thttps_port {https_port}\n\tacme_ca {}\n\tacme_ca_root {}\n\t\
         storage file_system {}\n\tskip_install_trust\n",
        free_port(),
        authority.directory,
        folder.join("certificate.pem").display(),
        folder.join("caddy").display(),
    );
    text.replacen("{\n", &own, 1)
        .replace("127.0.0.1:7780", &world.address().to_string())
        .replace("preview.example.com", "preview.test")
}

#[tokio::test(flavor = "multi_thread")]
async fn caddy_gets_certificates_for_open_previews_alone() {
    let world = World::start().await;
    let folder = TempDir::new().unwrap();
    let authority = Authority::start(folder.path()).await;
    let port = free_port();
    let file = folder.path().join("Caddyfile");
    fs::write(&file, caddyfile(&world, &authority, folder.path(), port)).unwrap();
    let mut command = Command::new("caddy");
    command.args(["run", "--adapter", "caddyfile", "--config"]).arg(&file);
    command.env("HOME", folder.path()).env("XDG_CONFIG_HOME", folder.path());
    let _caddy = start(command, &folder.path().join("caddy.log"));

    let address = ([127, 0, 0, 1], port).into();
    let browser = Client::builder()
        .no_proxy()
        .add_root_certificate(authority.root().await)
        .resolve(HOST_NAME, address)
        .resolve("nobody.preview.test", address)
        .build()
        .unwrap();
    let page = eventually("the preview answers through Caddy", async || {
        let request = browser.get(format!("https://{HOST_NAME}:{port}/through-caddy"));
        request.header("x-stagely-access", KEY).send().await.ok()
    });
    let page = page.await;
    assert!(page.status().is_success(), "{page:?}");
    assert!(page.text().await.unwrap().contains("/through-caddy"));

    let refused = browser.get(format!("https://nobody.preview.test:{port}/")).send().await;
    let error = refused.expect_err("no certificate for an unknown name");
    assert!(error.is_connect(), "{error:?}");
}
