//! The HTTP API: the permissions of each role, and refusals.

use std::fs;
use std::process::Command;

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use stagely::api::{CreatedToken, EnvironmentView, ErrorBody, RunView, SecretView, WarmUpView};
use stagely_protocol::Arch;
use stagely_state::Trigger;
use stagely_test_core::Core;
use stagely_test_support::wait::eventually;

use crate::STAGELY;

/// Sends a request that must be refused with `status` and the code `word`. Returns the message.
async fn refused(
    core: &Core,
    token: Option<&str>,
    (method, path): (&Method, &str),
    body: Option<Value>,
    (status, word): (u16, &str),
) -> String {
    let asked = format!("{method} {path} {body:?}");
    let (found, text) = core.call(token, method.clone(), path, body).await;
    let error: ErrorBody = serde_json::from_str(&text)
        .unwrap_or_else(|_| panic!("{asked}: {found}, and no error body: {text:?}"));
    assert_eq!((found.as_u16(), error.code.as_str()), (status, word), "{asked}: {text}");
    assert!(!error.message.is_empty(), "{asked}");
    error.message
}

async fn token_of(core: &Core, role: &str) -> String {
    let created: CreatedToken =
        core.post("/tokens", json!({ "name": format!("a {role}"), "role": role })).await;
    secrecy::ExposeSecret::expose_secret(&created.token).to_owned()
}

#[tokio::test]
async fn each_role_has_its_permissions_and_others_have_none() {
    let core = Core::start(STAGELY, "roles", "").await;
    let (get, post, put, delete) = (Method::GET, Method::POST, Method::PUT, Method::DELETE);
    let run = json!({ "repository": "http://127.0.0.1:1/open/app" });
    let token = json!({ "name": "mine", "role": "admin" });
    let machine = json!({ "arch": "amd64" });
    let nothing = "01jd7q3f5m8z9x2c4v6b8n0a1s";
    let paths = |path: &str| format!("/api/v1/{}", path.replace("ID", nothing));
    // The lowest role with permission, and the status that it gets.
    let requests = [
        ("read", &get, paths("runs"), None, 200),
        ("read", &get, paths("runs/run_ID"), None, 404),
        ("read", &get, paths("runs/run_ID/jobs"), None, 404),
        ("read", &get, paths("jobs/job_ID"), None, 404),
        ("read", &get, paths("jobs/job_ID/logs"), None, 404),
        ("read", &get, paths("machines"), None, 200),
        ("read", &get, paths("machines?all=true"), None, 200),
        ("read", &get, paths("queue"), None, 200),
        ("read", &get, paths("sweep"), None, 200),
        ("admin", &post, paths("sweep"), None, 200),
        ("write", &post, paths("runs"), Some(run), 201),
        ("write", &post, paths("runs/run_ID/cancel"), None, 404),
        ("write", &post, paths("runs/run_ID/rebuild"), Some(json!({ "failed": true })), 404),
        ("read", &get, paths("environments?project=nobody"), None, 200),
        ("write", &post, paths("environments/env_ID/close"), None, 404),
        ("read", &get, paths("previews"), None, 200),
        ("read", &get, paths("previews?status=live&pull_request=7&all=true"), None, 200),
        ("read", &get, paths("previews/prev_ID"), None, 404),
        ("read", &get, paths("previews/prev_ID/logs?tail=10"), None, 404),
        ("write", &post, paths("previews/prev_ID/sleep"), None, 404),
        ("write", &post, paths("previews/prev_ID/wake"), None, 404),
        ("write", &post, paths("previews/prev_ID/reset"), None, 404),
        ("write", &post, paths("previews/prev_ID/extend"), Some(json!({ "seconds": 60 })), 404),
        ("write", &delete, paths("previews/prev_ID"), None, 404),
        ("read", &get, paths("cost"), None, 200),
        ("read", &get, paths("cost?month=2026-11&project=ID"), None, 404),
        (
            "admin",
            &post,
            paths("budget"),
            Some(json!({ "project": nothing, "amount_usd": 5.0 })),
            404,
        ),
        ("read", &get, paths("warm-up"), None, 200),
        ("write", &post, paths("projects/ID/warm-ups"), Some(json!({})), 404),
        ("write", &get, paths("projects/ID/secrets"), None, 404),
        ("write", &put, paths("projects/ID/secrets/KEY"), Some(json!({ "value": "x" })), 404),
        ("write", &delete, paths("projects/ID/secrets/KEY"), None, 404),
        ("admin", &post, paths("machines"), Some(machine), 201),
        ("admin", &delete, paths("machines/vm_ID"), None, 404),
        ("admin", &post, paths("tokens"), Some(token), 201),
    ];
    let roles = ["read", "write", "admin"];
    let rank = |role: &str| roles.iter().position(|known| *known == role).unwrap();
    let mut tokens = Vec::new();
    for role in roles {
        tokens.push(token_of(&core, role).await);
    }
    for (least, method, path, body, status) in requests {
        let request = (method, path.as_str());
        for token in [None, Some("stagely_wrong"), Some("")] {
            refused(&core, token, request, body.clone(), (401, "unauthorized")).await;
        }
        for (role, token) in roles.iter().zip(&tokens) {
            if rank(role) < rank(least) {
                refused(&core, Some(token), request, body.clone(), (403, "forbidden")).await;
                continue;
            }
            let (found, text) = core.call(Some(token), method.clone(), &path, body.clone()).await;
            assert_eq!(found.as_u16(), status, "{role} {method} {path}: {text}");
            if status == 404 {
                let error: ErrorBody = serde_json::from_str(&text).unwrap();
                assert!(error.message.contains(nothing), "{text}");
            }
        }
    }
    for run in core.get::<Vec<RunView>>("/runs").await {
        core.post::<RunView>(&format!("/runs/{}/cancel", run.id), json!({})).await;
    }
    core.finish().await;
}

