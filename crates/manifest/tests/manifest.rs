//! `stagely.yaml`: what is accepted, and the exact words for what is not.

#![expect(clippy::unwrap_used, reason = "the allowance for tests does not reach their helpers")]

use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::Duration;

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use proptest::prelude::*;
use serde_json::Value;
use stagely_manifest::{
    Build, FILE_BYTES_MAX, Manifest, check_paths, json_schema, parse, read_checkout, validate,
};
use stagely_protocol::{Arch, Platform};
use stagely_state::MachineSize;

const FULL: &str = "\
version: 2
name: Web shop
builds:
  backend:
    context: ./api
    dockerfile: docker/api.Dockerfile
    platform: linux/arm64
    machine: xlarge
    build_args:
      NODE_ENV: staging
      COMMIT: ${COMMIT_HASH}
    target: runtime
    timeout: 1h30m
    cache_from: [registry.example.com:5000/team/base:cache]
  app:
    context: .
    platforms: [linux/amd64, linux/arm64]
";

fn accepted(text: &str) -> Manifest {
    parse("stagely.yaml", text.as_bytes()).unwrap_or_else(|problems| panic!("{problems}"))
}

/// The problems, one line each, without the file's name.
fn problems(bytes: impl AsRef<[u8]>) -> Vec<String> {
    let problems = parse("stagely.yaml", bytes.as_ref()).unwrap_err().to_string();
    problems.lines().map(|line| line.strip_prefix("stagely.yaml:").unwrap().to_owned()).collect()
}

/// The problems of `builds: {a: {context: ., <rest>}}`, without position and path.
fn problem_of_build(rest: &str) -> String {
    let lines = problems(format!("builds: {{a: {{context: ., {rest}}}}}"));
    let [line] = &lines[..] else { panic!("not one problem: {lines:?}") };
    line.split_once("builds.a.").unwrap().1.to_owned()
}

fn build(rest: &str) -> Build {
    accepted(&format!("builds: {{a: {{context: ., {rest}}}}}")).builds.remove(0)
}

fn build_arg(yaml: &str) -> String {
    let build =
        accepted(&format!("builds:\n  a:\n    context: .\n    build_args:\n      X: {yaml}"));
    build.builds[0].build_args["X"].fill(|variable| format!("<{}>", variable.as_str()))
}

mod what_is_accepted {
    use super::*;

    #[test]
    fn every_key_arrives() {
        let manifest = accepted(FULL);
        assert_eq!(manifest.name.as_deref(), Some("Web shop"));
        let [backend, app] = &manifest.builds[..] else { panic!("two builds in their order") };
        assert_eq!((&*backend.name, &*app.name), ("backend", "app"));
        assert_eq!(backend.context, "./api");
        assert_eq!(backend.dockerfile, "docker/api.Dockerfile");
        assert_eq!(backend.platforms, [Platform(Arch::Arm64)]);
        assert_eq!(backend.machine, MachineSize::Xlarge);
        assert_eq!(backend.build_args.len(), 2);
        assert_eq!(backend.target.as_deref(), Some("runtime"));
        assert_eq!(backend.timeout, Duration::from_mins(90));
        assert_eq!(backend.cache_from[0].registry(), "registry.example.com:5000");
        assert_eq!(app.platforms, [Platform(Arch::Amd64), Platform(Arch::Arm64)]);
    }

    #[test]
    fn a_context_is_enough() {
        let build = build("");
        assert_eq!(build.dockerfile, "Dockerfile");
        assert_eq!(build.platforms, [Platform(Arch::Amd64)]);
        assert_eq!(build.machine, MachineSize::Medium);
        assert_eq!(build.timeout, Duration::from_mins(30));
        assert!(build.build_args.is_empty() && build.cache_from.is_empty());
        assert_eq!(build.target, None);
    }

    #[test]
    fn the_examples_of_the_manual_are_valid() {
        accepted(
            "builds:\n  backend_amd64:\n    context: \"./api\"\n    platform: \"linux/amd64\"\n    \
             machine: \"medium\"\n\n  worker_arm64:\n    context: \"./worker\"\n    platform: \
             \"linux/arm64\"\n    machine: \"small\"\n  slow_service:\n    context: \
             \"./heavy-app\"\n    timeout: \"45m\"\n",
        );
    }

    #[test]
    fn times_are_hours_minutes_and_seconds() {
        let seconds = |timeout: &str| build(&format!("timeout: {timeout}")).timeout.as_secs();
        assert_eq!(seconds("45m"), 2_700);
        assert_eq!(seconds("\"1h30m\""), 5_400);
        assert_eq!(seconds("90s"), 90);
        assert_eq!(seconds("1h0m1s"), 3_601);
        assert_eq!(seconds("24h"), 86_400);
        assert_eq!(seconds("1440m"), 86_400);
    }

    #[test]
    fn build_args_are_taken_as_written() {
        for yaml in ["1.10", "true", "False", "0x1F", "1e3", "007", "yes", "2024-01-01", "-0", ".5"]
        {
            assert_eq!(build_arg(yaml), yaml);
        }
        assert_eq!(build_arg("\"\""), "");
        assert_eq!(build_arg("\"null\""), "null");
        assert_eq!(build_arg("!!str 1.10"), "1.10");
        assert_eq!(build_arg("'a: b'"), "a: b");
        assert_eq!(build_arg("|\n        one\n        two"), "one\ntwo\n");
        assert_eq!(build_arg("a=${BRANCH}, $${BRANCH}"), "a=<BRANCH>, ${BRANCH}");
    }

