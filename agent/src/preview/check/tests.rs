//! Each way to the machine, and files that are accepted.

use std::fs;
use std::os::unix::fs::symlink;

use serde_json::json;

use super::*;

fn found(file: &Value) -> Vec<String> {
    checked(file).0
}

/// The violations, and the file afterwards.
fn checked(file: &Value) -> (Vec<String>, Value) {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().canonicalize().unwrap();
    fs::create_dir_all(root.join("conf/sub")).unwrap();
    symlink("/etc", root.join("etc")).unwrap();
    symlink("conf", root.join("inside")).unwrap();
    symlink("/etc", root.join("a$b")).unwrap();
    symlink("/no/such/folder", root.join("dangling")).unwrap();
    let text = file.to_string().replace("ROOT", &root.display().to_string());
    let mut file = serde_json::from_str(&text).unwrap();
    let found = violations(&mut file, &root);
    let text = file.to_string().replace(&root.display().to_string(), "ROOT");
    (found, serde_json::from_str(&text).unwrap())
}

fn bind(source: &str) -> Value {
    json!({ "type": "bind", "source": source, "target": "/x", "read_only": true })
}

#[test]
fn each_way_to_the_machine_is_named_with_its_service_and_field() {
    for (service, expected) in [
        (json!({ "privileged": true }), "`privileged`"),
        (json!({ "network_mode": "host" }), "`network_mode: host`"),
        (json!({ "network_mode": "bridge" }), "`network_mode: bridge`"),
        (json!({ "network_mode": "container:db" }), "`network_mode: container:db`"),
        (json!({ "pid": "host" }), "`pid: host`"),
        (json!({ "ipc": "host" }), "`ipc: host`"),
        (json!({ "uts": "host" }), "`uts: host`"),
        (json!({ "userns_mode": "host" }), "`userns_mode: host`"),
        (json!({ "cgroup": "host" }), "`cgroup: host`"),
        (json!({ "cgroup_parent": "/x" }), "`cgroup_parent`"),
        (json!({ "devices": ["/dev/kvm:/dev/kvm"] }), "`devices`"),
        (json!({ "device_cgroup_rules": ["c 1:3 mr"] }), "`device_cgroup_rules`"),
        (json!({ "gpus": "all" }), "`gpus`"),
        (json!({ "cap_add": ["CHOWN", "SYS_ADMIN"] }), "`cap_add: SYS_ADMIN`"),
        (json!({ "cap_add": ["ALL"] }), "`cap_add: ALL`"),
        (json!({ "security_opt": ["seccomp:unconfined"] }), "`security_opt: seccomp:unconfined`"),
        (json!({ "runtime": "nvidia" }), "`runtime`"),
        (json!({ "volumes": [bind("/var/run/docker.sock")] }), "`volumes: /var/run/docker.sock`"),
        (json!({ "volumes": [bind("/etc")] }), "`volumes: /etc`"),
        (json!({ "volumes": [bind("ROOT/../../etc")] }), "../../etc`"),
        (json!({ "volumes": [bind("ROOT/etc/ssh")] }), "only files of the repository"),
        (json!({ "volumes": [bind("ROOT/etc")] }), "only files of the repository"),
        (json!({ "volumes": [bind("ROOT/dangling")] }), "does not exist"),
        (json!({ "volumes": [{ "type": "npipe", "source": "x" }] }), "type npipe"),
        (
            json!({ "volumes": [{
                "type": "bind", "source": "ROOT/conf", "bind": { "propagation": "rshared" },
            }] }),
            "`propagation`",
        ),
        (json!({ "volumes_from": ["container:other"] }), "`volumes_from: container:other`"),
        (json!({ "logging": { "driver": "syslog" } }), "`logging.driver: syslog`"),
        (
            json!({ "deploy": { "resources": { "reservations": { "devices": [{}] } } } }),
            "`deploy.resources.reservations.devices`",
        ),
        (json!({ "oom_score_adj": -1000 }), "`oom_score_adj`"),
        (json!({ "post_start": [{ "command": "x", "privileged": true }] }), "`post_start`"),
        (json!({ "external_links": ["other"] }), "`external_links`"),
        (json!({ "use_api_socket": true }), "`use_api_socket`"),
        (json!({ "provider": { "type": "x" } }), "`provider`"),
        (json!({ "credential_spec": { "file": "x" } }), "`credential_spec`"),
    ] {
        let sentences = found(&json!({ "services": { "web": service } }));
        assert_eq!(sentences.len(), 1, "{expected}: {sentences:?}");
        let sentence = &sentences[0];
        assert!(sentence.starts_with("the service `web` has `"), "{sentence}");
        assert!(sentence.contains(expected), "{expected}: {sentence}");
    }
}

