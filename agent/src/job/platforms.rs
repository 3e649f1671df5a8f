//! Compares the platforms of a build's images with the platform that it is for.

use std::collections::BTreeSet;
use std::time::Duration;

use futures_util::future::join_all;
use stagely_protocol::{Arch, Build, ErrorChain, Platform};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::docker::{BuildFiles, DockerCommand, other_platform};
use crate::fingerprint::{Dockerfile, read_dockerfile};
use crate::job_log::JobLog;

/// The time to find out the platform of one image.
const LIMIT: Duration = Duration::from_secs(10);

/// Finds images of another platform while the build runs. `BuildKit` writes the wanted platform into an image whatever
/// its programs are for.
pub(super) struct PlatformCheck {
    warnings: AbortOnDropHandle<Vec<String>>,
}

impl PlatformCheck {
    /// `own_arch` is that of the engine.
    pub(super) fn start(
        build: &Build,
        files: &BuildFiles,
        docker: &DockerCommand,
        own_arch: Arch,
        stop: &CancellationToken,
    ) -> Self {
        let (build, dockerfile, docker, stop) =
            (build.clone(), files.dockerfile.clone(), docker.clone(), stop.clone());
        let check: JoinHandle<Vec<String>> = tokio::spawn(async move {
            let args = build.build_config.build_args.clone();
            let read = tokio::task::spawn_blocking(move || read_dockerfile(&dockerfile, &args));
            let Ok(Ok(dockerfile)) = read.await else { return Vec::new() };
            let contexts = build.build_config.build_contexts.keys().map(String::as_str).collect();
            let images = dockerfile.images_of_target(&contexts);
            let last_stage = last_stage_warning(&build, &dockerfile, own_arch);
            let is_native = build.build_config.platform.arch() == own_arch;
            let mut warnings = base_image_warnings(&build, &docker, images, is_native, &stop).await;
            warnings.extend(last_stage);
            warnings
        });
        Self { warnings: AbortOnDropHandle::new(check) }
    }

    /// Warns of the images of another platform.
    pub(super) async fn warn(self, log: &JobLog) {
        for warning in self.warnings.await.unwrap_or_default() {
            log.warn(&warning);
        }
    }
}

fn last_stage_warning(build: &Build, dockerfile: &Dockerfile, own_arch: Arch) -> Option<String> {
    let config = &build.build_config;
    let platform = match dockerfile.platform_of_target(config.target.as_deref())? {
        build if build.contains("BUILDPLATFORM") => Platform(own_arch).to_string(),
        target if target.contains("TARGETPLATFORM") => return None,
        literal => literal.to_owned(),
    };
    // `linux/arm64/v8` is the same platform.
    let is_other = !platform.contains('$') && !platform.starts_with(&config.platform.to_string());
    is_other.then(|| {
        format!(
            "the Dockerfile sets the platform of its last stage to {platform}, and this build is for {}",
            config.platform
        )
    })
}

/// Warns of images of another platform, and, unless the engine `is_native`, of those that cannot be checked.
async fn base_image_warnings(
    build: &Build,
    docker: &DockerCommand,
    images: BTreeSet<String>,
    is_native: bool,
    stop: &CancellationToken,
) -> Vec<String> {
    let wanted = build.build_config.platform;
    let own_registry = build.build_config.target_image.registry();
    let checks = images.iter().map(async |image| {
        let is_own = image.split('/').next() == Some(own_registry);
        let auth = build.registry_auth.as_ref().filter(|_| is_own);
        let why = match timeout(LIMIT, other_platform(docker, image, auth, wanted, stop)).await {
            Ok(Ok(platform)) => {
                let platform = platform?;
                return Some(format!(
                    "the base image {image} is for {platform}, and this build is for {wanted}: its programs do \
                     not run there"
                ));
            }
            Ok(Err(error)) => ErrorChain(&error).to_string(),
            Err(_) => format!("no answer within {LIMIT:?}"),
        };
        (!is_native)
            .then(|| format!("the platform of the base image {image} could not be checked: {why}"))
    });
    join_all(checks).await.into_iter().flatten().collect()
}