    #[test]
    fn anchors_aliases_and_merge_keys_work() {
        let manifest = accepted(
            "builds:\n  a: &a\n    context: a\n    machine: large\n    build_args: &args {X: 1}\n  \
             b: {<<: *a, context: b}\n  c: {<<: [{machine: small}, *a], build_args: {<<: *args, X: \
             2, Y: 3}}\n",
        );
        let [_, b, c] = &manifest.builds[..] else { panic!("three builds") };
        assert_eq!((&*b.context, b.machine, b.build_args.len()), ("b", MachineSize::Large, 1));
        assert_eq!((&*c.context, c.machine, c.build_args.len()), ("a", MachineSize::Small, 2));
        assert_eq!(c.build_args["X"].fill(|_| String::new()), "2");
    }

    #[test]
    fn a_byte_order_mark_directives_and_windows_lines_change_nothing() {
        let plain = accepted(FULL);
        assert_eq!(accepted(&format!("\u{feff}{FULL}")), plain);
        assert_eq!(accepted(&FULL.replace('\n', "\r\n")), plain);
        accepted(&format!("%YAML 1.2\n---\n{FULL}...\n"));
    }

    #[test]
    fn dots_may_wander_as_long_as_they_stay_inside() {
        accepted("builds: {a: {context: api/../web/., dockerfile: ../web/Dockerfile}}");
    }

    #[test]
    fn keys_are_text_however_yaml_sees_them() {
        let manifest =
            accepted("builds: {1: {context: .}, null: {context: .}, true: {context: .}}");
        let names: Vec<_> = manifest.builds.iter().map(|build| &*build.name).collect();
        assert_eq!(names, ["1", "null", "true"]);
    }
}

mod what_is_refused {
    use super::*;

    #[test]
    fn everything_at_once_and_in_the_order_of_the_lines() {
        let text = "\
version: 3
builds:
  worker:
    platform: arm64
    machine: meduim
    cache_form: []
  bad name: {context: ../up}
nme: x
";
        let all = parse("ci/stagely.yaml", text.as_bytes()).unwrap_err();
        assert_eq!(
            all.to_string(),
            "\
ci/stagely.yaml:1:10: version: `3` is not a known version; the only one is 2, without quotes
ci/stagely.yaml:3:3: builds.worker.context: is missing; it is the folder that the image is built from
ci/stagely.yaml:4:15: builds.worker.platform: `arm64` is not supported; did you mean `linux/arm64`?
ci/stagely.yaml:5:14: builds.worker.machine: `meduim` is not a machine size; did you mean `medium`?
ci/stagely.yaml:6:5: builds.worker.cache_form: unknown key; did you mean `cache_from`?
ci/stagely.yaml:7:3: builds.bad name: a build's name is made of letters (a-z, A-Z), digits, `_` and `-`
ci/stagely.yaml:7:23: builds.bad name.context: `../up` leads out of the repository
ci/stagely.yaml:8:1: nme: unknown key; did you mean `name`?"
        );
        let json = serde_json::to_value(&all).unwrap();
        assert_eq!(json["problems"][2]["line"], 4);
        assert_eq!(json["problems"][2]["column"], 15);
        assert_eq!(json["problems"][2]["path"], "builds.worker.platform");
    }

    #[test]
    fn a_file_that_is_no_manifest() {
        let empty = "1:1: the file is empty; it needs at least `builds:` with one build";
        for text in ["", "\n\n", "# nothing\n", "---\n", "~", "null", "\u{feff}"] {
            assert_eq!(problems(text), [empty], "{text:?}");
        }
        for (text, line) in [
            ("- a", "1:1: expected a map with the key `builds`, found a list"),
            ("hello", "1:1: expected a map with the key `builds`, found text"),
            ("5", "1:1: expected a map with the key `builds`, found a number"),
            ("{}", "1:1: builds: is missing; it maps names to builds"),
            ("builds:", "1:1: builds: expected a map of names to builds, found nothing"),
            ("builds: {}", "1:9: builds: needs at least one build"),
            ("builds: x", "1:9: builds: expected a map of names to builds, found text"),
            (
                "builds:\n  - a: {context: .}",
                "2:3: builds: expected a map of names to builds, found a list; write `name:` \
                 instead of `- name:`",
            ),
            (
                "builds: {a: }",
                "1:10: builds.a: expected a map with at least `context`, found nothing",
            ),
            (
                "builds: {a: x}",
                "1:13: builds.a: expected a map with at least `context`, found text",
            ),
            (
                "builds: {a: {context: .}}\n---\nbuilds: {}",
                "2:1: a second document begins here; `stagely.yaml` is a single one",
            ),
        ] {
            assert_eq!(problems(text), [line], "{text:?}");
        }
    }

    #[test]
    fn broken_yaml_with_its_place() {
        for (text, start) in [
            ("builds:\n\ta: {}", "2:2: not valid YAML: a tab cannot indent; use spaces"),
            ("builds: {a: {context: .}", "1:9: not valid YAML: unclosed bracket"),
            ("builds:\n  a: 'x", "2:6: not valid YAML: unclosed quote"),
            ("a: b: c", "1:5: not valid YAML: "),
            ("builds: *b", "1:9: not valid YAML: this alias names no anchor above it"),
            ("builds: &b {a: *b}", "1:16: this alias stands inside the very value it names"),
        ] {
            let lines = problems(text);
            assert!(lines.len() == 1 && lines[0].starts_with(start), "{text:?}: {lines:?}");
        }
    }

    #[test]
    fn text_in_another_encoding() {
        assert_eq!(problems(b"builds:\n  caf\xe9: {}"), ["2:6: the file is not UTF-8 text"]);
        assert_eq!(problems(b"\xff\xfeb\0"), ["1:1: the file is not UTF-8 text"]);
    }

    #[test]
    fn keys_that_come_twice() {
        assert_eq!(
            problems("builds:\n  a:\n    context: .\n    context: b\n  a: {context: .}"),
            [
                "4:5: builds.a.context: is given twice, first on line 3",
                "5:3: builds.a: is given twice, first on line 2",
            ]
        );
        assert_eq!(
            problems("builds: {a: {context: .}}\nbuilds: {a: {context: .}}"),
            ["2:1: builds: is given twice, first on line 1"]
        );
    }

