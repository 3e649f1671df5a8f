//! Pull requests in lists, for tests.

use stagely_protocol::CommitSha;
use stagely_state::Timestamp;

use crate::core::github::{PullRequest, PullRequestState};

pub(super) fn commit(digit: &str) -> CommitSha {
    digit.repeat(40).parse().unwrap()
}

pub(super) fn listed(number: u64, head: &str) -> PullRequest {
    PullRequest {
        number,
        state: PullRequestState::Open,
        head: commit(head),
        head_branch: "fix".to_owned(),
        is_from_fork: false,
        base_branch: "main".to_owned(),
        author: "alice".to_owned(),
        is_known_contributor: false,
        labels: Vec::new(),
        created_at: Timestamp(1),
        updated_at: Timestamp(1),
        closed_at: None,
    }
}
