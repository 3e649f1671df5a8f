//! `stagely.toml`: the sample says the truth, and mistakes are named.

#![expect(clippy::unwrap_used, reason = "a helper's failure fails the test")]

use std::fs;
use std::path::Path;

use stagely::config::{Config, ConfigError};

fn sample() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("stagely.sample.toml");
    fs::read_to_string(path).unwrap()
}

fn read(text: &str) -> Result<Config, ConfigError> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("stagely.toml");
    fs::write(&path, text).unwrap();
    Config::read(&path)
}

/// What is wrong with `text`.
fn error(text: &str) -> String {
    let error = read(text).unwrap_err();
    let source = std::error::Error::source(&error).map(ToString::to_string);
    format!("{error}: {}", source.unwrap_or_default())
}

/// The sample with its examples, too: `# key = value` without the `#`.
fn with_examples(sample: &str) -> String {
    let is_example = |line: &&str| {
        line.starts_with("[[") || line.split_once(" = ").is_some_and(|(key, _)| !key.contains(' '))
    };
    let uncomment = |line| {
        let example = Option::<&str>::from(line).and_then(|line| line.strip_prefix("# "));
        example.filter(is_example).unwrap_or(line)
    };
    sample.lines().map(uncomment).collect::<Vec<_>>().join("\n")
}

#[test]
fn the_sample_shows_the_defaults() {
    assert_eq!(read(&sample()).unwrap(), Config::default());
}

#[test]
fn the_samples_examples_are_settings_too() {
    let text = with_examples(&sample());
    let config = read(&text).unwrap();
    let unset = [
        config.core.public_url.is_none(),
        config.registry.username.is_none(),
        config.registry.password_file.is_none(),
        config.local.agent_program.is_none(),
        config.local.docker_host.is_none(),
        config.warm_up.schedule.is_none(),
        config.warm_up.projects.is_empty(),
        config.github.clone_url.is_none(),
        config.github.app_id.is_none(),
        config.github.private_key_file.is_none(),
        config.github.token_file.is_none(),
        config.github.webhook_secret_file.is_none(),
        config.projects.is_empty(),
    ];
    assert!(!unset.contains(&true), "{unset:?} in\n{text}");
}

/// Serde lists every key it knows when it meets one that it does not.
#[test]
fn the_sample_shows_every_setting() {
    let text = with_examples(&sample());
    for table in [
        "core",
        "registry",
        "builders",
        "agents",
        "local",
        "logs",
        "warm-up",
        "retention",
        "github",
        "priorities",
        "[projects]",
    ] {
        let error = error(&format!("[{table}]\nno-such-key = 1\n"));
        let known = error.split_once("expected ").expect("serde lists the keys").1;
        let keys: Vec<&str> = known.split('`').skip(1).step_by(2).collect();
        assert!(!keys.is_empty(), "{error}");
        let section = text.split(&format!("[{table}]\n")).nth(1).expect(table);
        let section = section.split("\n[").next().unwrap_or_default();
        for key in keys {
            let is_shown = section.lines().any(|line| line.starts_with(&format!("{key} = ")));
            assert!(is_shown, "[{table}] of the sample does not show {key}");
        }
    }
}

#[test]
fn mistakes_name_the_file_the_line_or_the_setting() {
    let unknown = error("[core]\nlistn = \"127.0.0.1:1\"\n");
    assert!(unknown.contains("stagely.toml") && unknown.contains("line 2"), "{unknown}");
    assert!(unknown.contains("listn"), "{unknown}");
    let time = error("[agents]\nheartbeat-interval = \"soon\"\n");
    assert!(time.contains("line 2"), "{time}");
    let time = error("[agents]\nheartbeat-interval = \"1500ms\"\n");
    assert!(time.contains("agents.heartbeat-interval"), "{time}");
    let registry = error("[registry]\nurl = \"https://registry\"\n");
    assert!(
        registry.contains("registry.url") && registry.contains("without https://"),
        "{registry}"
    );
    let never = error("[warm-up]\nschedule = \"0 0 30 2 *\"\nprojects = [\"app\"]\n");
    assert!(never.contains("warm-up.schedule") && never.contains("never due"), "{never}");
    let cron = error("[warm-up]\nschedule = \"daily at four\"\nprojects = [\"app\"]\n");
    assert!(cron.contains("warm-up.schedule") && cron.contains("30 4 * * *"), "{cron}");
    let projects = error("[warm-up]\nschedule = \"30 4 * * *\"\n");
    assert!(projects.contains("warm-up.projects"), "{projects}");
    let branch = error("[warm-up]\nbranches = [\"a b\"]\n");
    assert!(branch.contains("warm-up.branches"), "{branch}");
    let key = error("[github]\napp-id = 7\n");
    assert!(key.contains("github.private-key-file") && key.contains("missing"), "{key}");
    let id = error("[github]\nprivate-key-file = \"/key\"\n");
    assert!(id.contains("github.app-id"), "{id}");
    let url = error("[github]\napi-url = \"https://me:secret@host/\"\n");
    assert!(url.contains("github.api-url") && !url.contains("secret"), "{url}");
    for key in ["reconcile-interval", "report-interval"] {
        let interval = error(&format!("[github]\n{key} = \"0s\"\n"));
        assert!(interval.contains(&format!("github.{key}")), "{interval}");
    }
    let twice = error("[[projects]]\ngithub = \"a/b\"\n[[projects]]\ngithub = \"A/b\"\n");
    assert!(twice.contains("projects.github") && twice.contains("A/b is there twice"), "{twice}");
    let name = error("[[projects]]\ngithub = \"a/b\"\nname = \"A B\"\n");
    assert!(name.contains("projects.name") && name.contains("a-b"), "{name}");
    assert!(error("[[projects]]\ngithub = \"https://github.com/a/b\"\n").contains("line 2"));
    assert!(error("[builders]\nmax-concurrent = 0\n").contains("line 2"));
    assert!(error("[nowhere]\n").contains("nowhere"));
}

#[test]
fn repositories_are_cloned_from_the_host_of_the_api() {
    for (settings, address) in [
        ("", "https://github.com/acme/shop.git"),
        ("api-url = \"https://git.example/api/v3\"", "https://git.example/acme/shop.git"),
        ("api-url = \"https://api.acme.ghe.com\"", "https://acme.ghe.com/acme/shop.git"),
        ("api-url = \"http://127.0.0.1:1234\"", "http://127.0.0.1:1234/acme/shop.git"),
        ("api-url = \"http://127.0.0.1:1234/api/v3/\"", "http://127.0.0.1:1234/acme/shop.git"),
        ("clone-url = \"https://mirror/git\"", "https://mirror/git/acme/shop.git"),
    ] {
        let config = read(&format!("[github]\n{settings}\n")).unwrap();
        let repository = "acme/shop".parse().unwrap();
        assert_eq!(config.github.clone_address(&repository).as_str(), address);
    }
}
