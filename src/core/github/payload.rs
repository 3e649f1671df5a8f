//! Repositories and pull requests as GitHub writes them, in deliveries and in responses.

use serde::Deserialize;
use stagely_protocol::CommitSha;
use stagely_state::{GithubRepository, Timestamp};

/// GitHub's name for the author whose account was deleted.
const GHOST: &str = "ghost";

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PullRequest {
    pub number: u64,
    pub state: PullRequestState,
    /// The commit that is to be merged.
    pub head: CommitSha,
    /// The branch of that commit, in its own repository.
    pub head_branch: String,
    /// Whether that repository is another one, or was deleted.
    pub is_from_fork: bool,
    pub base_branch: String,
    pub author: String,
    /// Whether GitHub knows the author as a member or a contributor of the repository.
    pub is_known_contributor: bool,
    pub labels: Vec<String>,
    /// By GitHub's clock, as the other times.
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
    pub closed_at: Option<Timestamp>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PullRequestState {
    Open,
    /// Open, and not ready for review.
    Draft,
    Closed,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Repository {
    pub full_name: GithubRepository,
    pub default_branch: String,
    /// Whether a clone needs a token.
    pub is_private: bool,
}

/// A [`Repository`] in JSON.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct RepositoryPayload {
    full_name: GithubRepository,
    default_branch: String,
    private: bool,
}

impl From<RepositoryPayload> for Repository {
    fn from(payload: RepositoryPayload) -> Self {
        let RepositoryPayload { full_name, default_branch, private } = payload;
        Self { full_name, default_branch, is_private: private }
    }
}

/// A [`PullRequest`] in JSON.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct PullRequestPayload {
    number: u64,
    state: StatePayload,
    #[serde(default)]
    draft: bool,
    head: HeadPayload,
    base: BasePayload,
    user: Option<AccountPayload>,
    #[serde(default)]
    author_association: String,
    #[serde(default)]
    labels: Vec<LabelPayload>,
    created_at: jiff::Timestamp,
    updated_at: jiff::Timestamp,
    #[serde(default)]
    closed_at: Option<jiff::Timestamp>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum StatePayload {
    Open,
    Closed,
}

#[derive(Clone, Debug, Deserialize)]
struct HeadPayload {
    sha: CommitSha,
    #[serde(rename = "ref")]
    branch: String,
    /// Absent if the repository was deleted.
    repo: Option<RepositoryIdPayload>,
}

#[derive(Clone, Debug, Deserialize)]
struct BasePayload {
    #[serde(rename = "ref")]
    branch: String,
    repo: RepositoryIdPayload,
}

/// The id of a repository, which a rename does not change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
struct RepositoryIdPayload {
    id: u64,
}

#[derive(Clone, Debug, Deserialize)]
pub(super) struct LabelPayload {
    pub(super) name: String,
}

#[derive(Clone, Debug, Deserialize)]
pub(super) struct AccountPayload {
    pub(super) login: String,
}

impl From<PullRequestPayload> for PullRequest {
    fn from(payload: PullRequestPayload) -> Self {
        let PullRequestPayload { head, base, .. } = payload;
        Self {
            number: payload.number,
            state: match payload.state {
                StatePayload::Closed => PullRequestState::Closed,
                StatePayload::Open if payload.draft => PullRequestState::Draft,
                StatePayload::Open => PullRequestState::Open,
            },
            // A deleted repository counts as a fork, because its owner is unknown.
            is_from_fork: head.repo != Some(base.repo),
            head: head.sha,
            head_branch: head.branch,
            base_branch: base.branch,
            author: payload.user.map_or_else(|| GHOST.to_owned(), |user| user.login),
            is_known_contributor: is_known(&payload.author_association),
            labels: payload.labels.into_iter().map(|label| label.name).collect(),
            created_at: timestamp(payload.created_at),
            updated_at: timestamp(payload.updated_at),
            closed_at: payload.closed_at.map(timestamp),
        }
    }
}

/// Members and collaborators are chosen by the owner, and contributors have commits in the repository. A
/// `FIRST_TIME_CONTRIBUTOR` has none yet.
fn is_known(association: &str) -> bool {
    matches!(association, "OWNER" | "MEMBER" | "COLLABORATOR" | "CONTRIBUTOR")
}

/// A time of GitHub's clock; 0 for one before 1970.
pub(super) fn timestamp(at: jiff::Timestamp) -> Timestamp {
    Timestamp(u64::try_from(at.as_millisecond()).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pull_request(change: impl FnOnce(&mut serde_json::Value)) -> PullRequest {
        let mut json = json!({
            "number": 7,
            "state": "open",
            "draft": true,
            "head": { "sha": "c".repeat(40), "ref": "fix", "repo": { "id": 1 } },
            "base": { "ref": "main", "repo": { "id": 1 } },
            "user": { "login": "alice" },
            "author_association": "FIRST_TIME_CONTRIBUTOR",
            "labels": [{ "name": "bug" }],
            "created_at": "1970-01-01T00:00:01Z",
            "updated_at": "1970-01-01T00:00:02Z",
            "closed_at": null,
        });
        change(&mut json);
        serde_json::from_value::<PullRequestPayload>(json).unwrap().into()
    }

    #[test]
    fn a_pull_request_is_read_from_githubs_json() {
        let read = pull_request(|_| ());
        let expected = PullRequest {
            number: 7,
            state: PullRequestState::Draft,
            head: "c".repeat(40).parse().unwrap(),
            head_branch: "fix".to_owned(),
            is_from_fork: false,
            base_branch: "main".to_owned(),
            author: "alice".to_owned(),
            is_known_contributor: false,
            labels: vec!["bug".to_owned()],
            created_at: Timestamp(1_000),
            updated_at: Timestamp(2_000),
            closed_at: None,
        };
        assert_eq!(read, expected);
    }

    #[test]
    fn a_closed_draft_is_closed() {
        let of = |state: &str, is_draft: bool| {
            let change = |json: &mut serde_json::Value| {
                json["state"] = json!(state);
                json["draft"] = json!(is_draft);
            };
            pull_request(change).state
        };
        assert_eq!(of("open", false), PullRequestState::Open);
        assert_eq!(of("closed", true), PullRequestState::Closed);
        assert_eq!(of("closed", false), PullRequestState::Closed);
    }

    #[test]
    fn a_head_of_another_or_of_a_deleted_repository_is_from_a_fork() {
        assert!(pull_request(|json| json["head"]["repo"]["id"] = json!(2)).is_from_fork);
        assert!(pull_request(|json| json["head"]["repo"] = json!(null)).is_from_fork);
    }

    #[test]
    fn a_deleted_author_is_called_ghost() {
        assert_eq!(pull_request(|json| json["user"] = json!(null)).author, "ghost");
    }

    #[test]
    fn members_and_contributors_are_known_contributors() {
        let of = |association: &str| {
            pull_request(|json| json["author_association"] = json!(association))
                .is_known_contributor
        };
        for known in ["OWNER", "MEMBER", "COLLABORATOR", "CONTRIBUTOR"] {
            assert!(of(known), "{known}");
        }
        for unknown in ["NONE", "FIRST_TIMER", "MANNEQUIN", ""] {
            assert!(!of(unknown), "{unknown}");
        }
    }

    #[test]
    fn a_repository_is_read_from_githubs_json() {
        let json = json!({ "full_name": "acme/shop", "default_branch": "main", "private": true });
        let read: Repository = serde_json::from_value::<RepositoryPayload>(json).unwrap().into();
        let full_name = "acme/shop".parse().unwrap();
        let expected =
            Repository { full_name, default_branch: "main".to_owned(), is_private: true };
        assert_eq!(read, expected);
    }
}