    #[test]
    fn unknown_keys_with_what_was_meant() {
        for (key, meant) in [
            ("platfroms", "platforms"),
            ("platfrom", "platform"),
            ("Timeout", "timeout"),
            ("args", "build_args"),
            ("build-args", "build_args"),
            ("file", "dockerfile"),
        ] {
            assert_eq!(
                problem_of_build(&format!("{key}: x")),
                format!("{key}: unknown key; did you mean `{meant}`?")
            );
        }
        assert_eq!(
            problem_of_build("image: x"),
            "image: unknown key; known here are `context`, `dockerfile`, `platform`, `platforms`, \
             `machine`, `build_args`, `target`, `timeout`, `cache_from`, `matrix`, `depends_on`, \
             `only_branches`, `paths` and `emulation`"
        );
        assert_eq!(
            problems("builds: {a: {context: .}}\nservices: {}"),
            ["2:1: services: unknown key; known here are `version`, `name` and `builds`"]
        );
    }

    #[test]
    fn keys_and_merges_that_make_no_sense() {
        assert_eq!(
            problems("builds: {a: {context: ., ? [x] : y}}"),
            ["1:28: builds.a: a key must be text, but this is a list"]
        );
        assert_eq!(
            problem_of_build("<<: 5"),
            "<<: `<<` wants a map or a list of maps, not a number"
        );
    }

    #[test]
    fn values_of_another_type() {
        for (rest, problem) in [
            ("target: 5", "target: expected text, found a number; put it in quotes"),
            ("target: true", "target: expected text, found a boolean; put it in quotes"),
            ("target: ", "target: expected text, found nothing"),
            ("target: [x]", "target: expected text, found a list"),
            ("target: {x: y}", "target: expected text, found a map"),
            ("target: !env X", "target: expected text, found a value with a tag"),
            ("dockerfile: ~", "dockerfile: expected text, found nothing"),
            ("build_args: ", "build_args: expected a map of names to values, found nothing"),
            (
                "build_args: [A=1]",
                "build_args: expected a map of names to values, found a list; write `NAME: value` \
                 instead of `- NAME=value`",
            ),
            ("cache_from: a", "cache_from: expected a list of image references, found text"),
            ("cache_from: [1]", "cache_from[0]: expected text, found a number; put it in quotes"),
        ] {
            assert_eq!(problem_of_build(rest), problem);
        }
    }

    #[test]
    fn another_version() {
        for text in ["1", "\"2\"", "2.0", "two"] {
            let shown = text.trim_matches('"');
            assert_eq!(
                problems(format!("version: {text}\nbuilds: {{a: {{context: .}}}}")),
                [format!(
                    "1:10: version: `{shown}` is not a known version; the only one is 2, without \
                     quotes"
                )]
            );
        }
    }

    #[test]
    fn paths_that_leave_or_hide_something() {
        for (context, problem) in [
            ("/", "`/` is absolute: paths are relative to the repository's root"),
            ("..", "`..` leads out of the repository"),
            ("a/../../b", "`a/../../b` leads out of the repository"),
            ("\"\"", "is empty; write `.` for the repository's root"),
            ("\"a\\nb\"", "holds a control character"),
            ("\"\\0\"", "holds a control character"),
        ] {
            let lines = problems(format!("builds: {{a: {{context: {context}}}}}"));
            assert_eq!(lines, [format!("1:23: builds.a.context: {problem}")]);
        }
        for (dockerfile, problem) in [
            (
                "/etc/passwd",
                "`/etc/passwd` is absolute: paths are relative to the repository's root",
            ),
            ("../Dockerfile", "`../Dockerfile` leads out of the repository"),
            ("\"\"", "is empty"),
        ] {
            let rest = format!("dockerfile: {dockerfile}");
            assert_eq!(problem_of_build(&rest), format!("dockerfile: {problem}"));
        }
        // Where the context is wrong, nobody knows where `..` leads.
        assert_eq!(
            problems("builds: {a: {context: 5, dockerfile: ../Dockerfile}}"),
            ["1:23: builds.a.context: expected text, found a number; put it in quotes"]
        );
        let long = "x".repeat(1025);
        assert_eq!(
            problem_of_build(&format!("dockerfile: {long}")),
            "dockerfile: is longer than 1024 bytes"
        );
    }

    #[test]
    fn platforms_that_are_none() {
        let supported = "supported are `linux/amd64` and `linux/arm64`";
        for text in ["linux/arm/v7", "linux/arm", "linux/386", "windows/amd64", "linux/riscv64"] {
            let problem = problem_of_build(&format!("platform: {text}"));
            assert_eq!(problem, format!("platform: `{text}` is not supported; {supported}"));
        }
        for (text, meant) in [
            ("arm64", "linux/arm64"),
            ("aarch64", "linux/arm64"),
            ("linux/arm64/v8", "linux/arm64"),
            ("linux/x86_64", "linux/amd64"),
            ("Linux/AMD64", "linux/amd64"),
            ("linux/amd46", "linux/amd64"),
        ] {
            let problem = problem_of_build(&format!("platforms: [{text}]"));
            assert_eq!(
                problem,
                format!("platforms[0]: `{text}` is not supported; did you mean `{meant}`?")
            );
        }
    }

