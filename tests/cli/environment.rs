//! The variables of the caller's shell change nothing in what is built, unless `STAGELY_PASS_ENV` names them.

use std::process::Command;

use serde_json::Value;

use crate::person::{Ended, Person};

/// Variables that change what `docker`, `buildx`, `BuildKit` or Git do, with values that break a build or change an image.
const HOSTILE: [(&str, &str); 26] = [
    // What Nix, Debian's tools and many Makefiles set.
    ("SOURCE_DATE_EPOCH", "315532800"),
    ("BUILDKIT_PROGRESS", "tty"),
    ("BUILDKIT_TTY_LOG_LINES", "1"),
    ("BUILDKIT_COLORS", "run=red"),
    ("BUILDKIT_HOST", "tcp://127.0.0.1:1"),
    ("BUILDX_BUILDER", "nobody"),
    ("BUILDX_CONFIG", "/nowhere"),
    ("BUILDX_EXPERIMENTAL", "1"),
    ("BUILDX_NO_DEFAULT_ATTESTATIONS", "1"),
    ("BUILDX_NO_DEFAULT_LOAD", "1"),
    ("BUILDX_METADATA_PROVENANCE", "max"),
    ("BUILDX_GIT_INFO", "1"),
    ("BUILDX_GIT_LABELS", "full"),
    ("DOCKER_API_VERSION", "1.0"),
    ("DOCKER_BUILDKIT", "0"),
    ("DOCKER_CONTENT_TRUST", "1"),
    ("DOCKER_DEFAULT_PLATFORM", "linux/arm64"),
    ("DOCKER_CUSTOM_HEADERS", "a=b"),
    ("GIT_DIR", "/nowhere/.git"),
    ("GIT_WORK_TREE", "/nowhere"),
    ("GIT_INDEX_FILE", "/nowhere/index"),
    ("GIT_OBJECT_DIRECTORY", "/nowhere/objects"),
    ("GIT_NAMESPACE", "other"),
    ("GIT_CEILING_DIRECTORIES", "/"),
    // Each command would wait for it.
    ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://192.0.2.1:4317"),
    ("OTEL_TRACES_EXPORTER", "otlp"),
];

/// The digest of the built image, and how many of its steps came from the cache.
fn built(mut command: Command) -> (String, u64) {
    let ended = Ended::from(command.output().unwrap()).with(0);
    let run: Value = serde_json::from_str(&ended.stdout).unwrap();
    let job = &run["jobs"][0];
    (job["digest"].as_str().unwrap().to_owned(), job["cached_steps"].as_u64().unwrap())
}

#[test]
fn the_callers_variables_do_not_change_the_image() {
    let person = Person::new("environment");
    let dockerfile = format!(
        "FROM busybox\nARG SOURCE_DATE_EPOCH=none\nRUN : {}; echo $SOURCE_DATE_EPOCH >/epoch\n\
         COPY Dockerfile /\n",
        person.name
    );
    person
        .commit(&[("stagely.yaml", "builds:\n  app: {context: .}\n"), ("Dockerfile", &dockerfile)]);
    let policy = r#"{"rules": [{"action": "DENY", "selector": {"identifier": "*", "matchType": "WILDCARD"}}]}"#;
    std::fs::write(person.path("policy.json"), policy).unwrap();
    let run = || person.stagely(&["run", "--json"]);
    let (image, _) = built(run());

    let mut hostile = run();
    hostile.envs(HOSTILE).env("EXPERIMENTAL_BUILDKIT_SOURCE_POLICY", person.path("policy.json"));
    assert_eq!(built(hostile), (image.clone(), 2), "the same image, from the cache");

    let mut passed = run();
    passed.envs(HOSTILE).env("STAGELY_PASS_ENV", "UNSET, SOURCE_DATE_EPOCH");
    let (of_1980, _) = built(passed);
    assert_ne!(of_1980, image, "a variable that STAGELY_PASS_ENV names is passed");
    person.leaves_nothing();
}
