//! The whole life of a pull request, with the agents of local machines and the Docker engine.

use stagely::api::{JobView, MachineView, RunStatus, RunView};
use stagely_state::{Fleet, Usd};
use stagely_test_core::job;
use stagely_test_support::files::files_below;
use stagely_test_support::previews::on_engine;
use stagely_test_support::wait::eventually;

use crate::STAGELY;
use crate::conversation::Conversation;
use crate::fake::PullRequest;

const MANIFEST: &str = "builds: { app: { context: . } }
preview:
  compose: compose.yaml
  images: { web: app }
  endpoints: { web: { service: web, port: 8080, health: { timeout: 1m } } }
test:
  page:
    image: app
    command: [/test]
    junit: [/out/results.xml]
    artifacts: [/out]
    comment_images: [/shots]
";

const COMPOSE: &str =
    "services:\n  web: { build: ., volumes: ['data:/data'] }\nvolumes: { data: }\n";

/// Keeps the page that it gets through core, which must be that of its image.
const TEST: &str = "#!/bin/sh
set -e
mkdir /out /shots
printf '\\211PNG\\r\\n\\032\\n' >'/shots/the page.png'
wget -qO /out/page --header \"$STAGELY_ACCESS_HEADER\" $PREVIEW_URL
cmp /out/page /www/index.html
echo \"<testsuite name='page'><testcase name='opens'/><testcase name='is the one'/></testsuite>\" >/out/results.xml
";

/// Machines of this host are real, and have a price.
fn settings() -> String {
    format!("[local]\nagent-program = \"{STAGELY}\"\n[prices]\nlocal = 0.60\n")
}

impl Conversation {
    /// The commit's run when it and its machines but the preview's have ended.
    async fn is_over(&self, pull: &PullRequest) -> RunView {
        let commit = self.github.head(pull);
        let is_over = |run: &RunView| {
            run.commit.as_ref().is_some_and(|found| found.as_str() == commit)
                && run.status.is_final()
        };
        let run = self.run_when(pull, "it is over", is_over).await;
        eventually("only the preview's machine is left", async || {
            let machines: Vec<MachineView> = self.core.machines().await;
            machines.iter().all(|machine| machine.fleet == Fleet::Preview).then_some(())
        })
        .await;
        run
    }

    /// The text of the page that the comment's link opens.
    async fn page_of(&self, comment: &str) -> String {
        let (_, rest) = comment.split_once("](http://pr-1-").unwrap();
        let url = format!("http://pr-1-{}", rest.split(')').next().unwrap());
        let url = reqwest::Url::parse(&url).unwrap();
        let host = format!("{}:{}", url.host_str().unwrap(), url.port().unwrap());
        let client =
            reqwest::Client::builder().no_proxy().redirect(reqwest::redirect::Policy::none());
        let client = client.build().unwrap();
        let path = format!("{}{}?{}", self.core.url, url.path(), url.query().unwrap());
        let opened = client.get(path).header("host", &host).send().await.unwrap();
        let cookie = opened.headers()["set-cookie"].to_str().unwrap();
        let cookie = cookie.split(';').next().unwrap().to_owned();
        let page = client.get(&self.core.url).header("host", host).header("cookie", cookie);
        page.send().await.unwrap().text().await.unwrap()
    }
}

fn tested(run: &RunView) -> &JobView {
    let test = job(run, "test/page");
    let found = test.test.as_ref().unwrap();
    assert_eq!(found.results.as_ref().unwrap().passed, 2, "{run:#?}");
    // The page, the results and the picture.
    assert_eq!(found.artifacts.as_ref().unwrap().files, 3, "{run:#?}");
    test
}

#[tokio::test]
async fn a_pull_request_is_built_deployed_tested_updated_and_leaves_nothing() {
    let conversation = Conversation::start_with("life", MANIFEST, &settings()).await;
    let name = &conversation.project;
    let dockerfile = |page: &str| {
        format!(
            "FROM busybox\nRUN : {name}; mkdir /www /data && echo {page} >/www/index.html\n\
             COPY --chmod=755 test /test\nCMD [\"httpd\", \"-f\", \"-p\", \"8080\", \"-h\", \"/www\"]\n"
        )
    };
    let files = [("Dockerfile", &*dockerfile("one")), ("test", TEST), ("compose.yaml", COMPOSE)];
    let pull = conversation.github.opens("acme/web", "shop", &files).await;

    let first = conversation.is_over(&pull).await;
    assert_eq!(first.status, RunStatus::Completed, "{first:#?}");
    tested(&first);
    let machine = conversation.core.preview_machine().await.id;
    // A container, a volume and a network.
    assert_eq!(on_engine(&machine.to_string()).len(), 3);
    let comment = conversation.comment_says(&pull, "2 passed").await.body;
    for text in ["🟢", "`page`: ✅ 2 passed", "3 files", "Cost $0.0", "this pull request"] {
        assert!(comment.contains(text), "no {text:?} in {comment}");
    }
    assert_eq!(conversation.page_of(&comment).await, "one\n");
    let (_, picture) = comment.split_once("![shots/the page.png](").unwrap();
    // As GitHub's image proxy: without a token.
    let picture = reqwest::get(picture.split(')').next().unwrap()).await.unwrap();
    assert_eq!(picture.headers()["content-type"], "image/png");
    assert_eq!(picture.headers()["x-content-type-options"], "nosniff");
    assert_eq!(*picture.bytes().await.unwrap(), *b"\x89PNG\r\n\x1a\n");
    let head = conversation.github.head(&pull);
    for context in ["stagely", "stagely/preview"] {
        conversation.status_is(&head, context, "success").await;
    }

    let update = [("Dockerfile", &*dockerfile("two"))];
    conversation.github.pushes(&pull, &update).await;
    let second = conversation.is_over(&pull).await;
    assert_eq!(second.status, RunStatus::Completed, "{second:#?}");
    tested(&second);
    assert_eq!(conversation.core.preview_machine().await.id, machine, "it is updated in place");
    let commit = conversation.github.head(&pull);
    let comment =
        conversation.comment_says(&pull, &format!("shows commit `{}`", &commit[..12])).await;
    assert_eq!(conversation.page_of(&comment.body).await, "two\n");

    conversation.github.closes(&pull).await;
    conversation.comment_says(&pull, "ended with the pull request").await;
    eventually("no machine is left", async || {
        conversation.core.machines().await.is_empty().then_some(())
    })
    .await;
    let machines: Vec<MachineView> = conversation.core.get("/machines?all=true").await;
    // A builder and a tester for each commit, and one for the preview.
    assert_eq!(machines.len(), 5, "{machines:#?}");
    for machine in &machines {
        assert!(on_engine(&machine.id.to_string()).is_empty(), "{machine:#?}");
        assert!(machine.cost_usd.unwrap() > Usd::ZERO, "{machine:#?}");
    }
    let archives = files_below(&conversation.core.path("data/archives"));
    assert!(archives.is_empty(), "{archives:?}");
    conversation.ends().await;
}