    #[test]
    fn platforms_given_in_the_wrong_way() {
        for (rest, problem) in [
            (
                "platform: linux/amd64, platforms: [linux/arm64]",
                "platforms: `platform` and `platforms` are both given; keep one",
            ),
            ("platforms: []", "platforms: names no platform; leave it out for `linux/amd64`"),
            ("platforms: [linux/arm64, linux/arm64]", "platforms[1]: `linux/arm64` is named twice"),
            (
                "platforms: linux/arm64",
                "platforms: expected a list of platforms, found text; did you mean `platform`?",
            ),
            (
                "platform: [linux/arm64]",
                "platform: expected one platform, found a list; did you mean `platforms`?",
            ),
        ] {
            assert_eq!(problem_of_build(rest), problem);
        }
    }

    #[test]
    fn machines_that_are_not_for_sale() {
        assert_eq!(
            problem_of_build("machine: huge"),
            "machine: `huge` is not a machine size; there are `small`, `medium`, `large` and `xlarge`"
        );
        assert_eq!(
            problem_of_build("machine: X-Large"),
            "machine: `X-Large` is not a machine size; did you mean `xlarge`?"
        );
    }

    #[test]
    fn times_that_are_none() {
        let form = "write it like `45m`, `1h30m` or `90s`";
        for (text, problem) in [
            ("30", "`30` has no unit; write `30m` for minutes or `30s` for seconds".to_owned()),
            ("\"30\"", "`30` has no unit; write `30m` for minutes or `30s` for seconds".to_owned()),
            ("-5m", format!("`-5m` is not a time; {form}")),
            ("1.5h", format!("`1.5h` is not a time; {form}")),
            ("1h 30m", format!("`1h 30m` is not a time; {form}")),
            ("30m1h", format!("`30m1h` is not a time; {form}")),
            ("45M", format!("`45M` is not a time; {form}")),
            ("m", format!("`m` is not a time; {form}")),
            ("9999999s", format!("`9999999s` is not a time; {form}")),
            ("\"\"", format!("`` is not a time; {form}")),
            ("0s", format!("must be more than nothing; {form}")),
            ("0h0m", format!("must be more than nothing; {form}")),
            ("24h1s", "`24h1s` is longer than 24h, the most that a build may take".to_owned()),
            ("true", "expected a time such as `45m`, found a boolean".to_owned()),
        ] {
            assert_eq!(
                problem_of_build(&format!("timeout: {text}")),
                format!("timeout: {problem}")
            );
        }
    }

    #[test]
    fn build_args_that_docker_would_not_take() {
        for name in ["1A", "A-B", "A.B", "\"A B\"", "\"\"", "É"] {
            let problem = problem_of_build(&format!("build_args: {{{name}: x}}"));
            assert!(problem.contains("a build argument's name is made of letters"), "{problem}");
        }
        for null in ["", "~", "null"] {
            assert_eq!(
                problem_of_build(&format!("build_args: {{A: {null}}}")),
                "build_args.A: has no value; write `\"\"` for an empty one"
            );
        }
        assert_eq!(
            problem_of_build("build_args: {A: [1]}"),
            "build_args.A: expected text, a number or a boolean, found a list"
        );
        assert_eq!(
            problem_of_build("build_args: {A: \"${FOO}\"}"),
            "build_args.A: unknown variable `${FOO}`; the variables are `COMMIT_HASH`, `BRANCH`, \
             `PR_NUMBER`, `PROJECT_ID` and `STAGELY_HASH`; write `$${` for a literal `${`"
        );
    }

    #[test]
    fn targets_and_caches_that_would_become_options() {
        assert_eq!(
            problem_of_build("target: --push"),
            "target: `--push` is not the name of a build stage"
        );
        for text in ["-o", "a b", "type=registry", "\"\""] {
            let problem = problem_of_build(&format!("cache_from: [{text}]"));
            assert!(problem.contains("is not an image reference such as"), "{problem}");
        }
        assert_eq!(
            problem_of_build("cache_from: [a:b, a:b]"),
            "cache_from[1]: `a:b` is named twice"
        );
    }

    #[test]
    fn names_that_collide() {
        let both = "platforms: [linux/amd64, linux/arm64]";
        for (first, second, problem) in [
            ("app: {context: .}", "App: {context: .}", "name `App`"),
            ("app: {context: ., <both>}", "app_arm64: {context: .}", "job `app_arm64`"),
            ("app_arm64: {context: .}", "app: {context: ., <both>}", "job `app_arm64`"),
            ("app: {context: ., <both>}", "app_merge: {context: .}", "job `app_merge`"),
            ("app: {context: ., <both>}", "app-amd64: {context: .}", "cache tag `app-amd64`"),
            (
                "app-arm64: {context: ., <both>}",
                "app: {context: ., platform: linux/arm64}",
                "image tag `app-arm64`",
            ),
        ] {
            let text = format!("builds:\n  {first}\n  {second}").replace("<both>", both);
            let lines = problems(&text);
            assert!(lines.len() == 1 && lines[0].starts_with("3:3: builds."), "{lines:?}");
            assert!(lines[0].contains(&format!(": its {problem} belongs to build `")), "{lines:?}");
        }
        accepted("builds:\n  app: {context: ., platform: linux/amd64}\n  app_arm64: {context: .}");
    }