#[tokio::test]
async fn invalid_requests_are_refused_with_the_same_errors_everywhere() {
    let core = Core::start(STAGELY, "refused", "").await;
    let admin = core.admin_token();
    let invalid = (400, "invalid_request");
    let repository = "https://example.org/a.git";
    let bodies = [
        ("runs", json!({}), "repository"),
        ("runs", json!([]), ""),
        ("runs", json!({ "repository": repository, "brunch": "main" }), "brunch"),
        ("runs", json!({ "repository": "/etc" }), "repository"),
        ("runs", json!({ "repository": "ssh://host/a" }), "https://"),
        ("runs", json!({ "repository": "https://me:secret@host/a" }), "clone_token"),
        ("runs", json!({ "repository": "https://host/a?token=secret" }), "clone_token"),
        ("runs", json!({ "repository": repository, "ref": "a..b" }), "ref"),
        ("runs", json!({ "repository": repository, "project": "A B" }), "a-b"),
        ("runs", json!({ "repository": repository, "environment": "cache" }), "environment"),
        ("runs", json!({ "repository": repository, "set": { "1x": "" } }), "1x"),
        ("runs", json!({ "repository": repository, "base": "a..b" }), "base"),
        ("runs", json!({ "repository": repository, "pull_request": 0 }), "pull_request"),
        ("runs", json!({ "repository": repository, "environment": "pr-7" }), "pull_request"),
        ("projects/a/warm-ups", json!({ "branch": "a".repeat(40) }), "branch"),
        ("machines", json!({ "arch": "sparc" }), "sparc"),
        ("machines", json!({ "arch": "arm64", "name": "" }), "name"),
        ("machines", json!({ "arch": "arm64", "fleet": "painter" }), "fleet"),
        ("machines", json!({ "arch": "arm64", "fleet": "web" }), "web"),
        ("previews/prev_01jd7q3f5m8z9x2c4v6b8n0a1s/extend", json!({ "seconds": 0 }), "seconds"),
        ("tokens", json!({ "name": "x", "role": "king" }), "king"),
        ("tokens", json!({ "name": "x", "role": "read", "for": "me" }), "for"),
    ];
    for (path, body, text) in bodies {
        let path = format!("/api/v1/{path}");
        let request = (&Method::POST, path.as_str());
        let message = refused(&core, Some(&admin), request, Some(body.clone()), invalid).await;
        assert!(message.contains(text) && !message.contains("secret"), "{body}: {message}");
    }
    for path in [
        "runs/nonsense",
        "runs/job_01jd7q3f5m8z9x2c4v6b8n0a1s",
        "jobs/nonsense",
        "jobs/nonsense/logs",
        "runs?limit=many",
        "previews/nonsense",
        "previews?state=live",
        "previews?status=sleeping",
        "runs?befor=run_1",
        "jobs/job_01jd7q3f5m8z9x2c4v6b8n0a1s/logs?from=-1",
    ] {
        let path = format!("/api/v1/{path}");
        refused(&core, Some(&admin), (&Method::GET, &path), None, invalid).await;
    }
    let not_found = (404, "not_found");
    refused(&core, Some(&admin), (&Method::GET, "/api/v1/nothing"), None, not_found).await;
    refused(&core, Some(&admin), (&Method::GET, "/"), None, not_found).await;
    let not_allowed = (405, "method_not_allowed");
    refused(&core, Some(&admin), (&Method::DELETE, "/api/v1/runs"), None, not_allowed).await;
    let large = json!({ "repository": "x".repeat(2 << 20) });
    let too_large = (413, "too_large");
    refused(&core, Some(&admin), (&Method::POST, "/api/v1/runs"), Some(large), too_large).await;
    let reader = token_of(&core, "read").await;
    let nothing = "01jd7q3f5m8z9x2c4v6b8n0a1s";
    for (path, as_reader) in [
        (format!("jobs/job_{nothing}/logs/follow"), 404),
        (format!("previews/prev_{nothing}/logs/follow"), 404),
        (format!("previews/prev_{nothing}/exec"), 403),
    ] {
        let path = format!("/api/v1/{path}");
        for (token, status) in [(None, 401), (Some(&reader), as_reader), (Some(&admin), 404)] {
            let token = token.map(String::as_str);
            let Err(tokio_tungstenite::tungstenite::Error::Http(answer)) =
                core.socket(&path, token).await
            else {
                panic!("{path} is opened");
            };
            assert_eq!(answer.status().as_u16(), status, "{path}");
        }
    }
    core.finish().await;
}

