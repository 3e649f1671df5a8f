//! What compose files may name, and how they are written again.

use std::fmt::Write as _;
use std::os::unix::fs::symlink;

use super::*;

fn checked(files: &[(&str, &str)]) -> Result<ComposeFiles, FilesError> {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("src");
    fs::create_dir_all(root.join("deploy")).unwrap();
    fs::write(folder.path().join("secret.env"), "A=1").unwrap();
    symlink("../secret.env", root.join("link.env")).unwrap();
    for (path, text) in files {
        fs::write(root.join(path), text).unwrap();
    }
    find(&root.canonicalize().unwrap(), "compose.yaml", true)
}

#[test]
fn files_outside_of_the_repository_are_not_read() {
    for text in [
        "services: {web: {env_file: /etc/passwd}}",
        "services: {web: {env_file: [a.env, ../secret.env]}}",
        "services: {web: {env_file: [{path: link.env, required: false}]}}",
        "services: {web: {\"env\\x5ffile\": link.env}}",
        "services: {web: {env_file: !override [link.env]}}",
        "services: {web: {env_file: \"${HOME}/x\"}}",
        "services: {web: {env_file: ~/x}}",
        "services: {web: {extends: {file: ../secret.env, service: x}}}",
        "include: [../secret.env]",
        "include: [{path: [compose.yaml, ../secret.env]}]",
        "include: [{path: compose.yaml, env_file: ../secret.env}]",
        "include: [{path: compose.yaml, project_directory: ..}]",
        "x-a: &a ../secret.env\nservices: {web: {env_file: *a}}",
        "x-a: &a {env_file: ../secret.env}\nservices: {web: {<<: *a}}",
        "services: {}\n---\nservices: {web: {env_file: ../secret.env}}",
        "services: {web: {label_file: ../secret.env}}",
    ] {
        let error = checked(&[("compose.yaml", text)]).unwrap_err();
        assert!(matches!(error, FilesError::Outside { .. }), "{text}: {error}");
    }
    let nested = [
        ("compose.yaml", "include: [deploy/more.yaml]"),
        ("deploy/more.yaml", "services: {web: {env_file: ../../secret.env}}"),
    ];
    let error = checked(&nested).unwrap_err().to_string();
    assert!(error.starts_with("`deploy/more.yaml` has `env_file: "), "{error}");
}

#[test]
fn merges_and_tags_do_not_hide_a_file() {
    for text in [
        "x-a: &a {file: ../secret.env}\nservices: {web: {extends: {<<: *a, service: x}}}",
        "x-a: &a {path: ../secret.env}\nservices: {web: {env_file: [{<<: *a}]}}",
        "x-a: &a {path: ../secret.env}\nservices: {web: {env_file: [{\"<<\": [*a], path: a.env}]}}",
        "x-a: &a {path: ../secret.env}\ninclude: [{<<: *a}]",
        "x-a: &a {project_directory: ..}\ninclude: [{path: compose.yaml, <<: *a}]",
        "services: {web: {env_file: !!binary L2V0Yy9wYXNzd2Q=}}",
        "services: {web: {env_file: [!!binary L2V0Yy9wYXNzd2Q=]}}",
        "services: {web: {!!binary ZW52X2ZpbGU=: ../secret.env}}",
        "services: {web: {env_file: !<tag:yaml.org,2002:binary> L2V0Yy9wYXNzd2Q=}}",
        "%TAG !e! tag:yaml.org,2002:b\n---\nservices: {web: {env_file: !e!inary L2V0Yy9wYXNzd2Q=}}",
    ] {
        let error = checked(&[("compose.yaml", text)]).unwrap_err();
        assert!(matches!(error, FilesError::Unsupported { .. }), "{text}: {error}");
    }
    let error = checked(&[("compose.yaml", "a: !!binary YQ==")]).unwrap_err().to_string();
    assert_eq!(error, "`compose.yaml` has the tag `!!binary`, which previews do not support");
    let text = "x-a: &a {image: !!str x}\nservices: {web: {<<: *a, ports: !reset [], env_file: !override [a.env]}}";
    checked(&[("compose.yaml", text)]).unwrap();
}

/// The only variable of the service `leak` in the output of `docker compose config`, or its error.
fn leaked(root: &Path, current_directory: &Path) -> String {
    let mut compose = std::process::Command::new("docker");
    compose.args(["compose", "--project-name", "p", "--env-file", "/dev/null", "--file"]);
    compose.arg(root.join("compose.yaml")).args(["config", "--format", "json"]);
    let output = compose.current_dir(current_directory).output().unwrap();
    if !output.status.success() {
        return String::from_utf8_lossy(&output.stderr).into_owned();
    }
    let config: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    config["services"]["leak"]["environment"].to_string()
}