    #[test]
    fn names_that_are_too_long_or_strange() {
        let name = |length| "n".repeat(length);
        accepted(&format!("builds: {{{}: {{context: .}}}}", name(95)));
        let lines = problems(format!("builds: {{{}: {{context: .}}}}", name(96)));
        let tag = "is too long: an image's tag without the run's id has at most 101 characters, and \
                   this has 102 with `-amd64`";
        assert!(lines[0].ends_with(tag), "{lines:?}");
        let most = "is too long: a job's name has at most 100 characters, and this has 101";
        let lines = problems(format!(
            "builds: {{{}: {{context: ., platforms: [linux/amd64, linux/arm64]}}}}",
            name(95)
        ));
        assert!(lines[0].ends_with(&format!("{most} with `_amd64`")), "{lines:?}");
        for name in ["a.b", "\"a b\"", "\"\"", "é", "a/b", "\"a\\nb\""] {
            let lines = problems(format!("builds: {{{name}: {{context: .}}}}"));
            assert!(lines[0].contains("a build's name is made of letters"), "{lines:?}");
        }
        let lines = problems(r#"builds: {"a\nb": {context: .}, "A\nB": {context: .}}"#);
        assert!(lines.len() == 3 && lines[2].contains(r"its name `A\nB` belongs to build `a\nb`"));
        let lines = problems("builds: {-a: {context: .}}");
        assert!(
            lines[0].ends_with("cannot start with `-`, because image tags cannot"),
            "{lines:?}"
        );
    }

    #[test]
    fn more_than_is_allowed() {
        let builds = |count| {
            (0..count).fold("builds:\n".to_owned(), |mut text, index| {
                writeln!(text, "  b{index}: {{context: .}}").unwrap();
                text
            })
        };
        accepted(&builds(64));
        assert_eq!(problems(builds(65)), ["2:3: builds: at most 64 are allowed, found 65"]);
        let args: Vec<_> = (0..129).map(|index| format!("A{index}: x")).collect();
        assert_eq!(
            problem_of_build(&format!("build_args: {{{}}}", args.join(", "))),
            "build_args: at most 128 are allowed, found 129"
        );
    }

    #[test]
    fn at_most_a_hundred_problems_are_listed() {
        let keys: Vec<_> = (0..150).map(|index| format!("k{index}: 1\n")).collect();
        let problems = parse("stagely.yaml", keys.concat().as_bytes()).unwrap_err();
        assert_eq!((problems.problems.len(), problems.more), (100, 51));
        assert!(problems.to_string().ends_with("\nstagely.yaml: and 51 more problems"));
    }
}

mod matrices {
    use super::*;

    /// The names of the variants, without the build's.
    fn variants(matrix: &str) -> Vec<String> {
        let build = build(&format!("matrix: {matrix}"));
        build.variants.iter().map(|it| it.name.strip_prefix("a-").unwrap().to_owned()).collect()
    }

    fn problem(matrix: &str) -> String {
        problem_of_build(&format!("matrix: {matrix}")).strip_prefix("matrix").unwrap().to_owned()
    }

    #[test]
    fn every_value_meets_every_value_as_it_is_written() {
        assert_eq!(
            variants("{NODE_VERSION: [18, 3.10], Debug: [true, 'A/b c']}"),
            [
                "node_version-18-debug-true",
                "node_version-18-debug-a-b-c",
                "node_version-3.10-debug-true",
                "node_version-3.10-debug-a-b-c",
            ]
        );
        let build = build("matrix: {V: [3.1, 3.10, '${BRANCH}']}");
        let values: Vec<_> = build.variants.iter().map(|it| &*it.values["V"]).collect();
        assert_eq!(values, ["3.1", "3.10", "${BRANCH}"]);
    }

    #[test]
    fn exclude_takes_away_and_then_include_adds_as_github_does() {
        assert_eq!(
            variants("{A: [1, 2], B: [x, y], exclude: [{A: 1, B: x}, {A: 2}]}"),
            ["a-1-b-y"]
        );
        // The example of GitHub's manual.
        assert_eq!(
            variants(
                "{fruit: [apple, pear], animal: [cat, dog], include: [{color: green}, {color: pink, \
                 animal: cat}, {fruit: apple, shape: circle}, {fruit: banana}, {fruit: banana, \
                 animal: cat}]}"
            ),
            [
                "fruit-apple-animal-cat-color-pink-shape-circle",
                "fruit-apple-animal-dog-color-green-shape-circle",
                "fruit-pear-animal-cat-color-pink",
                "fruit-pear-animal-dog-color-green",
                "fruit-banana",
                "fruit-banana-animal-cat",
            ]
        );
        assert_eq!(variants("{include: [{A: 1}, {A: 2, B: 3}]}"), ["a-1", "a-2-b-3"]);
    }

    #[test]
    fn mistakes_are_named_with_their_place() {
        for (matrix, expected) in [
            ("5", ": expected a map of build arguments to lists of values, found a number"),
            (
                "{}",
                ": names no build argument; map one to a list of values, such as `NODE_VERSION: \
                 [18, 20]`",
            ),
            ("{A: 18}", ".A: expected a list of values, found a number; write `[…]` around it"),
            ("{A: []}", ".A: names no value; leave it out instead"),
            ("{A: [18, '18']}", ".A[1]: `18` is named twice"),
            ("{A: [~]}", ".A[0]: has no value; write `\"\"` for an empty one"),
            ("{A: [[x]]}", ".A[0]: expected text, a number or a boolean, found a list"),
            (
                "{A-B: [x]}",
                ".A-B: a build argument's name is made of letters (a-z, A-Z), digits and `_`, and \
                 starts with no digit",
            ),
            ("{A: [x], include: []}", ".include: names no combination; leave it out instead"),
            ("{A: [x], include: [{}]}", ".include[0]: names no value; leave it out instead"),
            (
                "{A: [x], exclude: [x]}",
                ".exclude[0]: expected a map of names to values, found text",
            ),
            (
                "{Node: [x], exclude: [{node: x}]}",
                ".exclude[0].node: is not in the lists of this matrix; did you mean `Node`?",
            ),
            (
                "{A: [x], exclude: [{A: y}]}",
                ".exclude[0]: excludes nothing: no combination of the lists has these values",
            ),
            ("{A: [x], exclude: [{A: x}]}", ": `exclude` leaves no combination"),
            (
                "{A: [x, X]}",
                ": the combinations `A: x` and `A: X` are both called `a-a-x`: in tags and job names \
                 upper case is lower case, and other characters than letters, digits, `_`, `.` and \
                 `-` are `-`",
            ),
        ] {
            assert_eq!(problem(matrix), expected, "{matrix}");
        }
        for matrix in ["{A: [x]}", "{B: [x], include: [{A: 1}]}"] {
            let problem = problem_of_build(&format!("build_args: {{A: 1}}, matrix: {matrix}"));
            assert!(problem.ends_with("A: is in `build_args` too; keep one"), "{problem}");
        }
    }

