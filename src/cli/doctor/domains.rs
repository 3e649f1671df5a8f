//! Whether previews are kept apart from core: pages of previews can set cookies for all names of their registrable domain.

use url::Host;

use super::Finding;
use crate::config::Config;

/// Second labels below which registries of countries sell names: `example.co.uk`.
const SECOND_LABELS: [&str; 10] =
    ["ac", "co", "com", "edu", "gob", "gov", "ne", "net", "or", "org"];

/// A warning if core and its previews are below one registrable domain.
pub(super) fn domains(config: &Config) -> Option<Finding> {
    let domain = config.previews.domain.as_deref()?;
    let url = config.core.url();
    let Some(Host::Domain(core)) = url.host() else {
        return Some(Finding::ok("previews", format!("below {domain}")));
    };
    Some(match shared_domain(core, domain) {
        None => Finding::ok("previews", format!("below {domain}, apart from core at {core}")),
        Some(shared) => Finding::warning(
            "previews",
            format!(
                "previews (below {domain}) and core ({core}) share {shared}: a page of a pull request can set cookies \
                 for core's name"
            ),
            "set previews.domain to a name below another domain, which nothing else uses",
        ),
    })
}

/// The registrable domain of both names, as far as it can be seen without a list of all public suffixes.
fn shared_domain(core: &str, previews: &str) -> Option<String> {
    let registrable = |name: &str| {
        let labels: Vec<String> =
            name.trim_end_matches('.').split('.').map(str::to_ascii_lowercase).collect();
        let is_of_country = |labels: &[String]| {
            matches!(labels, [.., second, last]
                if last.len() == 2 && SECOND_LABELS.contains(&&**second))
        };
        let count = if is_of_country(&labels) { 3 } else { 2 };
        (labels.len() >= count).then(|| labels[labels.len() - count..].join("."))
    };
    registrable(core).filter(|core| registrable(previews).as_ref() == Some(core))
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    fn found(core: &str, domain: &str) -> Finding {
        let settings = format!("core.public-url = \"{core}\"\npreviews.domain = \"{domain}\"\n");
        domains(&toml::from_str(&settings).unwrap()).unwrap()
    }

    #[test]
    fn a_registrable_domain_that_previews_share_with_core_is_a_warning() {
        for (core, domain, shared) in [
            ("https://stagely.example.com", "preview.example.com", Some("example.com")),
            ("https://stagely.example.com", "example.com", Some("example.com")),
            ("https://stagely.Example.com", "preview.example.com", Some("example.com")),
            ("https://ci.shop.co.uk", "preview.shop.co.uk", Some("shop.co.uk")),
            ("https://stagely.example.com", "example-previews.net", None),
            ("https://ci.shop.co.uk", "previews.co.uk", None),
            ("https://10.0.0.1:7780", "preview.example.com", None),
        ] {
            let finding = found(core, domain);
            let expected = if shared.is_some() { Verdict::Warning } else { Verdict::Ok };
            assert_eq!(finding.verdict, expected, "{core} {domain}");
            assert!(finding.detail.contains(shared.unwrap_or_default()), "{}", finding.detail);
        }
        assert!(domains(&Config::default()).is_none());
    }
}