/// Whether something of `secret.env` or `secret.json` outside of the checkout comes out, whether or not the files are
/// checked; with the files that lead there.
fn leaks(files: &[(&str, &str)], links: &[(&str, &str)]) -> (bool, bool) {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().canonicalize().unwrap().join("src");
    for (name, text) in [("secret.env", "TOKEN=outside\n"), ("secret.json", "{\"outside\": 1}\n")] {
        fs::write(folder.path().join(name), text).unwrap();
    }
    for path in files.iter().chain(links).map(|(path, _)| root.join(path)) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
    }
    for (path, text) in files {
        fs::write(root.join(path), text).unwrap();
    }
    for (path, target) in links {
        symlink(target, root.join(path)).unwrap();
    }
    // In a folder beside the checkout, as an agent may be.
    let current = folder.path().join("work");
    fs::create_dir(&current).unwrap();
    let before = leaked(&root, &current).contains("outside");
    let is_accepted = find(&root, "compose.yaml", true).is_ok();
    (before, is_accepted && leaked(&root, &current).contains("outside"))
}

const LEAK: &str = "services: {leak: {image: x, environment: {VALUE: \"${TOKEN}\"}}}";

#[test]
fn included_files_get_no_variables_from_outside() {
    let include = ("compose.yaml", "include: [sub/more.yaml]");
    let more = ("sub/more.yaml", LEAK);
    assert_eq!(leaks(&[include, more], &[("sub/.env", "../../secret.env")]), (true, false));
    assert_eq!(leaks(&[include, more], &[("sub/.env", "../../secret.json")]), (true, false));
    let elsewhere = ("compose.yaml", "include: [{path: sub/more.yaml, project_directory: deploy}]");
    let link = ("deploy/.env", "../../secret.env");
    assert_eq!(leaks(&[elsewhere, more], &[link]), (true, false));
    let text = "include: [{path: b/two.yaml, env_file: ../secret.env}]";
    let nested =
        [("compose.yaml", "include: [a/one.yaml]"), ("a/one.yaml", text), ("a/b/two.yaml", LEAK)];
    // Compose 2.26 reads it relative to the current folder and `a`.
    let text = nested[1].1.replace("../", "../../");
    let relative = [nested[0], ("a/one.yaml", &*text), nested[2]];
    assert_eq!(leaks(&relative, &[]), (true, false));
    assert!(!leaks(&nested, &[("secret.env", "../secret.env")]).1);
    let override_file = ("compose.yaml", "include: [{path: [sub/empty.yaml, over/more.yaml]}]");
    let files = [
        override_file,
        ("sub/empty.yaml", "services: {leak: {image: x}}"),
        ("over/more.yaml", "services: {leak: {env_file: a.env}}"),
        ("over/a.env", "A=1"),
    ];
    assert_eq!(leaks(&files, &[("sub/a.env", "../../secret.env")]), (true, false));
}

