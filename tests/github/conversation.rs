//! A fake GitHub, a core that gets its deliveries, and the machines of that core.

use std::fs;
use std::time::Duration;

use reqwest::Method;
use serde_json::Value;
use stagely::api::{RunStatus, RunView};
use stagely::core::store::StoreContents;
use stagely_test_core::Core;
use stagely_test_support::settings::with_defaults;
use stagely_test_support::wait::eventually;
use tempfile::TempDir;

use crate::STAGELY;
use crate::fake::world::Comment;
use crate::fake::{ENTERPRISE, GitHub, PullRequest, SECRET};
use crate::machines::Machines;

/// The repository of most conversations.
pub(crate) const WEB: &str = "acme/web";

pub(crate) const MANIFEST: &str = "builds: { app: { context: . } }\n";

/// A manifest with one build for two platforms.
pub(crate) const TWO_PLATFORMS: &str =
    "builds: { app: { context: ., platforms: [linux/amd64, linux/arm64] } }\n";

pub(crate) struct Conversation {
    pub(crate) github: GitHub,
    pub(crate) core: Core,
    pub(crate) machines: Machines,
    /// The project of [`WEB`].
    pub(crate) project: String,
    /// The folder of the files with secrets.
    secrets: TempDir,
}

/// The credentials that core has at GitHub.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Credentials {
    App,
    /// A fine-grained token.
    Token,
}

pub(crate) const TOKEN: &str = "github_pat_of-a-person-0815";

impl Conversation {
    /// Starts a core that is a GitHub App, and one repository with one build.
    pub(crate) async fn start(name: &str) -> Self {
        Self::start_with(name, MANIFEST, "").await
    }

    /// As [`start`](Self::start), with this `stagely.yaml`, and with `settings` before the defaults.
    pub(crate) async fn start_with(name: &str, manifest: &str, settings: &str) -> Self {
        let github = GitHub::start_at(ENTERPRISE).await;
        Self::start_at(github, name, manifest, settings, Credentials::App).await
    }

    pub(crate) async fn start_at(
        github: GitHub,
        name: &str,
        manifest: &str,
        settings: &str,
        credentials: Credentials,
    ) -> Self {
        let dockerfile = "FROM busybox\nRUN : a step\n";
        github.has_repository(WEB, &[("stagely.yaml", manifest), ("Dockerfile", dockerfile)]);
        github.has_token(TOKEN, &[WEB]);
        let (machines, secrets) = (Machines::new(), tempfile::tempdir().unwrap());
        let project = format!("gh-{name}-{:x}", rand::random_range(0x1000_0000..u32::MAX));
        let usual = settings_for(&github, &machines, secrets.path(), &project, credentials);
        let settings = with_defaults(settings, usual).to_string();
        let core = Core::start(STAGELY, name, &settings).await;
        github.delivers_to(&core.url);
        let conversation = Self { github, core, machines, project, secrets };
        conversation.is_reconciled().await;
        conversation
    }

    /// Waits until core has compared its records with GitHub. After that, for minutes, core learns of changes by
    /// deliveries alone.
    async fn is_reconciled(&self) {
        eventually("core has looked at its projects", async || {
            let health = self.health().await;
            let projects = health["projects"].as_array().cloned().unwrap_or_default();
            projects.iter().all(|project| project["reconciled_at"].is_number()).then_some(())
        })
        .await;
    }

    /// Opens a pull request with one changed file.
    pub(crate) async fn opened(&self, branch: &str) -> PullRequest {
        self.github.opens(WEB, branch, &[("change", branch)]).await
    }

    /// Waits until `is_so` is true of the newest run of a pull request.
    pub(crate) async fn run_when(
        &self,
        pull: &PullRequest,
        what: &str,
        is_so: impl Fn(&RunView) -> bool,
    ) -> RunView {
        eventually(&format!("a run of {pull:?}: {what}"), async || {
            let newest = self.runs(pull).await.into_iter().next()?;
            let run = self.core.view(newest.id).await;
            is_so(&run).then_some(run)
        })
        .await
    }

