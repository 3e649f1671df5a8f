//! Which host names are those of previews.

use stagely_state::ids::{EnvironmentId, JobId};
use url::{Host as UrlHost, Url};

use super::names::{artifacts_label, environment_of_artifacts};
use crate::config::Config;

/// The domain below which browsers resolve every name to their own machine.
const LOCAL_DOMAIN: &str = "localhost";

/// Whose a host name is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Host {
    Core,
    /// Below a domain of previews.
    Preview {
        label: String,
        /// The scheme of URLs that browsers use.
        scheme: &'static str,
    },
    /// Below a domain of previews: the files that tests of this environment have left.
    Artifacts(EnvironmentId),
    /// Below a domain of previews, but of none.
    Nobody,
}

/// The domains of previews, and core's own name.
#[derive(Clone, Debug)]
pub struct PreviewHosts {
    core: Url,
    listen_port: u16,
    domain: Option<String>,
}

impl PreviewHosts {
    pub fn new(config: &Config) -> Self {
        Self {
            core: config.core.url(),
            listen_port: config.core.listen.port(),
            domain: config.previews.domain.clone(),
        }
    }

    /// Whose `host` is, a name without a port.
    pub fn find(&self, host: &str) -> Host {
        let host = host.trim_end_matches('.').to_ascii_lowercase();
        if matches!(self.core.host(), Some(UrlHost::Domain(core)) if core == host) {
            return Host::Core;
        }
        let below = |domain: &str| host.strip_suffix(domain)?.strip_suffix('.');
        let found = match (self.domain.as_deref().and_then(below), below(LOCAL_DOMAIN)) {
            (Some(label), _) => (label, self.scheme()),
            (None, Some(label)) => (label, "http"),
            (None, None) => return Host::Core,
        };
        match found {
            (label, scheme) if !label.is_empty() && !label.contains('.') => {
                match environment_of_artifacts(label) {
                    Some(environment) => Host::Artifacts(environment),
                    None => Host::Preview { label: label.to_owned(), scheme },
                }
            }
            _ => Host::Nobody,
        }
    }

    /// As [`find`](Self::find), for names below the configured domain alone, for which certificates are issued.
    pub fn find_in_domain(&self, host: &str) -> Host {
        let is_local = host.trim_end_matches('.').to_ascii_lowercase().ends_with(LOCAL_DOMAIN);
        if is_local { Host::Nobody } else { self.find(host) }
    }

    /// The URL at which browsers find what a test job of the environment has left.
    pub fn artifacts_url(&self, environment: EnvironmentId, job: JobId) -> Url {
        let mut url = self.url(&artifacts_label(environment));
        url.set_path(&format!("{job}/"));
        url
    }

    /// The URL at which browsers reach the preview with this label.
    pub fn url(&self, label: &str) -> Url {
        let url = match &self.domain {
            Some(domain) => {
                let port = self.core.port().map(|port| format!(":{port}")).unwrap_or_default();
                format!("{}://{label}.{domain}{port}/", self.scheme())
            }
            None => format!("http://{label}.{LOCAL_DOMAIN}:{}/", self.listen_port),
        };
        url.parse().expect("a checked domain and a label make a URL")
    }

    /// The scheme of names below the domain: the proxy in front of core serves both alike.
    fn scheme(&self) -> &'static str {
        if self.core.scheme() == "https" { "https" } else { "http" }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hosts(settings: &str) -> PreviewHosts {
        PreviewHosts::new(&toml::from_str(settings).unwrap())
    }

    fn preview(label: &str, scheme: &'static str) -> Host {
        Host::Preview { label: label.to_owned(), scheme }
    }

    #[test]
    fn one_label_below_a_domain_is_a_preview() {
        let hosts = hosts(
            "core.public-url = \"https://stagely.example.com\"\npreviews.domain = \"example.com\"\n",
        );
        assert_eq!(hosts.find("PR-7-app.Example.com."), preview("pr-7-app", "https"));
        assert_eq!(hosts.find("pr-7-app.localhost"), preview("pr-7-app", "http"));
        assert_eq!(hosts.find("pr-7-app.localhost.."), preview("pr-7-app", "http"));
        for core in ["stagely.example.com", "example.com", "localhost", "127.0.0.1", "[::1]", "a.b"]
        {
            assert_eq!(hosts.find(core), Host::Core, "{core}");
        }
        for nobody in ["a.b.example.com", "a.b.localhost", ".localhost", "a..example.com"] {
            assert_eq!(hosts.find(nobody), Host::Nobody, "{nobody}");
        }
        assert_eq!(hosts.find("pr-7-app.badexample.com"), Host::Core);
        assert_eq!(hosts.find_in_domain("pr-7-app.example.com"), preview("pr-7-app", "https"));
        assert_eq!(hosts.find_in_domain("pr-7-app.localhost"), Host::Nobody);
        let environment = EnvironmentId::from_bits(7);
        let url = hosts.artifacts_url(environment, JobId::from_bits(8));
        assert_eq!((url.scheme(), url.path()), ("https", &*format!("/{}/", JobId::from_bits(8))));
        assert_eq!(hosts.find(url.host_str().unwrap()), Host::Artifacts(environment));
        assert_eq!(hosts.url("pr-7-app").as_str(), "https://pr-7-app.example.com/");
    }

    #[test]
    fn without_a_domain_previews_are_local() {
        let hosts = hosts("core.listen = \"127.0.0.1:7788\"\n");
        assert_eq!(hosts.url("pr-7-app").as_str(), "http://pr-7-app.localhost:7788/");
        assert_eq!(hosts.find("pr-7-app.example.com"), Host::Core);
    }
}
