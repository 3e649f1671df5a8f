//! Manifests that are refused, and the exact messages.

use std::fmt::Write as _;

use stagely_manifest::parse;

use super::{accepted, problem_of_build, problems};

#[test]
fn all_mistakes_are_listed_in_the_order_of_the_lines() {
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
fn a_file_that_is_not_a_manifest_is_refused() {
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
        ("builds: {a: }", "1:10: builds.a: expected a map with at least `context`, found nothing"),
        ("builds: {a: x}", "1:13: builds.a: expected a map with at least `context`, found text"),
        (
            "builds: {a: {context: .}}\n---\nbuilds: {}",
            "2:1: a second document begins here; `stagely.yaml` is a single one",
        ),
    ] {
        assert_eq!(problems(text), [line], "{text:?}");
    }
}

#[test]
fn broken_yaml_is_refused_with_its_position() {
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
fn text_in_another_encoding_is_refused() {
    assert_eq!(problems(b"builds:\n  caf\xe9: {}"), ["2:6: the file is not UTF-8 text"]);
    assert_eq!(problems(b"\xff\xfeb\0"), ["1:1: the file is not UTF-8 text"]);
}

#[test]
fn repeated_keys_are_refused() {
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
fn unknown_keys_are_refused_with_a_suggestion() {
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
        ["2:1: services: unknown key; known here are `version`, `name`, `submodules`, `builds`, \
          `preview` and `test`"]
    );
}

#[test]
fn keys_and_merges_of_a_wrong_type_are_refused() {
    assert_eq!(
        problems("builds: {a: {context: ., ? [x] : y}}"),
        ["1:28: builds.a: a key must be text, but this is a list"]
    );
    assert_eq!(problem_of_build("<<: 5"), "<<: `<<` must be a map or a list of maps, not a number");
}

#[test]
fn values_of_a_wrong_type_are_refused() {
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
fn another_version_is_refused() {
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
fn paths_out_of_the_repository_or_with_control_characters_are_refused() {
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
        ("/etc/passwd", "`/etc/passwd` is absolute: paths are relative to the repository's root"),
        ("../Dockerfile", "`../Dockerfile` leads out of the repository"),
        ("\"\"", "is empty"),
    ] {
        let rest = format!("dockerfile: {dockerfile}");
        assert_eq!(problem_of_build(&rest), format!("dockerfile: {problem}"));
    }
    // `..` cannot be resolved without a valid context.
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
fn unknown_platforms_are_refused() {
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
fn platforms_of_a_wrong_form_are_refused() {
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
fn unknown_machine_sizes_are_refused() {
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
fn invalid_times_are_refused() {
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
        assert_eq!(problem_of_build(&format!("timeout: {text}")), format!("timeout: {problem}"));
    }
}

#[test]
fn build_args_that_docker_refuses_are_refused() {
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
fn targets_and_caches_that_look_like_options_are_refused() {
    assert_eq!(
        problem_of_build("target: --push"),
        "target: `--push` is not the name of a build stage"
    );
    for text in ["-o", "a b", "type=registry", "\"\""] {
        let problem = problem_of_build(&format!("cache_from: [{text}]"));
        assert!(problem.contains("is not an image reference such as"), "{problem}");
    }
    assert_eq!(problem_of_build("cache_from: [a:b, a:b]"), "cache_from[1]: `a:b` is named twice");
}

#[test]
fn colliding_names_are_refused() {
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
fn names_that_are_too_long_or_malformed_are_refused() {
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
    assert!(lines[0].ends_with("cannot start with `-`, because image tags cannot"), "{lines:?}");
}

#[test]
fn more_entries_than_the_limit_are_refused() {
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
