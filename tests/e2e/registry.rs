//! The registry that images go to.

use std::fs;
use std::io::Write as _;
use std::process::{Command, Stdio};

use serde_json::Value;

fn setting(name: &str) -> String {
    std::env::var(name)
        .unwrap_or_else(|_| panic!("{name} is not set: run these tests through scripts/test"))
}

/// The registry and who may push.
#[derive(Clone, Debug)]
pub(crate) struct Registry {
    pub(crate) url: String,
    pub(crate) username: String,
    pub(crate) password_file: String,
}

impl Registry {
    pub(crate) fn real() -> Self {
        Self {
            url: setting("STAGELY_REGISTRY"),
            username: setting("STAGELY_REGISTRY_USERNAME"),
            password_file: setting("STAGELY_REGISTRY_PASSWORD_FILE"),
        }
    }

    pub(crate) fn password(&self) -> String {
        fs::read_to_string(&self.password_file).unwrap().trim().to_owned()
    }

    /// What `docker` says, logged in to the registry.
    pub(crate) fn docker(&self, arguments: &[&str]) -> String {
        // The login must not lie where the tests look for logins left behind.
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
    pub(crate) fn manifest(&self, image: &str) -> Value {
        let raw = self.docker(&["buildx", "imagetools", "inspect", "--raw", image]);
        serde_json::from_str(&raw).unwrap()
    }

    /// Asks for what `reference` names: its digest, if there is anything.
    pub(crate) async fn digest(&self, reference: &str) -> Option<String> {
        let path = reference.strip_prefix(&self.url).unwrap().trim_start_matches('/');
        let (repository, tag) = path.rsplit_once(':').unwrap();
        let kinds = [
            "application/vnd.oci.image.index.v1+json",
            "application/vnd.oci.image.manifest.v1+json",
            "application/vnd.docker.distribution.manifest.list.v2+json",
            "application/vnd.docker.distribution.manifest.v2+json",
        ];
        let answer = reqwest::Client::new()
            .head(format!("http://{}/v2/{repository}/manifests/{tag}", self.url))
            .basic_auth(&self.username, Some(self.password()))
            .header("Accept", kinds.join(", "))
            .send()
            .await
            .unwrap();
        if answer.status() == reqwest::StatusCode::NOT_FOUND {
            return None;
        }
        assert!(answer.status().is_success(), "{reference}: {answer:?}");
        Some(answer.headers()["docker-content-digest"].to_str().unwrap().to_owned())
    }
}