#[test]
fn included_files_get_the_variables_of_the_repository() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().canonicalize().unwrap();
    fs::create_dir_all(root.join("a/b")).unwrap();
    for (path, text) in [
        ("compose.yaml", "include: [a/one.yaml]"),
        ("a/one.yaml", "include: [{path: b/two.yaml, env_file: token.env}]"),
        ("a/token.env", "TOKEN=inside"),
        ("a/b/two.yaml", "services: {leak: {extends: {file: ../three.yaml, service: base}}}"),
        ("a/three.yaml", "services: {base: {image: x, env_file: [{path: b/four.env}, none.env]}}"),
        ("a/b/four.env", "FOUR=4"),
        ("a/none.env", ""),
    ] {
        fs::write(root.join(path), text).unwrap();
    }
    find(&root, "compose.yaml", true).unwrap();
    assert_eq!(leaked(&root, Path::new("/")), r#"{"FOUR":"4"}"#);
    fs::write(root.join("a/b/two.yaml"), LEAK).unwrap();
    fs::write(root.join("compose.yaml"), "include: [a/one.yaml]").unwrap();
    fs::write(root.join("a/one.yaml"), "include: [{path: b/two.yaml, env_file: token.env}]")
        .unwrap();
    find(&root, "compose.yaml", true).unwrap();
    assert_eq!(leaked(&root, Path::new("/")), r#"{"VALUE":"inside"}"#);
    fs::write(root.join("a/b/.env"), "TOKEN=implicit").unwrap();
    fs::write(root.join("compose.yaml"), "include: [a/b/two.yaml]").unwrap();
    find(&root, "compose.yaml", true).unwrap();
    assert_eq!(leaked(&root, Path::new("/")), r#"{"VALUE":"implicit"}"#);
}

#[test]
fn a_file_with_two_meanings_is_refused() {
    let files = [
        (
            "compose.yaml",
            "include: [{path: deploy/a.yaml}, {path: deploy/a.yaml, project_directory: .}]",
        ),
        ("deploy/a.yaml", "services: {web: {image: x, env_file: a.env}}"),
    ];
    let error = checked(&files).unwrap_err().to_string();
    assert!(
        error.starts_with("`deploy/a.yaml` has paths that are relative to two folders"),
        "{error}"
    );
    let same = [files[0], ("deploy/a.yaml", "services: {web: {image: x}}")];
    checked(&same).unwrap();
}

#[test]
fn a_large_file_of_variables_is_not_read() {
    let large = "A=1\n".repeat(300_000);
    for (name, compose) in [
        (".env", "services: {}"),
        ("deploy/.env", "include: [deploy/a.yaml]"),
        ("a.env", "services: {web: {env_file: a.env}}"),
    ] {
        let files = [("compose.yaml", compose), ("deploy/a.yaml", "services: {}"), (name, &*large)];
        let error = checked(&files).unwrap_err().to_string();
        assert_eq!(error, format!("`{name}` is too large"));
    }
}

#[test]
fn deep_files_do_not_end_the_agent() {
    for (open, close) in [("[", "]"), ("{a: ", "}"), ("- ", ""), ("? ", "")] {
        let text = format!("a:\n {}{}", open.repeat(200_000), close.repeat(200_000));
        checked(&[("compose.yaml", &text)]).unwrap_err();
    }
}

/// `compose.yaml` as it is written again.
fn written(text: &str) -> String {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().canonicalize().unwrap();
    fs::write(root.join("compose.yaml"), text).unwrap();
    find(&root, "compose.yaml", true).unwrap();
    fs::read_to_string(root.join("compose.yaml")).unwrap()
}

#[test]
fn what_another_parser_reads_differently_is_not_there_any_more() {
    for line_break in ["\u{85}", "\u{2028}", "\u{2029}"] {
        let text = format!(
            "services:\n  web:\n    image: x\n    # x{line_break}    env_file: /etc/shadow\n"
        );
        assert_eq!(
            written(&text),
            "---\n{\"services\": {web: {image: x, }, }, }\n".replace("\"services\"", "services")
        );
        let text = format!("a: x{line_break}b\n");
        let code = u32::from(line_break.chars().next().unwrap());
        assert_eq!(written(&text), format!("---\n{{a: \"x\\U{code:08x}b\", }}\n"));
    }
}

#[test]
fn values_keep_their_types() {
    let text = "%YAML 1.2\n---\nx: &x {on: yes, n: 010, f: -.5, t: ~, e:, s: '1', p: 80:80}\n\
        a: {<<: *x, b: !reset null, c: !!str 1, d: !override [a b, \"q\\\"\\\\\"]}\n\
        m: |\n  one\n  $two\n---\n- 'x'\n";
    let x = "{on: yes, n: 010, f: -.5, t: ~, e: ~, s: \"1\", p: \"80:80\", }";
    let expected = format!(
        "---\n{{x: {x}, a: {{<<: {x}, b: !reset null, c: !!str 1, \
         d: !override [\"a b\", \"q\\\"\\\\\", ], }}, m: \"one\\U0000000a$two\\U0000000a\", }}\n---\n[\"x\", ]\n"
    );
    assert_eq!(written(text).replace("e: null", "e: ~"), expected);
}

#[test]
fn files_of_the_repository_are_read() {
    let files = [
        ("compose.yaml", "include: [{path: deploy/more.yaml}]\nservices: {env_file: {image: x}}"),
        ("deploy/more.yaml", "services: {web: {env_file: [../a.env, missing.env]}}"),
        ("a.env", "A=1"),
        (".env", "B=1"),
    ];
    let found = checked(&files).unwrap();
    assert!(found.main.ends_with("src/compose.yaml"));
    assert!(found.variables.unwrap().ends_with("src/.env"));
}

#[test]
fn a_file_that_cannot_be_read_is_named() {
    let text = |text: &str| checked(&[("compose.yaml", text)]).unwrap_err().to_string();
    assert!(text("a: [").contains("`compose.yaml` is not valid YAML: line "), "{}", text("a: ["));
    assert!(text("a: &a [*a]").contains("contains itself"));
    let mut bomb = "a0: &a0 [x, x]\n".to_owned();
    for level in 1..30 {
        writeln!(bomb, "a{level}: &a{level} [*a{0}, *a{0}]", level - 1).unwrap();
    }
    assert_eq!(text(&bomb), "`compose.yaml` is too large");
    // Few values, each of them large.
    let long = format!("a: &a {}\nb: [{}]\n", "x".repeat(500_000), "*a, ".repeat(100));
    assert_eq!(text(&long), "`compose.yaml` is too large");
    assert_eq!(
        checked(&[]).unwrap_err().to_string(),
        "there is no file `compose.yaml` in the repository"
    );
}
