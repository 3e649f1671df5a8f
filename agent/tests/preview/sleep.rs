//! Sleep: archives of volumes, and the way back.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::json;
use stagely_protocol::{PreviewState, StatusState};
use stagely_test_support::wait::eventually;

use crate::core::{Agent, Core, Session};
use crate::setup::{Setup, container, docker, get};

const COMPOSE: &str = "services:\n  web: {build: ., volumes: ['data:/data', 'empty:/empty']}\n  \
    db: {image: busybox, command: sleep 1000, volumes: ['more:/more:ro']}\n\
    volumes: {data: , empty: , more: }\n";

/// Files with owners, modes and links, and one that is large enough for many pieces.
const FILES: &str = "cd /data && echo row >row && chown 70:71 row && chmod 640 row && ln -s row link && ln -s ../../../far far && ln row hard && \
    mkdir folder && chmod 2770 folder && chown 99:98 folder /data && chmod 1700 /data && \
    dd if=/dev/urandom of=large bs=1024 count=3000 2>/dev/null";

const SHOW: &str = "cd /data && ls -lan | cut -c 1-50 | grep -v total; stat -c '%n %i %U' row hard | cut -d ' ' -f 2 | uniq | \
    wc -l; readlink link far; md5sum large row; stat -c '%a %u:%g' /data folder";

const SECRET: &str = "value-of-nobody-else";

/// An agent with a preview whose volumes have files. Returns what they look like.
async fn awake(setup: &Setup, core: &mut Core) -> (Agent, Session, String) {
    let agent = Agent::start(core.config(setup.machine.as_str(), setup.work_dir.path()));
    let (mut session, _) = core.session().await;
    let (one, files) = (setup.web("one"), [("compose.yaml", COMPOSE), (".env", "A=1\n")]);
    let fields = json!({ "secrets": { "KEY": SECRET } });
    session.send(setup.deploy_commit(1, &one, &files, fields)).await;
    let status = session.end().await;
    assert_eq!(status.state, StatusState::Completed, "{status:?}");
    let web = container(&setup.preview, "web");
    assert!(
        has_text(setup.work_dir.path(), SECRET),
        "the compose file has it while the preview serves"
    );
    assert_eq!(docker(&["exec", &web, "sh", "-c", "echo $KEY"]).trim(), SECRET);
    docker(&["exec", &web, "sh", "-c", FILES]);
    // A container may change the files of the commit. Nothing reads them again.
    let folder = setup.folder();
    let script = "cd */src && test -f .env && rm .env && mkfifo .env";
    let status = Command::new("sh").args(["-c", script]).current_dir(folder).status();
    assert!(status.unwrap().success());
    let shown = docker(&["exec", &web, "sh", "-c", SHOW]);
    (agent, session, shown)
}

/// Whether a file below `folder` has the text.
fn has_text(folder: &Path, text: &str) -> bool {
    let search = Command::new("grep").args(["--recursive", "--quiet", text]).arg(folder).status();
    match search.unwrap().code() {
        Some(0) => true,
        Some(1) => false,
        other => panic!("grep ended with {other:?}"),
    }
}

