//! The pages that comments and commit statuses link to.

use reqwest::header::HeaderMap;
use reqwest::{Response, StatusCode};
use stagely::api::{CreateRun, JobStatus};
use stagely_protocol::FailureReason;
use stagely_test_core::{Core, job};

use crate::STAGELY;

/// The output of the build: markup and escape sequences.
const PRINTED: &str = "<script>alert(1)</script> &amp; \"quoted\"";

async fn open(core: &Core, path: &str) -> Response {
    reqwest::get(format!("{}{path}", core.url)).await.unwrap()
}

/// Opens a page and checks the headers of all pages. Returns the text.
async fn text_of(answer: Response, status: u16, kind: &str) -> String {
    assert_eq!(answer.status().as_u16(), status, "{}", answer.url());
    let headers: HeaderMap = answer.headers().clone();
    let header = |name: &str| headers.get(name).map_or("", |value| value.to_str().unwrap());
    assert_eq!(header("content-type"), format!("{kind}; charset=utf-8"));
    assert!(header("content-security-policy").starts_with("default-src 'none'; "), "{headers:?}");
    assert_eq!(header("x-content-type-options"), "nosniff");
    assert_eq!(header("referrer-policy"), "no-referrer");
    assert_eq!(header("cache-control"), "no-store");
    answer.text().await.unwrap()
}

async fn page(core: &Core, path: &str, status: u16) -> String {
    text_of(open(core, path).await, status, "text/html").await
}

#[tokio::test]
async fn the_pages_of_a_run_and_its_jobs_escape_all_markup() {
    let core = Core::start(STAGELY, "pages", "").await;
    // More lines than a page shows.
    let dockerfile = format!(
        "FROM busybox\nRUN : {}; echo '{PRINTED}'; : \u{202e}; printf '\\033[31mred\\033[0m\\342\\200\\256\\n'; \
         seq 1 5000; echo '{PRINTED}'; exit 3\n",
        core.name
    );
    let manifest = "builds: { app: { context: . } }\n";
    let run = core.run_of(&[("Dockerfile", &*dockerfile), ("stagely.yaml", manifest)]).await;
    let run = core.ended(run).await;
    let app = job(&run, "app");

    let text = page(&core, &format!("/runs/{}", run.id), 200).await;
    assert!(text.contains(&format!("<a href=\"../jobs/{}\">app</a>", app.id)), "{text}");
    assert!(text.contains("<strong class=\"failed\">failed</strong>"), "{text}");
    assert!(!text.contains("http-equiv"), "what has ended is not loaded again: {text}");

    let text = page(&core, &format!("/jobs/{}", app.id), 200).await;
    assert!(text.contains("The last 2000 lines"), "{text}");
    assert!(!text.contains("<script") && text.contains("&#60;script&#62;alert(1)"), "{text}");
    assert!(!text.contains(['\u{1b}', '\u{202e}']), "{text}");

    let answer = open(&core, &format!("/jobs/{}/log?attempt=1", app.id)).await;
    assert_eq!(answer.content_length(), None, "it is not sent in pieces");
    let log = text_of(answer, 200, "text/plain").await;
    for number in [1, 2_500, 5_000] {
        assert!(log.lines().any(|line| line.ends_with(&format!(" {number}"))), "{number}");
    }
    assert!(log.contains(PRINTED) && !log.contains(['\u{1b}', '\u{202e}']));

    // A list would show ids that only those know who were given a link.
    assert!(page(&core, "/previews", 401).await.contains("A token is needed"));
    let request = reqwest::Client::new().get(format!("{}/previews", core.url));
    let answer = request.basic_auth("me", Some(core.admin_token())).send().await.unwrap();
    assert!(text_of(answer, 200, "text/html").await.contains("There are none."));

    let nothing = "01jd7q3f5m8z9x2c4v6b8n0a1s";
    for path in [
        format!("/previews/prev_{nothing}"),
        format!("/previews/prev_{nothing}/log"),
        "/previews/x".to_owned(),
        format!("/runs/run_{nothing}"),
        "/runs/x".to_owned(),
        "/runs/%ff".to_owned(),
        format!("/jobs/job_{nothing}"),
        format!("/jobs/job_{nothing}/log"),
        format!("/jobs/{}?attempt=0", app.id),
        format!("/jobs/{}?attempt=2", app.id),
        format!("/jobs/{}/log?attempt=2", app.id),
    ] {
        let text = page(&core, &path, 404).await;
        assert!(text.contains("There is no such "), "{path}: {text}");
    }
    for attempt in ["x", "-1", "99999999999", "%3Cscript%3E"] {
        for path in [format!("/jobs/{}", app.id), format!("/jobs/{}/log", app.id)] {
            let text = page(&core, &format!("{path}?attempt={attempt}"), 400).await;
            assert!(text.contains("`?attempt=1`") && !text.contains("<script"), "{text}");
        }
    }
    core.finish().await;
}

#[tokio::test]
async fn an_invalid_manifest_is_shown_with_its_markup_as_text() {
    let core = Core::start(STAGELY, "pages-manifest", "").await;
    let manifest = "builds: { app: { context: ., '<img src=x>': 1 } }\n";
    let run = core.run_of(&[("stagely.yaml", manifest)]).await;
    let run = core.ended(run).await;
    assert_eq!(run.reason, Some(FailureReason::Manifest), "{run:#?}");
    let text = page(&core, &format!("/runs/{}", run.id), 200).await;
    assert!(text.contains("&#60;img src=x&#62;") && !text.contains("<img"), "{text}");
    core.finish().await;
}

#[tokio::test]
async fn without_open_logs_a_page_requests_basic_authentication() {
    let core = Core::start(STAGELY, "pages-closed", "[core]\nopen-logs = false\n").await;
    let manifest = "builds: { app: { context: . } }\n";
    let files = [("Dockerfile", "FROM scratch\nCOPY stagely.yaml /\n"), ("stagely.yaml", manifest)];
    core.repository.commit(&files);
    let run = core.run(CreateRun { project: Some(core.name.clone()), ..core.request() }).await;
    let run = core.ended(run).await;
    let app = job(&run, "app");
    assert_eq!(app.status, JobStatus::Completed, "{app:#?}");
    let paths = [
        format!("/runs/{}", run.id),
        format!("/jobs/{}", app.id),
        format!("/jobs/{}/log", app.id),
        // The answer does not show whether there is such a page.
        "/jobs/x?attempt=x".to_owned(),
    ];
    let http = reqwest::Client::new();
    for path in &paths {
        let url = format!("{}{path}", core.url);
        for wrong in [None, Some("stagely_wrong"), Some("")] {
            let request = http.get(&url);
            let request = match wrong {
                None => request,
                Some(wrong) => request.basic_auth("me", Some(wrong)),
            };
            let answer = request.send().await.unwrap();
            let challenge = answer.headers()["www-authenticate"].to_str().unwrap().to_owned();
            assert_eq!(challenge, "Basic realm=\"stagely\"");
            let text = text_of(answer, 401, "text/html").await;
            assert!(text.contains("A token is needed"), "{text}");
        }
    }
    let token = core.admin_token();
    for path in &paths[..3] {
        let url = format!("{}{path}", core.url);
        for request in
            [http.get(&url).basic_auth("me", Some(&token)), http.get(&url).bearer_auth(&token)]
        {
            assert_eq!(request.send().await.unwrap().status(), StatusCode::OK, "{path}");
        }
    }
    core.finish().await;
}
