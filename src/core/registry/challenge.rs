//! Reads the challenges of a `WWW-Authenticate` header.

use reqwest::header::HeaderValue;

/// A way to log in that the registry offers.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Challenge {
    Basic,
    /// Needs a token from the server `realm`, requested with `query`.
    Bearer {
        realm: String,
        query: Vec<(&'static str, String)>,
    },
}

impl Challenge {
    /// The challenges in `header` that are known here.
    pub(super) fn parse(header: &HeaderValue) -> Vec<Self> {
        let text = header.to_str().unwrap_or_default();
        let challenges = http_auth::parse_challenges(text).unwrap_or_default();
        challenges.iter().filter_map(Self::of).collect()
    }

    fn of(challenge: &http_auth::ChallengeRef<'_>) -> Option<Self> {
        let parameter = |name: &str| {
            let found = challenge.params.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
            found.map(|(_, value)| value.to_unescaped())
        };
        if challenge.scheme.eq_ignore_ascii_case("basic") {
            return Some(Self::Basic);
        }
        if !challenge.scheme.eq_ignore_ascii_case("bearer") {
            return None;
        }
        let query = ["service", "scope"].into_iter();
        let query = query.filter_map(|name| Some((name, parameter(name)?))).collect();
        Some(Self::Bearer { realm: parameter("realm")?, query })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges_are_read_as_registries_write_them() {
        let read = |text| Challenge::parse(&HeaderValue::from_static(text));
        assert_eq!(read("Basic realm=\"Registry\""), [Challenge::Basic]);
        let bearer = "Bearer realm=\"https://auth.example/token\",service=\"registry\",\
                      scope=\"repository:a/b:pull,push\"";
        let expected = Challenge::Bearer {
            realm: "https://auth.example/token".to_owned(),
            query: vec![
                ("service", "registry".to_owned()),
                ("scope", "repository:a/b:pull,push".to_owned()),
            ],
        };
        assert_eq!(read(bearer), [expected]);
        assert_eq!(read("Negotiate"), []);
    }
}