#[tokio::test]
async fn the_api_serves_its_description_and_its_health() {
    let core = Core::start(STAGELY, "openapi", "").await;
    for path in ["/healthz", "/readyz"] {
        let (status, text) = core.call(None, Method::GET, path, None).await;
        assert_eq!(status, StatusCode::OK, "{path}: {text}");
    }
    let (status, text) = core.call(None, Method::GET, "/api/v1/openapi.json", None).await;
    assert_eq!(status, StatusCode::OK);
    let description: Value = serde_json::from_str(&text).unwrap();
    assert!(description["openapi"].as_str().unwrap().starts_with("3."));
    let paths = description["paths"].as_object().unwrap();
    for path in [
        "runs",
        "runs/{id}",
        "runs/{id}/jobs",
        "runs/{id}/cancel",
        "runs/{id}/follow",
        "runs/{id}/rebuild",
        "environments",
        "environments/{id}/close",
        "warm-up",
        "projects/{name}/warm-ups",
        "projects/{name}/secrets",
        "projects/{name}/secrets/{secret}",
        "jobs/{id}",
        "jobs/{id}/logs",
        "jobs/{id}/logs/follow",
        "machines",
        "machines/{id}",
        "queue",
        "cost",
        "budget",
        "tokens",
    ] {
        let operations = paths[&format!("/api/v1/{path}")].as_object().unwrap();
        for operation in operations.values() {
            assert!(!operation["summary"].as_str().unwrap().is_empty(), "{path}");
        }
    }
    let binary = &paths["/v1/agent/binary/{arch}"]["get"];
    assert_eq!(binary["security"], json!([{}]), "{binary}");
    // Every reference has its target.
    for reference in text.split("\"$ref\":\"").skip(1) {
        let pointer = reference.split('"').next().unwrap().strip_prefix('#').unwrap();
        assert!(description.pointer(pointer).is_some(), "{pointer}");
    }
    core.finish().await;
}

