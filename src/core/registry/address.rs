//! Where the registry's API is, and whether it is reached without TLS.

use stagely_agent::proxy;
use stagely_protocol::ImageRef;
use url::Url;

use super::error::RegistryError;
use crate::config::RegistryConfig;

/// The URL of `resource` in the repository of `image`.
pub(super) fn url(
    config: &RegistryConfig,
    image: &ImageRef,
    resource: &str,
) -> Result<String, RegistryError> {
    let host = config.host();
    // The credentials belong to this registry, so no other one gets a request.
    let Some(path) = image.repository().strip_prefix(host).and_then(|path| path.strip_prefix('/'))
    else {
        let (image, registry) = (image.clone(), host.to_owned());
        return Err(RegistryError::OtherRegistry { image, registry });
    };
    // The host of Docker Hub's API is not the host in the names of its images.
    let api = if host == "docker.io" { "registry-1.docker.io" } else { host };
    let scheme = if config.insecure || is_loopback(host) { "http" } else { "https" };
    Ok(format!("{scheme}://{api}/v2/{path}/{resource}"))
}

/// Whether `host`, with or without a port, is this machine. Docker, too, uses plain HTTP there.
pub(super) fn is_loopback(host: &str) -> bool {
    Url::parse(&format!("http://{host}/")).is_ok_and(|url| proxy::is_loopback(&url))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn registry(url: &str) -> RegistryConfig {
        RegistryConfig { url: Some(url.to_owned()), ..RegistryConfig::default() }
    }

    #[test]
    fn only_loopback_is_reached_without_tls() {
        for host in ["127.0.0.1:5000", "127.3.2.1", "localhost:80", "localhost", "[::1]:5000"] {
            assert!(is_loopback(host), "{host}");
        }
        for host in ["registry.example", "10.0.0.1:5000", "127.0.0.1.example", "localhost.example"]
        {
            assert!(!is_loopback(host), "{host}");
        }
    }

    #[test]
    fn an_image_of_another_registry_has_no_url() {
        let config = registry("r.example/path");
        let own = url(&config, &"r.example/path/app:x".parse().unwrap(), "manifests/x").unwrap();
        assert_eq!(own, "https://r.example/v2/path/app/manifests/x");
        for image in ["r.example.evil/path/app:x", "other/path/app:x", "app:x"] {
            let refused = url(&config, &image.parse().unwrap(), "manifests/x");
            assert!(matches!(refused, Err(RegistryError::OtherRegistry { .. })), "{image}");
        }
    }

    #[test]
    fn an_insecure_registry_is_reached_without_tls() {
        let config = RegistryConfig { insecure: true, ..registry("r.example:5000") };
        let image = "r.example:5000/app:x".parse().unwrap();
        let found = url(&config, &image, "manifests/x").unwrap();
        assert_eq!(found, "http://r.example:5000/v2/app/manifests/x");
    }
}
