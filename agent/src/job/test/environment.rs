//! The environment variables of a test's container.

use std::collections::BTreeMap;

use secrecy::ExposeSecret as _;
use stagely_protocol::Test;

/// `NAME=value` for each variable. Those of Stagely win over those of stagely.yaml.
pub(super) fn environment(test: &Test) -> Vec<String> {
    let mut variables = BTreeMap::new();
    // Test runners look for it: they do not ask, watch or retry then.
    variables.insert("CI", "true".to_owned());
    for (name, value) in &test.env.0 {
        variables.insert(name, value.clone());
    }
    for (name, value) in &test.secrets.0 {
        variables.insert(name, value.expose_secret().to_owned());
    }
    variables.insert("STAGELY_SHARD", test.shard.index.to_string());
    variables.insert("STAGELY_SHARDS", test.shard.total.to_string());
    if let Some(preview) = &test.preview {
        variables.insert("PREVIEW_URL", preview.url.clone());
        let headers = preview.headers.0.iter();
        let headers = headers.map(|(name, value)| format!("{name}: {}", value.expose_secret()));
        let headers: Vec<_> = headers.collect();
        if !headers.is_empty() {
            variables.insert("STAGELY_ACCESS_HEADER", headers.join("\n"));
        }
    }
    variables.into_iter().map(|(name, value)| format!("{name}={value}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stagely_adds_the_shard_the_preview_and_how_to_get_in() {
        let test: Test = serde_json::from_str(
            r#"{"job_id":"j","image":"r/a:b","env":{"A":"1","CI":"0","STAGELY_SHARD":"9"},"secrets":{"KEY":"hidden"},
                "preview":{"url":"https://pr-7.example.com","headers":{"x-stagely-access":"k"}},
                "shard":{"index":2,"total":3}}"#,
        )
        .unwrap();
        let expected = [
            "A=1",
            "CI=0",
            "KEY=hidden",
            "PREVIEW_URL=https://pr-7.example.com",
            "STAGELY_ACCESS_HEADER=x-stagely-access: k",
            "STAGELY_SHARD=2",
            "STAGELY_SHARDS=3",
        ];
        assert_eq!(environment(&test), expected);
        let test: Test = serde_json::from_str(r#"{"job_id":"j","image":"r/a:b"}"#).unwrap();
        assert_eq!(environment(&test), ["CI=true", "STAGELY_SHARD=1", "STAGELY_SHARDS=1"]);
    }
}