    #[test]
    fn more_than_64_jobs_are_refused_with_their_number() {
        let list = |count: usize| (0..count).map(|it| it.to_string()).collect::<Vec<_>>().join(",");
        assert_eq!(variants(&format!("{{A: [{}]}}", list(64))).len(), 64);
        assert_eq!(
            problem(&format!("{{A: [{}]}}", list(65))),
            ": makes 65 jobs (65 combinations, 1 job each), but a build has at most 64"
        );
        let both = "platforms: [linux/amd64, linux/arm64], matrix";
        assert_eq!(build(&format!("{both}: {{A: [{}]}}", list(21))).job_count(), 63);
        assert_eq!(
            problem_of_build(&format!("{both}: {{A: [{}]}}", list(22))),
            "matrix: makes 66 jobs (22 combinations, 3 jobs each), but a build has at most 64"
        );
        let hostile: Vec<_> = (0..16).map(|it| format!("K{it}: [{}]", list(256))).collect();
        assert_eq!(
            problem(&format!("{{{}}}", hostile.join(", "))),
            format!(
                ": its lists make {} combinations before `exclude`, but a build has at most 64 jobs",
                u128::MAX
            )
        );
        let name = format!("{{A: [{}]}}", "x".repeat(100));
        let lines = problems(format!("builds: {{a: {{context: ., matrix: {name}}}}}"));
        assert!(lines[0].contains("is too long: a job's name has at most 100"), "{lines:?}");
    }

    #[test]
    fn combinations_take_names_from_other_builds() {
        let lines =
            problems("builds:\n  app: {context: ., matrix: {A: [1]}}\n  app-a-1: {context: .}");
        assert!(lines[0].ends_with("its name `app-a-1` belongs to build `app` (line 2) already"));
    }
}

mod orders_and_globs {
    use super::*;

    #[test]
    fn what_a_build_waits_for_and_where_it_runs() {
        let manifest = accepted(
            "builds:\n  a: {context: ., depends_on: [b], only_branches: [main, 'release/**']}\n  b: \
             {context: ., paths: [api, '*.md'], emulation: forbid}\n",
        );
        let [a, b] = &manifest.builds[..] else { panic!("two builds") };
        assert_eq!(a.depends_on, ["b"]);
        assert!(a.only_branches.as_ref().unwrap().is_match("release/1/x"));
        assert!(b.paths.as_ref().unwrap().is_match("api/src/x"));
        assert!(!b.paths.as_ref().unwrap().is_match("docs/x.md"));
        assert!(a.emulation.is_allowed() && !b.emulation.is_allowed());
    }

    #[test]
    fn dependencies_that_lead_nowhere() {
        let text = |list: &str| {
            format!("builds:\n  app: {{context: ., depends_on: {list}}}\n  base: {{context: .}}\n")
        };
        for (list, problem) in [
            ("[bas]", "[0]: there is no build `bas`; did you mean `base`?"),
            ("[zzz]", "[0]: there is no build `zzz`; there are `base`"),
            ("[app]", "[0]: a build cannot depend on itself"),
            ("[base, base]", "[1]: `base` is named twice"),
            ("base", ": expected a list of builds, found text; write `[…]` around it"),
            ("[1]", "[0]: expected text, found a number; put it in quotes"),
        ] {
            let lines = problems(text(list));
            assert_eq!(lines.len(), 1, "{lines:?}");
            let (_, found) = lines[0].split_once("builds.app.depends_on").unwrap();
            assert_eq!(found, problem);
        }
    }

    #[test]
    fn circles_are_shown_once_each() {
        let circle = "builds:\n  c: {context: ., depends_on: [a]}\n  a: {context: ., depends_on: [b]}\n  \
                      b: {context: ., depends_on: [a, c]}\n  d: {context: ., depends_on: [b]}\n";
        assert_eq!(
            problems(circle),
            [
                "2:31: builds.c.depends_on: these builds wait for each other: c -> a -> b -> c",
                "3:31: builds.a.depends_on: these builds wait for each other: a -> b -> a",
            ]
        );
    }

    #[test]
    fn images_that_lack_a_platform() {
        let text = |platforms| {
            format!(
                "builds:\n  app: {{context: ., depends_on: [base], platform: linux/arm64}}\n  \
                 base: {{context: ., platforms: {platforms}}}\n"
            )
        };
        accepted(&text("[linux/amd64, linux/arm64]"));
        assert_eq!(
            problems(text("[linux/amd64]")),
            [
                "2:33: builds.app.depends_on: this build is made for linux/arm64, and `base` is not; \
              add linux/arm64 to the `platforms` of `base`"
            ]
        );
    }

    #[test]
    fn more_jobs_and_images_than_a_file_may_make() {
        let values = |count| (0..count).map(|it| it.to_string()).collect::<Vec<_>>().join(", ");
        let build = |name: &str, count, more: &str| {
            format!("  {name}: {{context: ., matrix: {{X: [{}]}}{more}}}\n", values(count))
        };
        let builds: Vec<_> = (0..11).map(|it| build(&format!("b{it}"), 47, "")).collect();
        accepted(&format!("builds:\n{}", builds[..10].concat()));
        assert_eq!(
            problems(format!("builds:\n{}", builds.concat())),
            [
                "2:3: builds: the builds make 517 jobs together, but a file has at most 512; give them \
              fewer combinations or platforms"
            ]
        );
        let app = "  app: {context: ., depends_on: [a, b]}\n";
        let text = |count| format!("builds:\n{app}{}{}", build("a", 32, ""), build("b", count, ""));
        accepted(&text(32));
        assert_eq!(
            problems(text(33)),
            [
                "2:33: builds.app.depends_on: these builds make 65 images, but a build uses at most 64; \
              give them fewer combinations, or depend on fewer"
            ]
        );
    }

