//! The JSON Schema against the parser.

use proptest::prelude::*;
use serde_json::Value;
use stagely_manifest::{json_schema, parse};

use super::{FULL, problems};

const BUILDS: &str = "builds: {a: {context: .}, b: {context: ., matrix: {N: [1]}}}\n";
const ENDPOINTS: &str = "  endpoints: {web: {service: web, port: 80}}\n";

fn allows(yaml: &str) -> bool {
    let schema = serde_json::to_value(json_schema()).unwrap();
    let instance: Value = serde_saphyr::from_str(yaml).unwrap();
    jsonschema::validator_for(&schema).unwrap().is_valid(&instance)
}

#[test]
fn the_schema_is_valid_and_describes_every_key() {
    let schema = serde_json::to_value(json_schema()).unwrap();
    jsonschema::meta::validate(&schema).unwrap();
    let definitions = schema["$defs"].as_object().unwrap();
    assert_eq!(definitions.len(), 6);
    for part in definitions.values().chain([&schema]) {
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
        let mut lists = lines.iter().filter_map(|line| line.split_once("known here are "));
        let (_, list) = lists.next().unwrap();
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
    let mut of_test = keys_of(&schema["$defs"]["Test"]);
    of_test.sort();
    let section = "test: {t: {image: a, zzzzzz: 1}}";
    assert_eq!(of_test, known(&problems(format!("{BUILDS}{section}\n"))));
    for (definition, unknown) in [
        ("Preview", "  zzzzzz: 1"),
        ("Endpoint", "  <<: {endpoints: {web: {service: s, port: 80, zzzzzz: 1}}}"),
        ("Health", "  <<: {endpoints: {web: {service: s, port: 80, health: {zzzzzz: 1}}}}"),
        ("ServiceCommand", "  seed: {service: s, command: [x], zzzzzz: 1}"),
    ] {
        let endpoints = if unknown.contains("endpoints") { "" } else { ENDPOINTS };
        let text = format!("{BUILDS}preview:\n  compose: c\n{endpoints}{unknown}\n");
        let mut keys = keys_of(&schema["$defs"][definition]);
        keys.sort();
        assert_eq!(keys, known(&problems(text)), "{definition}");
    }
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

#[test]
fn the_schema_refuses_previews_that_it_can_express() {
    let refused = |text: &str| {
        assert!(!allows(text), "{text}");
        assert!(parse("", text.as_bytes()).is_err(), "{text}");
    };
    for section in [
        "{}",
        "{compose: c}",
        "{image: a}",
        "{image: a, port: 80, compose: c}",
        "{image: a, port: 80, images: {}}",
        "{image: a, port: 80, migrate: {service: web, command: [x]}}",
        "{compose: c, endpoints: {}}",
        "{compose: c, endpoints: {-a: {service: web, port: 80}}}",
        "{compose: c, endpoints: {a: {service: web}}}",
        "{compose: c, endpoints: {a: {port: 80}}}",
        "{image: a, port: 0}",
        "{image: a, port: '80'}",
        "{image: a, port: 80, health: {path: x}}",
        "{image: a, port: 80, health: {status: 99}}",
        "{image: a, port: 80, health: {timeout: 5}}",
    ] {
        refused(&format!("{BUILDS}preview: {section}\n"));
    }
    for rest in [
        "port: 80",
        "health: {}",
        "images: {-x: a}",
        "env: {A: []}",
        "env: {A-B: x}",
        "secrets: [A, A]",
        "secrets: [1A]",
        "migrate: {command: [x]}",
        "seed: {service: web}",
        "seed: {service: web, command: []}",
        "seed: {service: web, command: x}",
        "seed: {service: web, command: [1]}",
        "reset_when: []",
        "on: push",
        "branches: ['!x']",
        "machine: huge",
        "disk: 9GiB",
        "disk: 201GiB",
        "access: all",
        "public_paths: [x]",
        "public_paths: [/*/x]",
        "public_paths: ['/x y']",
        "sleep_after: 5",
        "ttl: never",
        "zzzzzz: 1",
    ] {
        refused(&format!("{BUILDS}preview:\n  compose: c\n{ENDPOINTS}  {rest}\n"));
    }
}

#[test]
fn the_schema_describes_tests() {
    let of = |test: &str| format!("{BUILDS}test: {{t: {{{test}}}}}\n");
    for test in [
        "image: a",
        "image: docker.io/library/node:24, command: [npm, test], on: tester, machine: large, shards: 16, retries: 3",
        "image: a, timeout: 1h, env: {A: 1, B: x}, secrets: [C], junit: ['r/*.xml'], artifacts: [/out], \
         comment_images: []",
        "image: a, 'on': preview",
    ] {
        assert!(allows(&of(test)), "{test}");
        let parsed = stagely_manifest::parse("stagely.yaml", of(test).as_bytes());
        assert_eq!(parsed.is_err(), test.contains("preview"), "{test}");
    }
    for test in [
        "command: [x]",
        "image: ''",
        "image: a, command: []",
        "image: a, command: x",
        "image: a, on: cloud",
        "image: a, on: preview, shards: 2",
        "image: a, on: preview, machine: small",
        "image: a, shards: 0",
        "image: a, shards: 17",
        "image: a, retries: 4",
        "image: a, timeout: 5",
        "image: a, env: {A-B: x}",
        "image: a, secrets: [A, A]",
        "image: a, junit: x",
        "image: a, junit: ['!x']",
        "image: a, zzzzzz: 1",
    ] {
        assert!(!allows(&of(test)), "{test}");
        assert!(!problems(of(test)).is_empty(), "{test}");
    }
}

proptest! {
    #[test]
    fn the_schema_allows_every_preview_that_the_parser_accepts(text in preview_text()) {
        if parse("", text.as_bytes()).is_ok() {
            prop_assert!(allows(&text), "{}", text);
        }
    }

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

/// A section of plausible pieces, some of them wrong.
fn preview_text() -> impl Strategy<Value = String> {
    let form = prop::sample::select(vec![
        "compose: c, endpoints: {web: {service: web, port: 80}}",
        "compose: a/../c, images: {x.y: a, z: b-n-1}, endpoints: {a-1: {service: _, port: 65535}}",
        "compose: c, endpoints: {a: {service: b, port: 1, health: {path: '/?a=*', status: '200'}}}",
        "image: a, port: 8080",
        "image: b-n-1, port: 1, health: {status: 200-399, timeout: 15m}",
        "image: b, port: 1",
        "compose: c",
    ]);
    let pieces = prop::sample::select(vec![
        "env: {A: 1e3, B: '${PREVIEW_URL}', C: true}",
        "env: {}",
        "secrets: [TOKEN, _a1]",
        "secrets: []",
        "migrate: {service: app, command: [a, 'b c']}",
        "seed: {command: [\"é\\n\"], timeout: 60m}",
        "reset_when: ['db/**', .]",
        "on: manual",
        "'on': label",
        "branches: [main]",
        "machine: xlarge",
        "disk: 10GiB",
        "disk: 99GiB",
        "disk: 200GiB",
        "disk: 10240MiB",
        "access: public",
        "public_paths: [/, /*, \"/a/%20~!$&'()+,;=:@-._*\"]",
        "public_paths: []",
        "sleep_after: never",
        "sleep_after: 1d",
        "ttl: 7d",
        "ttl: 29d23h59m60s",
        "ttl: 1h1d",
        "<<: {machine: small}",
    ]);
    (form, prop::collection::vec(pieces, 0..6))
        .prop_map(|(form, pieces)| format!("{BUILDS}preview: {{{form}, {}}}\n", pieces.join(", ")))
}

#[test]
fn the_schema_allows_extensions_at_the_top_alone() {
    assert!(allows("x-any: { a: [1] }\nbuilds: { app: { context: . } }\n"));
    assert!(!allows("builds: { app: { context: ., x-any: 1 } }\n"));
    assert!(parse("stagely.yaml", b"builds: { app: { context: ., x-any: 1 } }\n").is_err());
}