#[tokio::test]
async fn machines_fetch_the_agents_program_without_a_token() {
    let folder = tempfile::tempdir().unwrap();
    let (own, other) = match Arch::of_this_program() {
        Arch::Amd64 => (Arch::Amd64, Arch::Arm64),
        Arch::Arm64 => (Arch::Arm64, Arch::Amd64),
    };
    let settings = format!("[agents]\nbinaries = {:?}", folder.path());
    let core = Core::start(STAGELY, "binaries", &settings).await;
    let address = |arch: &str| format!("/v1/agent/binary/{arch}");
    let program = fs::read(env!("CARGO_BIN_EXE_stagely")).unwrap();
    let sha256 = Command::new("sha256sum").arg(env!("CARGO_BIN_EXE_stagely")).output().unwrap();
    let sha256 = String::from_utf8(sha256.stdout).unwrap()[..64].to_owned();
    for method in [Method::GET, Method::HEAD] {
        let url = format!("{}{}", core.url, address(own.as_str()));
        let answer = reqwest::Client::new().request(method.clone(), url).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
        let header = |name: &str| answer.headers()[name].to_str().unwrap().to_owned();
        assert_eq!(header("content-length"), program.len().to_string());
        assert_eq!(header("x-checksum-sha256"), sha256);
        assert_eq!(header("etag"), format!("{sha256:?}"));
        let body = answer.bytes().await.unwrap();
        assert!(if method == Method::HEAD { body.is_empty() } else { body == program });
    }
    let name = format!("stagely-linux-{other}");
    let address_of_other = address(other.as_str());
    let missing = (&Method::GET, &*address_of_other);
    let message = refused(&core, None, missing, None, (404, "not_found")).await;
    assert!(message.contains(&name) && message.contains("agents.binaries"), "{message}");
    fs::write(folder.path().join(name), "a program").unwrap();
    let (status, text) = core.call(None, Method::GET, &address_of_other, None).await;
    assert_eq!((status, &*text), (StatusCode::OK, "a program"));
    let unknown = address("riscv64");
    refused(&core, None, (&Method::GET, &unknown), None, (400, "invalid_request")).await;
    core.finish().await;
}

#[tokio::test]
async fn a_core_whose_disk_is_nearly_full_refuses_runs_and_still_shows_the_old_ones() {
    let core = Core::start(STAGELY, "disk", "[core]\ndisk-free-min-mib = 1_000_000_000_000").await;
    let admin = core.admin_token();
    let body = serde_json::to_value(core.request()).unwrap();
    let request = (&Method::POST, "/api/v1/runs");
    let full = (507, "disk_nearly_full");
    let message = refused(&core, Some(&admin), request, Some(body), full).await;
    assert!(message.contains("disk-free-min-mib"), "{message}");
    let (status, _) = core.call(None, Method::GET, "/readyz", None).await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    let (status, _) = core.call(None, Method::GET, "/healthz", None).await;
    assert_eq!(status, StatusCode::OK);
    assert!(core.get::<Vec<RunView>>("/runs").await.is_empty());
    core.finish().await;
}