    #[test]
    fn combinations_and_platforms_that_would_share_a_tag() {
        let lines = problems(
            "builds: {a: {context: ., platforms: [linux/amd64, linux/arm64], \
             matrix: {X: ['1', 1-amd64]}}}",
        );
        assert_eq!(
            lines,
            ["1:10: builds.a: two of its combinations and platforms would have the image tag \
              `a-x-1-amd64`; change a value of the matrix"]
        );
    }

    #[test]
    fn images_that_would_share_an_argument() {
        let two = "builds:\n  app: {context: ., depends_on: [a-b, a_b]}\n  a-b: {context: .}\n  a_b: \
                   {context: .}\n";
        assert_eq!(
            problems(two),
            ["2:33: builds.app.depends_on: the images of `a-b` and `a_b` would both be the build \
              argument `STAGELY_IMAGE_A_B`; rename one"]
        );
        for own in ["build_args: {STAGELY_IMAGE_A: x}", "matrix: {STAGELY_IMAGE_A: [x]}"] {
            let lines = problems(format!(
                "builds:\n  app: {{context: ., depends_on: [a], {own}}}\n  a: {{context: .}}\n"
            ));
            assert!(
                lines[0].ends_with("names the image of `a`; call yours otherwise"),
                "{lines:?}"
            );
        }
    }

    #[test]
    fn patterns_that_are_none() {
        for (rest, problem) in [
            ("paths: api", "paths: expected a list of patterns, found text; write `[…]` around it"),
            ("paths: []", "paths: names no pattern; leave it out instead"),
            ("paths: ['']", "paths[0]: is empty"),
            ("paths: [api, api]", "paths[1]: `api` is named twice"),
            (
                "paths: ['[a']",
                "paths[0]: `[a` is not a pattern: unclosed character class; missing ']'",
            ),
            (
                "paths: [/api]",
                "paths[0]: `/api` is absolute: paths are relative to the repository's root",
            ),
            ("paths: [../x]", "paths[0]: `../x` leads out of the repository"),
            (
                "only_branches: ['!main']",
                "only_branches[0]: a pattern that begins with `!` is not supported; list the branch \
                 patterns that count (`\\!` is the character itself)",
            ),
            ("emulation: true", "emulation: expected text, found a boolean; put it in quotes"),
            ("emulation: never", "emulation: `never` is neither `allow` nor `forbid`"),
        ] {
            assert_eq!(problem_of_build(rest), problem);
        }
        let many: Vec<_> = (0..33).map(|it| format!("p{it}")).collect();
        assert_eq!(
            problem_of_build(&format!("paths: [{}]", many.join(", "))),
            "paths: at most 32 are allowed, found 33"
        );
    }
}

mod bombs {
    use super::*;

    #[test]
    fn a_file_over_the_limit_is_not_read() {
        let comment = |bytes: usize| format!("{FULL}#{}", "x".repeat(bytes - FULL.len() - 1));
        accepted(&comment(FILE_BYTES_MAX));
        assert_eq!(problems(comment(FILE_BYTES_MAX + 1)), ["1:1: the file is larger than 256 KiB"]);
    }

    #[test]
    fn laughs_do_not_multiply() {
        let mut laughs = "a0: &a0 [lol, lol, lol]\n".to_owned();
        let mut merges = "a0: &a0 {x: lol}\n".to_owned();
        for level in 1..20 {
            let items = vec![format!("*a{}", level - 1); 10].join(", ");
            writeln!(laughs, "a{level}: &a{level} [{items}]").unwrap();
            writeln!(merges, "a{level}: &a{level} {{<<: [{items}]}}").unwrap();
        }
        let long = format!("a: &a {}\nb: [{}]", "x".repeat(100_000), vec!["*a"; 1000].join(", "));
        for text in [laughs, merges, long] {
            let lines = problems(text);
            assert!(lines[0].ends_with("aliases make the file larger than 1024 KiB"), "{lines:?}");
        }
    }

    #[test]
    fn nesting_has_an_end() {
        let mut aliases = "a0: &a0 x\n".to_owned();
        for level in 1..100 {
            writeln!(aliases, "a{level}: &a{level} [*a{}]", level - 1).unwrap();
        }
        for text in ["[".repeat(200_000), "- ".repeat(100_000), "{a: ".repeat(50_000), aliases] {
            let lines = problems(text);
            assert!(lines[0].ends_with("the file nests more than 32 deep"), "{lines:?}");
        }
    }
}

mod paths {
    use super::*;

    fn repository(files: &[&str]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for file in files {
            let path = folder.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "FROM scratch\n").unwrap();
        }
        folder
    }

    fn problems(text: &str, root: &Path) -> Vec<String> {
        let problems = validate("stagely.yaml", text.as_bytes(), root).unwrap_err().to_string();
        problems.lines().map(str::to_owned).collect()
    }

    #[test]
    fn what_is_there_is_found() {
        let root = repository(&["api/Dockerfile", "web/main.c", "docker/web.Dockerfile"]);
        let manifest = accepted(
            "builds:\n  a: {context: api}\n  b: {context: web, dockerfile: docker/web.Dockerfile}\n  \
             c: {context: web, dockerfile: ../api/Dockerfile}\n",
        );
        check_paths(&manifest, root.path(), "stagely.yaml").unwrap();
    }

