//! The JSON Schema against the parser.

use proptest::prelude::*;
use serde_json::Value;
use stagely_manifest::{json_schema, parse};

use super::{FULL, problems};

fn allows(yaml: &str) -> bool {
    let schema = serde_json::to_value(json_schema()).unwrap();
    let instance: Value = serde_saphyr::from_str(yaml).unwrap();
    jsonschema::validator_for(&schema).unwrap().is_valid(&instance)
}

#[test]
fn the_schema_is_valid_and_describes_every_key() {
    let schema = serde_json::to_value(json_schema()).unwrap();
    jsonschema::meta::validate(&schema).unwrap();
    for part in [&schema, &schema["$defs"]["Build"]] {
        assert_eq!(part["additionalProperties"], false);
        for (key, property) in part["properties"].as_object().unwrap() {
            let description = property["description"].as_str().unwrap();
            assert!(description.ends_with('.') && !description.contains('\n'), "{key}");
        }
    }
    assert_eq!(schema["required"], serde_json::json!(["builds"]));
    assert_eq!(schema["$defs"]["Build"]["required"], serde_json::json!(["context"]));
}

#[test]
fn the_schema_has_exactly_the_keys_of_the_parser() {
    let schema = serde_json::to_value(json_schema()).unwrap();
    let known = |lines: &[String]| -> Vec<String> {
        let (_, list) = lines[0].split_once("known here are ").unwrap();
        let mut keys: Vec<_> = list.split('`').skip(1).step_by(2).map(str::to_owned).collect();
        keys.sort();
        keys
    };
    let keys_of = |part: &Value| -> Vec<String> {
        part["properties"].as_object().unwrap().keys().cloned().collect()
    };
    let mut file = keys_of(&schema);
    let mut build = keys_of(&schema["$defs"]["Build"]);
    file.sort();
    build.sort();
    assert_eq!(file, known(&problems("builds: {a: {context: .}}\nzzzzzz: 1")));
    assert_eq!(build, known(&problems("builds: {a: {context: ., zzzzzz: 1}}")));
}

#[test]
fn the_schema_allows_accepted_manifests() {
    assert!(allows(FULL));
    assert!(allows("builds: {a: {context: .}}"));
    assert!(allows("builds: {a: {context: ., build_args: {A: 1.10, B: true, C: x}}}"));
}

#[test]
fn the_schema_refuses_what_a_schema_can_express() {
    for text in [
        "{}",
        "builds: {}",
        "builds: []",
        "version: 1\nbuilds: {a: {context: .}}",
        "name: ''\nbuilds: {a: {context: .}}",
        "nme: x\nbuilds: {a: {context: .}}",
        "builds: {a: {}}",
        "builds: {-a: {context: .}}",
        "builds: {a b: {context: .}}",
    ] {
        assert!(!allows(text), "{text}");
        assert!(parse("", text.as_bytes()).is_err(), "{text}");
    }
    for rest in [
        "dockerfile: /x",
        "platform: linux/386",
        "platform: linux/amd64, platforms: [linux/arm64]",
        "platforms: []",
        "platforms: [linux/amd64, linux/amd64]",
        "machine: huge",
        "timeout: 30",
        "timeout: 1h 30m",
        "build_args: {A-B: x}",
        "build_args: {A: null}",
        "build_args: {A: []}",
        "target: -x",
        "cache_from: [-x]",
        "cache_from: [a, a]",
        "cache_from: a",
        "platfrom: linux/amd64",
        "matrix: {}",
        "matrix: {A: []}",
        "matrix: {A: 1}",
        "matrix: {A-B: [1]}",
        "matrix: {A: [1], include: [{}]}",
        "depends_on: b",
        "only_branches: []",
        "only_branches: ['!x']",
        "paths: [/x]",
        "paths: [a, a]",
        "emulation: never",
    ] {
        let text = format!("builds: {{a: {{context: ., {rest}}}}}");
        assert!(!allows(&text), "{text}");
        assert!(parse("", text.as_bytes()).is_err(), "{text}");
    }
}

proptest! {
    /// The schema validates the file as read by serde, in which numbers are numbers.
    #[test]
    fn the_schema_allows_everything_that_the_parser_accepts(text in manifest_text()) {
        if parse("", text.as_bytes()).is_ok() {
            prop_assert!(allows(&text), "{}", text);
        }
    }
}

/// A manifest of plausible pieces, some of them wrong.
fn manifest_text() -> impl Strategy<Value = String> {
    let pieces = prop::sample::select(vec![
        "dockerfile: x",
        "dockerfile: ../x",
        "platform: linux/arm64",
        "platform: arm64",
        "platforms: [linux/amd64, linux/arm64]",
        "platforms: [linux/arm64]",
        "machine: large",
        "machine: 5",
        "timeout: 1h",
        "timeout: 90s",
        "timeout: 1m1h",
        "target: a.b",
        "target: '0'",
        "cache_from: ['a:b', '[::1]:5000/x']",
        "cache_from: []",
        "build_args: {A: 1e3, B: .5}",
        "build_args: {A: 0x1F, _b: yes}",
        "build_args: {}",
        "matrix: {A: [1, 1.0], B: [x]}",
        "matrix: {include: [{_x: 5}]}",
        "depends_on: []",
        "depends_on: [b]",
        "only_branches: ['release/*', '**']",
        "paths: ['a b', '{x,y}/', .]",
        "emulation: forbid",
        "x: y",
        "<<: {machine: small}",
    ]);
    let name = "[a-zA-Z0-9_-]{1,8}";
    let build = (name, prop::collection::vec(pieces, 0..5))
        .prop_map(|(name, pieces)| format!("  {name}: {{context: ., {}}}\n", pieces.join(", ")));
    let head = prop::sample::select(vec![
        "",
        "version: 2\n",
        "name: x\n",
        "version: 1\n",
        "submodules: false\n",
        "submodules: shallow\n",
        "submodules: none\n",
    ]);
    (head, prop::collection::vec(build, 1..4))
        .prop_map(|(head, builds)| format!("{head}builds:\n{}", builds.concat()))
}

#[test]
fn the_schema_allows_extensions_at_the_top_alone() {
    assert!(allows("x-any: { a: [1] }\nbuilds: { app: { context: . } }\n"));
    assert!(!allows("builds: { app: { context: ., x-any: 1 } }\n"));
    assert!(parse("stagely.yaml", b"builds: { app: { context: ., x-any: 1 } }\n").is_err());
}
