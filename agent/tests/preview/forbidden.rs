//! Compose files that ask for access to the machine.

use serde_json::json;
use stagely_protocol::{DeployProblem, FailureReason};

use crate::setup::{Setup, container, get};

#[tokio::test]
async fn a_compose_file_that_asks_for_the_machine_is_refused_before_anything_starts() {
    let setup = Setup::new("forbidden");
    let image = setup.web("one");
    for (fields, expected) in [
        ("privileged: true", "`privileged`"),
        ("network_mode: host", "`network_mode: host`"),
        ("pid: host", "`pid: host`"),
        ("ipc: host", "`ipc: host`"),
        ("userns_mode: host", "`userns_mode: host`"),
        ("cgroup: host", "`cgroup: host`"),
        ("devices: [/dev/fuse]", "`devices`"),
        ("cap_add: [SYS_ADMIN]", "`cap_add: SYS_ADMIN`"),
        ("security_opt: ['seccomp:unconfined']", "`security_opt: seccomp:unconfined`"),
        ("volumes: ['/var/run/docker.sock:/s']", "`volumes: /var/run/docker.sock`"),
        ("volumes: ['/etc:/e']", "`volumes: /etc`"),
        ("volumes: ['./link:/e']", "link`: only files of the repository"),
        ("volumes: ['~/:/e']", "only files of the repository"),
        ("env_file: /etc/passwd", "`env_file: /etc/passwd`"),
        ("env_file: link/passwd", "`env_file: link/passwd`, which leads out of the repository"),
        ("extends: {file: /etc/x.yaml, service: a}", "`extends.file: /etc/x.yaml`"),
        ("external_links: [other]", "`external_links`"),
    ] {
        let text = format!("services:\n  web:\n    build: .\n    {fields}\n");
        // git stores a link as a file with its target.
        std::fs::remove_file(setup.repository.path.join("link")).ok();
        std::os::unix::fs::symlink("/etc", setup.repository.path.join("link")).unwrap();
        let message = setup.deploy_commit(1, &image, &[("compose.yaml", &text)], json!({}));
        let status = setup.run(message).await;
        let error = Some(FailureReason::Deploy { problem: DeployProblem::Forbidden });
        assert_eq!(status.error, error, "{fields}: {status:?}");
        let message = status.error_message.unwrap();
        assert!(message.contains(expected), "{expected}: {message}");
        assert_eq!(setup.left(), [""; 0]);
    }
    for (top, expected) in [
        ("include: [/etc/x.yaml]", "`include: /etc/x.yaml`"),
        ("volumes: {v: {external: true}}", "the volume `v` is `external`"),
        ("volumes: {v: {driver_opts: {type: none, o: bind, device: /etc}}}", "the volume `v` has"),
        ("networks: {n: {external: true, name: host}}", "the network `n` is `external`"),
        ("networks: {n: {driver: macvlan}}", "`driver: macvlan`"),
        ("secrets: {s: {file: /etc/shadow}}", "the secret `s` has `file`"),
        ("configs: {c: {file: /etc/shadow}}", "the config `c` has `file`"),
    ] {
        let uses = "volumes: [{type: volume, source: v, target: /v}]";
        let uses = match &top[..1] {
            "v" => uses,
            "n" => "networks: [n]",
            "s" => "secrets: [s]",
            "c" => "configs: [c]",
            _ => "",
        };
        let text = format!("{top}\nservices:\n  web:\n    build: .\n    {uses}\n");
        let message = setup.deploy_commit(1, &image, &[("compose.yaml", &text)], json!({}));
        let status = setup.run(message).await;
        let error = Some(FailureReason::Deploy { problem: DeployProblem::Forbidden });
        assert_eq!(status.error, error, "{top}: {status:?}");
        let message = status.error_message.unwrap();
        assert!(message.contains(expected), "{expected}: {message}");
    }
}

#[tokio::test]
async fn a_machine_of_its_own_may_allow_it() {
    let setup = Setup::new("allowed");
    let text = "services: {web: {build: ., privileged: true, volumes: ['/etc/hostname:/host:ro']}}";
    let fields = json!({ "allow_privileged": true });
    let message = setup.deploy_commit(1, &setup.web("one"), &[("compose.yaml", text)], fields);
    let address = setup.serves(message).await;
    assert_eq!(get(&address, "/").await, "page one\n");
    assert!(!container(&setup.preview, "web").is_empty());
}

#[tokio::test]
async fn included_files_get_neither_variables_nor_messages_from_outside() {
    let setup = Setup::new("include");
    let (image, outside) = (setup.web("one"), tempfile::tempdir().unwrap());
    let secret = outside.path().join("secret");
    std::fs::create_dir(setup.repository.path.join("sub")).unwrap();
    std::os::unix::fs::symlink(&secret, setup.repository.path.join("sub/.env")).unwrap();
    let more = "services: {web: {build: ., environment: {LEAK: '$TOKEN'}}}";
    for text in ["TOKEN=outside\n", "{\"token\": \"outside\"}\n"] {
        std::fs::write(&secret, text).unwrap();
        let files = [("compose.yaml", "include: [sub/more.yaml]"), ("sub/more.yaml", more)];
        let status = setup.run(setup.deploy_commit(1, &image, &files, json!({}))).await;
        let error = Some(FailureReason::Deploy { problem: DeployProblem::Forbidden });
        assert_eq!(status.error, error, "{status:?}");
        let message = status.error_message.unwrap();
        assert!(message.contains("sub/.env`, which leads out of the repository"), "{message}");
        assert!(!message.contains("outside") && !setup.log().contains("outside"), "{message}");
    }
}
