//! Repositories in the shape that bug reports of other tools describe, built by the program as a person uses it.
//!
//! What other tests check on the same inputs: submodules that are redirected (`agent/tests/git.rs`), base images of another
//! platform (`tests/e2e/wrong_images.rs`), registries that refuse, whose tags are immutable, and whose login expires
//! (`agent/tests/docker/failures.rs`), Docker contexts and proxies (`laptop`), the caller's variables (`environment`), Git
//! LFS and sparse indexes (`runs`), an instance that EC2 ends (`tests/aws`).

use std::os::unix::fs::symlink;

use stagely_test_support::git::Repository;

use crate::person::{Ended, Person};

const YAML: &str = "builds:\n  app: {context: ./app}\n";

/// A Dockerfile that fails unless `check` succeeds. No two runs of the tests share its cache.
fn checked(person: &Person, check: &str) -> String {
    format!("FROM busybox\nCOPY . /src\nWORKDIR /src\nRUN : {}; {check}\n", person.name)
}

#[test]
fn names_that_docker_refuses_for_contexts_are_built() {
    let person = Person::new("case-names");
    let yaml = "builds:\n  Base: {context: ./base}\n  base_: {context: ./base}\n  \
        lang: {context: ./base, matrix: {OF: [c++]}}\n  \
        app: {context: ./app, depends_on: [Base, base_, lang]}\n";
    let base = checked(&person, "touch /base");
    let app = checked(&person, "touch /app");
    person.commit(&[("stagely.yaml", yaml), ("base/Dockerfile", &base), ("app/Dockerfile", &app)]);
    person.does(&["validate"]).with(0);
    person.does(&["run"]).with(0);
    for (used, instead) in [
        ("Base", "write `base`"),
        // The builds make the same image, so each of their arguments names it.
        ("base_", "`${STAGELY_IMAGE_"),
        ("lang-of-c--", "`${STAGELY_IMAGE_"),
    ] {
        let app = format!("FROM {used}\nRUN : {}\n", person.name);
        person.commit(&[("app/Dockerfile", &app)]);
        let ended = person.does(&["run"]).with(1);
        let words = format!(
            "the Dockerfile uses the build `{used}` as an image, and Docker takes no image of that name"
        );
        assert!(ended.stdout.contains(&words), "{} {}", ended.stdout, ended.stderr);
        assert!(ended.stdout.contains(instead), "{}", ended.stdout);
    }
}

#[test]
fn a_stage_of_the_dockerfile_is_not_replaced_by_the_build_that_comes_first() {
    let person = Person::new("case-stage");
    let yaml = "builds:\n  base: {context: ./base}\n  app: {context: ./app, depends_on: [base]}\n";
    let app = format!(
        "FROM busybox AS base\nRUN : {}; touch /own\nFROM base\nRUN ls /own && ! ls /other\n",
        person.name
    );
    let other = checked(&person, "touch /other");
    person.commit(&[("stagely.yaml", yaml), ("base/Dockerfile", &other), ("app/Dockerfile", &app)]);
    person.does(&["run"]).with(0);
}

#[test]
fn the_callers_umask_is_not_in_the_image() {
    let person = Person::new("case-umask");
    let check = "test \"$(stat -c %a file folder folder/file program | tr '\\n' ' ')\" = '644 755 644 755 '";
    let dockerfile = checked(&person, check);
    person.commit(&[
        ("stagely.yaml", YAML),
        ("app/Dockerfile", &dockerfile),
        ("app/file", ""),
        ("app/folder/file", ""),
        ("app/program", "#!/bin/sh\n"),
    ]);
    person.git(&["update-index", "--chmod=+x", "app/program"]);
    person.git(&["commit", "--quiet", "--message", "a program"]);
    person.git(&["checkout", "--", "."]);
    let mut digests = Vec::new();
    for mask in [0o077, 0o022] {
        let mut shell = std::process::Command::new("sh");
        let run = person.stagely(&["run", "--json"]);
        shell.args(["-c", &format!("umask {mask:03o}; exec \"$0\" \"$@\"")]);
        shell.arg(run.get_program()).args(run.get_args()).current_dir(person.repository());
        for (name, value) in run.get_envs() {
            shell.env(name, value.unwrap_or_default());
        }
        let ended = Ended::from(shell.output().unwrap()).with(0);
        let run: serde_json::Value = serde_json::from_str(&ended.stdout).unwrap();
        digests.push(run["jobs"][0]["digest"].clone());
    }
    assert_eq!(digests[0], digests[1]);
}