#[tokio::test]
async fn a_run_is_built_again_and_a_project_warmed_up_in_their_environments() {
    let settings = "[builders]\nprovider = \"none\"\n\n[warm-up]\nschedule = \"30 4 * * *\"\n\
                    projects = [\"later\"]";
    let core = Core::start(STAGELY, "again", settings).await;
    let admin = core.admin_token();
    // No server listens at port 1.
    let repository = "http://127.0.0.1:1/owner/again.git";
    let create = json!({ "repository": repository, "pull_request": 7, "set": { "MODE": "x" } });
    let run: RunView = core.post("/runs", create).await;
    assert_eq!((&*run.environment, run.pull_request), ("pr-7", Some(7)));
    let path = format!("/api/v1/runs/{}/rebuild", run.id);
    let rebuild = (&Method::POST, path.as_str());
    let open = (409, "conflict");
    let message = refused(&core, Some(&admin), rebuild, Some(json!({})), open).await;
    assert!(message.contains("has not ended"), "{message}");
    core.post::<RunView>(&format!("/runs/{}/cancel", run.id), json!({})).await;
    let invalid = (400, "invalid_request");
    let message = refused(&core, Some(&admin), rebuild, Some(json!({})), invalid).await;
    assert!(message.contains("MODE"), "{message}");

    let body = json!({ "failed": true, "set": { "MODE": "y" } });
    let again: RunView = core.post(&format!("/runs/{}/rebuild", run.id), body).await;
    assert_eq!((again.trigger, again.reuses), (Trigger::Rebuild, Some(run.id)));
    assert_eq!(again.environment_id, run.environment_id);
    let warm: RunView = core
        .post(&format!("/projects/{}/warm-ups", run.project), json!({ "branch": "main" }))
        .await;
    assert_eq!((warm.trigger, &*warm.environment), (Trigger::WarmUp, "main"));
    let schedule: WarmUpView = core.get("/warm-up").await;
    assert_eq!(schedule.projects, ["later"]);
    assert_eq!(schedule.next_due_at.unwrap().0 % 86_400_000, (4 * 60 + 30) * 60_000);
    let path = format!("/environments?project={}", run.project);
    let environments: Vec<EnvironmentView> = core.get(&path).await;
    let names: Vec<&str> = environments.iter().map(|found| found.name.as_str()).collect();
    assert_eq!(names, ["pr-7", "main"]);
    for run in [again, warm] {
        core.post::<RunView>(&format!("/runs/{}/cancel", run.id), json!({})).await;
    }
    // A core that stops may leave files of a cancelled planning to the next core.
    eventually("the plans are given up", async || {
        fs::read_dir(core.path("data/scratch")).unwrap().next().is_none().then_some(())
    })
    .await;
    core.finish().await;
}

#[tokio::test]
async fn secrets_of_a_project_are_set_listed_and_removed_and_never_shown() {
    const VALUE: &str = "value-of-nobody-else";
    let core = Core::start(STAGELY, "secrets", "[builders]\nprovider = \"none\"").await;
    let writer = token_of(&core, "write").await;
    // No server listens at port 1.
    let request = json!({ "repository": "http://127.0.0.1:1/owner/shop.git", "project": "shop" });
    let run: RunView = core.post("/runs", request).await;
    core.post::<RunView>(&format!("/runs/{}/cancel", run.id), json!({})).await;
    let path = |name: &str| format!("/api/v1/projects/shop/secrets/{name}");
    let set = async |name: &str, value: &str| {
        let body = Some(json!({ "value": value }));
        core.call(Some(&writer), Method::PUT, &path(name), body).await
    };
    let list = async || {
        let (status, text) =
            core.call(Some(&writer), Method::GET, "/api/v1/projects/shop/secrets", None).await;
        assert_eq!(status, StatusCode::OK, "{text}");
        text
    };
    let names = async || -> Vec<String> {
        let secrets: Vec<SecretView> = serde_json::from_str(&list().await).unwrap();
        secrets.into_iter().map(|secret| secret.name).collect()
    };
    assert_eq!(list().await, "[]");

    let (status, text) = set("KEY", VALUE).await;
    assert_eq!(status, StatusCode::CREATED, "{text}");
    let created: SecretView = serde_json::from_str(&text).unwrap();
    let (status, text) = set("KEY", &VALUE.repeat(2)).await;
    assert_eq!(status, StatusCode::OK, "{text}");
    let replaced: SecretView = serde_json::from_str(&text).unwrap();
    assert!(replaced.set_at >= created.set_at && replaced.name == "KEY", "{text}");
    let (status, _) = set("_2", &"x".repeat(64 * 1024)).await;
    assert_eq!(status, StatusCode::CREATED);
    assert_eq!(names().await, ["KEY", "_2"]);
    assert!(!list().await.contains(VALUE));

    let invalid = (400, "invalid_request");
    for (name, value, words) in [
        ("2KEY", "x".to_owned(), "secret: \"2KEY\" is not the name"),
        ("A-B", "x".to_owned(), "secret: \"A-B\" is not the name"),
        (&*"A".repeat(101), "x".to_owned(), "secret: is longer than 100"),
        ("KEY", String::new(), "value: is empty"),
        ("KEY", "a\0b".to_owned(), "value: has a NUL"),
        ("KEY", "x".repeat(64 * 1024 + 1), "value: is longer than 64 KiB"),
    ] {
        let (path, body) = (path(name), Some(json!({ "value": value })));
        let message = refused(&core, Some(&writer), (&Method::PUT, &path), body, invalid).await;
        assert!(message.contains(words), "{message}");
    }
    let key = path("KEY");
    let unknown = Some(json!({ "value": VALUE, "for": "me" }));
    let message = refused(&core, Some(&writer), (&Method::PUT, &key), unknown, invalid).await;
    assert!(message.contains("for") && !message.contains(VALUE), "{message}");

    for number in 2..100 {
        assert_eq!(set(&format!("S{number}"), "x").await.0, StatusCode::CREATED);
    }
    let (more, body) = (path("ONE_MORE"), Some(json!({ "value": "x" })));
    let conflict = (409, "conflict");
    let message = refused(&core, Some(&writer), (&Method::PUT, &more), body, conflict).await;
    assert!(message.contains("shop has 100 secrets"), "{message}");
    let (status, _) = core.call(Some(&writer), Method::DELETE, &key, None).await;
    assert_eq!(status, StatusCode::NO_CONTENT);
    let not_found = (404, "not_found");
    let message = refused(&core, Some(&writer), (&Method::DELETE, &key), None, not_found).await;
    assert!(message.contains("KEY"), "{message}");
    assert_eq!(names().await.len(), 99);
    for file in ["core.redb", "logs.redb"] {
        let bytes = fs::read(core.path(&format!("data/{file}"))).unwrap();
        let found = bytes.windows(VALUE.len()).any(|window| window == VALUE.as_bytes());
        assert!(!found, "{file} has the value");
    }
    core.finish().await;
}

