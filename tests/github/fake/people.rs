//! The actions of people on GitHub: they open and close pull requests, push, comment and attach labels. GitHub
//! delivers each action.

use std::collections::BTreeMap;
use std::fs;

use serde_json::json;
use stagely_test_support::git::Repository;

use super::GitHub;
use super::world::{Comment, Delivery, Deployment, Pull, Repo, Status, Token, now};
use super::{shapes, world};

/// An account with write permission to the tests' repositories.
pub(crate) const WRITER: &str = "octo-writer";

/// An account without permissions.
pub(crate) const STRANGER: &str = "octo-stranger";

#[derive(Clone, Debug)]
pub(crate) struct PullRequest {
    pub(crate) repository: String,
    pub(crate) number: u64,
    pub(crate) branch: String,
}

pub(crate) struct WrittenComment {
    pub(crate) delivery: Option<Delivery>,
}

pub(crate) type Files<'a> = &'a [(&'a str, &'a str)];

impl GitHub {
    /// Creates a private repository with these files on its branch `main`.
    pub(crate) fn has_repository(&self, full_name: &str, files: Files) {
        let path = self.folder.path().join(full_name);
        fs::create_dir_all(&path).unwrap();
        let git = Repository { path };
        git.git(&["init", "--quiet", "--initial-branch=main"]);
        git.git(&["config", "user.name", "Tester"]);
        git.git(&["config", "user.email", "tester@example.org"]);
        git.git(&["config", "uploadpack.allowAnySHA1InWant", "true"]);
        git.commit(files);
        let people = [(WRITER, "write"), ("octo-reader", "read"), ("octo-admin", "admin")];
        let mut world = self.world();
        let id = world.next_id();
        let repo = Repo {
            id,
            full_name: full_name.to_owned(),
            is_private: true,
            has_app: true,
            git,
            pulls: BTreeMap::new(),
            people: people.map(|(name, level)| (name.to_owned(), level.to_owned())).into(),
        };
        world.repositories.insert(full_name.to_ascii_lowercase(), repo);
    }

    /// Creates a fine-grained token for these repositories.
    pub(crate) fn has_token(&self, text: &str, repositories: &[&str]) {
        let mut world = self.world();
        let token = Token {
            account: WRITER.to_owned(),
            repositories: repositories.iter().map(|name| (*name).to_owned()).collect(),
            permissions: world.app.permissions.clone(),
            expires_at: now() + std::time::Duration::from_hours(24),
        };
        world.tokens.insert(text.to_owned(), token);
    }

    /// Opens a pull request of [`WRITER`] with these files changed.
    pub(crate) async fn opens(
        &self,
        repository: &str,
        branch: &str,
        files: Files<'_>,
    ) -> PullRequest {
        self.opens_as(repository, branch, files, Opened::default()).await
    }

    /// Opens a pull request of [`STRANGER`] from a fork.
    pub(crate) async fn opens_from_fork(
        &self,
        repository: &str,
        branch: &str,
        files: Files<'_>,
    ) -> PullRequest {
        let opened = Opened { author: STRANGER, is_fork: true, ..Opened::default() };
        self.opens_as(repository, branch, files, opened).await
    }

    pub(crate) async fn opens_as(
        &self,
        repository: &str,
        branch: &str,
        files: Files<'_>,
        opened: Opened,
    ) -> PullRequest {
        let pull = self.prepares(repository, branch, files, opened);
        self.delivers_pull(&pull, "opened", opened.author).await;
        pull
    }

    /// Opens a pull request without a delivery.
    pub(crate) fn prepares(
        &self,
        repository: &str,
        branch: &str,
        files: Files,
        opened: Opened,
    ) -> PullRequest {
        let mut world = self.world();
        let number = world.repository(repository).unwrap().pulls.len() as u64 + 1;
        let repo = world.repository_mut(repository);
        let base = repo.git.git(&["rev-parse", "main"]);
        let head = commit(&repo.git, "main", files);
        repo.git.git(&["update-ref", &format!("refs/pull/{number}/head"), &head]);
        if !opened.is_fork {
            repo.git.git(&["update-ref", &format!("refs/heads/{branch}"), &head]);
        }
        let name = repo.name().to_owned();
        let fork = format!("{}/{name}", opened.author);
        let pull = Pull {
            number,
            author: opened.author.to_owned(),
            association: opened.association,
            branch: branch.to_owned(),
            head_repository: if opened.is_fork { fork } else { repository.to_owned() },
            head,
            base,
            is_open: true,
            is_draft: opened.is_draft,
            is_merged: false,
            labels: Vec::new(),
            created_at: now(),
            updated_at: now(),
            closed_at: None,
        };
        repo.pulls.insert(number, pull);
        PullRequest { repository: repository.to_owned(), number, branch: branch.to_owned() }
    }

