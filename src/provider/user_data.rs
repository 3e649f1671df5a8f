//! What a machine is told at its first boot, as cloud-config for cloud-init.

use serde_json::{Value, json};

use super::LaunchRequest;
use crate::config::ImageKind;

/// Where the agent of a golden image says when it last heard of core, for the machine's dead-man switch.
const RUN_DIR: &str = "/run/stagely";

/// The user data of the machine: files, and nothing that takes time.
pub(super) fn cloud_config(request: &LaunchRequest, _kind: ImageKind) -> String {
    let mut agent = request.agent.clone();
    agent.run_dir = Some(RUN_DIR.into());
    let agent = serde_json::to_string(&agent).expect("a configuration is JSON");
    let silence = request.agent.give_up_after.as_secs();
    let limits = format!("SILENCE_SECONDS={silence}\nLEASE_SECONDS={}\n", request.lease.as_secs());
    let mut files = vec![
        file("/etc/stagely/agent.json", "0600", &agent),
        file("/etc/stagely/limits", "0644", &limits),
    ];
    if let Some(registry) = &request.insecure_registry {
        let engine = json!({
            "features": { "containerd-snapshotter": true },
            "log-driver": "local",
            "insecure-registries": [registry],
        });
        files.push(file("/etc/docker/daemon.json", "0644", &engine.to_string()));
    }
    format!("#cloud-config\n{}\n", json!({ "write_files": files }))
}

fn file(path: &str, permissions: &str, content: &str) -> Value {
    json!({ "path": path, "permissions": permissions, "content": content })
}
