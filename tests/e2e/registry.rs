//! The registry that images go to.

use std::fs;
use std::path::Path;
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

    /// What `docker buildx imagetools inspect --raw` says about `image`; logs in below `folder`.
    pub(crate) fn manifest(&self, image: &str, folder: &Path) -> Value {
        let docker = |arguments: &[&str]| {
            let mut command = Command::new("docker");
            command.args(arguments).env("DOCKER_CONFIG", folder).stdin(Stdio::piped());
            command.stdout(Stdio::piped()).spawn().unwrap()
        };
        let user = ["login", "--username", &self.username, "--password-stdin", &self.url];
        let mut login = docker(&user);
        std::io::Write::write_all(&mut login.stdin.take().unwrap(), self.password().as_bytes())
            .unwrap();
        assert!(login.wait().unwrap().success());
        let inspect = docker(&["buildx", "imagetools", "inspect", "--raw", image]);
        let output = inspect.wait_with_output().unwrap();
        assert!(output.status.success(), "{image} is not there");
        serde_json::from_slice(&output.stdout).unwrap()
    }
}
