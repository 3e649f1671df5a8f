//! What the state knows of GitHub: a project's repository there, the commit that a pull request is at, who
//! approved what, what somebody wrote, and what GitHub was told.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use stagely_protocol::{CommitSha, InvalidValue};

use super::{Run, Timestamp};
use crate::ids::RunId;

/// `owner/name` of a repository, as its owner writes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct GithubRepository(String);

impl GithubRepository {
    pub fn owner(&self) -> &str {
        self.0.split_once('/').expect("checked when it was parsed").0
    }

    pub fn name(&self) -> &str {
        self.0.split_once('/').expect("checked when it was parsed").1
    }

    /// Both, with a `/` between them.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether both name the same repository: GitHub does not regard case.
    pub fn is(&self, full_name: &str) -> bool {
        self.0.eq_ignore_ascii_case(full_name)
    }
}

impl fmt::Display for GithubRepository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for GithubRepository {
    type Err = InvalidValue;
    fn from_str(text: &str) -> Result<Self, InvalidValue> {
        let is_part = |part: &str, more: &str| {
            let may_be = |c: char| c.is_ascii_alphanumeric() || more.contains(c);
            (1..=100).contains(&part.len())
                && part.chars().all(may_be)
                && !part.trim_matches('.').is_empty()
        };
        let parts = text.split_once('/');
        match parts.filter(|(owner, name)| is_part(owner, "-_") && is_part(name, "-_.")) {
            Some(_) => Ok(Self(text.to_owned())),
            None => Err(InvalidValue::new(text, "a repository at GitHub, like `owner/name`")),
        }
    }
}

impl TryFrom<String> for GithubRepository {
    type Error = InvalidValue;
    fn try_from(text: String) -> Result<Self, InvalidValue> {
        text.parse()
    }
}

impl From<GithubRepository> for String {
    fn from(repository: GithubRepository) -> Self {
        repository.0
    }
}

/// What makes a project one whose pull requests are built.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GithubLink {
    pub repository: GithubRepository,
    /// What becomes of pull requests from forks.
    #[serde(default)]
    pub forks: ForkPolicy,
    /// Whether the configuration file names it: then it goes when the file does not name it any more.
    #[serde(default)]
    pub is_configured: bool,
}

/// What becomes of pull requests from forks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ForkPolicy {
    /// Each commit waits for the approval of somebody who may write to the repository.
    #[default]
    Approval,
    /// They are not built.
    Never,
    /// Those of people whose commits GitHub has seen in this repository before are built at once, others
    /// wait for approval.
    KnownContributors,
}

impl ForkPolicy {
    pub const ALL: [Self; 3] = [Self::Approval, Self::Never, Self::KnownContributors];

    /// As the configuration and the command line spell it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Approval => "approval",
            Self::Never => "never",
            Self::KnownContributors => "known-contributors",
        }
    }
}

/// Names a delivery of GitHub's: the `X-GitHub-Delivery` of its first try and of all others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeliveryId(pub u128);

/// The commit that a pull request or branch is at, as far as core was told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    pub commit: CommitSha,
    /// The commit that a push moved it from; `None` where nobody said.
    pub before: Option<CommitSha>,
    /// When, by GitHub's clock. It has whole seconds.
    pub at: Timestamp,
    /// Whether the pull request was certainly at no other commit before.
    #[serde(default)]
    pub is_first: bool,
}

/// How core came to know of a head.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HeadSource {
    /// GitHub said so. Deliveries may overtake each other.
    Delivery,
    /// Core looked, since a delivery may be lost. It counts for nothing if anything was heard since.
    Listing {
        /// What core believed when it began to look; `None`: there was no open environment.
        believed: Option<CommitSha>,
    },
}

/// What GitHub says of the repository of a run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GithubRun {
    /// The repository's default branch.
    pub default_branch: String,
    /// Whether it can be cloned with a token only.
    pub is_private: bool,
}

