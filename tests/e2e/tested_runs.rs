//! Runs with tests: in shards on testers, on the preview's machine, with results and artifacts, and tested again.

use std::io::Cursor;
use std::time::Duration;

use reqwest::Method;
use serde_json::json;
use stagely::api::{CreateRun, JobStatus, JobView, MachineView, RunStatus, RunView};
use stagely_protocol::{FailureReason, TestResults};
use stagely_state::Fleet;
use stagely_state::ids::RunId;
use stagely_test_core::{Core, job};
use stagely_test_support::wait::{eventually, eventually_within};

use crate::STAGELY;

/// A page, and a test that writes what it should have found as a `JUnit` file.
const TEST: &str = "#!/bin/sh
mkdir -p /out/report
echo \"shard $STAGELY_SHARD of $STAGELY_SHARDS\" | tee /out/report/$STAGELY_SHARD.txt
if [ \"$FAILS\" = yes ]; then
    failure='<failure message=\"the page has another word\">line one</failure>'
fi
echo \"<testsuite name='page'><testcase name='opens' classname='page'/><testcase name='says' classname='page'>$failure</testcase></testsuite>\" \
    >/out/results.xml
[ -z \"$failure\" ]
";

fn manifest(fails: bool) -> String {
    let fails = if fails { "yes" } else { "no" };
    format!(
        "builds: {{ app: {{ context: ., machine: small }} }}\n\
         preview: {{ image: app, port: 8080, branches: [main], machine: small }}\n\
         test:\n  \
           page:\n    image: app\n    command: [/test]\n    machine: small\n    shards: 2\n    \
             env: {{ FAILS: '{fails}' }}\n    junit: [/out/results.xml]\n    artifacts: [/out/report]\n  \
           inside:\n    image: app\n    on: preview\n    \
             command: [sh, -c, 'wget -qO- http://app:8080/ | grep -q hello']\n"
    )
}

struct Site(Core);

impl Site {
    async fn start(name: &str) -> Self {
        Self(Core::start(STAGELY, name, "").await)
    }

    async fn push(&self, fails: bool) -> RunId {
        let dockerfile = format!(
            "FROM busybox\nRUN : {}; mkdir /www && echo hello >/www/index.html\n\
             COPY --chmod=755 test /test\nCMD [\"httpd\", \"-f\", \"-p\", \"8080\", \"-h\", \"/www\"]\n",
            self.0.name
        );
        let manifest = manifest(fails);
        let files = [("Dockerfile", &*dockerfile), ("test", TEST), ("stagely.yaml", &*manifest)];
        self.0.repository.commit(&files);
        let request = CreateRun { reference: Some("main".to_owned()), ..self.0.request() };
        self.0.run(request).await
    }

    async fn ended(&self, run: RunId) -> RunView {
        let mut seen = Vec::new();
        let run = eventually_within(Duration::from_mins(5), "the run ends", async || {
            let view = self.0.view(run).await;
            if seen.last() != Some(&view.status) {
                seen.push(view.status);
            }
            view.status.is_final().then_some(view)
        })
        .await;
        if run.jobs.iter().any(|job| job.status == JobStatus::Failed) {
            for job in &run.jobs {
                println!("{} {:?}: {}", job.name, job.error, self.0.log(job).await);
            }
        }
        assert!(run.reuses.is_some() || seen.contains(&RunStatus::Testing), "{seen:?}");
        run
    }

    /// Only the preview's machine is left.
    async fn testers_are_gone(&self) {
        eventually("the testers are gone", async || {
            let machines: Vec<MachineView> = self.0.machines().await;
            machines.iter().all(|machine| machine.fleet == Fleet::Preview).then_some(())
        })
        .await;
    }

    async fn finish(self) {
        self.0.end_preview().await;
        self.0.finish().await;
    }
}

fn results(job: &JobView) -> TestResults {
    job.test.as_ref().unwrap().results.clone().unwrap()
}

#[tokio::test]
async fn a_run_is_tested_in_shards_and_on_its_preview_and_leaves_artifacts() {
    let site = Site::start("tested").await;
    let run = site.push(false).await;

    let run = site.ended(run).await;

    assert_eq!(run.status, RunStatus::Completed, "{run:#?}");
    for shard in [1, 2] {
        let page = job(&run, &format!("test/page/{shard}"));
        let found = results(page);
        assert_eq!((found.passed, found.failed), (2, 0));
        assert!(site.0.log(page).await.contains(&format!("shard {shard} of 2")));
        let left = page.test.as_ref().unwrap().artifacts.clone().unwrap();
        assert_eq!(left.files, 1);
        let path = format!("/jobs/{}/artifacts", page.id);
        // Short texts and zeros.
        let bytes = site.0.request_text(Method::GET, &path, None).await.into_bytes();
        assert_eq!(bytes.len() as u64, left.bytes);
        let mut archive = tar::Archive::new(Cursor::new(bytes));
        let names: Vec<_> = archive
            .entries()
            .unwrap()
            .map(|entry| entry.unwrap().path().unwrap().display().to_string())
            .collect();
        assert!(names[0].ends_with(&format!("{shard}.txt")), "{names:?}");
    }
    assert_eq!(job(&run, "test/inside").status, JobStatus::Completed);
    artifacts_are_on_a_host_of_their_own(&site, &run).await;
    site.testers_are_gone().await;
    site.finish().await;
}

async fn artifacts_are_on_a_host_of_their_own(site: &Site, run: &RunView) {
    let page = job(run, "test/page/1");
    let shown = reqwest::get(format!("{}/jobs/{}", site.0.url, page.id)).await.unwrap();
    let shown = shown.text().await.unwrap();
    let (_, link) = shown.split_once("<a href=\"http://artifacts---").unwrap();
    let link = format!("http://artifacts---{}", link.split('"').next().unwrap());
    let link = reqwest::Url::parse(&link).unwrap();
    assert_eq!(link.path(), format!("/{}/", page.id));
    let host = format!("{}:{}", link.host_str().unwrap(), link.port().unwrap());
    let redirects = reqwest::redirect::Policy::none();
    let client = reqwest::Client::builder().no_proxy().redirect(redirects).build().unwrap();
    let get = async |host: &str, path: &str| {
        let request = client.get(format!("{}{path}", site.0.url)).header("host", host);
        let response = request.header("range", "bytes=0-4").send().await.unwrap();
        let headers = response.headers().clone();
        (response.status().as_u16(), headers, response.text().await.unwrap())
    };
    let root = link.path().trim_end_matches('/');
    let (status, _, listing) = get(&host, &format!("{root}/")).await;
    assert!(status == 200 && listing.contains("href=\"./out/\""), "{status}: {listing}");
    let (status, _, listing) = get(&host, &format!("{root}/out/report/")).await;
    assert!(status == 200 && listing.contains("href=\"./1.txt\""), "{status}: {listing}");
    let (status, headers, text) = get(&host, &format!("{root}/out/report/1.txt")).await;
    assert_eq!((status, &*text), (206, "shard"));
    assert_eq!(headers["content-type"], "text/plain; charset=utf-8");
    assert_eq!(headers["x-content-type-options"], "nosniff");
    assert!(headers["content-security-policy"].to_str().unwrap().contains("form-action 'none'"));
    for folder in [root.to_owned(), format!("{root}/out")] {
        let (status, headers, _) = get(&host, &folder).await;
        assert_eq!((status, headers["location"].to_str().unwrap()), (307, &*format!("{folder}/")));
    }
    for missing in [
        "/".to_owned(),
        format!("{root}/out%2f..%2freport"),
        format!("{root}/out/report/1.txt/"),
        format!("{root}//out"),
        format!("{root}/%00"),
        format!("/{}/", job(run, "app").id),
        "/api/v1/runs".to_owned(),
    ] {
        let (status, ..) = get(&host, &missing).await;
        assert_eq!(status, 404, "{missing}");
    }
    // The host of another environment.
    let other = host.replacen("artifacts---0", "artifacts---1", 1);
    assert_eq!(get(&other, &format!("{root}/")).await.0, 404);
    // Pages of artifacts change nothing.
    let origin = format!("http://{host}");
    let write = client.post(format!("{}/api/v1/runs", site.0.url)).header("origin", origin);
    let write = write.bearer_auth(site.0.admin_token()).json(&json!({})).send().await.unwrap();
    assert_eq!(write.status().as_u16(), 403);
}

#[tokio::test]
async fn a_failed_test_fails_the_run_keeps_the_preview_and_is_tested_again() {
    let site = Site::start("untested").await;
    let run = site.push(true).await;

    let run = site.ended(run).await;

    assert_eq!(run.status, RunStatus::Failed, "{run:#?}");
    let page = job(&run, "test/page/1");
    assert!(matches!(page.reason, Some(FailureReason::Test { failed: 1, .. })), "{page:?}");
    let found = results(page);
    assert_eq!((found.passed, found.failed, found.cases.len()), (1, 1, 1));
    assert_eq!(found.cases[0].message, "the page has another word");
    assert_eq!(site.0.preview_machines().await.len(), 1, "the preview stays");

    let again: RunView = site
        .0
        .post(
            &format!("/runs/{}/rebuild", run.id),
            json!({
                "failed": true, "clone_token": stagely_test_support::git::TOKEN,
            }),
        )
        .await;
    let again = site.ended(again.id).await;
    for reused in ["app", "deploy", "test/inside"] {
        assert!(job(&again, reused).reused_from.is_some(), "{reused}: {again:#?}");
    }
    assert_eq!(job(&again, "test/page/1").reused_from, None);
    assert_eq!(again.status, RunStatus::Failed);

    let tests: RunView = site
        .0
        .post(
            &format!("/runs/{}/rebuild", again.id),
            json!({
                "tests": true, "clone_token": stagely_test_support::git::TOKEN,
            }),
        )
        .await;
    let tests = site.ended(tests.id).await;
    assert_eq!(job(&tests, "test/inside").reused_from, None);
    assert!(job(&tests, "deploy").reused_from.is_some());
    site.finish().await;
}