#[tokio::test]
async fn a_preview_sleeps_and_wakes_with_its_data() {
    let (setup, mut core) = (Setup::new("sleep"), Core::start().await);
    let (agent, mut session, before) = awake(&setup, &mut core).await;
    let serving = session.preview().await;
    assert_eq!((serving.state, serving.generation), (PreviewState::Serving, 1));
    assert_eq!(serving.services.len(), 2);
    assert!(serving.disk_free_bytes.is_some());

    // Core restarts meanwhile.
    core.archives.lock().unwrap().failures = 1;
    session.send(json!({ "type": "SLEEP", "preview_id": setup.preview })).await;
    // A repeated message changes nothing.
    session.send(json!({ "type": "SLEEP", "preview_id": setup.preview })).await;
    let archived = session.preview().await;
    assert_eq!(archived.state, PreviewState::Archived, "{archived:?}");
    let digest = archived.archive.clone().unwrap();
    let (size, requests) = {
        let kept = core.archives.lock().unwrap();
        assert_eq!(kept.stored.len(), 1);
        (kept.stored[digest.as_str()].len(), kept.requests.clone())
    };
    assert_eq!(archived.archive_bytes, Some(size as u64));
    let put = format!("PUT /v1/agent/archives/{} ", setup.preview);
    assert!(
        requests[0].starts_with(&put) && requests[0].contains("Bearer machine-token"),
        "{requests:?}"
    );
    assert!(requests[0].contains("x-stagely-machine"), "{requests:?}");
    assert_eq!(setup.left(), [""; 0]);
    let files: Vec<_> = std::fs::read_dir(setup.folder()).unwrap().collect();
    assert_eq!(files.len(), 1, "{files:?}");
    assert!(!has_text(setup.work_dir.path(), SECRET), "a secret is left on the machine");
    // Core asks again: it has not stored the answer.
    session.send(json!({ "type": "SLEEP", "preview_id": setup.preview })).await;
    assert_eq!(session.preview().await, archived);
    agent.kill().await;

    // Another machine.
    let other = Setup::new("wake");
    let agent = Agent::start(core.config(other.machine.as_str(), other.work_dir.path()));
    let (mut session, hello) = core.session().await;
    assert!(hello.previews.as_ref().unwrap().is_empty());
    let fields = json!({
        "restore": digest, "preview_id": setup.preview,
        "seed": { "service": "web", "command": ["sh", "-c", "echo again >/data/row"] },
    });
    let two = other.web("two");
    session.send(other.deploy_commit(2, &two, &[("compose.yaml", COMPOSE)], fields.clone())).await;
    let status = session.end().await;
    assert_eq!(status.state, StatusState::Completed, "{status:?}");
    let web = container(&setup.preview, "web");
    assert_eq!(docker(&["exec", &web, "sh", "-c", SHOW]), before);
    assert_eq!(get(&status.endpoints[0].address, "/").await, "page two\n");

    // The data of a machine that has some is newer than the archive.
    docker(&["exec", &web, "sh", "-c", "echo newer >/data/row"]);
    session.send(other.deploy_commit(3, &two, &[("compose.yaml", COMPOSE)], fields)).await;
    assert_eq!(session.end().await.state, StatusState::Completed);
    let web = container(&setup.preview, "web");
    assert_eq!(docker(&["exec", &web, "cat", "/data/row"]), "newer\n");

    session.send(json!({ "type": "TERMINATE", "grace": 30 })).await;
    agent.exit().await;
    assert_eq!(other.left(), [""; 0]);
    assert!(!other.work_dir.path().join("previews").exists());
}

#[tokio::test]
async fn only_volumes_of_the_compose_file_are_restored() {
    let (setup, mut core) = (Setup::new("fewer"), Core::start().await);
    let (agent, mut session, _) = awake(&setup, &mut core).await;
    session.preview().await;
    session.send(json!({ "type": "SLEEP", "preview_id": setup.preview })).await;
    let digest = session.preview().await.archive.unwrap();
    let (image, fields) = (setup.web("one"), |job| json!({ "restore": digest, "job_id": job }));

    // The mistake is found while the data is being restored.
    let mistake = [("compose.yaml", "services:\n  web: {build: ., volumes: ['data:/data']}\n")];
    session.send(setup.deploy_commit(2, &image, &mistake, fields("job_mistake"))).await;
    let status = session.end().await;
    assert_eq!(status.state, StatusState::Failed, "{status:?}");
    assert!(status.error_message.as_deref().unwrap().contains("data"), "{status:?}");
    assert_eq!(setup.left(), [""; 0]);

    let fewer = format!("{}volumes: {{data: }}\n", mistake[0].1);
    let files = [("compose.yaml", &*fewer)];
    session.send(setup.deploy_commit(3, &image, &files, fields("job_fewer"))).await;
    let status = session.end().await;
    assert_eq!(status.state, StatusState::Completed, "{status:?}");
    let label = format!("label=stagely.preview={}", setup.preview);
    let volumes = docker(&["volume", "ls", "--quiet", "--filter", &label]);
    assert_eq!(volumes.lines().count(), 1, "{volumes}");
    let web = container(&setup.preview, "web");
    assert_eq!(docker(&["exec", &web, "cat", "/data/row"]), "row\n");
    agent.kill().await;
}

