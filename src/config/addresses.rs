//! Checks that machines can reach the addresses of core and of the registry.

use stagely_protocol::Arch;
use stagely_provider::Network;
use stagely_provider::settings::is_this_host;
use stagely_state::Fleet;
use url::Url;

use super::{Config, ConfigError};

impl Config {
    /// Checks that machines other than processes of this host can reach core and the registry.
    pub(super) fn check_reachable(&self) -> Result<(), ConfigError> {
        let fleets = Fleet::ALL.map(|fleet| self.fleet(fleet));
        let providers =
            fleets.iter().flat_map(|fleet| Arch::ALL.map(|arch| fleet.provider_of(arch)));
        let tables = self.provider_tables();
        let mut networks = providers.flatten().map(|provider| (provider, tables.network(provider)));
        let Some((provider, network)) = networks.find(|(_, network)| *network != Network::ThisHost)
        else {
            return Ok(());
        };
        let url = self.core.url();
        if is_this_host(url.host()) {
            let example = match network {
                Network::Guest { host } => format!("http://{host}:{}", self.core.listen.port()),
                Network::ThisHost | Network::Remote => "https://stagely.example.com".to_owned(),
            };
            let problem = format!(
                "machines of {provider} cannot reach core at {url}, an address of this host alone; set \
                 core.public-url to an address that they can reach, such as {example}"
            );
            return Err(ConfigError::Value { key: "core.public-url", problem });
        }
        let registry = Url::parse(&format!("https://{}", self.registry.host()));
        if registry.is_ok_and(|registry| is_this_host(registry.host())) {
            let problem = format!(
                "machines of {provider} cannot reach {}, an address of this host alone; set an address that \
                 they can reach",
                self.registry.host()
            );
            return Err(ConfigError::Value { key: "registry.url", problem });
        }
        if let Some(name) = self.agents.environment.proxy_of_this_host() {
            let problem = format!(
                "machines of {provider} cannot reach the proxy of {name}, an address of this host alone; set an \
                 address that they can reach"
            );
            return Err(ConfigError::Value { key: "agents.environment", problem });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        let with = |proxy: &str| {
            format!("{aws}\n{public}\n{registry}\nagents.environment.https_proxy = \"{proxy}\"")
        };
        assert_eq!(problem(&with("http://10.0.0.1:3128")), None);
        for proxy in ["http://me:secret@127.0.0.1:3128", "localhost:3128"] {
            has(
                &with(proxy),
                "agents.environment: machines of aws cannot reach the proxy of https_proxy",
            );
            assert!(!problem(&with(proxy)).unwrap().contains("secret"));
        }
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
    fn a_cloud_at_a_loopback_address_launches_on_this_host() {
        let aws = "builders.provider = \"aws\"\naws.endpoint = \"http://127.0.0.1:5555\"";
        assert_eq!(problem(aws), None);
        let digitalocean = "previews.provider = \"digitalocean\"\ndigitalocean.api-url = \"http://localhost:5555\"";
        assert_eq!(problem(digitalocean), None);
    }

    #[test]
    fn clouds_are_queried_over_tls() {
        for (key, setting) in [("aws", "endpoint"), ("digitalocean", "api-url")] {
            let with =
                |url: &str| problem(&format!("{key}.{setting} = \"{url}\"")).unwrap_or_default();
            assert_eq!(with("https://cloud.example.com"), "");
            assert_eq!(with("http://[::1]:80"), "");
            assert!(with("http://cloud.example.com").contains("credentials are sent there"));
            for url in [
                "ftp://cloud.example.com",
                "https://user:password@cloud.example.com",
                "https://a/?b",
            ] {
                assert!(with(url).starts_with(&format!("{key}.{setting}: must be")), "{url}");
            }
        }
    }
}