/// Whether somebody must agree before anything is done for a run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "status", rename_all = "snake_case")]
pub enum Approval {
    /// Its commit is not a fork's, or the project trusts its author.
    #[default]
    NotNeeded,
    /// Nobody has agreed yet: it is not planned, and gets nothing.
    Awaited,
    /// Somebody who may write to the repository has.
    Given {
        /// Their name, for people.
        by: String,
    },
}

/// A fork's commit that somebody agreed to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApprovedCommit {
    pub commit: CommitSha,
    /// Their name, for people.
    pub by: String,
}

/// What somebody asks for in a comment, or with a label.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Command {
    /// The id of the comment, which ascends; `None` for a label.
    pub comment: Option<u64>,
    /// Who wrote it: the name of an account at GitHub.
    pub author: String,
    pub kind: CommandKind,
    /// When it was written, by GitHub's clock.
    pub at: Timestamp,
    /// Whether core missed its delivery and found it later.
    #[serde(default)]
    pub is_late: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "snake_case")]
pub enum CommandKind {
    /// `/stagely rebuild`: the newest run once more.
    Rebuild {
        /// `/stagely rebuild failed`: only what did not complete.
        failed_only: bool,
    },
    /// `/stagely cancel`: all runs that have not ended.
    Cancel,
    /// `/stagely approve`: a fork's commit.
    Approve {
        /// The first digits of the commit, at least 7; `None`: what waits.
        commit: Option<String>,
    },
}

impl fmt::Display for CommandKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rebuild { failed_only: false } => f.write_str("/stagely rebuild"),
            Self::Rebuild { failed_only: true } => f.write_str("/stagely rebuild failed"),
            Self::Cancel => f.write_str("/stagely cancel"),
            Self::Approve { commit: None } => f.write_str("/stagely approve"),
            Self::Approve { commit: Some(commit) } => write!(f, "/stagely approve {commit}"),
        }
    }
}

/// The outcome of the check of a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CommandVerdict {
    /// The author may give it.
    Accepted,
    /// The author may give it, and it starts this run.
    Rebuild(Box<Run>),
    /// The author may not give it, or it has no effect. The reason is for people.
    Rejected { reason: String },
}

/// What GitHub shows of an environment, and what it is to show.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Report {
    /// The number of the newest change that GitHub is to show.
    pub wanted: u64,
    /// The number of the newest change that the last report contained.
    #[serde(rename = "told")]
    pub published: u64,
    /// The reported run: the newest one, except for runs that a person started on a branch.
    pub run: Option<RunId>,
    /// The id of the comment on the pull request.
    pub comment: Option<u64>,
    /// SHA-256 of the comment's text, in hexadecimal digits.
    pub comment_digest: Option<String>,
    /// The commit that has `statuses`.
    pub commit: Option<CommitSha>,
    /// The statuses, by their contexts.
    pub statuses: BTreeMap<String, CommitStatus>,
    /// The outcome of the last command, for people.
    pub note: Option<String>,
    /// Why the last report failed, for people. The next change is reported again.
    pub problem: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommitStatus {
    /// The light beside it.
    pub state: StatusState,
    /// At most 140 characters.
    pub description: String,
    /// A page of core's.
    pub target_url: String,
}

/// The light beside a commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StatusState {
    /// It goes on, or waits.
    Pending,
    /// All is well.
    Success,
    /// The user's own failure.
    Failure,
    /// Another's failure, or it was stopped.
    Error,
}

/// What GitHub shows of an environment after a report.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PublishedReport {
    /// The id of the comment on the pull request.
    pub comment: Option<u64>,
    /// SHA-256 of the comment's text, in hexadecimal digits.
    pub comment_digest: Option<String>,
    /// The commit that has `statuses`.
    pub commit: Option<CommitSha>,
    /// The statuses, by their contexts.
    pub statuses: BTreeMap<String, CommitStatus>,
}
