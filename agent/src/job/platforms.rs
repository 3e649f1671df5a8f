//! Compares the platforms of a build's images with the platform that it is for.

use std::collections::BTreeSet;
use std::time::Duration;

use futures_util::future::join_all;
use stagely_protocol::{Arch, Build, Platform};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;

use crate::docker::{BuildFiles, DockerCommand, Endpoint, other_platform};
use crate::fingerprint::{Dockerfile, read_dockerfile};
use crate::job_log::JobLog;

/// A build does not wait longer for the registries of its base images.
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
    ) -> Self {
        let (build, dockerfile, endpoint) =
            (build.clone(), files.dockerfile.clone(), docker.endpoint.clone());
        let check: JoinHandle<Vec<String>> = tokio::spawn(async move {
            let args = build.build_config.build_args.clone();
            let read = tokio::task::spawn_blocking(move || read_dockerfile(&dockerfile, &args));
            let Ok(Ok(dockerfile)) = read.await else { return Vec::new() };
            let contexts = build.build_config.build_contexts.keys().map(String::as_str).collect();
            let images = dockerfile.images_of_target(&contexts);
            let last_stage = last_stage_warning(&build, &dockerfile, own_arch);
            let mut warnings = base_image_warnings(&build, &endpoint, images).await;
            warnings.extend(last_stage);
            warnings
        });
        Self { warnings: AbortOnDropHandle::new(check) }
    }

    /// Warns of the images of another platform.
    pub(super) async fn warn(self, log: &JobLog) {
        if let Ok(Ok(warnings)) = timeout(LIMIT, self.warnings).await {
            for warning in warnings {
                log.warn(&warning);
            }
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

async fn base_image_warnings(
    build: &Build,
    endpoint: &Endpoint,
    images: BTreeSet<String>,
) -> Vec<String> {
    let wanted = build.build_config.platform;
    let own_registry = build.build_config.target_image.registry();
    let checks = images.iter().map(async |image| {
        let is_own = image.split('/').next() == Some(own_registry);
        let auth = build.registry_auth.as_ref().filter(|_| is_own);
        let platform = other_platform(endpoint, image, auth, wanted).await?;
        Some(format!(
            "the base image {image} is for {platform}, and this build is for {wanted}: its programs do not run \
             there"
        ))
    });
    join_all(checks).await.into_iter().flatten().collect()
}
