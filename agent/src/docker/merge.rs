//! Joins pushed single-platform images into one image index, and checks the index.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use stagely_protocol::{Digest, FailureReason, ImageRef, Merge, Stream};
use thiserror::Error;
use tokio_util::sync::CancellationToken;

use super::classify::registry_failure;
use super::command::DockerCommand;
use crate::process::{ProcessError, last_line};

/// Why an index was not pushed.
#[derive(Debug, Error)]
pub enum MergeError {
    #[error(transparent)]
    Process(#[from] ProcessError),
    #[error("cannot make {target}: {detail}")]
    Failed {
        target: ImageRef,
        /// The last line of Docker's output.
        detail: String,
        reason: FailureReason,
    },
    #[error("cannot read {image}")]
    Unreadable {
        /// The index, or one of its sources.
        image: ImageRef,
        #[source]
        source: serde_json::Error,
    },
    #[error("{target} holds {found:?} instead of {wanted:?}")]
    WrongPlatforms { target: ImageRef, found: Vec<String>, wanted: Vec<String> },
    #[error("{target} does not hold {missing}")]
    MissingSource {
        target: ImageRef,
        /// The source image, or one of the images of a source index.
        missing: String,
    },
}

impl MergeError {
    pub fn reason(&self) -> FailureReason {
        match self {
            Self::Process(ProcessError::Spawn { .. }) => FailureReason::Engine,
            Self::Process(_)
            | Self::Unreadable { .. }
            | Self::WrongPlatforms { .. }
            | Self::MissingSource { .. } => FailureReason::Internal,
            Self::Failed { reason, .. } => reason.clone(),
        }
    }
}

/// An image index, as the OCI image specification defines it.
#[derive(Deserialize)]
struct ImageIndex {
    #[serde(default)]
    manifests: Vec<Descriptor>,
}

#[derive(Deserialize)]
struct Descriptor {
    digest: Digest,
    platform: Option<DescriptorPlatform>,
}

#[derive(Deserialize)]
struct DescriptorPlatform {
    os: String,
    architecture: String,
}

/// Joins `merge.source_images` under `merge.target_image` and returns the index's digest.
///
/// # Errors
/// [`MergeError`]. The tag is moved only if the index has the right platforms and sources.
///
/// Source: Docker reference, `docker buildx imagetools create`.
pub async fn merge(
    docker: &DockerCommand,
    merge: &Merge,
    stop: &CancellationToken,
) -> Result<Digest, MergeError> {
    let target = &merge.target_image;
    let sources = || merge.source_images.iter().map(ImageRef::as_str);
    // Prints exactly the bytes that will be pushed, and a line end. The tag cannot be checked instead, because
    // another merge may move it at any time.
    let arguments = ["create", "--dry-run", "--tag", target.as_str()].into_iter().chain(sources());
    let content = imagetools(docker, arguments, target, stop).await?;
    let content = content.strip_suffix(b"\n").unwrap_or(&content);
    let (digest, index) = (digest_of(content), read_index(content, target)?);
    check_platforms(&index, merge)?;
    check_sources(&digest, &index, docker, merge, stop).await?;

    let arguments = ["create", "--tag", target.as_str()].into_iter().chain(sources());
    imagetools(docker, arguments, target, stop).await?;
    let pushed = target.at_digest(&digest);
    imagetools(docker, ["inspect", "--raw", pushed.as_str()], target, stop).await?;
    Ok(digest)
}

/// The digest by which a registry names `content`.
#[expect(clippy::expect_used, reason = "32 bytes in hexadecimal are a digest")]
fn digest_of(content: &[u8]) -> Digest {
    let mut text = "sha256:".to_owned();
    for byte in Sha256::digest(content) {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
    text.parse().expect("a digest")
}

fn read_index(content: &[u8], image: &ImageRef) -> Result<ImageIndex, MergeError> {
    serde_json::from_slice(content)
        .map_err(|source| MergeError::Unreadable { image: image.clone(), source })
}

fn check_platforms(index: &ImageIndex, merge: &Merge) -> Result<(), MergeError> {
    // Attestations have the platform unknown/unknown. They are kept and not counted.
    let known = index.manifests.iter().filter_map(|manifest| manifest.platform.as_ref());
    let found: Vec<String> = known
        .filter(|platform| platform.os != "unknown")
        .map(|platform| format!("{}/{}", platform.os, platform.architecture))
        .collect();
    let wanted: BTreeSet<String> = merge.platforms.iter().map(ToString::to_string).collect();
    // The numbers are compared as well, because a platform must not occur twice.
    let distinct: BTreeSet<String> = found.iter().cloned().collect();
    if wanted.is_empty() || (found.len() == wanted.len() && distinct == wanted) {
        return Ok(());
    }
    let (target, wanted) = (merge.target_image.clone(), wanted.into_iter().collect());
    Err(MergeError::WrongPlatforms { target, found, wanted })
}

/// Checks that the index holds each source that is named by digest, or all images of a source that is an index.
async fn check_sources(
    digest: &Digest,
    index: &ImageIndex,
    docker: &DockerCommand,
    merge: &Merge,
    stop: &CancellationToken,
) -> Result<(), MergeError> {
    let target = &merge.target_image;
    // `imagetools` pushes a single source that is an index unchanged.
    let is_held = |wanted: &Digest| {
        wanted == digest || index.manifests.iter().any(|manifest| manifest.digest == *wanted)
    };
    for source in &merge.source_images {
        let named = source.as_str().split_once('@').and_then(|(_, digest)| digest.parse().ok());
        if named.is_none_or(|digest| is_held(&digest)) {
            continue;
        }
        let arguments = ["inspect", "--raw", source.as_str()];
        let content = imagetools(docker, arguments, target, stop).await?;
        let manifests = read_index(&content, source)?.manifests;
        let lacking =
            manifests.iter().map(|manifest| &manifest.digest).find(|digest| !is_held(digest));
        let missing = match lacking {
            Some(digest) => digest.to_string(),
            None if manifests.is_empty() => source.to_string(),
            None => continue,
        };
        return Err(MergeError::MissingSource { target: target.clone(), missing });
    }
    Ok(())
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
            let platform = serde_json::json!({ "os": os, "architecture": architecture });
            serde_json::json!({ "digest": digest_of(b""), "platform": platform })
        });
        let index = serde_json::json!({ "manifests": manifests.collect::<Vec<_>>() });
        let merge = serde_json::json!({
            "job_id": "job_1", "source_images": [], "target_image": "r/a:b", "platforms": wanted,
        });
        let merge = serde_json::from_value(merge).unwrap();
        check_platforms(&serde_json::from_value(index).unwrap(), &merge)
    }

    #[test]
    fn the_index_has_exactly_the_requested_platforms() {
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
