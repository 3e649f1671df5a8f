//! What GitHub remembers.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::Value;
use stagely_test_support::git::Repository;

/// What an account may do in a repository.
pub(crate) type Permissions = BTreeMap<String, String>;

/// All of it.
pub(crate) struct World {
    /// `http://127.0.0.1:PORT`.
    pub(crate) site: String,
    /// Below it; empty, or `/api/v3` as at GitHub Enterprise.
    pub(crate) api_path: &'static str,
    pub(crate) app: super::app::App,
    pub(crate) repositories: BTreeMap<String, Repo>,
    pub(crate) comments: Vec<Comment>,
    pub(crate) statuses: Vec<Status>,
    pub(crate) tokens: BTreeMap<String, Token>,
    pub(crate) deliveries: Vec<Delivery>,
    /// Every request to the API so far.
    pub(crate) requests: Vec<Seen>,
    /// Every request to Git so far.
    pub(crate) clones: Vec<Clone>,
    /// What is wrong with requests, or with this fake.
    pub(crate) complaints: Vec<String>,
    pub(crate) faults: Vec<Fault>,
    pub(crate) limit: Limit,
    pub(crate) last_id: u64,
}

/// A repository.
pub(crate) struct Repo {
    pub(crate) id: u64,
    pub(crate) full_name: String,
    pub(crate) is_private: bool,
    /// Whether the app is installed there.
    pub(crate) has_app: bool,
    pub(crate) git: Repository,
    pub(crate) pulls: BTreeMap<u64, Pull>,
    /// `admin`, `write` or `read`, by account.
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

/// A pull request.
#[derive(Clone, Debug)]
pub(crate) struct Pull {
    pub(crate) number: u64,
    pub(crate) author: String,
    /// Of the author, in this repository.
    pub(crate) association: &'static str,
    pub(crate) branch: String,
    /// The repository of that branch.
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

/// A comment on a pull request.
#[derive(Clone, Debug)]
pub(crate) struct Comment {
    pub(crate) id: u64,
    pub(crate) repository: String,
    pub(crate) number: u64,
    pub(crate) author: String,
    pub(crate) body: String,
    /// How often it was written anew.
    pub(crate) edits: usize,
    pub(crate) created_at: Timestamp,
    pub(crate) updated_at: Timestamp,
}

/// A status of a commit, as it was set; GitHub keeps all and shows the last of each context.
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

/// A token, and what it is good for.
#[derive(Clone, Debug)]
pub(crate) struct Token {
    pub(crate) account: String,
    /// Full names.
    pub(crate) repositories: Vec<String>,
    pub(crate) permissions: Permissions,
    pub(crate) expires_at: Timestamp,
}

/// A try to deliver something.
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

/// A request that came.
#[derive(Clone, Debug)]
#[expect(dead_code, reason = "some of it is only shown where a test fails")]
pub(crate) struct Seen {
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
pub(crate) struct Clone {
    pub(crate) repository: String,
    /// The token, if there was one.
    pub(crate) token: Option<String>,
}

/// Something that goes wrong the next few times.
#[derive(Clone, Debug)]
pub(crate) struct Fault {
    /// A part of the operation's name; empty: all.
    pub(crate) operation: &'static str,
    pub(crate) times: u32,
    pub(crate) kind: FaultKind,
}

/// What goes wrong.
#[derive(Clone, Copy, Debug)]
pub(crate) enum FaultKind {
    /// Nothing is done, and this is the answer.
    Status(u16),
    /// What was asked for is done, and the answer is lost.
    Lost,
    /// What was asked for is done, and this is the answer.
    DoneBut(u16),
    /// It takes its time.
    Slow(Duration),
    /// Too much at once.
    Secondary {
        /// When it may be asked again.
        retry_after: Duration,
    },
}

/// How much may be asked.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limit {
    pub(crate) remaining: u64,
    pub(crate) resets_at: Timestamp,
}

/// What an hour allows.
pub(crate) const REQUESTS_PER_HOUR: u64 = 5_000;

impl Limit {
    pub(crate) fn fresh() -> Self {
        let resets_at = now() + Duration::from_hours(1);
        Self { remaining: REQUESTS_PER_HOUR, resets_at }
    }
}

/// GitHub's clock: whole seconds.
pub(crate) fn now() -> Timestamp {
    Timestamp::from_second(Timestamp::now().as_second()).unwrap()
}

/// As GitHub writes it.
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

    /// GitHub does not regard case.
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
