//! The arguments of `docker buildx build`.

use std::path::Path;

use stagely_protocol::ImageRef;

use super::super::proxies::is_proxy;
use super::BuildRequest;
use crate::mask::is_secret_name;
use crate::process::{Invocation, is_inherited};

pub(super) fn invocation(request: &BuildRequest, metadata: &Path) -> Invocation {
    let config = &request.config;
    let mut command = request
        .docker
        .invocation()
        .args(["buildx", "build", "--progress=rawjson"])
        // Attestations turn each single-platform image into an index, which costs 60 ms a push and
        // puts entries of platform `unknown` into every merged index.
        .args(["--provenance=false", "--sbom=false"])
        .arg(format!("--platform={}", config.platform))
        .args(outputs(request));
    for image in &config.cache_from {
        command = command.arg(format!("--cache-from=type=registry,ref={image}"));
    }
    for (name, image) in &config.build_contexts {
        command = command.arg(format!("--build-context={name}=docker-image://{image}"));
    }
    for (name, value) in config.build_args.0.iter().filter(|(name, _)| !is_proxy(name)) {
        // Every user of the machine can read arguments, but only the owner can read the environment.
        command = if is_read_by_the_client(name) && !is_secret_name(name) {
            command.arg(format!("--build-arg={name}={value}"))
        } else {
            command.arg(format!("--build-arg={name}")).env(name, value)
        };
    }
    if let Some(target) = &config.target {
        command = command.arg(format!("--target={target}"));
    }
    command
        .arg("--metadata-file")
        .arg(metadata)
        .arg("--file")
        .arg(&request.files.dockerfile)
        .arg("--")
        .arg(&request.files.context)
}

/// Whether a variable of this name would change what the `docker` command itself does.
fn is_read_by_the_client(name: &str) -> bool {
    let prefixes = ["DOCKER_", "BUILDX_", "BUILDKIT_", "OTEL_", "EXPERIMENTAL_BUILDKIT_"];
    is_inherited(name) || prefixes.iter().any(|prefix| name.starts_with(prefix))
}

/// A build that pushes no image exports its layer cache alone.
fn outputs(request: &BuildRequest) -> Vec<String> {
    let mut outputs = if request.config.push {
        image_output(&request.config.target_image, request.containerd_store)
    } else {
        vec!["--output=type=cacheonly".to_owned()]
    };
    outputs.extend(request.cache_to().map(cache_output));
    outputs
}

/// Layers are compressed once, for the image and the cache. zstd takes a third of gzip's time. The layers of the base
/// image keep their compression, because `force-compression` would compress all of them again.
fn image_output(image: &ImageRef, containerd_store: bool) -> Vec<String> {
    if !containerd_store {
        return vec!["--push".to_owned(), format!("--tag={image}")];
    }
    let output = "--output=type=image,push=true,compression=zstd,oci-mediatypes=true";
    vec![format!("{output},name={image}")]
}

/// A failure to export the cache does not fail the command.
fn cache_output(cache: &ImageRef) -> String {
    let how = "mode=max,oci-mediatypes=true,image-manifest=true,compression=zstd,ignore-error=true";
    format!("--cache-to=type=registry,{how},ref={cache}")
}
