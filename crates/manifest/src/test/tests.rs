use super::*;
use crate::limits::{DEFAULT_TIMEOUT, GLOBS_MAX};
use crate::manifest::Manifest;
use crate::problem::Collector;
use crate::read::file;

const BUILDS: &str = "builds: {app: {context: .}, web: {context: ., matrix: {NODE: [18]}}}\n";
const PREVIEW: &str = "preview: {image: app, port: 80}\n";

/// What this file says, and its mistakes.
fn read_file(text: &str) -> (Manifest, Vec<String>) {
    let mut problems = Collector::default();
    let manifest = file(text.as_bytes(), &mut problems);
    let problems = problems.into_result("f", ()).err().map(|problems| problems.to_string());
    let problems = problems.unwrap_or_default();
    let shown = problems.lines().map(|line| line.strip_prefix("f:").unwrap().to_owned());
    (manifest, shown.collect())
}

fn accepted(section: &str) -> Vec<Test> {
    let (manifest, problems) = read_file(&format!("{BUILDS}{PREVIEW}test: {section}\n"));
    assert_eq!(problems, [""; 0], "{section}");
    manifest.tests
}

/// The mistakes of a test with `rest`, without position and path.
fn mistakes(rest: &str) -> Vec<String> {
    let text = format!("{BUILDS}{PREVIEW}test: {{e2e: {{image: app, {rest}}}}}\n");
    let (_, problems) = read_file(&text);
    problems.iter().map(|line| line.split_once("test.e2e.").unwrap().1.to_owned()).collect()
}

