//! Previews through core: a compose file with a web service, a database, a migration and a worker.

use std::process::Command;
use std::time::Duration;

use reqwest::header::HOST;
use reqwest::{Method, Response, StatusCode};
use serde_json::Value;
use stagely::api::{RunStatus, RunView};
use stagely_state::ids::RunId;
use stagely_test_core::Core;
use stagely_test_support::browser::Browser;
use stagely_test_support::wait::{eventually, eventually_within};

use crate::STAGELY;

/// Web server, client and server of the database in one image.
const DOCKERFILE: &str = "FROM debian:13-slim\n\
    RUN apt-get update && apt-get install -y --no-install-recommends busybox postgresql\n\
    COPY bin /app/bin\n\
    COPY www /app/www\n\
    RUN chmod +x /app/bin/* /app/www/cgi-bin/*\n";

const DATABASE: &str = "#!/bin/sh -e
bin=$(echo /usr/lib/postgresql/*/bin)
mkdir -p /data/pg && chown postgres: /data/pg && chmod 700 /data/pg
as_postgres='setpriv --reuid=postgres --regid=postgres --init-groups'
if [ ! -e /data/pg/PG_VERSION ]; then
    $as_postgres $bin/initdb -D /data/pg -A trust >/dev/null
    echo 'host all all all trust' >>/data/pg/pg_hba.conf
fi
exec $as_postgres $bin/postgres -D /data/pg -c listen_addresses='*' -c unix_socket_directories=/tmp
";

const MIGRATE: &str = "#!/bin/sh -e
psql -h db -U postgres -c 'CREATE TABLE IF NOT EXISTS words (id serial, word text)'
";

const WORKER: &str = "#!/bin/sh
until psql -h db -U postgres -c \"INSERT INTO words (word) VALUES ('worker')\"; do sleep 0.2; done
exec sleep 100000
";

const COMPOSE: &str = "
services:
  web:
    build: .
    command: busybox httpd -f -p 8080 -h /app/www
    environment: {PGHOST: db, PGUSER: postgres}
    depends_on: {db: {condition: service_healthy}, prepare: {condition: service_completed_successfully}}
  db:
    build: .
    command: /app/bin/database
    volumes: ['data:/data']
    stop_grace_period: 20s
    healthcheck: {test: psql -h 127.0.0.1 -U postgres -c 'SELECT 1', interval: 1s, retries: 60}
  prepare:
    build: .
    command: echo prepared
  worker:
    build: .
    command: /app/bin/worker
    depends_on: {db: {condition: service_healthy}}
volumes: {data: {}}
";

const MANIFEST: &str = "
builds: { app: { context: . } }
preview:
  compose: compose.yaml
  images: { web: app, db: app, prepare: app, worker: app }
  endpoints: { web: { service: web, port: 8080 } }
  env: { ADDRESS: '${PREVIEW_URL}' }
  migrate: { service: web, command: [/app/bin/migrate] }
  branches: [main]
  access: public
";

/// The core of a test, and the name of its preview.
struct Shop {
    core: Core,
    http: reqwest::Client,
}

impl Shop {
    async fn start(name: &str, settings: &str) -> Self {
        let core = Core::start(STAGELY, name, settings).await;
        Self { core, http: reqwest::Client::builder().no_proxy().build().unwrap() }
    }

    /// Commits the shop with another page, and starts a run.
    async fn push(&self, page: &str, others: &[(&str, &str)]) -> RunId {
        let files = [
            ("Dockerfile", DOCKERFILE),
            ("bin/database", DATABASE),
            ("bin/migrate", MIGRATE),
            ("bin/worker", WORKER),
            ("www/index.html", page),
            ("www/cgi-bin/words", "#!/bin/sh\necho; psql -Atc 'SELECT word FROM words'\n"),
            (
                "www/cgi-bin/add",
                "#!/bin/sh\necho; psql -v word=\"$QUERY_STRING\" -Atf /app/bin/add.sql\n",
            ),
            ("bin/add.sql", "INSERT INTO words (word) VALUES (:'word');\n"),
            ("www/cgi-bin/address", "#!/bin/sh\necho; echo $ADDRESS; echo $HTTP_HOST\n"),
            ("compose.yaml", COMPOSE),
            ("stagely.yaml", MANIFEST),
        ];
        let replaced = |name: &str| others.iter().any(|(other, _)| *other == name);
        let kept = files.into_iter().filter(|(name, _)| !replaced(name));
        let files: Vec<_> = kept.chain(others.iter().copied()).collect();
        self.core.run_of(&files).await
    }

    /// Waits until the run has ended. The machine of its preview stays.
    async fn ended(&self, run: RunId) -> RunView {
        let mut last = None;
        let ended = eventually_within(Duration::from_mins(5), "the run ends", async || {
            let view = self.core.view(run).await;
            last = Some(view.clone());
            view.status.is_final().then_some(view)
        });
        ended.await
    }

    async fn deployed(&self, page: &str, others: &[(&str, &str)]) -> RunView {
        let run = self.push(page, others).await;
        let run = self.ended(run).await;
        if run.status != RunStatus::Completed {
            for job in &run.jobs {
                println!("{}: {}", job.name, self.core.log(job).await);
            }
            panic!("{run:#?}");
        }
        run
    }

    async fn request(&self, path: &str) -> Response {
        let address = self.core.url.trim_end_matches('/');
        let port = address.rsplit(':').next().unwrap();
        let label = self.preview().await["label"].as_str().unwrap().to_owned();
        let request = self.http.get(format!("{address}{path}"));
        request.header(HOST, format!("{label}.localhost:{port}")).send().await.unwrap()
    }

    async fn page(&self, path: &str) -> String {
        let response = self.request(path).await;
        assert_eq!(response.status(), StatusCode::OK, "{path}");
        response.text().await.unwrap()
    }

    async fn preview(&self) -> Value {
        let previews: Value = self.core.get("/previews?all=true").await;
        let previews = previews.as_array().unwrap().clone();
        let own = previews.into_iter().find(|preview| preview["project"] == *self.core.name);
        own.expect("a preview")
    }

    async fn command(&self, command: &str) {
        let id = self.preview().await["id"].as_str().unwrap().to_owned();
        let _: Value = self.core.post(&format!("/previews/{id}/{command}"), Value::Null).await;
    }

    async fn until(&self, status: &str) -> Value {
        eventually_within(Duration::from_mins(2), status, async || {
            let preview = self.preview().await;
            (preview["status"] == status).then_some(preview)
        })
        .await
    }

    /// Ends the preview. Nothing of it is left on the engine.
    async fn finish(self) {
        let id = self.preview().await["id"].as_str().unwrap().to_owned();
        self.core.request_text(Method::DELETE, &format!("/previews/{id}"), None).await;
        eventually("the preview has ended", async || {
            (self.preview().await["status"] == "ended").then_some(())
        })
        .await;
        assert_eq!(on_engine(&id), "", "the preview is left");
        self.core.finish().await;
    }
}

/// The containers and volumes of a preview.
fn on_engine(preview: &str) -> String {
    let filter = format!("label=stagely.preview={preview}");
    let list = |arguments: &[&str]| {
        let output = Command::new("docker").args(arguments).arg("--filter").arg(&filter).output();
        String::from_utf8(output.unwrap().stdout).unwrap()
    };
    list(&["ps", "--all", "--quiet"]) + &list(&["volume", "ls", "--quiet"])
}

#[tokio::test]
async fn a_preview_serves_its_own_data_through_updates_sleep_and_wake() {
    let shop = Shop::start("preview", "").await;
    let run = shop.deployed("one", &[]).await;
    assert!(run.jobs.iter().any(|job| job.name == "deploy"), "{run:#?}");
    // The machine of the preview is not one of the run any more.
    shop.core.ended(run.id).await;
    assert_eq!(shop.page("/").await, "one");
    let address = shop.page("/cgi-bin/address").await;
    let lines: Vec<_> = address.lines().collect();
    assert_eq!(lines[0], format!("http://{}", lines[1]), "the application knows its address");
    shop.page("/cgi-bin/add?first").await;
    let words = shop.page("/cgi-bin/words").await;
    assert!(words.contains("first") && words.contains("worker"), "{words}");

    // A version that fails its migration changes nothing for people.
    let run = shop.push("broken", &[("bin/migrate", "#!/bin/sh\necho no column; exit 3\n")]).await;
    let failed = shop.ended(run).await;
    assert_eq!(failed.status, RunStatus::Failed);
    let deploy = failed.jobs.iter().find(|job| job.name == "deploy").unwrap();
    let error = deploy.error.as_deref().unwrap();
    assert!(error.contains("`migrate`") && error.contains("exit code 3"), "{error}");
    assert_eq!(shop.page("/").await, "one");

    shop.deployed("two", &[]).await;
    assert_eq!(shop.page("/").await, "two");
    assert!(shop.page("/cgi-bin/words").await.contains("first"), "the data stays");

    shop.command("sleep").await;
    let asleep = shop.until("asleep").await;
    assert!(asleep["archive"]["bytes"].as_u64().unwrap() > 0, "{asleep}");
    eventually("the machine is gone", async || {
        shop.core
            .machines()
            .await
            .iter()
            .all(|machine| machine.status == stagely::api::MachineStatus::Terminated)
            .then_some(())
    })
    .await;
    assert_eq!(on_engine(asleep["id"].as_str().unwrap()), "");

    // A request that is no browser's waits until the preview serves again.
    let response = shop.request("/cgi-bin/words").await;
    assert_eq!(response.status(), StatusCode::OK, "{:#}", shop.preview().await);
    assert!(response.text().await.unwrap().contains("first"), "the data was archived");
    shop.finish().await;
}

#[tokio::test]
async fn a_browser_that_opens_a_sleeping_preview_sees_it_wake() {
    let shop = Shop::start("preview-browser", "").await;
    let manifest = MANIFEST.replace("access: public", "access: link");
    shop.deployed("<p>the shop</p>", &[("stagely.yaml", &manifest)]).await;
    let link = shop.preview().await["url"].as_str().unwrap().to_owned();
    shop.command("sleep").await;
    shop.until("asleep").await;

    let browser = Browser::open().await;
    browser.go(link.split('?').next().unwrap()).await;
    let refused = browser.text().await;
    assert!(refused.contains("opens with its link"), "{refused}");
    assert_eq!(shop.preview().await["status"], "asleep", "a stranger wakes nothing");

    browser.go(&link).await;
    let waiting = browser.text().await;
    assert!(waiting.contains("This preview"), "{waiting}");
    eventually_within(Duration::from_mins(2), "the page is that of the app", async || {
        let problem = &shop.preview().await["problem"];
        assert!(problem.is_null(), "{problem}");
        browser.text().await.contains("the shop").then_some(())
    })
    .await;
    assert!(!browser.url().await.contains("stagely-access"), "{}", browser.url().await);
    // The app cannot read what opens it.
    assert_eq!(browser.value_of("document.cookie").await, "");
    drop(browser);
    shop.finish().await;
}

#[tokio::test]
async fn core_and_the_agent_may_be_killed_while_a_preview_serves() {
    let mut shop = Shop::start("preview-kills", "").await;
    shop.deployed("one", &[]).await;
    shop.page("/cgi-bin/add?first").await;

    shop.core.crash();
    shop.core.launch().await;
    eventually("the agent is back", async || {
        (shop.request("/").await.status() == StatusCode::OK).then_some(())
    })
    .await;
    assert!(shop.page("/cgi-bin/words").await.contains("first"));
    shop.deployed("two", &[]).await;
    assert_eq!(shop.page("/").await, "two");
    shop.finish().await;
}
