//! Reads manifests and compares the result, or the exact messages.

#![expect(clippy::unwrap_used, reason = "the allowance for tests does not reach their helpers")]

mod accepted;
mod dependencies;
mod hostile;
mod matrices;
mod paths;
mod random;
mod refused;
mod schema;

use stagely_manifest::{Build, Manifest, parse};

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

fn build(rest: &str) -> Build {
    accepted(&format!("builds: {{a: {{context: ., {rest}}}}}")).builds.remove(0)
}

fn build_arg(yaml: &str) -> String {
    let build =
        accepted(&format!("builds:\n  a:\n    context: .\n    build_args:\n      X: {yaml}"));
    build.builds[0].build_args["X"].fill(|variable| format!("<{}>", variable.as_str()))
}