#[test]
fn every_key_of_a_test_arrives() {
    let section = "
  e2e:
    image: web-node-18
    command: [npx, playwright, test]
    on: tester
    machine: large
    shards: 3
    retries: 2
    timeout: 45m
    env: {URL: \"${PREVIEW_URL}/${BRANCH}\"}
    secrets: [KEY]
    junit: [\"results/*.xml\"]
    artifacts: [\"playwright-report/**\", /out]
    comment_images: [\"shots/*.png\"]
  unit: {image: docker.io/library/node:24, on: preview}
";
    let tests = accepted(section);
    let test = &tests[0];
    assert_eq!((&*test.name, &test.image), ("e2e", &TestImage::Variant("web-node-18".to_owned())));
    assert_eq!(test.command, ["npx", "playwright", "test"]);
    assert_eq!((test.on, test.machine), (TestPlace::Tester, MachineSize::Large));
    assert_eq!((test.shards, test.retries, test.timeout), (3, 2, Duration::from_mins(45)));
    let filled = test.env["URL"].fill(|variable| match variable {
        PreviewVariable::Url => "<url>".to_owned(),
        _ => "<other>".to_owned(),
    });
    assert_eq!(filled, "<url>/<other>");
    assert_eq!(test.secrets, ["KEY"]);
    assert_eq!(test.junit, ["results/*.xml"]);
    assert_eq!(test.artifacts, ["playwright-report/**", "/out"]);
    assert_eq!(test.comment_images, ["shots/*.png"]);
    assert_eq!(test.at.line, 4);
    let other = &tests[1];
    let reference = "docker.io/library/node:24".parse().unwrap();
    assert_eq!((&other.image, other.on), (&TestImage::Reference(reference), TestPlace::Preview));
}

#[test]
fn an_image_is_enough() {
    let test = accepted("{unit: {image: app}}").remove(0);
    assert!(test.command.is_empty() && test.env.is_empty() && test.secrets.is_empty());
    assert!(test.junit.is_empty() && test.artifacts.is_empty() && test.comment_images.is_empty());
    assert_eq!((test.on, test.machine), (TestPlace::Tester, MachineSize::Medium));
    assert_eq!((test.shards, test.retries, test.timeout), (1, 0, DEFAULT_TIMEOUT));
}

#[test]
fn a_file_without_a_preview_may_have_tests() {
    let of = |test: &str| read_file(&format!("{BUILDS}test: {{unit: {{image: app, {test}}}}}\n")).1;
    assert_eq!(of("command: [x]"), [""; 0]);
    let no_preview = "2:31: test.unit.on: there is no section `preview`; leave this out";
    assert_eq!(of("on: preview"), [no_preview]);
    let problems = of("env: {A: \"${PREVIEW_URL}\"}");
    assert!(problems[0].contains("unknown variable `${PREVIEW_URL}`"), "{problems:?}");
}

#[test]
fn mistakes_are_named() {
    for (rest, expected) in [
        ("shards: 17", "shards: must be a number from 1 to 16"),
        ("shards: 0", "shards: must be a number from 1 to 16"),
        ("shards: 1.5", "shards: must be a number from 1 to 16"),
        ("shards: '2'", "shards: expected a number, found text; write it without quotes"),
        ("retries: 4", "retries: must be a number from 0 to 3"),
        ("retries: -1", "retries: must be a number from 0 to 3"),
        ("on: tests", "on: `tests` is not possible here; did you mean `tester`?"),
        ("on: preview, shards: 2", "shards: goes with `on: tester` alone; leave this out"),
        ("on: preview, machine: small", "machine: goes with `on: tester` alone; leave this out"),
        (
            "command: npm test",
            "command: expected a list of texts, found text; write a list of the program and its arguments, such as \
             `[npm, test]`",
        ),
        ("command: []", "command: is empty; name a program"),
        ("timeout: 25h", "timeout: `25h` is longer than 24h, the most that a test may take"),
        (
            "env: {STAGELY_SHARD: 1}",
            "env.STAGELY_SHARD: is a variable that Stagely sets; call yours otherwise",
        ),
        (
            "env: {PREVIEW_URL: x}",
            "env.PREVIEW_URL: is a variable that Stagely sets; call yours otherwise",
        ),
        ("env: {A: x}, secrets: [A]", "secrets[0]: is in `env` too; keep one"),
        ("junit: results", "junit: expected a list of patterns, found text; write `[…]` around it"),
        ("junit: [a, a]", "junit[1]: `a` is named twice"),
        ("junit: [../a]", "junit[0]: `../a` leads out of the repository"),
        (
            "artifacts: ['!a']",
            "artifacts[0]: a pattern that begins with `!` is not supported; list the file patterns that count (`\\!` is \
             the character itself)",
        ),
        ("comment_images: ['']", "comment_images[0]: is empty"),
        ("shard: 2", "shard: unknown key; did you mean `shards`?"),
    ] {
        assert_eq!(mistakes(rest), [expected], "{rest}");
    }
    let many: Vec<_> = (0..=GLOBS_MAX).map(|number| number.to_string()).collect();
    let many = format!("junit: ['{}']", many.join("', '"));
    assert_eq!(mistakes(&many), ["junit: at most 32 are allowed, found 33"]);
}

#[test]
fn images_are_builds_or_references() {
    let of = |image: &str| {
        let (_, problems) = read_file(&format!("{BUILDS}test: {{t: {{image: {image}}}}}\n"));
        problems
            .iter()
            .map(|line| line.split_once("test.t.").unwrap().1.to_owned())
            .collect::<Vec<_>>()
    };
    for image in ["app", "web-node-18", "node:24", "ghcr.io/a/b@sha256:0"] {
        assert_eq!(of(image), [""; 0], "{image}");
    }
    assert_eq!(of("ap"), ["image: there is no build `ap`; did you mean `app`?"]);
    let matrix = "image: `web` has a matrix and makes several images; name one of them, such as `web-node-18`";
    assert_eq!(of("web"), [matrix]);
    let bad =
        "image: `-a/b` is not an image reference such as `registry.example.com/team/app:cache`";
    assert_eq!(of("-a/b"), [bad]);
}

#[test]
fn sections_of_another_kind_are_refused() {
    let of = |section: &str| read_file(&format!("{BUILDS}test: {section}\n")).1;
    assert_eq!(of("[a]"), ["2:7: test: expected a map of names to tests, found a list"]);
    assert_eq!(of("{}"), ["2:7: test: names no test; leave it out instead"]);
    assert_eq!(
        of("{a b: {image: app}}"),
        [
            "2:8: test.a b: a test's name is made of letters (a-z, A-Z), digits, `_` and `-`, and does not start with `-`"
        ]
    );
    let hint = "is missing; it is the build whose image has the command, or an image reference";
    assert_eq!(of("{a: {}}"), [format!("2:8: test.a.image: {hint}")]);
    assert_eq!(of("{a: x}"), ["2:11: test.a: expected a map with `image`, found text"]);
    let many: Vec<_> = (0..17).map(|number| format!("t{number}: {{image: app}}")).collect();
    let problems = of(&format!("{{{}}}", many.join(", ")));
    assert_eq!(problems, ["2:7: test: at most 16 are allowed, found 17"]);
}
