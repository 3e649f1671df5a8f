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

    /// What `docker buildx imagetools inspect --raw` says about `image`.
    pub(crate) fn manifest(&self, image: &str) -> Value {
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
            output.stdout
        };
        let user = ["login", "--username", &self.username, "--password-stdin", &self.url];
        docker(&user, &self.password());
        let raw = docker(&["buildx", "imagetools", "inspect", "--raw", image], "");
        serde_json::from_slice(&raw).unwrap()
    }
}