#[tokio::test]
async fn concurrent_requests_create_one_project_of_a_name() {
    let core = Core::start(STAGELY, "same-moment", "[builders]\nprovider = \"none\"").await;
    let request = async |host: &str| -> RunView {
        // No server listens at port 1.
        let repository = format!("http://{host}:1/owner/repository.git");
        core.post("/runs", json!({ "repository": repository })).await
    };
    let all: Vec<RunView> = futures_util::future::join_all(
        (0..20).map(|n| request(if n % 2 == 0 { "127.0.0.1" } else { "127.0.0.2" })),
    )
    .await;
    for run in &all {
        core.post::<RunView>(&format!("/runs/{}/cancel", run.id), json!({})).await;
    }
    for (index, run) in all.iter().enumerate() {
        let first = &all[index % 2];
        assert_eq!((run.project_id, &run.project), (first.project_id, &first.project));
        assert_eq!(run.environment_id, first.environment_id);
    }
    let mut names = [all[0].project.as_str(), all[1].project.as_str()];
    names.sort_unstable();
    assert_eq!(names, ["owner-repository", "owner-repository-2"]);
    core.finish().await;
}

#[tokio::test]
async fn large_set_values_of_open_runs_are_not_kept_in_memory() {
    const RUNS: u64 = 80;
    const VALUES: usize = 14;
    const BYTES: usize = 64_000;
    let core = Core::start(STAGELY, "set-values", "[builders]\nprovider = \"none\"\n").await;
    let dockerfile = "FROM busybox\n";
    let yaml = "builds: { app: { context: . } }\n";
    core.repository.commit(&[("Dockerfile", dockerfile), ("stagely.yaml", yaml)]);
    let large = |number: u64| {
        let mut request = core.request();
        request.environment = Some(format!("env-{number}"));
        for name in 0..VALUES {
            let value = (number % 10).to_string().repeat(BYTES);
            request.set.insert(format!("LARGE_{name}"), value.into());
        }
        request
    };
    // Buffers and arenas that stay.
    let mut runs = vec![core.run(large(0)).await];
    let before = core.resident_bytes();
    for number in 1..RUNS {
        runs.push(core.run(large(number)).await);
    }
    let grown = core.resident_bytes().saturating_sub(before);
    assert!(grown < RUNS * (VALUES * BYTES) as u64 / 2, "{grown} bytes more");
    for run in runs {
        core.post::<Value>(&format!("/runs/{run}/cancel"), Value::Null).await;
    }
    core.finish().await;
}