    #[test]
    fn what_is_missing_is_named_with_its_place() {
        let root = repository(&["api/main.c", "file"]);
        let text = "\
builds:
  a:
    context: api
  b:
    context: api
    dockerfile: prod.Dockerfile
  c: {context: nowhere, machine: big}
  d: {context: file}
  e: {context: /tmp}
";
        assert_eq!(
            problems(text, root.path()),
            [
                "stagely.yaml:3:14: builds.a.dockerfile: no Dockerfile: neither `api/Dockerfile` nor \
                 `Dockerfile` is a file of the repository",
                "stagely.yaml:6:17: builds.b.dockerfile: no Dockerfile: neither \
                 `api/prod.Dockerfile` nor `prod.Dockerfile` is a file of the repository",
                "stagely.yaml:7:16: builds.c.context: the context `nowhere` is not in the repository",
                "stagely.yaml:7:34: builds.c.machine: `big` is not a machine size; there are \
                 `small`, `medium`, `large` and `xlarge`",
                "stagely.yaml:8:16: builds.d.context: the context `file` is not a folder",
                "stagely.yaml:9:16: builds.e.context: `/tmp` is absolute: paths are relative to the \
                 repository's root",
            ]
        );
    }

    #[test]
    fn symlinks_do_not_lead_out() {
        let outside = repository(&["Dockerfile"]);
        let root = repository(&["api/Dockerfile"]);
        symlink(outside.path(), root.path().join("away")).unwrap();
        symlink(outside.path().join("Dockerfile"), root.path().join("api/away")).unwrap();
        let text = "builds:\n  a: {context: away}\n  b: {context: api, dockerfile: away}\n";
        assert_eq!(
            problems(text, root.path()),
            [
                "stagely.yaml:2:16: builds.a.context: `away` leads out of the repository",
                "stagely.yaml:3:33: builds.b.dockerfile: `away` leads out of the repository",
            ]
        );
    }

    #[test]
    fn the_file_itself_is_one_of_the_repository() {
        let outside = repository(&[]);
        fs::write(outside.path().join("secret"), "a secret of the host").unwrap();
        mkfifo(&outside.path().join("fifo"), Mode::S_IRWXU).unwrap();
        let root = repository(&["ci/stagely.yaml"]);
        let file = root.path().join("stagely.yaml");
        let read = |target: &Path| {
            symlink(target, &file).unwrap();
            let bytes = read_checkout(root.path());
            fs::remove_file(&file).unwrap();
            bytes.map_err(|error| error.to_string())
        };
        let refused = Err("it is a symlink to nothing in the repository".to_owned());
        for name in ["secret", "fifo", "nothing"] {
            assert_eq!(read(&outside.path().join(name)), refused, "{name}");
        }
        assert_eq!(read(Path::new("/dev/zero")), refused);
        assert_eq!(read(Path::new("ci/stagely.yaml")), Ok(b"FROM scratch\n".to_vec()));
        let not_a_file = Err("it is not a file".to_owned());
        assert_eq!(read(Path::new("ci")), not_a_file);
        mkfifo(&file, Mode::S_IRWXU).unwrap();
        assert_eq!(read_checkout(root.path()).map_err(|it| it.to_string()), not_a_file);
    }
}

mod schema {
    use super::*;

    fn allows(yaml: &str) -> bool {
        let schema = serde_json::to_value(json_schema()).unwrap();
        let instance: Value = serde_saphyr::from_str(yaml).unwrap();
        jsonschema::validator_for(&schema).unwrap().is_valid(&instance)
    }

    #[test]
    fn it_is_a_schema_and_describes_every_key() {
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
    fn it_knows_exactly_the_keys_that_the_parser_knows() {
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
    fn it_allows_what_the_parser_accepts() {
        assert!(allows(FULL));
        assert!(allows("builds: {a: {context: .}}"));
        assert!(allows("builds: {a: {context: ., build_args: {A: 1.10, B: true, C: x}}}"));
    }

    #[test]
    fn it_refuses_what_a_schema_can_refuse() {
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
        /// The schema sees what serde makes of the file, with numbers as numbers.
        #[test]
        fn whatever_the_parser_accepts_the_schema_allows(text in manifest_text()) {
            if parse("", text.as_bytes()).is_ok() {
                prop_assert!(allows(&text), "{}", text);
            }
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
    let head = prop::sample::select(vec!["", "version: 2\n", "name: x\n", "version: 1\n"]);
    (head, prop::collection::vec(build, 1..4))
        .prop_map(|(head, builds)| format!("{head}builds:\n{}", builds.concat()))
}

proptest! {
    #[test]
    fn bytes_of_any_kind_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = parse("", &bytes);
    }

    #[test]
    fn yaml_punctuation_of_any_kind_is_read_or_refused(text in "[-a:{}\\[\\]&*!|>'\"%@`,?#~<$ \t\n0.]{0,80}") {
        let _ = parse("", text.as_bytes());
        let _ = parse("", format!("builds: {{a: {{context: ., build_args: {{A: {text}}}}}}}").as_bytes());
    }

    /// Whatever happens to a good file, each problem is one line and stands inside the file.
    #[test]
    fn a_damaged_file_gives_problems_with_a_place(
        at in 0..FULL.len(), length in 0..20_usize, insert in "[a-z:{}\\[\\]\"'\n\t\u{e9}\u{202e} -]{0,5}",
    ) {
        let mut text = FULL.to_owned();
        text.replace_range(at..(at + length).min(FULL.len()), &insert);
        if let Err(problems) = parse("stagely.yaml", text.as_bytes()) {
            prop_assert!(!problems.problems.is_empty());
            prop_assert_eq!(problems.to_string().lines().count(), problems.problems.len());
            for problem in &problems.problems {
                prop_assert!(problem.line >= 1 && problem.line <= text.split('\n').count());
                prop_assert!(problem.column >= 1);
                prop_assert!(!problem.message.is_empty());
                prop_assert!(!problem.message.chars().any(char::is_control));
            }
        }
    }
}