    /// Pushes a commit with these files changed.
    pub(crate) async fn pushes(&self, pull: &PullRequest, files: Files<'_>) -> Option<Delivery> {
        let payload = self.pushes_silently(pull, files);
        self.delivers("pull_request", payload).await
    }

    /// Pushes without a delivery. Returns the payload that GitHub would deliver.
    pub(crate) fn pushes_silently(&self, pull: &PullRequest, files: Files) -> serde_json::Value {
        let on = self.head(pull);
        self.moves(pull, &on, files)
    }

    /// Replaces all commits by one with these files changed.
    pub(crate) async fn force_pushes(&self, pull: &PullRequest, files: Files<'_>) {
        let payload = self.moves(pull, "main", files);
        self.delivers("pull_request", payload).await;
    }

    fn moves(&self, pull: &PullRequest, on: &str, files: Files) -> serde_json::Value {
        let mut world = self.world();
        let repo = world.repository_mut(&pull.repository);
        let head = commit(&repo.git, on, files);
        repo.git.git(&["update-ref", &format!("refs/pull/{}/head", pull.number), &head]);
        let found = repo.pulls.get_mut(&pull.number).unwrap();
        let before = std::mem::replace(&mut found.head, head.clone());
        found.updated_at = now();
        let author = found.author.clone();
        if found.head_repository == pull.repository {
            repo.git.git(&["update-ref", &format!("refs/heads/{}", pull.branch), &head]);
        }
        let (repo, found) = (
            world.repository(&pull.repository).unwrap(),
            world.pull(&pull.repository, pull.number),
        );
        let mut payload =
            shapes::pull_payload(&world, repo, "synchronize", found.unwrap(), &author);
        payload["before"] = json!(before);
        payload["after"] = json!(head);
        payload
    }

    /// Pushes to the branch `main`.
    pub(crate) async fn pushes_to_main(&self, repository: &str, files: Files<'_>) -> String {
        let (payload, after) = {
            let world = self.world();
            let repo = world.repository(repository).unwrap();
            let before = repo.git.head();
            let after = repo.git.commit(files).to_string();
            let mut payload = shapes::payload(&world, repo, ("push", None), WRITER);
            payload["ref"] = json!("refs/heads/main");
            payload["before"] = json!(before);
            payload["after"] = json!(after);
            payload["created"] = json!(false);
            payload["deleted"] = json!(false);
            payload["repository"]["pushed_at"] = json!(now().as_second());
            payload["head_commit"] = json!({
                "id": after, "tree_id": repo.git.git(&["rev-parse", "HEAD^{tree}"]), "distinct": true,
                "message": "a commit", "timestamp": world::written(now()), "url": "",
                "author": { "name": "Tester", "email": "t@example.org", "username": WRITER },
                "committer": { "name": "Tester", "email": "t@example.org", "username": WRITER },
                "added": [], "removed": [], "modified": [],
            });
            payload["commits"] = json!([payload["head_commit"]]);
            (payload, after)
        };
        self.delivers("push", payload).await;
        after
    }

    pub(crate) async fn closes(&self, pull: &PullRequest) {
        self.change(pull, |found| {
            found.is_open = false;
            found.closed_at = Some(now());
        });
        self.delivers_pull(pull, "closed", WRITER).await;
    }

    pub(crate) async fn reopens(&self, pull: &PullRequest) {
        self.change(pull, |found| {
            found.is_open = true;
            found.closed_at = None;
        });
        self.delivers_pull(pull, "reopened", WRITER).await;
    }

    pub(crate) async fn is_ready(&self, pull: &PullRequest) {
        self.change(pull, |found| found.is_draft = false);
        self.delivers_pull(pull, "ready_for_review", WRITER).await;
    }

    pub(crate) async fn attaches(&self, pull: &PullRequest, label: &str, who: &str) {
        self.change(pull, |found| found.labels.push(label.to_owned()));
        let mut payload = self.pull_payload(pull, "labeled", who);
        payload["label"]["name"] = json!(label);
        self.delivers("pull_request", payload).await;
    }

