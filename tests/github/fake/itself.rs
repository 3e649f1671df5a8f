//! Tests of the fake: it refuses the requests that GitHub refuses, and its answers match GitHub's description.

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use stagely_test_support::git::Repository;

use super::people::WRITER;
use super::world::{DEPLOYMENT_STATUSES_MAX, FaultKind};
use super::{ENTERPRISE, GitHub};

struct Client<'a>(&'a GitHub, &'static str);

impl Client<'_> {
    async fn ask(&self, method: Method, path: &str, body: Option<Value>) -> (StatusCode, Value) {
        let http = reqwest::Client::builder().user_agent("test").build().unwrap();
        let mut request =
            http.request(method, format!("{}{path}", self.0.api())).bearer_auth(self.1);
        if let Some(body) = body {
            request = request.json(&body);
        }
        let answer = request.send().await.unwrap();
        (answer.status(), answer.json().await.unwrap_or_default())
    }

    async fn get(&self, path: &str) -> (StatusCode, Value) {
        self.ask(Method::GET, path, None).await
    }
}

#[tokio::test]
async fn its_answers_are_those_of_githubs_description() {
    let github = GitHub::start_at(ENTERPRISE).await;
    github.has_repository("acme/web", &[("stagely.yaml", "builds: {}\n")]);
    github.has_repository("acme/other", &[("a", "b")]);
    github.has_token("pat", &["acme/web"]);
    let pull = github.opens("acme/web", "b", &[("change", "1")]).await;
    let head = github.head(&pull);
    let client = Client(&github, "pat");
    for path in [
        "/repos/acme/web",
        "/repos/acme/web/pulls?state=open&per_page=100",
        "/repos/acme/web/pulls/1",
        "/repos/acme/web/contents/stagely.yaml?ref=main",
        "/repos/acme/web/collaborators/octo-writer/permission",
        "/repos/acme/web/issues/1/comments?per_page=100",
        "/rate_limit",
    ] {
        let (status, body) = client.get(path).await;
        assert_eq!(status, 200, "{path}: {body}");
    }
    let written = json!({ "body": "text" });
    let comments = "/repos/acme/web/issues/1/comments";
    let (status, comment) = client.ask(Method::POST, comments, Some(written.clone())).await;
    assert_eq!((status, &comment["user"]["login"]), (StatusCode::CREATED, &json!(WRITER)));
    let one = format!("/repos/acme/web/issues/comments/{}", comment["id"]);
    assert_eq!(client.ask(Method::PATCH, &one, Some(written)).await.0, 200);
    let light = json!({ "state": "pending", "context": "stagely", "description": "it waits" });
    let statuses = format!("/repos/acme/web/statuses/{head}");
    assert_eq!(client.ask(Method::POST, &statuses, Some(light)).await.0, 201);
    assert_eq!(github.statuses(&head)["stagely"].state, "pending");
    let deployments = "/repos/acme/web/deployments";
    let refused = json!({ "ref": head, "auto_merge": false });
    assert_eq!(client.ask(Method::POST, deployments, Some(refused)).await.0, 409, "it is pending");
    let unmerged = json!({ "ref": head, "required_contexts": [] });
    assert_eq!(client.ask(Method::POST, deployments, Some(unmerged)).await.0, 409);
    let unknown = json!({ "ref": "gone", "auto_merge": false, "required_contexts": [] });
    assert_eq!(client.ask(Method::POST, deployments, Some(unknown)).await.0, 422);
    let wanted = json!({
        "ref": head, "auto_merge": false, "required_contexts": [], "environment": "pr-1",
        "transient_environment": true, "payload": { "stagely": "env_1" },
    });
    let (status, made) = client.ask(Method::POST, deployments, Some(wanted)).await;
    assert_eq!((status, &made["payload"]["stagely"]), (StatusCode::CREATED, &json!("env_1")));
    let (_, list) = client.get(&format!("{deployments}?sha={head}&environment=pr-1")).await;
    assert_eq!(list.as_array().unwrap().len(), 1);
    let (_, none) = client.get(&format!("{deployments}?environment=pr-2")).await;
    assert_eq!(none, json!([]));
    let of = format!("{deployments}/{}/statuses", made["id"]);
    for (number, expected) in (0..=DEPLOYMENT_STATUSES_MAX)
        .map(|number| (number, if number < DEPLOYMENT_STATUSES_MAX { 201 } else { 422 }))
    {
        let live = json!({ "state": "success", "log_url": "https://core.example/runs/1" });
        assert_eq!(client.ask(Method::POST, &of, Some(live)).await.0, expected, "{number}");
    }
    let long = json!({ "state": "inactive", "description": "x".repeat(141) });
    assert_eq!(client.ask(Method::POST, &of, Some(long)).await.0, 422);
    github.has_no_complaints();

    // Repositories outside the token's scope are not found, and unknown requests are complaints.
    assert_eq!(client.get("/repos/acme/other").await.0, 404);
    assert_eq!(Client(&github, "guessed").get("/repos/acme/web").await.0, 401);
    assert_eq!(client.get("/app/hook/deliveries").await.0, 401);
    github.world().complaints.clear();
    assert_eq!(client.get("/repos/acme/web/everything").await.0, 422);
    assert_eq!(github.world().complaints.len(), 1);
}

