//! What the state knows of GitHub: repositories, heads, approvals, commands and reports.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

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

    /// `owner/name`.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether both name the same repository. GitHub ignores case.
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

/// The link of a project with its repository at GitHub. Only pull requests of linked projects are built.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GithubLink {
    pub repository: GithubRepository,
    #[serde(default)]
    pub forks: ForkPolicy,
    /// Whether the configuration file names the project. If so, the link is removed when the file does not name it any
    /// more.
    #[serde(default)]
    pub is_configured: bool,
}

/// How pull requests from forks are handled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ForkPolicy {
    /// Each commit waits for the approval of somebody with write permission.
    #[default]
    Approval,
    /// They are not built.
    Never,
    /// Pull requests of people who have contributed to this repository before are built at once. Others wait for
    /// approval.
    KnownContributors,
}

impl ForkPolicy {
    pub const ALL: [Self; 3] = [Self::Approval, Self::Never, Self::KnownContributors];

    /// The spelling in the configuration and on the command line.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Approval => "approval",
            Self::Never => "never",
            Self::KnownContributors => "known-contributors",
        }
    }
}

/// The `X-GitHub-Delivery` header of a delivery, which is the same in each of its tries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeliveryId(pub u128);

/// The head of a pull request or branch, as far as core knows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    pub commit: CommitSha,
    /// The head before the push, if it is known.
    pub before: Option<CommitSha>,
    /// By GitHub's clock, in whole seconds.
    pub at: Timestamp,
    /// Whether it is certainly the first commit of the pull request.
    #[serde(default)]
    pub is_first: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HeadSource {
    /// A delivery. Deliveries may overtake each other.
    Delivery,
    /// A list that core requested, since a delivery may be lost. It is ignored if a delivery arrived after the request.
    Listing {
        /// The head that core knew before its request; `None` if there was no open environment.
        believed: Option<CommitSha>,
    },
}

/// The repository of a run at GitHub.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GithubRun {
    pub default_branch: String,
    /// Whether cloning needs a token.
    pub is_private: bool,
}

/// Whether the commit of a run needs an approval.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "status", rename_all = "snake_case")]
pub enum Approval {
    /// The commit is not from a fork, or its author needs no approval.
    #[default]
    NotNeeded,
    /// The run is not planned before the approval.
    Awaited,
    /// Somebody with write permission has approved the commit.
    Given {
        /// The account's name.
        by: String,
    },
}

/// An approved commit of a fork.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApprovedCommit {
    pub commit: CommitSha,
    /// The account's name.
    pub by: String,
}

/// A command in a comment, or by a label.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Command {
    /// The id of the comment, which ascends; `None` for a label.
    pub comment: Option<u64>,
    /// The account's name.
    pub author: String,
    pub kind: CommandKind,
    /// By GitHub's clock.
    pub at: Timestamp,
    /// Whether core missed its delivery and read it later.
    #[serde(default)]
    pub is_late: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "snake_case")]
pub enum CommandKind {
    /// `/stagely rebuild`: a new run of the newest run's commit.
    Rebuild {
        /// `/stagely rebuild failed`: completed jobs are reused.
        failed_only: bool,
    },
    /// `/stagely test`: a new run of the newest run's commit, which reuses images and the preview, and tests again.
    Test,
    /// `/stagely cancel`: cancels all open runs.
    Cancel,
    /// `/stagely approve`: approves a fork's commit.
    Approve {
        /// The first digits of the commit, at least 7; `None`: the head.
        commit: Option<String>,
    },
    Preview {
        action: PreviewCommand,
    },
}

/// A command about the preview.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PreviewCommand {
    /// `/stagely preview`, or the label: deploys it, or wakes it.
    Start,
    /// `/stagely preview stop`: ends it.
    Stop,
    /// `/stagely preview sleep`
    Sleep,
    /// `/stagely preview reset`: fresh data.
    Reset,
    /// `/stagely preview extend 3d`: it stays for longer.
    Extend { by: Duration },
}

impl fmt::Display for PreviewCommand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("/stagely preview")?;
        match self {
            Self::Start => Ok(()),
            Self::Stop => f.write_str(" stop"),
            Self::Sleep => f.write_str(" sleep"),
            Self::Reset => f.write_str(" reset"),
            Self::Extend { by } => {
                let seconds = by.as_secs();
                let units = [(86_400, 'd'), (3_600, 'h'), (60, 'm')];
                let unit = units.into_iter().find(|(unit, _)| seconds.is_multiple_of(*unit));
                let (unit, letter) = unit.unwrap_or((1, 's'));
                write!(f, " extend {}{letter}", seconds / unit)
            }
        }
    }
}

impl fmt::Display for CommandKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rebuild { failed_only: false } => f.write_str("/stagely rebuild"),
            Self::Rebuild { failed_only: true } => f.write_str("/stagely rebuild failed"),
            Self::Test => f.write_str("/stagely test"),
            Self::Cancel => f.write_str("/stagely cancel"),
            Self::Approve { commit: None } => f.write_str("/stagely approve"),
            Self::Approve { commit: Some(commit) } => write!(f, "/stagely approve {commit}"),
            Self::Preview { action } => action.fmt(f),
        }
    }
}

/// The outcome of the check of a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CommandVerdict {
    /// The author may give it.
    Accepted,
    /// The author may give it, and it starts this run, if a run is needed.
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
    /// The deployments that are not inactive, and those of previews that sleep.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub deployments: Vec<PublishedDeployment>,
    /// The outcome of the last command, for people.
    pub note: Option<String>,
    /// Why the last report failed, for people. The next change is reported again.
    pub problem: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommitStatus {
    pub state: StatusState,
    /// At most 140 characters.
    pub description: String,
    /// The run's page.
    pub target_url: String,
}

/// A deployment of GitHub: a commit in the environment of a preview.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublishedDeployment {
    pub id: u64,
    pub commit: CommitSha,
    /// `None` before its first status.
    pub status: Option<DeploymentStatus>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeploymentStatus {
    pub state: DeploymentState,
    /// At most 140 characters.
    pub description: String,
    /// The page of the run or of the job.
    pub log_url: String,
    /// The address of the preview, without its key.
    pub environment_url: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeploymentState {
    InProgress,
    Success,
    /// The user caused the failure.
    Failure,
    /// Something else failed.
    Error,
    /// It sleeps, has ended, or a newer commit has taken its place.
    Inactive,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StatusState {
    Pending,
    Success,
    /// The user caused the failure.
    Failure,
    /// Something else failed, or the run was cancelled.
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
    pub deployments: Vec<PublishedDeployment>,
}