    /// The runs of a pull request, the newest first.
    pub(crate) async fn runs(&self, pull: &PullRequest) -> Vec<RunView> {
        let mut runs: Vec<RunView> = self.core.get("/runs?limit=1000").await;
        runs.retain(|run| run.pull_request == Some(pull.number));
        runs.sort_by_key(|run| std::cmp::Reverse(run.id));
        runs
    }

    /// Waits until the only comment on the pull request contains `text`.
    pub(crate) async fn comment_says(&self, pull: &PullRequest, text: &str) -> Comment {
        let what = format!("the comment on {pull:?} says {text:?}");
        eventually(&what, async || {
            let comments = self.github.reports(pull);
            assert!(comments.len() < 2, "two comments: {comments:#?}");
            comments.into_iter().find(|comment| comment.body.contains(text))
        })
        .await
    }

    /// Waits until a commit's status has this state. Returns its description.
    pub(crate) async fn status_is(&self, commit: &str, context: &str, state: &str) -> String {
        let what = format!("{context} of {commit} is {state}");
        eventually(&what, async || {
            let statuses = self.github.statuses(commit);
            let status = statuses.get(context).filter(|status| status.state == state);
            status.map(|status| status.description.clone())
        })
        .await
    }

    /// Builds the head of a pull request.
    pub(crate) async fn is_built(&self, pull: &PullRequest) -> RunView {
        self.machines.build_of(&self.github.head(pull)).await.succeeds().await;
        self.run_when(pull, "it completes", |run| run.status == RunStatus::Completed).await
    }

    /// `GET /api/v1/github`.
    pub(crate) async fn health(&self) -> Value {
        self.core.get("/github").await
    }

    /// Kills core and starts it again.
    pub(crate) async fn core_restarts(&mut self) {
        self.core.crash();
        self.core.launch().await;
    }

    pub(crate) async fn post(&self, path: &str, body: Value) -> (reqwest::StatusCode, String) {
        let path = format!("/api/v1{path}");
        self.core.call(Some(&self.core.admin_token()), Method::POST, &path, Some(body)).await
    }

    /// Ends core, and checks that nothing is left and that GitHub knows every request.
    pub(crate) async fn ends(self) -> StoreContents {
        let log = fs::read_to_string(self.core.path("core.log")).unwrap();
        self.github.has_no_complaints();
        let key = fs::read_to_string(self.secrets.path().join("key.pem")).unwrap();
        let line = key.lines().nth(1).unwrap();
        let tokens: Vec<String> = self.github.world().tokens.keys().cloned().collect();
        for secret in [line, SECRET].into_iter().chain(tokens.iter().map(String::as_str)) {
            assert!(!log.contains(secret), "a secret is in the log");
        }
        self.core.finish().await
    }
}

fn settings_for(
    github: &GitHub,
    machines: &Machines,
    secrets: &std::path::Path,
    project: &str,
    credentials: Credentials,
) -> toml::Table {
    let write = |name: &str, text: &str| {
        let path = secrets.join(name);
        fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let key = write("key.pem", &github.world().app.private_key());
    let token = write("token", TOKEN);
    let secret = write("webhook", SECRET);
    let (api, program) = (github.api(), machines.program());
    let mut settings = toml::toml! {
        [local]
        agent-program = (program.to_str().unwrap())
        [github]
        api-url = (api.as_str())
        webhook-secret-file = (secret.as_str())
        report-interval = "300ms"
        [[projects]]
        github = "acme/web"
        name = (project)
    };
    let table = settings["github"].as_table_mut().unwrap();
    match credentials {
        Credentials::App => {
            let id = i64::try_from(github.world().app.id).unwrap();
            table.insert("app-id".to_owned(), id.into());
            table.insert("private-key-file".to_owned(), key.into());
        }
        Credentials::Token => drop(table.insert("token-file".to_owned(), token.into())),
    }
    settings
}

/// The time limit for the end of a machine after a webhook that ends its work.
pub(crate) const END_LIMIT: Duration = Duration::from_secs(5);
