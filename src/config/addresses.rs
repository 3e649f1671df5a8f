//! Whether an address can be what a setting names, and whether machines reach it.

use stagely_agent::protocol::Arch;
use url::{Host, Url};

use super::{Config, ConfigError};
use crate::core::state::{Fleet, ProviderName};

/// Checks a URL that names a server and holds no secret.
///
/// # Errors
/// [`ConfigError::Value`], naming `key`.
pub(super) fn check_url(key: &'static str, url: &Url) -> Result<(), ConfigError> {
    let has_more = url.query().is_some() || url.fragment().is_some();
    let is_secret = url.password().is_some() || !url.username().is_empty();
    if matches!(url.scheme(), "http" | "https") && !has_more && !is_secret {
        return Ok(());
    }
    let problem = "must be https://HOST/… or http://HOST/…, and nothing more".to_owned();
    Err(ConfigError::Value { key, problem })
}

/// As [`check_url`], for a server that is sent secrets: without TLS only on this host.
///
/// # Errors
/// [`ConfigError::Value`], naming `key`.
pub(super) fn check_cloud_url(key: &'static str, url: &Url) -> Result<(), ConfigError> {
    check_url(key, url)?;
    if url.scheme() == "https" || is_this_host(url.host()) {
        return Ok(());
    }
    let problem = "must be https://HOST/…, since credentials are sent there".to_owned();
    Err(ConfigError::Value { key, problem })
}

/// Whether `host` is loopback, or no address at all, such as `0.0.0.0`: to another machine it is that machine.
pub(crate) fn is_this_host<S: AsRef<str>>(host: Option<Host<S>>) -> bool {
    match host {
        Some(Host::Ipv4(address)) => address.is_loopback() || address.is_unspecified(),
        Some(Host::Ipv6(address)) => address.is_loopback() || address.is_unspecified(),
        Some(Host::Domain(name)) => {
            let name = name.as_ref();
            name == "localhost" || name.ends_with(".localhost")
        }
        None => false,
    }
}

impl Config {
    /// Checks that machines which are not processes of this host reach core and the registry.
    pub(super) fn check_reachable(&self) -> Result<(), ConfigError> {
        let fleets = Fleet::ALL.map(|fleet| self.fleet(fleet));
        let providers =
            fleets.iter().flat_map(|fleet| Arch::ALL.map(|arch| fleet.provider_of(arch)));
        let Some(provider) = providers.flatten().find(|provider| self.is_elsewhere(*provider))
        else {
            return Ok(());
        };
        let host = if provider == ProviderName::Qemu { "10.0.2.2" } else { "stagely.example.com" };
        let url = self.core.url();
        if is_this_host(url.host()) {
            let problem = format!(
                "machines of {provider} cannot reach core at {url}, which to them is their own address; set \
                 core.public-url to one that they reach, such as {}",
                match provider {
                    ProviderName::Qemu => format!("http://{host}:{}", self.core.listen.port()),
                    _ => format!("https://{host}"),
                }
            );
            return Err(ConfigError::Value { key: "core.public-url", problem });
        }
        let registry = Url::parse(&format!("https://{}", self.registry.host()));
        if registry.is_ok_and(|registry| is_this_host(registry.host())) {
            let problem = format!(
                "machines of {provider} cannot reach {}, which to them is their own address; name the \
                 registry as they reach it",
                self.registry.host()
            );
            return Err(ConfigError::Value { key: "registry.url", problem });
        }
        Ok(())
    }

    /// Whether machines of `provider` have a network of their own. Those of a cloud whose API is on this host
    /// are on this host as well.
    fn is_elsewhere(&self, provider: ProviderName) -> bool {
        match provider {
            ProviderName::Local => false,
            ProviderName::Qemu => true,
            ProviderName::Aws => {
                !self.aws.endpoint.as_ref().is_some_and(|url| is_this_host(url.host()))
            }
            ProviderName::DigitalOcean => !is_this_host(self.digitalocean.api_url.host()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is wrong with a configuration.
    fn problem(text: &str) -> Option<String> {
        let config: Config = toml::from_str(text).unwrap();
        config.check().err().map(|error| error.to_string())
    }

    #[test]
    fn machines_must_reach_core_and_the_registry() {
        let registry = "registry.url = \"registry.example.com\"";
        let aws = "builders.arm64 = \"aws\"";
        let has = |text: &str, expected: &str| {
            let problem = problem(text).unwrap_or_default();
            assert!(problem.contains(expected), "{text}: {problem:?}");
        };
        has(aws, "core.public-url: machines of aws cannot reach core at http://127.0.0.1:7780/");
        for listen in ["0.0.0.0:80", "[::]:80", "[::1]:80"] {
            has(&format!("{aws}\ncore.listen = \"{listen}\""), "core.public-url: ");
        }
        let public = "core.public-url = \"https://core.example.com\"";
        has(
            &format!("{aws}\n{public}"),
            "registry.url: machines of aws cannot reach 127.0.0.1:5000",
        );
        assert_eq!(problem(&format!("{aws}\n{public}\n{registry}")), None);
        let own = format!(
            "{registry}\ncore.listen = \"192.0.2.1:80\"\ntesters.provider = \"digitalocean\""
        );
        assert_eq!(problem(&own), None);

        let qemu = "builders.provider = \"qemu\"\nqemu.image-amd64 = \"/image\"";
        has(qemu, "such as http://10.0.2.2:7780");
        let reached =
            "core.public-url = \"http://10.0.2.2:7780\"\nregistry.url = \"10.0.2.2:5000\"";
        assert_eq!(problem(&format!("{qemu}\n{reached}")), None);
    }

    #[test]
    fn machines_of_a_cloud_on_this_host_are_on_this_host() {
        let aws = "builders.provider = \"aws\"\naws.endpoint = \"http://127.0.0.1:5555\"";
        assert_eq!(problem(aws), None);
        let digitalocean = "previews.provider = \"digitalocean\"\ndigitalocean.api-url = \"http://localhost:5555\"";
        assert_eq!(problem(digitalocean), None);
    }

    #[test]
    fn a_cloud_is_asked_over_tls() {
        for (key, setting) in [("aws", "endpoint"), ("digitalocean", "api-url")] {
            let with =
                |url: &str| problem(&format!("{key}.{setting} = \"{url}\"")).unwrap_or_default();
            assert_eq!(with("https://cloud.example.com"), "");
            assert_eq!(with("http://[::1]:80"), "");
            assert!(with("http://cloud.example.com").contains("credentials are sent there"));
            for url in
                ["ftp://cloud.example.com", "https://me:it@cloud.example.com", "https://a/?b"]
            {
                assert!(with(url).starts_with(&format!("{key}.{setting}: must be")), "{url}");
            }
        }
    }
}
