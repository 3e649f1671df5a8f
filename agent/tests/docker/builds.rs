//! Builds that complete: what they push, and what they are made from.

use serde_json::json;
use stagely_agent::exec::exec;
use stagely_protocol::{Arch, FailureReason, StatusState};
use stagely_test_support::git::TOKEN;
use tokio_util::sync::CancellationToken;

use crate::setup::{Setup, runs_on_host};

#[tokio::test]
async fn a_build_is_pushed_and_its_repeat_is_cached() {
    let setup = Setup::new("push");
    let marker = setup.name.clone();
    let dockerfile =
        format!("FROM debian:13-slim\nCOPY file /\nRUN echo {marker}; cat /file >&2\n");
    let files = [("api/docker/Dockerfile", &*dockerfile), ("api/file", "the file\n")];
    let cache = setup.image("cache");
    let config = json!({
        "context_path": "./api", "dockerfile": "docker/Dockerfile",
        "cache_from": [cache], "cache_to": cache,
    });
    let status = setup.run(setup.build(&files, config.clone())).await;
    assert_eq!(status.state, StatusState::Completed, "{status:?}\n{}", setup.log());
    assert_eq!(status.artifact_url.unwrap().as_str(), setup.image("app"));
    assert!(status.digest.is_some() && status.warnings.is_empty());
    let names: Vec<_> = status.steps.iter().map(|step| step.name.as_str()).collect();
    assert!(names.iter().any(|name| name.starts_with("[3/3] RUN")), "{names:?}");
    assert!(status.steps.iter().any(|step| !step.cached));
    let log = setup.log();
    for text in
        [&*format!(" {marker}"), " the file", "DONE", "steps cached, pushed", "Cache exported to "]
    {
        assert!(log.contains(text), "{text}\n{log}");
    }
    assert!(!log.contains(&setup.password) && !log.contains(TOKEN), "{log}");

    let status = setup.run(setup.build(&[("unused", "")], config)).await;
    // BuildKit reports only sometimes that FROM is cached.
    assert!(status.steps[1..].iter().all(|step| step.cached), "{status:?}");
}

#[tokio::test]
async fn secrets_are_neither_logged_nor_arguments() {
    let setup = Setup::new("secrets");
    let secret = "s3cr3t-value-0815";
    let dockerfile = format!(
        "FROM debian:13-slim\nARG NPM_TOKEN\nARG MODE\nARG DOCKER_HOST\n\
         RUN : {}; echo plain $NPM_TOKEN; echo $NPM_TOKEN | base64; echo mode=$MODE; sleep 2; \
         test $DOCKER_HOST = tcp://nowhere:1; test $HTTPS_PROXY = $https_proxy; \
         test ${{#HTTPS_PROXY}} = 39\n",
        setup.name
    );
    let proxy = "http://joe:pr0xy-pass-0815@proxy.test:1";
    let args = json!({ "build_args": { "NPM_TOKEN": secret, "MODE": "fast-mode-0815", "PATH": "/sbin:/bin:/usr/bin", "DOCKER_HOST": "tcp://nowhere:1", "HTTPS_PROXY": proxy } });
    let message = setup.build(&[("Dockerfile", &dockerfile)], args);
    let (status, ()) = tokio::join!(setup.run(message), async {
        setup.log_has("mode=fast-mode-0815").await;
        for secret in [secret, "fast-mode-0815", "pr0xy-pass-0815", &setup.password, TOKEN] {
            // pgrep does not find itself.
            assert!(!runs_on_host(secret), "{secret} is an argument of a process");
        }
    });
    assert_eq!(status.state, StatusState::Completed, "{status:?}\n{}", setup.log());
    let log = setup.log();
    assert!(log.contains("plain ***") && !log.contains(secret), "{log}");
    assert!(!log.contains("czNjcjN0LXZhbHVl"), "{log}");
    assert!(!format!("{status:?}").contains(secret));
}

#[tokio::test]
async fn one_message_runs_without_core() {
    let setup = Setup::new("exec");
    let message = setup.build(&[("Dockerfile", "FROM debian:13-slim\nRUN exit 7\n")], json!({}));
    let file = setup.work_dir.path().join("message.json");
    std::fs::write(&file, message.to_string()).unwrap();
    let code = exec(&file, None, CancellationToken::new()).await.unwrap();
    assert_eq!(code, 7);
}

#[tokio::test]
async fn a_build_is_made_from_another_builds_image() {
    let base = Setup::new("base");
    let dockerfile = format!("FROM busybox\nRUN echo {} > /file\n", base.name);
    let status = base.run(base.build(&[("Dockerfile", &dockerfile)], json!({}))).await;
    let image = status.artifact_url.unwrap().at_digest(&status.digest.unwrap());
    let setup = Setup::new("on-base");
    let dockerfile = "FROM base\nCOPY --from=other-base /file /copy\n\
        RUN echo found $(cat /file) and $(cat /copy)\n";
    let contexts = json!({ "base": image, "other-base": image });
    let config = json!({ "build_contexts": contexts });
    let status = setup.run(setup.build(&[("Dockerfile", dockerfile)], config)).await;
    assert_eq!(status.state, StatusState::Completed, "{}", setup.log());
    let found = format!("found {0} and {0}", base.name);
    assert!(setup.log().contains(&found), "{}", setup.log());
}

#[tokio::test]
async fn emulation_is_measured_or_refused() {
    let setup = Setup::new("emulated");
    let foreign = Arch::ALL.into_iter().find(|arch| *arch != Arch::of_this_program()).unwrap();
    let platform = format!("linux/{foreign}");
    let count = "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done";
    let dockerfile = format!("FROM busybox\nRUN echo {}; uname -m; {count}\n", setup.name);
    let files = [("Dockerfile", &*dockerfile)];
    let forbidden = json!({ "platform": platform, "emulation": "forbid" });
    let status = setup.run(setup.build(&files, forbidden)).await;
    assert_eq!(status.error, Some(FailureReason::Emulation), "{}", setup.log());
    assert!(status.error_message.unwrap().contains("`emulation: forbid`"));

    let native = json!([{
        "name": dockerfile.lines().nth(1).map(|run| format!("[2/2] {run}")),
        "seconds": 0.2, "cached": false,
    }]);
    let config = json!({ "platform": platform, "native_steps": native });
    let status = setup.run(setup.build(&files, config)).await;
    assert_eq!(status.state, StatusState::Completed, "{}", setup.log());
    let machine = if foreign == Arch::Arm64 { "aarch64" } else { "x86_64" };
    assert!(setup.log().contains(&format!(" {machine}")), "{}", setup.log());
    let run = status.steps.iter().find(|step| step.name.contains("] RUN ")).unwrap();
    let times = format!("({:.1} times as long as natively)", run.seconds / 0.2);
    let [warning] = &status.warnings[..] else { panic!("{:?}", status.warnings) };
    assert!(warning.contains("is emulated") && warning.contains(&times), "{warning}, {run:?}");
}
