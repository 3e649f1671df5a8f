//! Repositories and pull requests as GitHub writes them, in deliveries and in answers.

use serde::Deserialize;
use stagely_protocol::CommitSha;
use stagely_state::{GithubRepository, Timestamp};

/// Stands for an account that was deleted, as on GitHub's pages.
const GHOST: &str = "ghost";

/// A pull request, as deliveries and GitHub's lists show it.
#[expect(clippy::struct_excessive_bools, reason = "each says another thing of it")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PullRequest {
    /// Its number.
    pub number: u64,
    /// Whether it is open.
    pub is_open: bool,
    /// Whether its author says that it is not ready.
    pub is_draft: bool,
    /// The commit that it is at.
    pub head: CommitSha,
    /// The branch of that commit, in its own repository.
    pub head_branch: String,
    /// Whether that repository is another one, or is gone.
    pub is_from_fork: bool,
    /// The branch that it is to be merged into.
    pub base_branch: String,
    /// Who opened it.
    pub author: String,
    /// Whether GitHub has seen commits of the author in the repository before.
    pub is_known_contributor: bool,
    /// When it was opened, by GitHub's clock.
    pub created_at: Timestamp,
    /// When it last changed, by GitHub's clock.
    pub updated_at: Timestamp,
    /// When it was closed.
    pub closed_at: Option<Timestamp>,
}

/// A repository, as deliveries show it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Repository {
    /// `owner/name`.
    pub full_name: GithubRepository,
    /// Its default branch.
    pub default_branch: String,
    /// Whether it can be cloned with a token only.
    pub is_private: bool,
}

/// A repository.
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

/// A pull request.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct PullRequestPayload {
    number: u64,
    state: OpenOrClosed,
    #[serde(default)]
    draft: bool,
    head: HeadPayload,
    base: BasePayload,
    user: Option<AccountPayload>,
    #[serde(default)]
    author_association: String,
    created_at: jiff::Timestamp,
    updated_at: jiff::Timestamp,
    #[serde(default)]
    closed_at: Option<jiff::Timestamp>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum OpenOrClosed {
    Open,
    Closed,
}

/// The commit that is to be merged.
#[derive(Clone, Debug, Deserialize)]
struct HeadPayload {
    sha: CommitSha,
    #[serde(rename = "ref")]
    branch: String,
    /// Absent where it was deleted.
    repo: Option<SourcePayload>,
}

/// What it is to be merged into.
#[derive(Clone, Debug, Deserialize)]
struct BasePayload {
    #[serde(rename = "ref")]
    branch: String,
    repo: SourcePayload,
}

/// The number stays when a repository is renamed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
struct SourcePayload {
    id: u64,
}

/// An account.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct AccountPayload {
    /// Its name.
    pub(super) login: String,
}

impl From<PullRequestPayload> for PullRequest {
    fn from(payload: PullRequestPayload) -> Self {
        let PullRequestPayload { head, base, .. } = payload;
        Self {
            number: payload.number,
            is_open: payload.state == OpenOrClosed::Open,
            is_draft: payload.draft,
            // A head whose repository is gone may have been anybody's.
            is_from_fork: head.repo != Some(base.repo),
            head: head.sha,
            head_branch: head.branch,
            base_branch: base.branch,
            author: payload.user.map_or_else(|| GHOST.to_owned(), |user| user.login),
            is_known_contributor: is_known(&payload.author_association),
            created_at: moment(payload.created_at),
            updated_at: moment(payload.updated_at),
            closed_at: payload.closed_at.map(moment),
        }
    }
}

/// Members and collaborators are trusted by the owner, contributors have commits in the repository.
/// `FIRST_TIME_CONTRIBUTOR` has none there yet, whatever its name says.
fn is_known(association: &str) -> bool {
    matches!(association, "OWNER" | "MEMBER" | "COLLABORATOR" | "CONTRIBUTOR")
}

/// A moment of GitHub's clock. What is before 1970 is its beginning.
pub(super) fn moment(at: jiff::Timestamp) -> Timestamp {
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
            "created_at": "1970-01-01T00:00:01Z",
            "updated_at": "1970-01-01T00:00:02Z",
            "closed_at": null,
        });
        change(&mut json);
        serde_json::from_value::<PullRequestPayload>(json).unwrap().into()
    }

    #[test]
    fn a_pull_request_is_read_as_github_writes_it() {
        let read = pull_request(|_| ());
        let expected = PullRequest {
            number: 7,
            is_open: true,
            is_draft: true,
            head: "c".repeat(40).parse().unwrap(),
            head_branch: "fix".to_owned(),
            is_from_fork: false,
            base_branch: "main".to_owned(),
            author: "alice".to_owned(),
            is_known_contributor: false,
            created_at: Timestamp(1_000),
            updated_at: Timestamp(2_000),
            closed_at: None,
        };
        assert_eq!(read, expected);
    }

    #[test]
    fn a_head_of_another_repository_or_of_none_is_a_forks() {
        assert!(pull_request(|it| it["head"]["repo"]["id"] = json!(2)).is_from_fork);
        assert!(pull_request(|it| it["head"]["repo"] = json!(null)).is_from_fork);
    }

    #[test]
    fn the_pull_request_of_a_deleted_account_is_read_too() {
        assert_eq!(pull_request(|it| it["user"] = json!(null)).author, "ghost");
    }

    #[test]
    fn people_whose_commits_or_membership_github_knows_are_known_contributors() {
        let of = |association: &str| {
            pull_request(|it| it["author_association"] = json!(association)).is_known_contributor
        };
        for known in ["OWNER", "MEMBER", "COLLABORATOR", "CONTRIBUTOR"] {
            assert!(of(known), "{known}");
        }
        for unknown in ["NONE", "FIRST_TIMER", "MANNEQUIN", ""] {
            assert!(!of(unknown), "{unknown}");
        }
    }

    #[test]
    fn a_repository_is_read_as_github_writes_it() {
        let json = json!({ "full_name": "acme/shop", "default_branch": "main", "private": true });
        let read: Repository = serde_json::from_value::<RepositoryPayload>(json).unwrap().into();
        let full_name = "acme/shop".parse().unwrap();
        let expected =
            Repository { full_name, default_branch: "main".to_owned(), is_private: true };
        assert_eq!(read, expected);
    }
}
