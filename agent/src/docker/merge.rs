//! Joins pushed single-platform images into one index, and checks what came of it.

use std::collections::BTreeSet;

use serde::Deserialize;
use thiserror::Error;
use tokio_util::sync::CancellationToken;

use super::classify::registry_failure;
use super::{DockerCommand, last_line};
use crate::process::ProcessError;
use crate::protocol::{Digest, FailureReason, ImageRef, Merge, Stream};

/// An index that could not be made, or is not what was asked for.
#[derive(Debug, Error)]
pub enum MergeError {
    /// The command could not be run.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// `imagetools` failed.
    #[error("cannot make {target}: {detail}")]
    Failed {
        /// The index.
        target: ImageRef,
        /// Docker's last words.
        detail: String,
        /// Whose fault it is.
        reason: FailureReason,
    },
    /// The answer of `imagetools inspect` has another shape.
    #[error("cannot read {target} back")]
    Unreadable {
        /// The index.
        target: ImageRef,
        /// What is wrong.
        #[source]
        source: serde_json::Error,
    },
    /// The index holds other platforms.
    #[error("{target} holds {found:?} instead of {wanted:?}")]
    WrongPlatforms {
        /// The index.
        target: ImageRef,
        /// Its platforms.
        found: Vec<String>,
        /// What was asked for.
        wanted: Vec<String>,
    },
}

impl MergeError {
    /// Whose fault it is.
    pub fn reason(&self) -> FailureReason {
        match self {
            Self::Process(ProcessError::Spawn { .. }) => FailureReason::Engine,
            Self::Process(_) | Self::Unreadable { .. } | Self::WrongPlatforms { .. } => {
                FailureReason::Internal
            }
            Self::Failed { reason, .. } => reason.clone(),
        }
    }
}

#[derive(Deserialize)]
struct Index {
    digest: Digest,
    #[serde(default)]
    manifests: Vec<Entry>,
}

#[derive(Deserialize)]
struct Entry {
    platform: Option<EntryPlatform>,
}

#[derive(Deserialize)]
struct EntryPlatform {
    os: String,
    architecture: String,
}

/// Joins `merge.source_images` under `merge.target_image` and returns the index's digest.
///
/// # Errors
/// [`MergeError`]; the tag may exist all the same.
///
/// Source: Docker reference, `docker buildx imagetools create`.
pub async fn merge(
    docker: &DockerCommand,
    merge: &Merge,
    stop: &CancellationToken,
) -> Result<Digest, MergeError> {
    let target = &merge.target_image;
    let sources = merge.source_images.iter().map(ImageRef::as_str);
    let arguments = ["create", "--tag", target.as_str()].into_iter().chain(sources);
    imagetools(docker, arguments, target, stop).await?;

    let arguments = ["inspect", "--format", "{{json .Manifest}}", target.as_str()];
    let answer = imagetools(docker, arguments, target, stop).await?;
    let index: Index = serde_json::from_slice(&answer)
        .map_err(|source| MergeError::Unreadable { target: target.clone(), source })?;
    check_platforms(&index, merge)?;
    Ok(index.digest)
}

fn check_platforms(index: &Index, merge: &Merge) -> Result<(), MergeError> {
    // Attestations are entries of the platform unknown/unknown; they are kept and not counted.
    let known = index.manifests.iter().filter_map(|entry| entry.platform.as_ref());
    let found: Vec<String> = known
        .filter(|platform| platform.os != "unknown")
        .map(|platform| format!("{}/{}", platform.os, platform.architecture))
        .collect();
    let wanted: BTreeSet<String> = merge.platforms.iter().map(ToString::to_string).collect();
    // By number too: one platform may not be there twice.
    let distinct: BTreeSet<String> = found.iter().cloned().collect();
    if wanted.is_empty() || (found.len() == wanted.len() && distinct == wanted) {
        return Ok(());
    }
    let (target, wanted) = (merge.target_image.clone(), wanted.into_iter().collect());
    Err(MergeError::WrongPlatforms { target, found, wanted })
}

async fn imagetools<'a>(
    docker: &DockerCommand,
    arguments: impl IntoIterator<Item = &'a str>,
    target: &ImageRef,
    stop: &CancellationToken,
) -> Result<Vec<u8>, MergeError> {
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    let command = docker.invocation().args(["buildx", "imagetools"]).args(arguments);
    let status = command
        .run(docker.grace, stop, |stream, bytes| match stream {
            Stream::Stdout => stdout.extend_from_slice(bytes),
            Stream::Stderr => stderr.extend_from_slice(bytes),
        })
        .await?;
    if status.success() {
        return Ok(stdout);
    }
    let reason = registry_failure(&String::from_utf8_lossy(&stderr));
    Err(MergeError::Failed { target: target.clone(), detail: last_line(&stderr), reason })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(platforms: &[(&str, &str)], wanted: &[&str]) -> Result<(), MergeError> {
        let manifests = platforms.iter().map(|(os, architecture)| {
            serde_json::json!({ "platform": { "os": os, "architecture": architecture } })
        });
        let digest = format!("sha256:{}", "0".repeat(64));
        let index =
            serde_json::json!({ "digest": digest, "manifests": manifests.collect::<Vec<_>>() });
        let merge = serde_json::json!({
            "job_id": "job_1", "source_images": [], "target_image": "r/a:b", "platforms": wanted,
        });
        let merge = serde_json::from_value(merge).unwrap();
        check_platforms(&serde_json::from_value(index).unwrap(), &merge)
    }

    #[test]
    fn the_index_holds_exactly_what_was_asked_for() {
        let (amd64, arm64) = (("linux", "amd64"), ("linux", "arm64"));
        let unknown = ("unknown", "unknown");
        let both = ["linux/amd64", "linux/arm64"];
        check(&[amd64, arm64], &both).unwrap();
        check(&[amd64, unknown, arm64, unknown], &both).unwrap();
        check(&[amd64], &[]).unwrap();
        check(&[amd64], &both).unwrap_err();
        check(&[amd64, amd64], &both).unwrap_err();
        check(&[amd64, arm64], &["linux/amd64"]).unwrap_err();
    }
}