#[tokio::test]
async fn its_pages_faults_and_limits_follow_the_request() {
    let github = GitHub::start_at("").await;
    github.has_repository("acme/web", &[("a", "b")]);
    github.has_token("pat", &["acme/web"]);
    let pull = github.opens("acme/web", "b", &[("change", "1")]).await;
    for number in 0..5 {
        github.comments(&pull, WRITER, &format!("comment {number}")).await;
    }
    let client = Client(&github, "pat");
    let page = |number| format!("/repos/acme/web/issues/1/comments?per_page=2&page={number}");
    let mut seen = Vec::new();
    for number in 1..=3 {
        let (_, body) = client.get(&page(number)).await;
        seen.extend(body.as_array().unwrap().iter().map(|comment| comment["body"].clone()));
    }
    assert_eq!(seen.len(), 5);
    github.fails("GET /repos/{owner}/{repo}", 1, FaultKind::Status(502));
    assert_eq!(client.get("/repos/acme/web").await.0, 502);
    assert_eq!(client.get("/repos/acme/web").await.0, 200);
    github.allows_only(1, std::time::Duration::from_mins(1));
    assert_eq!(client.get("/repos/acme/web").await.0, 200);
    assert_eq!(client.get("/repos/acme/web").await.0, 403);
    github.has_no_complaints();
}

#[tokio::test]
async fn git_serves_its_repositories_to_whoever_may_read_them() {
    let github = GitHub::start_at(ENTERPRISE).await;
    github.has_repository("acme/web", &[("a", "b")]);
    github.has_token("pat", &["acme/web"]);
    let pull = github.opens_from_fork("acme/web", "gift", &[("change", "1")]).await;
    let folder = tempfile::tempdir().unwrap();
    let here = Repository { path: folder.path().to_owned() };
    here.git(&["init", "--quiet"]);
    let site = github.world().site.clone();
    let with = |user: &str| format!("{}/acme/web.git", site.replace("://", &format!("://{user}")));
    let reference = format!("refs/pull/{}/head", pull.number);
    let fetch = async |url: String| {
        let mut git = tokio::process::Command::new("git");
        git.arg("-C").arg(folder.path()).args(["fetch", "--quiet", &url, &reference]);
        git.env("GIT_TERMINAL_PROMPT", "0").output().await.unwrap().status.success()
    };
    assert!(fetch(with("x-access-token:pat@")).await);
    assert_eq!(here.git(&["rev-parse", "FETCH_HEAD"]), github.head(&pull));
    assert!(!fetch(with("")).await);
    assert!(!fetch(with("x-access-token:guessed@")).await);
}