#[tokio::test]
async fn what_cannot_be_removed_yet_does_not_undo_an_archive() {
    let (setup, mut core) = (Setup::new("busy"), Core::start().await);
    let (agent, mut session, before) = awake(&setup, &mut core).await;
    assert_eq!(session.preview().await.state, PreviewState::Serving);
    let network = docker(&[
        "network",
        "ls",
        "--quiet",
        "--filter",
        &format!("label=stagely.preview={}", setup.preview),
    ]);
    // The engine does not remove a network that is in use.
    let user = docker(&["run", "-d", "--network", network.trim(), "busybox", "sleep", "1000"]);

    session.send(json!({ "type": "SLEEP", "preview_id": setup.preview })).await;

    let archived = session.preview().await;
    docker(&["rm", "--force", user.trim()]);
    assert_eq!(archived.state, PreviewState::Archived, "{archived:?}");
    eventually("the rest is removed", async || setup.left().is_empty().then_some(())).await;
    let fields = json!({ "restore": archived.archive.unwrap() });
    let files = [("compose.yaml", COMPOSE)];
    session.send(setup.deploy_commit(2, &setup.web("two"), &files, fields)).await;
    assert_eq!(session.end().await.state, StatusState::Completed);
    let web = container(&setup.preview, "web");
    assert_eq!(docker(&["exec", &web, "sh", "-c", SHOW]), before);
    agent.kill().await;
}

#[tokio::test]
async fn data_that_is_too_large_or_cannot_be_stored_is_reported() {
    let (setup, mut core) = (Setup::new("large"), Core::start().await);
    let (agent, mut session, before) = awake(&setup, &mut core).await;
    session.preview().await;
    // The answer to the first upload says that core does not want it.
    session.send(json!({ "type": "SLEEP", "preview_id": "prev_unknown" })).await;
    assert_eq!(session.error().await, "unknown_preview");
    session
        .send(
            json!({ "type": "SLEEP", "preview_id": setup.preview, "archive_bytes_max": 1_000_000 }),
        )
        .await;
    let archived = session.preview().await;
    assert_eq!((archived.state, archived.archive), (PreviewState::Archived, None));
    assert_eq!(archived.messages, ["the data was not archived: the volumes have more than 0 MiB"]);
    assert!(core.archives.lock().unwrap().stored.is_empty());
    assert_eq!(setup.left(), [""; 0]);

    // A damaged archive, and one that is not there.
    for digest in [format!("sha256:{}", "1".repeat(64)), format!("sha256:{}", "2".repeat(64))] {
        core.archives
            .lock()
            .unwrap()
            .stored
            .insert(format!("sha256:{}", "1".repeat(64)), b"nonsense".to_vec());
        let fields = json!({ "restore": digest, "job_id": format!("job_{}", &digest[7..8]) });
        session
            .send(setup.deploy_commit(2, &setup.web("one"), &[("compose.yaml", COMPOSE)], fields))
            .await;
        let status = session.end().await;
        assert_eq!(status.state, StatusState::Failed, "{status:?}");
        assert_eq!(setup.left(), [""; 0]);
    }
    assert!(!before.is_empty());
    agent.kill().await;
}

#[tokio::test]
async fn a_preview_that_ends_is_removed_at_once_and_so_is_a_stray() {
    let (setup, mut core) = (Setup::new("end"), Core::start().await);
    let (agent, mut session, _) = awake(&setup, &mut core).await;
    assert_eq!(session.preview().await.state, PreviewState::Serving);
    // It does not end at SIGTERM, so a stop would take the engine ten seconds.
    let stray = "prev_stray";
    let labels = [format!("stagely.preview={stray}"), format!("stagely.machine={}", setup.machine)];
    docker(&[
        "run", "-d", "--label", &labels[0], "--label", &labels[1], "busybox", "sleep", "1000",
    ]);
    for preview in [&*setup.preview, stray] {
        let started = Instant::now();
        session
            .send(json!({ "type": "SLEEP", "preview_id": preview, "archive_bytes_max": 0 }))
            .await;
        let ended = session.preview().await;
        assert!(started.elapsed() < Duration::from_secs(9), "it was stopped first");
        assert_eq!(ended.preview_id.as_str(), preview);
        assert_eq!((ended.state, ended.archive), (PreviewState::Archived, None));
        assert_eq!(ended.messages, [""; 0]);
    }
    assert_eq!(setup.left(), [""; 0]);
    assert!(core.archives.lock().unwrap().requests.is_empty());
    assert!(!setup.folder().exists());
    agent.kill().await;
}
