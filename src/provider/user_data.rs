//! What a new machine is told when it boots: cloud-config.

use serde_json::json;

use super::LaunchRequest;
use crate::config::ImageKind;

/// The cloud-config of a machine whose image has all that it needs: it writes the agent's configuration, which
/// is what the agent's service waits for.
pub(super) fn cloud_config(request: &LaunchRequest, _kind: ImageKind) -> String {
    let agent = serde_json::to_string(&request.agent).expect("strings and numbers are JSON");
    let file = json!({
        "path": "/etc/stagely/agent.json",
        "owner": "root:root",
        "permissions": "0600",
        "content": agent,
    });
    // JSON is YAML.
    format!("#cloud-config\n{}\n", json!({ "write_files": [file] }))
}