    pub(crate) async fn detaches(&self, pull: &PullRequest, label: &str, who: &str) {
        self.change(pull, |found| found.labels.retain(|attached| attached != label));
        let mut payload = self.pull_payload(pull, "unlabeled", who);
        payload["label"]["name"] = json!(label);
        self.delivers("pull_request", payload).await;
    }

    fn change(&self, pull: &PullRequest, change: impl FnOnce(&mut Pull)) {
        let mut world = self.world();
        let found = world.repository_mut(&pull.repository).pulls.get_mut(&pull.number).unwrap();
        change(found);
        found.updated_at = now();
    }

    async fn delivers_pull(&self, pull: &PullRequest, action: &str, who: &str) -> Option<Delivery> {
        let payload = self.pull_payload(pull, action, who);
        self.delivers("pull_request", payload).await
    }

    pub(crate) fn pull_payload(
        &self,
        pull: &PullRequest,
        action: &str,
        who: &str,
    ) -> serde_json::Value {
        let world = self.world();
        let repo = world.repository(&pull.repository).unwrap();
        shapes::pull_payload(&world, repo, action, &repo.pulls[&pull.number], who)
    }

    /// Writes a comment of the account `who`.
    pub(crate) async fn comments(
        &self,
        pull: &PullRequest,
        who: &str,
        text: &str,
    ) -> WrittenComment {
        let payload = {
            let mut world = self.world();
            let comment = world.add_comment(&pull.repository, pull.number, who, text.to_owned());
            let repo = world.repository(&pull.repository).unwrap();
            shapes::comment_payload(&world, repo, &repo.pulls[&pull.number], &comment)
        };
        WrittenComment { delivery: self.delivers("issue_comment", payload).await }
    }

    /// Delivers a comment that was written through the API, as GitHub does with every one.
    pub(crate) async fn delivers_comment(&self, pull: &PullRequest, comment: &Comment) -> Delivery {
        let payload = {
            let world = self.world();
            let repo = world.repository(&pull.repository).unwrap();
            shapes::comment_payload(&world, repo, &repo.pulls[&pull.number], comment)
        };
        let delivery = self.delivers("issue_comment", payload).await.unwrap();
        assert_eq!(delivery.status, 202);
        delivery
    }

    pub(crate) fn deletes_comment(&self, id: u64) {
        self.world().comments.retain(|comment| comment.id != id);
    }

    pub(crate) fn head(&self, pull: &PullRequest) -> String {
        self.world().pull(&pull.repository, pull.number).unwrap().head.clone()
    }

    /// Core's comments: those of the app, or of the token's owner.
    pub(crate) fn reports(&self, pull: &PullRequest) -> Vec<Comment> {
        let world = self.world();
        let of = world.comments.iter().filter(|comment| {
            let is_here = comment.repository == pull.repository && comment.number == pull.number;
            is_here && comment.body.contains("<!-- stagely ")
        });
        of.cloned().collect()
    }

    /// The deployments of a pull request's environment, the oldest first.
    pub(crate) fn deployments(&self, pull: &PullRequest) -> Vec<Deployment> {
        let environment = format!("pr-{}", pull.number);
        let world = self.world();
        let of = world.deployments.iter().filter(|deployment| {
            deployment.repository == pull.repository && deployment.environment == environment
        });
        of.cloned().collect()
    }

    /// The last status of each context of a commit.
    pub(crate) fn statuses(&self, commit: &str) -> BTreeMap<String, Status> {
        let world = self.world();
        let of = world.statuses.iter().filter(|status| status.commit == commit);
        of.map(|status| (status.context.clone(), status.clone())).collect()
    }
}

/// The properties of a new pull request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Opened {
    pub(crate) author: &'static str,
    pub(crate) association: &'static str,
    pub(crate) is_fork: bool,
    pub(crate) is_draft: bool,
}

impl Default for Opened {
    fn default() -> Self {
        Self { author: WRITER, association: "NONE", is_fork: false, is_draft: false }
    }
}

/// Creates a commit on top of `on`, with these files changed. No branch moves.
fn commit(git: &Repository, on: &str, files: Files) -> String {
    git.git(&["checkout", "--quiet", "--detach", on]);
    let commit = git.commit(files).to_string();
    git.git(&["checkout", "--quiet", "main"]);
    commit
}
