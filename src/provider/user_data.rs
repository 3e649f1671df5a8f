//! What a machine is told when it boots: cloud-config, for cloud-init.

use std::io::Write as _;

use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::json;
use stagely_agent::config::DEFAULT_PATH;

use super::{LaunchError, LaunchRequest};
use crate::config::ImageKind;

/// The most that EC2 takes, before base64.
const BYTES_MAX: usize = 16 * 1024;

/// The user data of `request`, compressed.
///
/// # Errors
/// [`LaunchError::Permanent`] if it is too long, or for an image that is not golden.
pub(super) fn user_data(request: &LaunchRequest, kind: ImageKind) -> Result<Vec<u8>, LaunchError> {
    if kind == ImageKind::Stock {
        return Err(LaunchError::Permanent("this version boots golden images alone".to_owned()));
    }
    let permanent = |error: String| LaunchError::Permanent(format!("user data: {error}"));
    let agent = serde_json::to_string(&request.agent).map_err(|it| permanent(it.to_string()))?;
    let file = json!({ "path": DEFAULT_PATH, "permissions": "0600", "content": agent });
    let config = format!("#cloud-config\n{}\n", json!({ "write_files": [file] }));
    let mut packed = GzEncoder::new(Vec::new(), Compression::best());
    packed.write_all(config.as_bytes()).map_err(|it| permanent(it.to_string()))?;
    let packed = packed.finish().map_err(|it| permanent(it.to_string()))?;
    if packed.len() > BYTES_MAX {
        return Err(permanent(format!("{} bytes are more than {BYTES_MAX}", packed.len())));
    }
    Ok(packed)
}
