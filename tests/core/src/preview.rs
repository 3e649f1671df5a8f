//! The preview of the repository's main branch: a page, and the machine that serves it.

use reqwest::Method;
use reqwest::header::HOST;
use serde_json::{Value, json};
use stagely::api::{CreateRun, EnvironmentView, MachineView, RunStatus};
use stagely::core::previews::preview_label;
use stagely_state::{Fleet, MachineKind};
use stagely_test_support::wait::eventually;

use crate::Core;

/// A preview that everybody may open, and that has one compose file.
const MANIFEST: &str = "builds: { app: { context: ., platforms: [linux/amd64], machine: small } }\n\
    preview:\n  compose: compose.yaml\n  images: { web: app }\n  machine: small\n  access: public\n  branches: [main]\n  \
    endpoints: { web: { service: web, port: 8080, health: { timeout: 1m } } }\n";

const COMPOSE: &str =
    "services:\n  web: { build: ., volumes: ['data:/data'] }\nvolumes: { data: }\n";

impl Core {
    /// Starts a run whose preview serves `page`, and waits until it does.
    pub async fn preview_of(&self, page: &str) {
        self.preview_with(page, MANIFEST, COMPOSE).await;
    }

    /// As [`preview_of`](Self::preview_of), with these two files.
    pub async fn preview_with(&self, page: &str, manifest: &str, compose: &str) {
        let dockerfile = format!(
            "FROM busybox\nRUN : {}; mkdir /www /data && echo {page} >/www/index.html\n\
             CMD [\"httpd\", \"-f\", \"-p\", \"8080\", \"-h\", \"/www\"]\n",
            self.name
        );
        self.repository.commit(&[
            ("Dockerfile", &*dockerfile),
            ("compose.yaml", compose),
            ("stagely.yaml", manifest),
        ]);
        let request = CreateRun { reference: Some("main".to_owned()), ..self.request() };
        let run = self.run(request).await;
        let run = eventually("the preview is deployed", async || {
            let view = self.view(run).await;
            view.status.is_final().then_some(view)
        })
        .await;
        assert_eq!(run.status, RunStatus::Completed, "{run:#?}");
        self.serves(page).await;
    }

    /// Waits until the preview serves `page`.
    pub async fn serves(&self, page: &str) {
        let text = format!("{page}\n");
        eventually(&format!("the preview serves {page:?}"), async || {
            (self.preview_page().await.1 == text).then_some(())
        })
        .await;
    }

    /// Status and text of the preview's page.
    pub async fn preview_page(&self) -> (u16, String) {
        self.preview_page_at("/").await
    }

    /// As [`preview_page`](Self::preview_page), for the page at `path`.
    pub async fn preview_page_at(&self, path: &str) -> (u16, String) {
        let label = preview_label("main", &self.name, None);
        let port = self.url.rsplit_once(':').unwrap().1;
        let host = format!("{label}.localhost:{port}");
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let url = format!("{}{path}", self.url);
        let response = client.request(Method::GET, url).header(HOST, host).send().await;
        let response = response.unwrap();
        (response.status().as_u16(), response.text().await.unwrap())
    }

    /// The machines of previews that core has, launched or registered.
    pub async fn preview_machines(&self) -> Vec<MachineView> {
        let mut machines = self.machines().await;
        machines.retain(|machine| machine.fleet == Fleet::Preview);
        machines
    }

    /// The only machine of previews, which is connected.
    pub async fn preview_machine(&self) -> MachineView {
        eventually("one machine of previews is connected", async || {
            let machines = self.preview_machines().await;
            let [machine] = <[MachineView; 1]>::try_from(machines).ok()?;
            machine.connected.then_some(machine)
        })
        .await
    }

    /// Closes the environment of the main branch, and waits until the launched machines are gone.
    pub async fn end_preview(&self) {
        let environments: Vec<EnvironmentView> = self.get("/environments").await;
        let environment = environments.iter().find(|found| found.name == "main").unwrap();
        let path = format!("/environments/{}/close", environment.id);
        let _: Value = self.post(&path, json!({})).await;
        eventually("no launched machine is left", async || {
            let machines = self.machines().await;
            machines.iter().all(|machine| machine.kind == MachineKind::Registered).then_some(())
        })
        .await;
    }
}
