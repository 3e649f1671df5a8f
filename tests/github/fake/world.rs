//! The state of the fake.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::Value;
use stagely_test_support::git::Repository;

/// The permission of an account in a repository.
pub(crate) type Permissions = BTreeMap<String, String>;

pub(crate) struct World {
    /// `http://127.0.0.1:PORT`.
    pub(crate) site: String,
    /// The path of the API: empty, or `/api/v3` as at GitHub Enterprise.
    pub(crate) api_path: &'static str,
    pub(crate) app: super::app::App,
    pub(crate) repositories: BTreeMap<String, Repo>,
    pub(crate) comments: Vec<Comment>,
    pub(crate) statuses: Vec<Status>,
    pub(crate) deployments: Vec<Deployment>,
    pub(crate) tokens: BTreeMap<String, Token>,
    pub(crate) deliveries: Vec<Delivery>,
    pub(crate) requests: Vec<ApiRequest>,
    pub(crate) clones: Vec<GitRequest>,
    /// Mistakes in requests, or in this fake's answers.
    pub(crate) complaints: Vec<String>,
    pub(crate) faults: Vec<Fault>,
    pub(crate) limit: Limit,
    pub(crate) last_id: u64,
}

pub(crate) struct Repo {
    pub(crate) id: u64,
    pub(crate) full_name: String,
    pub(crate) is_private: bool,
    pub(crate) has_app: bool,
    pub(crate) git: Repository,
    pub(crate) pulls: BTreeMap<u64, Pull>,
    /// The permission of each account: `admin`, `write` or `read`.
    pub(crate) people: BTreeMap<String, String>,
}

impl Repo {
    pub(crate) fn owner(&self) -> &str {
        self.full_name.split_once('/').unwrap().0
    }

    pub(crate) fn name(&self) -> &str {
        self.full_name.split_once('/').unwrap().1
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Pull {
    pub(crate) number: u64,
    pub(crate) author: String,
    /// The `author_association` of the author.
    pub(crate) association: &'static str,
    pub(crate) branch: String,
    pub(crate) head_repository: String,
    pub(crate) head: String,
    pub(crate) base: String,
    pub(crate) is_open: bool,
    pub(crate) is_draft: bool,
    pub(crate) is_merged: bool,
    pub(crate) labels: Vec<String>,
    pub(crate) created_at: Timestamp,
    pub(crate) updated_at: Timestamp,
    pub(crate) closed_at: Option<Timestamp>,
}

#[derive(Clone, Debug)]
pub(crate) struct Comment {
    pub(crate) id: u64,
    pub(crate) repository: String,
    pub(crate) number: u64,
    pub(crate) author: String,
    pub(crate) body: String,
    /// How often it was edited.
    pub(crate) edits: usize,
    pub(crate) created_at: Timestamp,
    pub(crate) updated_at: Timestamp,
}

/// A commit's status. GitHub stores all and shows the last one of each context.
#[derive(Clone, Debug)]
pub(crate) struct Status {
    pub(crate) id: u64,
    pub(crate) repository: String,
    pub(crate) commit: String,
    pub(crate) context: String,
    pub(crate) state: String,
    pub(crate) description: String,
    pub(crate) target_url: String,
    pub(crate) at: Timestamp,
}

/// A commit in an environment.
#[derive(Clone, Debug)]
pub(crate) struct Deployment {
    pub(crate) id: u64,
    pub(crate) repository: String,
    pub(crate) commit: String,
    pub(crate) environment: String,
    pub(crate) is_transient: bool,
    pub(crate) payload: Value,
    pub(crate) statuses: Vec<DeploymentStatus>,
    pub(crate) at: Timestamp,
}

#[derive(Clone, Debug)]
pub(crate) struct DeploymentStatus {
    pub(crate) id: u64,
    pub(crate) state: String,
    pub(crate) description: String,
    pub(crate) log_url: String,
    pub(crate) environment_url: String,
    pub(crate) at: Timestamp,
}

/// GitHub's limit of a deployment's statuses is not documented. The tests reach this one.
pub(crate) const DEPLOYMENT_STATUSES_MAX: usize = 100;

/// A token and its permissions.
#[derive(Clone, Debug)]
pub(crate) struct Token {
    pub(crate) account: String,
    /// By full name.
    pub(crate) repositories: Vec<String>,
    pub(crate) permissions: Permissions,
    pub(crate) expires_at: Timestamp,
}

/// An attempt to deliver an event.
#[derive(Clone, Debug)]
pub(crate) struct Delivery {
    pub(crate) id: u64,
    pub(crate) guid: String,
    pub(crate) event: String,
    pub(crate) payload: Value,
    pub(crate) at: Timestamp,
    pub(crate) is_redelivery: bool,
    /// The status and the text of the receiver's answer.
    pub(crate) status: u16,
    pub(crate) answer: String,
}

#[derive(Clone, Debug)]
#[expect(dead_code, reason = "some of it is only shown where a test fails")]
pub(crate) struct ApiRequest {
    /// `GET /repos/{owner}/{repo}`.
    pub(crate) operation: String,
    pub(crate) path: String,
    pub(crate) body: Value,
    pub(crate) status: u16,
    pub(crate) at: Timestamp,
}

/// A request to Git that was served.
#[derive(Clone, Debug)]
#[expect(dead_code, reason = "it is shown where a test fails")]
pub(crate) struct GitRequest {
    pub(crate) repository: String,
    /// The token, if there was one.
    pub(crate) token: Option<String>,
}

/// A fault of the next `times` requests.
#[derive(Clone, Debug)]
pub(crate) struct Fault {
    /// A part of the operation's name. The empty text matches all operations.
    pub(crate) operation: &'static str,
    pub(crate) times: u32,
    pub(crate) kind: FaultKind,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum FaultKind {
    /// The request has no effect, and gets this status.
    Status(u16),
    /// The request has its effect, and the answer is lost.
    Lost,
    /// The request has its effect, and gets this status.
    DoneBut(u16),
    Slow(Duration),
    /// The secondary rate limit.
    Secondary {
        /// The end of the limit.
        retry_after: Duration,
    },
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Limit {
    pub(crate) remaining: u64,
    pub(crate) resets_at: Timestamp,
}

/// The limit of a new hour.
pub(crate) const REQUESTS_PER_HOUR: u64 = 5_000;

impl Limit {
    pub(crate) fn fresh() -> Self {
        let resets_at = now() + Duration::from_hours(1);
        Self { remaining: REQUESTS_PER_HOUR, resets_at }
    }
}

/// GitHub's clock has whole seconds.
pub(crate) fn now() -> Timestamp {
    Timestamp::from_second(Timestamp::now().as_second()).unwrap()
}

/// A time in GitHub's format.
pub(crate) fn written(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

impl World {
    pub(crate) fn api(&self) -> String {
        format!("{}{}", self.site, self.api_path)
    }

    pub(crate) fn next_id(&mut self) -> u64 {
        self.last_id += 1;
        self.last_id
    }

    /// Finds a repository; GitHub ignores the case of names.
    pub(crate) fn repository(&self, full_name: &str) -> Option<&Repo> {
        self.repositories.get(&full_name.to_ascii_lowercase())
    }

    pub(crate) fn repository_mut(&mut self, full_name: &str) -> &mut Repo {
        let found = self.repositories.get_mut(&full_name.to_ascii_lowercase());
        found.unwrap_or_else(|| panic!("there is no repository {full_name}"))
    }

    pub(crate) fn pull(&self, full_name: &str, number: u64) -> Option<&Pull> {
        self.repository(full_name)?.pulls.get(&number)
    }
}
