//! Manifests that are accepted, and what they mean.

use std::time::Duration;

use stagely_manifest::Build;
use stagely_protocol::{Arch, Platform};
use stagely_state::MachineSize;

use super::{FULL, accepted, build, build_arg};

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
fn times_are_days_hours_minutes_and_seconds() {
    let seconds = |timeout: &str| build(&format!("timeout: {timeout}")).timeout.as_secs();
    assert_eq!(seconds("45m"), 2_700);
    assert_eq!(seconds("\"1h30m\""), 5_400);
    assert_eq!(seconds("90s"), 90);
    assert_eq!(seconds("1h0m1s"), 3_601);
    assert_eq!(seconds("24h"), 86_400);
    assert_eq!(seconds("1440m"), 86_400);
    assert_eq!(seconds("1d"), 86_400);
}

#[test]
fn build_args_are_taken_as_written() {
    for yaml in ["1.10", "true", "False", "0x1F", "1e3", "007", "yes", "2024-01-01", "-0", ".5"] {
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
fn dots_are_allowed_inside_the_repository() {
    accepted("builds: {a: {context: api/../web/., dockerfile: ../web/Dockerfile}}");
}

#[test]
fn keys_are_text_whatever_their_yaml_type() {
    let manifest = accepted("builds: {1: {context: .}, null: {context: .}, true: {context: .}}");
    let names: Vec<_> = manifest.builds.iter().map(|build| &*build.name).collect();
    assert_eq!(names, ["1", "null", "true"]);
}

#[test]
fn keys_that_begin_with_x_hold_what_anchors_share() {
    let text = "x-common: &common\n  timeout: 20m\n  build_args: &args\n    GO: \"1.20\"\n    CGO: \"0\"\n\
        x-anything: [1, { a: ~ }]\nbuilds:\n  api:\n    <<: *common\n    context: .\n  web:\n    <<: *common\n    \
        context: .\n    build_args:\n      <<: *args\n      GO: \"1.21\"\n";
    let manifest = accepted(text);
    let [api, web] = &manifest.builds[..] else { panic!("two builds") };
    assert_eq!((api.timeout, web.timeout), (Duration::from_mins(20), Duration::from_mins(20)));
    let arg = |build: &Build, name: &str| build.build_args[name].fill(|_| String::new());
    assert_eq!((arg(api, "GO"), arg(web, "GO")), ("1.20".to_owned(), "1.21".to_owned()));
    assert_eq!(arg(web, "CGO"), "0");
}
