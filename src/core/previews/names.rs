//! The names of previews in the DNS.

use std::fmt::Write as _;

use sha2::{Digest as _, Sha256};
use stagely_state::ids::EnvironmentId;

/// The longest label of the DNS.
pub const LABEL_CHARS_MAX: usize = 63;

/// The bytes of the hash that a label ends in if the readable part alone would not name its preview.
const HASH_BYTES: usize = 5;

/// Goes before the hash. No readable part contains it.
const HASH_MARK: &str = "---";

/// What the labels of artifacts begin with.
const ARTIFACTS: &str = "artifacts";

const ENVIRONMENT_PREFIX: &str = "env_";

/// The label of an endpoint: `pr-7-app`, or `pr-7-app-mail` for an endpoint that is not the first one.
///
/// Different endpoints have different labels. A `-` inside a name is doubled, so that the parts can be told apart; where
/// that does not suffice, or characters are lost, the label ends in a hash of the names.
pub fn preview_label(environment: &str, project: &str, further_endpoint: Option<&str>) -> String {
    // `pr-7` is the environment of a pull request, and the only name whose `-` stays as it is.
    let number = environment.strip_prefix("pr-").filter(|number| is_number(number));
    let environment_part = match number {
        Some(_) => Some(environment.to_owned()),
        None if environment == "pr" => None,
        None => part(environment),
    };
    let endpoint_part = further_endpoint.map(part);
    let parts = [Some(environment_part), Some(part(project)), endpoint_part];
    let parts: Option<Vec<String>> = parts.into_iter().flatten().collect();
    parts
        .map(|parts| parts.join("-"))
        .filter(|label| label.len() <= LABEL_CHARS_MAX && !is_reserved(label))
        .unwrap_or_else(|| hashed(environment, project, further_endpoint))
}

/// The label of the artifacts of an environment. No preview has one like it: what follows their mark is another hash.
pub fn artifacts_label(environment: EnvironmentId) -> String {
    let id = environment.to_string();
    format!("{ARTIFACTS}{HASH_MARK}{}", id.trim_start_matches(ENVIRONMENT_PREFIX))
}

/// The environment whose artifacts have this label.
pub(super) fn environment_of_artifacts(label: &str) -> Option<EnvironmentId> {
    let id = label.strip_prefix(ARTIFACTS)?.strip_prefix(HASH_MARK)?;
    let environment: EnvironmentId = format!("{ENVIRONMENT_PREFIX}{id}").parse().ok()?;
    // One environment, one origin.
    (artifacts_label(environment) == label).then_some(environment)
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// A name as a part of a label; `None` if characters would be lost, or the parts could not be told apart.
fn part(name: &str) -> Option<String> {
    let is_kept = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    let is_clear = !name.is_empty()
        && name.bytes().all(is_kept)
        && !name.starts_with('-')
        && !name.ends_with('-')
        && !name.contains("--");
    is_clear.then(|| name.replace('-', "--"))
}

/// Certificate authorities refuse names like `xn--…` that are not of that kind.
fn is_reserved(label: &str) -> bool {
    label.get(2..4) == Some("--")
}

fn hashed(environment: &str, project: &str, endpoint: Option<&str>) -> String {
    let mut hash = Sha256::new();
    for name in [Some(environment), Some(project), endpoint].into_iter().flatten() {
        hash.update(name.as_bytes());
        hash.update([0]);
    }
    let mut end = HASH_MARK.to_owned();
    for byte in &hash.finalize()[..HASH_BYTES] {
        write!(end, "{byte:02x}").expect("a String takes every write");
    }
    let names = [environment, project, endpoint.unwrap_or_default()].join("-");
    let mut readable = String::new();
    for character in names.chars().map(|character| character.to_ascii_lowercase()) {
        let is_kept = character.is_ascii_lowercase() || character.is_ascii_digit();
        if is_kept {
            readable.push(character);
        } else if !readable.is_empty() && !readable.ends_with('-') {
            readable.push('-');
        }
        if readable.len() + end.len() == LABEL_CHARS_MAX {
            break;
        }
    }
    let readable = readable.trim_end_matches('-');
    // A label begins with a letter or digit. The hash's mark must not be its third and fourth character.
    match readable.len() {
        0 => format!("preview{end}"),
        1 | 2 => format!("preview-{readable}{end}"),
        _ => format!("{readable}{end}"),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn is_dns_label(label: &str) -> bool {
        (1..=LABEL_CHARS_MAX).contains(&label.len())
            && label
                .bytes()
                .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.get(2..4) != Some("--")
    }

    #[test]
    fn labels_are_readable() {
        assert_eq!(preview_label("pr-7", "app", None), "pr-7-app");
        assert_eq!(preview_label("pr-7", "app", Some("mail")), "pr-7-app-mail");
        assert_eq!(preview_label("main", "my-app", None), "main-my--app");
        assert_eq!(preview_label("pr-7", "shop-web", Some("api-v2")), "pr-7-shop--web-api--v2");
    }

    #[test]
    fn the_artifacts_of_an_environment_have_a_label_of_their_own() {
        let environment = EnvironmentId::from_bits(7);
        let label = artifacts_label(environment);
        assert!(is_dns_label(&label) && label.starts_with("artifacts---"), "{label}");
        assert_eq!(environment_of_artifacts(&label), Some(environment));
        let id = environment.to_string();
        let id = id.trim_start_matches("env_");
        for (name, project) in [("artifacts", id), ("artifacts--", id), ("artifacts_", id)] {
            assert_ne!(preview_label(name, project, None), label);
        }
        for other in
            [format!("artifacts-{id}"), format!("x{label}"), format!("{label}0"), String::new()]
        {
            assert_eq!(environment_of_artifacts(&other), None, "{other}");
        }
    }

    #[test]
    fn lost_characters_and_long_names_get_a_hash() {
        let label = preview_label("feature_Login", "app", None);
        assert!(label.starts_with("feature-login-app---") && is_dns_label(&label), "{label}");
        let long = preview_label("pr-7", &"a".repeat(100), None);
        assert_eq!((long.len(), is_dns_label(&long)), (63, true), "{long}");
        let odd = preview_label("_", "...", Some("日本"));
        assert!(odd.starts_with("preview---") && is_dns_label(&odd), "{odd}");
        // The third and fourth character of `qa--1` would be those of an internationalized name.
        let reserved = preview_label("qa-1", "app", None);
        assert!(reserved.starts_with("qa-1-app---") && is_dns_label(&reserved), "{reserved}");
    }

    #[test]
    fn no_two_endpoints_have_the_same_label() {
        let words = [
            "a", "b", "7", "pr", "pr-7", "pr-7-a", "a-b", "a--b", "-a", "a-", "A", "a_b", "a.b",
            "7-a", "b-a", "a-b-a", "", "a---b", "mail", "app-mail", "app", "pr-app",
        ];
        let mut labels = BTreeMap::new();
        let endpoints = words.map(Some).into_iter().chain([None]);
        for endpoint in endpoints {
            for environment in words {
                for project in words {
                    let label = preview_label(environment, project, endpoint);
                    assert!(is_dns_label(&label), "{label}");
                    let names = (environment, project, endpoint);
                    if let Some(other) = labels.insert(label.clone(), names) {
                        panic!("{label} is of {names:?} and {other:?}");
                    }
                }
            }
        }
    }
}
