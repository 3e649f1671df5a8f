//! Asks the engine which platforms an image of a registry has.

use bollard::Docker;
use bollard::auth::DockerCredentials;
use bollard::models::OciPlatform;
use secrecy::ExposeSecret as _;
use stagely_protocol::{Platform, RegistryAuth};

use super::endpoint::Endpoint;

/// The platform of `image`, as `linux/arm64`, if it has only one and that is not `wanted`. `None` also if the registry
/// does not say.
///
/// `BuildKit` takes an image that is not an index whatever its platform is, without a word
/// (<https://github.com/moby/buildkit/issues/2457>).
pub async fn other_platform(
    endpoint: &Endpoint,
    image: &str,
    auth: Option<&RegistryAuth>,
    wanted: Platform,
) -> Option<String> {
    // The name becomes a part of a URL.
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-/:@".contains(&byte);
    if !image.bytes().all(is_allowed) || image.contains("..") {
        return None;
    }
    let docker: Docker = endpoint.connect().ok()?;
    let credentials = auth.map(|auth| DockerCredentials {
        username: Some(auth.username.clone()),
        password: Some(auth.password.expose_secret().to_owned()),
        ..DockerCredentials::default()
    });
    let described = docker.inspect_registry_image(image, credentials).await.ok()?;
    let is_index = described.descriptor.media_type.as_deref().is_some_and(|media_type| {
        media_type.ends_with("image.index.v1+json") || media_type.ends_with("manifest.list.v2+json")
    });
    match &described.platforms[..] {
        [only] if !is_index => Some(name_of(only)?).filter(|name| *name != wanted.to_string()),
        _ => None,
    }
}

/// `None` if the image does not say its platform.
fn name_of(platform: &OciPlatform) -> Option<String> {
    let part = |part: &Option<String>| part.clone().filter(|part| !part.is_empty());
    Some(format!("{}/{}", part(&platform.os)?, part(&platform.architecture)?))
}
