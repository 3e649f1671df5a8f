//! The proxies of a build, in the Docker configuration that only its job uses.
//!
//! Their addresses may have a password, so they are no arguments. They are no variables of the command either, because
//! `buildx` itself would use them. It makes build arguments of the proxies in its configuration.

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use serde_json::{Map, Value, json};
use stagely_protocol::BuildArgs;

/// The build arguments, which may also be in lower case, and their names in the configuration.
///
/// Source: Docker's documentation, "Use a proxy server with the Docker CLI".
const SETTINGS: [(&str, &str); 5] = [
    ("HTTP_PROXY", "httpProxy"),
    ("HTTPS_PROXY", "httpsProxy"),
    ("FTP_PROXY", "ftpProxy"),
    ("NO_PROXY", "noProxy"),
    ("ALL_PROXY", "allProxy"),
];

fn setting(arg: &str) -> Option<&'static str> {
    let found = SETTINGS.iter().find(|(name, _)| arg == *name || arg == name.to_ascii_lowercase());
    found.map(|(_, setting)| *setting)
}

/// Whether a build argument of this name is passed by the configuration.
pub(super) fn is_proxy(arg: &str) -> bool {
    setting(arg).is_some()
}

/// Writes the proxies among `args` into the configuration in the folder `config`.
///
/// # Errors
/// The configuration cannot be read or written.
pub fn set_proxies(config: &Path, args: &BuildArgs) -> io::Result<()> {
    let set: Map<String, Value> = args
        .0
        .iter()
        .filter_map(|(name, value)| Some((setting(name)?.to_owned(), value.as_str().into())))
        .collect();
    if set.is_empty() {
        return Ok(());
    }
    let path = config.join("config.json");
    let text = match fs::read(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => b"{}".to_vec(),
        Err(error) => return Err(error),
    };
    let mut settings: Map<String, Value> = serde_json::from_slice(&text)?;
    let proxies = settings.entry("proxies").or_insert_with(|| json!({}));
    // The user's configuration may have proxies for one engine alone, which count instead of the default.
    if let Some(proxies) = proxies.as_object_mut() {
        proxies.entry("default").or_insert_with(|| json!({}));
        for of_engine in proxies.values_mut().filter_map(Value::as_object_mut) {
            of_engine.extend(set.clone());
        }
    }
    let mut file =
        OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(path)?;
    file.write_all(Value::Object(settings).to_string().as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(args: &[(&str, &str)]) -> BuildArgs {
        BuildArgs(args.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect())
    }

    fn after(before: &str, set: &[(&str, &str)]) -> Value {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.json");
        fs::write(&path, before).unwrap();
        set_proxies(folder.path(), &args(set)).unwrap();
        serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
    }

    #[test]
    fn a_builds_proxies_go_before_those_of_the_user() {
        let http = ("HTTP_PROXY", "http://joe:secret@proxy:1");
        let no = ("no_proxy", "localhost");
        let all = json!({ "httpProxy": http.1, "noProxy": no.1 });
        assert_eq!(after("{}", &[http, no]), json!({ "proxies": { "default": all } }));
        let before =
            r#"{"auths":{"r":{}},"proxies":{"tcp://e":{"httpProxy":"a","httpsProxy":"b"}}}"#;
        let after_it = after(before, &[http, ("VERSION", "1")]);
        assert_eq!(
            after_it,
            json!({
                "auths": { "r": {} },
                "proxies": {
                    "default": { "httpProxy": http.1 },
                    "tcp://e": { "httpProxy": http.1, "httpsProxy": "b" },
                },
            })
        );
        let unchanged = r#"{"auths":{}}"#;
        assert_eq!(after(unchanged, &[("VERSION", "1")]), json!({ "auths": {} }));
    }

    #[test]
    fn proxies_have_both_spellings() {
        assert!(is_proxy("HTTPS_PROXY") && is_proxy("all_proxy"));
        assert!(!is_proxy("Http_Proxy") && !is_proxy("PROXY"));
    }
}
