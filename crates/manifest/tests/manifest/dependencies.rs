//! Dependencies between builds, and the conditions under which builds run.

use stagely_protocol::Submodules;

use super::{accepted, problem_of_build, problems};

#[test]
fn dependencies_and_conditions_are_read() {
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
fn submodules_are_a_boolean_or_shallow() {
    let text = |value: &str| format!("submodules: {value}\nbuilds: {{a: {{context: .}}}}\n");
    let cases = [
        ("true", Submodules::All),
        ("false", Submodules::None),
        ("shallow", Submodules::Shallow),
        ("'shallow'", Submodules::Shallow),
    ];
    for (value, submodules) in cases {
        assert_eq!(accepted(&text(value)).submodules, submodules, "{value}");
    }
    assert!(accepted("builds: {a: {context: .}}").submodules.is_all());
    for value in ["recursive", "'true'", "1", "[]", "null"] {
        let [problem] = &problems(text(value))[..] else { panic!("one problem: {value}") };
        assert!(problem.contains("submodules: "), "{problem}");
        assert!(problem.contains("`true`, `false` or `shallow`"), "{problem}");
    }
}

#[test]
fn invalid_dependencies_are_refused() {
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
fn each_cycle_is_reported_once() {
    let cycles = "builds:\n  c: {context: ., depends_on: [a]}\n  a: {context: ., depends_on: [b]}\n  \
                  b: {context: ., depends_on: [a, c]}\n  d: {context: ., depends_on: [b]}\n";
    assert_eq!(
        problems(cycles),
        [
            "2:31: builds.c.depends_on: these builds wait for each other: c -> a -> b -> c",
            "3:31: builds.a.depends_on: these builds wait for each other: a -> b -> a",
        ]
    );
}

#[test]
fn dependencies_that_lack_a_platform_are_refused() {
    let text = |platforms| {
        format!(
            "builds:\n  app: {{context: ., depends_on: [base], platform: linux/arm64}}\n  \
             base: {{context: ., platforms: {platforms}}}\n"
        )
    };
    accepted(&text("[linux/amd64, linux/arm64]"));
    assert_eq!(
        problems(text("[linux/amd64]")),
        ["2:33: builds.app.depends_on: this build is made for linux/arm64, and `base` is not; \
          add linux/arm64 to the `platforms` of `base`"]
    );
}

#[test]
fn too_many_jobs_and_images_are_refused() {
    let values = |count| (0..count).map(|value| value.to_string()).collect::<Vec<_>>().join(", ");
    let build = |name: &str, count, more: &str| {
        format!("  {name}: {{context: ., matrix: {{X: [{}]}}{more}}}\n", values(count))
    };
    let builds: Vec<_> = (0..11).map(|index| build(&format!("b{index}"), 47, "")).collect();
    accepted(&format!("builds:\n{}", builds[..10].concat()));
    assert_eq!(
        problems(format!("builds:\n{}", builds.concat())),
        ["2:3: builds: the builds make 517 jobs together, but a file has at most 512; give them \
          fewer combinations or platforms"]
    );
    let app = "  app: {context: ., depends_on: [a, b]}\n";
    let text = |count| format!("builds:\n{app}{}{}", build("a", 32, ""), build("b", count, ""));
    accepted(&text(32));
    assert_eq!(
        problems(text(33)),
        ["2:33: builds.app.depends_on: these builds make 65 images, but a build uses at most 64; \
          give them fewer combinations, or depend on fewer"]
    );
}

#[test]
fn combinations_and_platforms_that_share_a_tag_are_refused() {
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
fn images_that_share_a_build_argument_are_refused() {
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
        assert!(lines[0].ends_with("names the image of `a`; call yours otherwise"), "{lines:?}");
    }
}

#[test]
fn invalid_patterns_are_refused() {
    for (rest, problem) in [
        ("paths: api", "paths: expected a list of patterns, found text; write `[…]` around it"),
        ("paths: []", "paths: names no pattern; leave it out instead"),
        ("paths: ['']", "paths[0]: is empty"),
        ("paths: [api, api]", "paths[1]: `api` is named twice"),
        ("paths: ['[a']", "paths[0]: `[a` is not a pattern: unclosed character class; missing ']'"),
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
    let many: Vec<_> = (0..33).map(|index| format!("p{index}")).collect();
    assert_eq!(
        problem_of_build(&format!("paths: [{}]", many.join(", "))),
        "paths: at most 32 are allowed, found 33"
    );
}