#[test]
fn a_nested_clone_without_gitmodules_does_not_stop_the_build() {
    let person = Person::new("case-gitlink");
    std::fs::create_dir(person.repository().join("vendor")).unwrap();
    let vendor = Repository::create(person.repository().join("vendor/ohmyzsh"));
    vendor.commit(&[("file", "of the nested clone")]);
    let dockerfile = checked(&person, "ls Dockerfile");
    person.commit(&[("stagely.yaml", YAML), ("app/Dockerfile", &dockerfile)]);
    assert!(person.git(&["ls-files", "--stage"]).contains("160000"));
    let ended = person.does(&["run"]).with(0);
    let text = ended.stdout + &ended.stderr;
    assert!(text.contains("vendor/ohmyzsh") && text.contains(".gitmodules"), "{text}");

    // The nested clone is only untracked.
    person.git(&["rm", "--quiet", "--cached", "vendor/ohmyzsh"]);
    person.git(&["commit", "--quiet", "--message", "without it"]);
    assert!(person.git(&["status", "--short"]).contains("?? vendor/"));
    person.does(&["run", "--dirty"]).with(0);
}

#[test]
fn a_relative_submodule_of_a_folder_is_the_one_that_is_checked_out() {
    let person = Person::new("case-relative");
    let lib = Repository::create(person.path("lib.git"));
    lib.commit(&[("text", "of the library")]);
    person.commit(&[("stagely.yaml", YAML)]);
    person.git(&[
        "-c",
        "protocol.file.allow=always",
        "submodule",
        "--quiet",
        "add",
        "../lib.git",
        "app/lib",
    ]);
    let dockerfile = checked(&person, "grep 'of the library' lib/text");
    person.commit(&[("app/Dockerfile", &dockerfile)]);
    person.does(&["run"]).with(0);
}

#[test]
fn what_a_sparse_checkout_leaves_out_is_built() {
    let person = Person::new("case-sparse");
    let dockerfile = checked(&person, "cat shared/common");
    person.commit(&[
        ("stagely.yaml", "builds:\n  app: {context: ., dockerfile: app/Dockerfile}\n"),
        ("app/Dockerfile", &dockerfile),
        ("shared/common", "common"),
    ]);
    for index in ["--no-sparse-index", "--sparse-index"] {
        person.git(&["sparse-checkout", "set", "--cone", index, "app"]);
        assert!(!person.repository().join("shared").exists());
        person.does(&["run"]).with(0);
        person.does(&["run", "--dirty"]).with(0);
    }
}

#[test]
fn the_ignore_file_beside_a_symlinked_dockerfile_counts() {
    let person = Person::new("case-ignore");
    let dockerfile = checked(&person, "! ls secrets");
    person.write(&[("app/Dockerfile.prod", &dockerfile)]);
    symlink("Dockerfile.prod", person.repository().join("app/Dockerfile")).unwrap();
    person.commit(&[
        ("stagely.yaml", YAML),
        ("app/Dockerfile.dockerignore", "secrets\n"),
        ("app/secrets/key", "a key"),
    ]);
    person.does(&["run"]).with(0);
}

#[test]
fn shared_keys_and_overridden_anchors_are_valid() {
    let person = Person::new("case-shared");
    let yaml = "x-common: &common\n  platform: linux/amd64\n  timeout: 20m\n  \
        build_args: &args\n    GO: \"1.20\"\n    CGO: \"0\"\n\
        builds:\n  api:\n    <<: *common\n    context: ./app\n  web:\n    <<: *common\n    \
        context: ./app\n    build_args:\n      <<: *args\n      GO: \"1.21\"\n";
    person.write(&[("stagely.yaml", yaml), ("app/Dockerfile", "FROM busybox\n")]);
    person.does(&["validate"]).with(0);
}

#[test]
fn files_with_another_spelling_are_taken_or_named() {
    let person = Person::new("case-spelling");
    let dockerfile = checked(&person, "ls dockerfile");
    person.commit(&[("stagely.yml", YAML), ("app/dockerfile", &dockerfile)]);
    for command in ["validate", "run"] {
        let ended = person.does(&[command]);
        let text = ended.stdout + &ended.stderr;
        assert!(ended.code != 0 && text.contains("rename it to stagely.yaml"), "{command}: {text}");
    }
    person.git(&["mv", "stagely.yml", "stagely.yaml"]);
    person.git(&["commit", "--quiet", "--message", "renamed"]);
    person.does(&["validate"]).with(0);
    person.does(&["run"]).with(0);
}

#[test]
fn a_line_that_is_redrawn_shows_its_last_state() {
    let person = Person::new("case-redrawn");
    let script = "i=0; while [ $i -lt 4000 ]; do\nprintf 'download %5d of 4000 ..................\\r' $i\n\
        i=$((i+1)); done\nprintf 'download FINISHED checksum=abc\\n'\nexit 3\n";
    let dockerfile = checked(&person, "sh redraw");
    person.commit(&[
        ("stagely.yaml", YAML),
        ("app/Dockerfile", &dockerfile),
        ("app/redraw", script),
    ]);
    let ended = person.does(&["run"]).with(1);
    for output in [&ended.stdout, &ended.stderr] {
        assert!(output.contains("download FINISHED checksum=abc"), "{output}");
    }
    assert!(!ended.stdout.contains(" of 4000"), "{}", ended.stdout);
}