#[test]
fn volumes_networks_and_files_of_others_are_refused() {
    for (file, expected) in [
        (json!({ "volumes": { "v": { "external": true } } }), "volume `v` is `external`"),
        (
            json!({ "volumes": { "v": { "driver_opts": { "o": "bind", "device": "/etc" } } } }),
            "volume `v` has",
        ),
        (json!({ "volumes": { "v": { "driver": "rexray" } } }), "volume `v` has"),
        (json!({ "networks": { "n": { "external": true } } }), "network `n` is `external`"),
        (json!({ "networks": { "n": { "driver": "host" } } }), "`driver: host`"),
        (json!({ "networks": { "n": { "driver": "macvlan" } } }), "`driver: macvlan`"),
        (
            json!({ "networks": { "n": { "driver_opts": { "com.docker.network.bridge.name": "docker0" } } } }),
            "bridge.name",
        ),
        (json!({ "secrets": { "s": { "file": "/etc/shadow" } } }), "secret `s` has `file`"),
        (json!({ "secrets": { "s": { "external": true } } }), "secret `s` is not"),
        (json!({ "configs": { "c": { "file": "ROOT/etc/passwd" } } }), "config `c` has `file`"),
    ] {
        let sentences = found(&file);
        assert_eq!(sentences.len(), 1, "{expected}: {sentences:?}");
        assert!(sentences[0].contains(expected), "{expected}: {sentences:?}");
    }
}

#[test]
fn a_link_cannot_be_put_into_the_path_of_a_mount() {
    let writable = |path: &str| json!({ "type": "bind", "source": path, "target": "/x" });
    let file = |outer: Value| {
        json!({ "services": {
            "a": { "volumes": [outer] },
            "b": { "volumes": [bind("ROOT/conf/sub")] },
        } })
    };
    let sentences = found(&file(writable("ROOT/inside")));
    assert_eq!(sentences.len(), 1, "{sentences:?}");
    assert!(sentences[0].contains("mounts `conf/sub`, a part of `conf`"), "{sentences:?}");
    assert!(found(&file(bind("ROOT/conf"))).is_empty());
    assert!(found(&file(writable("ROOT/conf/sub"))).is_empty());
}

#[test]
fn a_link_cannot_be_put_into_the_path_of_a_secret() {
    for kind in ["secrets", "configs"] {
        let file = json!({
            "services": { "a": { "volumes": [
                { "type": "bind", "source": "ROOT/inside", "target": "/x" },
            ] } },
            kind: { "s": { "file": "ROOT/conf/sub" } },
        });
        let sentences = found(&file);
        assert_eq!(sentences.len(), 1, "{sentences:?}");
        assert!(sentences[0].contains("`s` mounts `conf/sub`, a part of"), "{sentences:?}");
    }
}

#[test]
fn the_paths_that_were_checked_are_those_that_run() {
    let (sentences, file) = checked(&json!({
        "services": { "a": { "volumes": [bind("ROOT/inside/a$$b")] } },
        "secrets": { "s": { "file": "ROOT/inside/sub" } },
        "configs": { "c": { "file": "ROOT/inside/sub" } },
    }));
    assert_eq!(sentences, [""; 0]);
    let source = "/services/a/volumes/0/source";
    assert_eq!(file.pointer(source).unwrap(), "ROOT/conf/a$$b");
    for path in ["/secrets/s/file", "/configs/c/file"] {
        assert_eq!(file.pointer(path).unwrap(), "ROOT/conf/sub");
    }
    let sentences = found(&json!({ "services": { "a": { "volumes": [bind("ROOT/a$$b")] } } }));
    assert_eq!(sentences.len(), 1, "{sentences:?}");
}

#[test]
fn usual_files_are_accepted() {
    let file = json!({
        "services": {
            "web": {
                "build": { "context": "." }, "command": ["x"], "entrypoint": null, "restart": "always",
                "cap_add": ["CAP_IPC_LOCK"], "cap_drop": ["ALL"], "privileged": false,
                "security_opt": ["no-new-privileges:true"], "network_mode": "service:db",
                "volumes": [
                    bind("ROOT/conf"), bind("ROOT/conf/new/folder"), bind("ROOT/inside"),
                    { "type": "volume", "source": "data", "target": "/d", "volume": {} },
                    { "type": "tmpfs", "target": "/t" },
                ],
                "deploy": { "replicas": 2, "resources": { "limits": { "memory": "1" } }, "placement": {} },
                "logging": { "driver": "json-file" }, "x-any": { "privileged": true },
            },
        },
        "volumes": { "data": { "name": "n" } },
        "networks": { "default": { "name": "n", "ipam": {} } },
        "configs": { "c": { "content": "x" } },
        "secrets": { "s": { "environment": "KEY" }, "f": { "file": "ROOT/conf" } },
    });
    assert_eq!(found(&file), [""; 0]);
}

#[test]
fn folders_that_lose_what_is_written_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().canonicalize().unwrap();
    fs::create_dir(root.join("conf")).unwrap();
    symlink("conf", root.join("link")).unwrap();
    let writable = |path: &str, target: &str| json!({ "type": "bind", "source": root.join(path), "target": target });
    let file = json!({ "services": {
        "web": { "volumes": [
            writable("", "/app"), writable("link", "/conf"), writable("new", "/new"),
            bind(&root.join("conf").display().to_string()),
            { "type": "volume", "source": "data", "target": "/data" },
            { "type": "bind", "source": "/etc/hostname", "target": "/etc/hostname" },
        ] },
        "tool": { "volumes": [writable("conf", "/conf")] },
    } });
    let found = lost_writes(&file, &["web".to_owned()], &root);
    let named = |path: &str, target: &str| {
        let begin =
            format!("the service `web` mounts `{path}` of the repository at `{target}` and");
        found
            .iter()
            .any(|sentence| sentence.starts_with(&begin) && sentence.contains("named volume"))
    };
    assert_eq!(found.len(), 3, "{found:?}");
    assert!(named(".", "/app") && named("conf", "/conf") && named("new", "/new"), "{found:?}");
}
