//! The context that a build sends to a real Docker engine. Needs the registry that `docker.rs` needs.

#![expect(clippy::unwrap_used, reason = "a helper's failure fails the test")]

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use stagely_agent::endpoints::Endpoints;
use stagely_agent::job::{self, JobRequest, JobSettings, REGISTRY_RETRY_LIMIT};
use stagely_agent::job_log::LineSink;
use stagely_agent::preview::{PreviewSettings, Previews};
use stagely_agent::spool::SpoolError;
use stagely_protocol::{CoreMessage, Status, StatusState, Stream};
use stagely_test_support::git::{GitServer, TOKEN};
use tokio_util::sync::CancellationToken;

fn setting(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set: these tests need a registry"))
}

/// Discards the log.
struct NoLog;

impl LineSink for NoLog {
    fn append(&self, _: &[(Stream, String)]) -> Result<(), SpoolError> {
        Ok(())
    }
}

async fn build(git: &GitServer, commit: &str) -> Status {
    let work_dir = tempfile::tempdir().unwrap();
    let password = fs::read_to_string(setting("STAGELY_REGISTRY_PASSWORD_FILE")).unwrap();
    let image = format!("{}/agent-tests/context:app", setting("STAGELY_REGISTRY"));
    let arch = stagely_protocol::Arch::of_this_program();
    let message = json!({
        "type": "BUILD",
        "job_id": "job_context",
        "context": {
            "repo_url": git.url("private", "app/.git"),
            "commit_hash": commit,
            "clone_token": TOKEN,
        },
        "build_config": {
            "context_path": ".",
            "target_image": image,
            "platform": format!("linux/{arch}"),
        },
        "registry_auth": {
            "username": setting("STAGELY_REGISTRY_USERNAME"), "password": password.trim(),
        },
    });
    let Ok(CoreMessage::Build(build)) = CoreMessage::parse(&message.to_string()) else {
        panic!("{message}")
    };
    let previews = PreviewSettings {
        machine: "vm_context_test".parse().unwrap(),
        work_dir: work_dir.path().to_owned(),
        docker_host: None,
        grace: Duration::from_secs(5),
        core: None,
        endpoints: Endpoints::default(),
    };
    let settings = JobSettings {
        previews: Previews::new(previews, Arc::default()),
        machine: "vm_context_test".parse().unwrap(),
        work_dir: work_dir.path().to_owned(),
        docker_host: None,
        user_logins: false,
        grace: Duration::from_secs(5),
        registry_retry_limit: REGISTRY_RETRY_LIMIT,
    };
    job::run(JobRequest::Build(build), &settings, Arc::new(NoLog), &CancellationToken::new()).await
}

#[tokio::test]
async fn copying_the_whole_repository_comes_from_the_cache_the_second_time() {
    let git = GitServer::start();
    let parts = git.repository("parts", true);
    parts.commit(&[("file", "text")]);
    let repository = git.repository("app", true);
    let origin = git.url("private", "parts/.git");
    let with_token = origin.replace("http://", &format!("http://x:{TOKEN}@"));
    repository.git(&["submodule", "--quiet", "add", &with_token, "parts"]);
    repository.git(&["config", "--file", ".gitmodules", "submodule.parts.url", &origin]);
    // Never built before.
    let nonce = format!("{}", repository.path.display());
    let commit = repository.commit(&[("Dockerfile", "FROM scratch\nCOPY . .\n"), ("n", &nonce)]);

    for is_cached in [false, true] {
        let status = build(&git, commit.as_str()).await;
        assert_eq!(status.state, StatusState::Completed, "{status:?}");
        let copy = status.steps.iter().find(|step| step.name.contains("COPY . .")).unwrap();
        assert_eq!(copy.cached, is_cached, "{:?}", status.steps);
    }
}
