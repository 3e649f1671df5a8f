//! Asks the engine which platforms an image has, in its registry or in the engine itself.

use bollard::Docker;
use bollard::auth::DockerCredentials;
use bollard::errors::Error as EngineError;
use bollard::models::OciPlatform;
use secrecy::ExposeSecret as _;
use stagely_protocol::{Platform, RegistryAuth};
use tokio_util::sync::CancellationToken;

use super::command::DockerCommand;
use super::login::user_login;

/// The platform of `image`, as `linux/arm64`, if it has only one and that is not `wanted`. `None` also if the image does
/// not say its platform. `auth` is the login of its registry, or else that of the user's Docker is used.
///
/// `BuildKit` takes an image that is not an index whatever its platform is, without a word
/// (<https://github.com/moby/buildkit/issues/2457>).
///
/// # Errors
/// Neither the registry nor the engine has the image.
pub async fn other_platform(
    docker: &DockerCommand,
    image: &str,
    auth: Option<&RegistryAuth>,
    wanted: Platform,
    stop: &CancellationToken,
) -> Result<Option<String>, EngineError> {
    // The name becomes a part of a URL. `BuildKit` refuses it.
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-/:@".contains(&byte);
    if !image.bytes().all(is_allowed) || image.contains("..") {
        return Ok(None);
    }
    let credentials = match auth {
        Some(auth) => Some(DockerCredentials {
            username: Some(auth.username.clone()),
            password: Some(auth.password.expose_secret().to_owned()),
            ..DockerCredentials::default()
        }),
        None => user_login(docker, registry_of(image), stop).await,
    };
    let engine: Docker = docker.endpoint.connect()?;
    let platform = match engine.inspect_registry_image(image, credentials).await {
        Ok(described) => {
            let media_type = described.descriptor.media_type.unwrap_or_default();
            let is_index = media_type.ends_with("image.index.v1+json")
                || media_type.ends_with("manifest.list.v2+json");
            match &described.platforms[..] {
                [only] if !is_index => name_of(only),
                _ => None,
            }
        }
        Err(error) => {
            let local = engine.inspect_image(image).await.map_err(|_| error)?;
            joined(local.os.as_deref(), local.architecture.as_deref())
        }
    };
    Ok(platform.filter(|name| *name != wanted.to_string()))
}

/// The host of the registry that `image` is in.
fn registry_of(image: &str) -> &str {
    match image.split_once('/') {
        Some((host, _)) if host.contains(['.', ':']) || host == "localhost" => host,
        _ => "docker.io",
    }
}

fn name_of(platform: &OciPlatform) -> Option<String> {
    joined(platform.os.as_deref(), platform.architecture.as_deref())
}

/// `None` if the image does not say its platform.
fn joined(os: Option<&str>, architecture: Option<&str>) -> Option<String> {
    let part = |part: Option<&str>| part.filter(|part| !part.is_empty()).map(str::to_owned);
    Some(format!("{}/{}", part(os)?, part(architecture)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_without_a_host_is_of_docker_hub() {
        for (image, registry) in [
            ("debian:13", "docker.io"),
            ("team/app", "docker.io"),
            ("ghcr.io/team/app:1", "ghcr.io"),
            ("localhost/app", "localhost"),
            ("r:5000/app@sha256:00", "r:5000"),
        ] {
            assert_eq!(registry_of(image), registry, "{image}");
        }
    }
}
