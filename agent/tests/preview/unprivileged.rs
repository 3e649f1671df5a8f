//! An agent that is not root, and may use the engine, beside containers that are root.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use futures_util::SinkExt as _;
use nix::unistd::geteuid;
use serde_json::{Value, json};
use stagely_protocol::{Preview, PreviewState, StatusState};
use stagely_test_support::wait::eventually;
use tokio_tungstenite::tungstenite::Message;

use crate::commands::run;
use crate::core::{Agent, Core, Session};
use crate::setup::{Setup, container, docker};

const COMPOSE: &str = "services:\n  web: {build: ., volumes: ['.:/app', 'data:/data'], \
    secrets: [token]}\nvolumes: {data: }\nsecrets: {token: {environment: TOKEN}}\n";

/// Folders that only root can look into.
const LEAVE_FILES: &str = "mkdir -p /app/left/deep/er && echo x >/app/left/deep/er/file && chmod 700 /app/left/deep/er \
    /app/left && chmod 755 /app && chown root /app && echo row >/data/row";

const SECRET: &str = "value-of-nobody-else";

/// Runs the test `name` of this program again, as a user who is not root. `false`: this one is not root already.
fn runs_again_without_root(name: &str) -> bool {
    if !geteuid().is_root() {
        return false;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).unwrap();
    fs::copy(std::env::current_exe().unwrap(), path("test")).unwrap();
    let password = std::env::var("STAGELY_REGISTRY_PASSWORD_FILE").unwrap();
    fs::write(path("password"), fs::read(password).unwrap()).unwrap();
    let group = fs::metadata("/var/run/docker.sock").unwrap().gid();
    let status = Command::new("setpriv")
        .args(["--reuid=65534", &format!("--regid={group}"), "--clear-groups", "--"])
        .arg(path("test"))
        .args(["--exact", name])
        .env("HOME", folder.path())
        .env("TMPDIR", folder.path())
        .env("STAGELY_REGISTRY_PASSWORD_FILE", path("password"))
        .env_remove("DOCKER_CONFIG")
        .current_dir(folder.path())
        .status();
    assert!(status.unwrap().success());
    true
}

async fn deploy(
    setup: &Setup,
    session: &mut Session,
    image: &str,
    generation: u64,
    mut fields: Value,
) {
    fields["secrets"] = json!({ "TOKEN": SECRET });
    session
        .send(setup.deploy_commit(generation, image, &[("compose.yaml", COMPOSE)], fields))
        .await;
    let status = session.end().await;
    assert_eq!(status.state, StatusState::Completed, "{status:?}");
    let web = container(&setup.preview, "web");
    docker(&["exec", "--user", "root", &web, "sh", "-c", LEAVE_FILES]);
}

async fn archived(session: &mut Session) -> Preview {
    loop {
        let report = session.preview().await;
        assert!(!report.archive_failed, "{report:?}");
        if report.state == PreviewState::Archived {
            return report;
        }
    }
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = names.collect();
    names.sort();
    names
}

#[tokio::test]
async fn files_that_containers_leave_as_root_are_removed() {
    if runs_again_without_root("unprivileged::files_that_containers_leave_as_root_are_removed") {
        return;
    }
    let (setup, mut core) = (Setup::new("rootless"), Core::start().await);
    let config = || core.config(setup.machine.as_str(), setup.work_dir.path());
    let (first, second) = (config(), config());
    let agent = Agent::start(first);
    let (mut session, _) = core.session().await;
    let image = setup.web("one");
    deploy(&setup, &mut session, &image, 1, json!({})).await;
    assert!(fs::read_dir(setup.folder().join("job_1/src/left")).is_err());
    // The files of the former deployment go with an update.
    deploy(&setup, &mut session, &image, 2, json!({})).await;
    assert_eq!(names(&setup.folder().join("job_1")), ["deployment.json"]);
    deploy(&setup, &mut session, &image, 3, json!({})).await;
    let mut left = names(&setup.folder());
    left.retain(|name| name.starts_with("job_"));
    assert_eq!(left, ["job_2", "job_3"]);

    session.send(json!({ "type": "SLEEP", "preview_id": setup.preview })).await;
    let report = archived(&mut session).await;
    let digest = report.archive.unwrap();
    assert_eq!(names(&setup.folder()), ["archived.json"]);
    assert_eq!(setup.left(), [""; 0]);

    deploy(&setup, &mut session, &image, 4, json!({ "restore": digest })).await;
    let web = container(&setup.preview, "web");
    assert_eq!(docker(&["exec", &web, "cat", "/data/row"]), "row\n");
    session
        .send(json!({ "type": "SLEEP", "preview_id": setup.preview, "archive_bytes_max": 0 }))
        .await;
    archived(&mut session).await;
    assert!(!setup.folder().exists());

    // A deployment that an agent did not finish.
    deploy(&setup, &mut session, &image, 5, json!({})).await;
    agent.kill().await;
    fs::remove_file(setup.folder().join("current")).unwrap();
    let agent = Agent::start(second);
    let (mut session, _) = core.session().await;
    deploy(&setup, &mut session, &image, 5, json!({})).await;

    session.send(json!({ "type": "TERMINATE", "grace": 60 })).await;
    agent.exit().await;
    assert_eq!(setup.left(), [""; 0]);
    assert!(!setup.work_dir.path().join("previews").exists());
}

#[tokio::test]
async fn a_command_of_root_hangs_up_with_its_tunnel() {
    if runs_again_without_root("unprivileged::a_command_of_root_hangs_up_with_its_tunnel") {
        return;
    }
    let (setup, mut core) = (Setup::new("hangup"), Core::start().await);
    let agent = Agent::start(core.config(setup.machine.as_str(), setup.work_dir.path()));
    let (mut session, _) = core.session().await;
    session.send(setup.deploy(1, &setup.web("one"), json!({}))).await;
    assert_eq!(session.end().await.state, StatusState::Completed);
    let script = "trap 'echo hung up >/data/end; exit' HUP; echo begun >/data/begun; while true; do sleep 0.1; done";
    let mut tunnel = run(&setup, &mut core, script).await;
    let web = container(&setup.preview, "app");
    let has = async |file: &str| {
        let shown = Command::new("docker").args(["exec", &web, "cat", file]).output().unwrap();
        shown.status.success().then_some(())
    };
    eventually("the command runs", async || has("/data/begun").await).await;

    tunnel.send(Message::Close(None)).await.unwrap();

    eventually("the command hangs up", async || has("/data/end").await).await;
    drop(session);
    tokio::time::timeout(Duration::from_secs(30), agent.kill()).await.unwrap();
}
