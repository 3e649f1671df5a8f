//! Registries: the one that `scripts/setup` starts, and private ones of tests.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use reqwest::StatusCode;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::processes::ChildProcess;
use crate::program;

fn setting(name: &str) -> String {
    std::env::var(name)
        .unwrap_or_else(|_| panic!("{name} is not set: use scripts/test or scripts/bench"))
}

/// The registry of the set-up, and its login.
#[derive(Clone, Debug)]
pub struct Registry {
    pub url: String,
    pub username: String,
    pub password_file: String,
}

impl Registry {
    pub fn real() -> Self {
        Self {
            url: setting("STAGELY_REGISTRY"),
            username: setting("STAGELY_REGISTRY_USERNAME"),
            password_file: setting("STAGELY_REGISTRY_PASSWORD_FILE"),
        }
    }

    pub fn password(&self) -> String {
        fs::read_to_string(&self.password_file).unwrap().trim().to_owned()
    }

    /// The `[registry]` table of core's settings.
    pub fn settings(&self) -> toml::Table {
        let Self { url, username, password_file } = self;
        toml::toml! {
            [registry]
            url = (url.as_str())
            username = (username.as_str())
            password-file = (password_file.as_str())
        }
    }

    /// The output of `docker`, logged in to the registry.
    pub fn docker(&self, arguments: &[&str]) -> String {
        // The login must not be in the folder in which the tests search for logins that are left behind.
        let config = tempfile::tempdir().unwrap();
        let docker = |arguments: &[&str], input: &str| {
            let mut command = Command::new("docker");
            command.args(arguments).env("DOCKER_CONFIG", config.path());
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
            let mut process = command.spawn().unwrap();
            process.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
            let output = process.wait_with_output().unwrap();
            assert!(output.status.success(), "docker {arguments:?}: {output:?}");
            String::from_utf8(output.stdout).unwrap()
        };
        let user = ["login", "--username", &self.username, "--password-stdin", &self.url];
        docker(&user, &self.password());
        docker(arguments, "")
    }

    /// The manifest or index that `image` names.
    pub fn manifest(&self, image: &str) -> Value {
        let raw = self.docker(&["buildx", "imagetools", "inspect", "--raw", image]);
        serde_json::from_str(&raw).unwrap()
    }

    /// The digest that `reference` names, if there is one.
    pub async fn digest(&self, reference: &str) -> Option<String> {
        digest(reference, Some((&self.username, &self.password()))).await
    }
}

/// A user name and a password.
pub type Login<'a> = (&'a str, &'a str);

/// The digest that `reference` names at its registry, if there is one.
pub async fn digest(reference: &str, login: Option<Login<'_>>) -> Option<String> {
    let (registry, path) = reference.split_once('/').unwrap();
    let (repository, tag) = path.rsplit_once(':').unwrap();
    let kinds = [
        "application/vnd.oci.image.index.v1+json",
        "application/vnd.oci.image.manifest.v1+json",
        "application/vnd.docker.distribution.manifest.list.v2+json",
        "application/vnd.docker.distribution.manifest.v2+json",
    ];
    let mut request = reqwest::Client::new()
        .head(format!("http://{registry}/v2/{repository}/manifests/{tag}"))
        .header("Accept", kinds.join(", "));
    if let Some((username, password)) = login {
        request = request.basic_auth(username, Some(password));
    }
    let response = request.send().await.unwrap();
    if response.status() == StatusCode::NOT_FOUND {
        return None;
    }
    assert!(response.status().is_success(), "{reference}: {response:?}");
    Some(response.headers()["docker-content-digest"].to_str().unwrap().to_owned())
}

/// A private `docker-registry` of one test. It ends with the value.
pub struct PrivateRegistry {
    address: SocketAddr,
    folder: TempDir,
    process: Option<ChildProcess>,
}

impl PrivateRegistry {
    /// Starts a registry that listens at `address`. Without a `login` everybody may push. `deletes`: whether it
    /// deletes tags and images.
    pub fn start(address: SocketAddr, login: Option<Login<'_>>, deletes: bool) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut config = json!({
            "version": 0.1,
            "log": { "level": "warn" },
            "storage": {
                "filesystem": { "rootdirectory": folder.path().join("data") },
                "delete": { "enabled": deletes },
            },
            "http": { "addr": address.to_string() },
        });
        if let Some((username, password)) = login {
            let path = folder.path().join("htpasswd");
            fs::write(&path, htpasswd(username, password)).unwrap();
            config["auth"] = json!({ "htpasswd": { "realm": "test", "path": path } });
        }
        fs::write(folder.path().join("config.yml"), config.to_string()).unwrap();
        let mut registry = Self { address, folder, process: None };
        registry.launch();
        registry
    }

    /// Starts the process again with the same data.
    pub fn launch(&mut self) {
        let log = fs::OpenOptions::new().create(true).append(true).open(self.path("log")).unwrap();
        let mut command = Command::new("docker-registry");
        command.arg("serve").arg(self.path("config.yml"));
        self.process = Some(program::start(&mut command, log));
    }

    /// Ends the process. Its data stays.
    pub fn kill(&mut self) {
        self.process = None;
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// A folder for files of the test, which is deleted with the registry.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

/// The content of an Apache password file with this login.
fn htpasswd(username: &str, password: &str) -> Vec<u8> {
    let mut process = Command::new("htpasswd")
        .args(["-niBC", "4", username])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    process.stdin.take().unwrap().write_all(password.as_bytes()).unwrap();
    process.wait_with_output().unwrap().stdout
}

/// A registry in front of the real one that refuses some requests, as `faulty_registry.py` describes.
pub struct FaultyRegistry {
    pub url: String,
    _process: ChildProcess,
}

impl FaultyRegistry {
    /// Starts it with one of the faults of `faulty_registry.py`.
    pub fn start(fault: &str) -> Self {
        let mut process = Command::new("python3")
            .args(["-c", include_str!("faulty_registry.py"), &setting("STAGELY_REGISTRY"), fault])
            .stdout(Stdio::piped())
            .spawn()
            .expect("python3 starts");
        let mut port = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut port).unwrap();
        Self { url: format!("127.0.0.1:{}", port.trim()), _process: ChildProcess::new(process) }
    }
}
