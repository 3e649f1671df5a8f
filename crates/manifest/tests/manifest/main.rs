//! Reads manifests and compares the result, or the exact messages.

#![expect(clippy::unwrap_used, reason = "the allowance for tests does not reach their helpers")]

mod accepted;
mod dependencies;
mod hostile;
mod matrices;
mod paths;
mod previews;
mod random;
mod refused;
mod refused_previews;
mod schema;

use stagely_manifest::{Build, Manifest, Preview, parse};

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
preview:
  compose: deploy/compose.yaml
  images: {web: app, worker: app}
  endpoints:
    web:
      service: web
      port: 8080
      health: {path: /healthz?full=1, status: 200-299, timeout: 90s}
    mail-box: {service: mail, port: 8025}
  env: {APP_URL: \"${PREVIEW_URL}/${BRANCH}\", MAIL: \"${PREVIEW_URL_MAIL_BOX}\", DEBUG: 1.10}
  secrets: [STRIPE_TEST_KEY, _x]
  migrate: {service: web, command: [bin/migrate, --all], timeout: 20m}
  seed: {service: web, command: [sh, -c, \"bin/seed \\\"$SIZE\\\"\"]}
  reset_when: [\"db/migrate/**\"]
  on: label
  branches: [main, \"release/*\"]
  machine: small
  disk: 40GiB
  access: token
  public_paths: [/webhooks/*, /status]
  sleep_after: never
  ttl: 2d12h
";

fn accepted(text: &str) -> Manifest {
    parse("stagely.yaml", text.as_bytes()).unwrap_or_else(|problems| panic!("{problems}"))
}

/// The problems, each on one line, without the file's name.
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

/// The start of a valid section with a compose file, to which keys can be added.
const PREVIEW: &str = "\
builds: {app: {context: .}}
preview:
  compose: compose.yaml
  endpoints: {web: {service: web, port: 80}}
";

fn preview(rest: &str) -> Preview {
    accepted(&format!("{PREVIEW}  {rest}\n")).preview.unwrap()
}

/// The problem of a section with `rest`, without position and path.
fn problem_of_preview(rest: &str) -> String {
    let lines = problems(format!("{PREVIEW}  {rest}\n"));
    let [line] = &lines[..] else { panic!("not one problem: {lines:?}") };
    line.split_once("preview.").unwrap().1.to_owned()
}

fn build(rest: &str) -> Build {
    accepted(&format!("builds: {{a: {{context: ., {rest}}}}}")).builds.remove(0)
}

fn build_arg(yaml: &str) -> String {
    let build =
        accepted(&format!("builds:\n  a:\n    context: .\n    build_args:\n      X: {yaml}"));
    build.builds[0].build_args["X"].fill(|variable| format!("<{}>", variable.as_str()))
}
