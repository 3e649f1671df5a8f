//! Compares the pull requests of the records with a list of GitHub's.

use std::collections::{BTreeMap, BTreeSet};

use stagely_protocol::CommitSha;
use stagely_state::ids::EnvironmentId;

use crate::core::github::PullRequest;

/// A pull request as the records have it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct KnownPullRequest {
    pub(super) environment: EnvironmentId,
    /// `None` if no delivery and no list contained it.
    pub(super) head: Option<CommitSha>,
    pub(super) is_closed: bool,
}

impl KnownPullRequest {
    pub(super) fn open_head(&self) -> Option<CommitSha> {
        self.head.clone().filter(|_| !self.is_closed)
    }
}

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Differences<'a> {
    /// Listed pull requests that the records lack, or have at another commit, or as closed.
    pub(super) moved: Vec<&'a PullRequest>,
    /// Numbers of pull requests that are open in the records and not in the list.
    pub(super) missing: Vec<u64>,
}

/// Compares `known`, which must be read before the list is asked for, with the list.
pub(super) fn differences<'a>(
    known: &BTreeMap<u64, KnownPullRequest>,
    listed: &'a [PullRequest],
) -> Differences<'a> {
    let is_moved = |listed: &&PullRequest| {
        let head = known.get(&listed.number).and_then(KnownPullRequest::open_head);
        head.as_ref() != Some(&listed.head)
    };
    let numbers: BTreeSet<u64> = listed.iter().map(|listed| listed.number).collect();
    let open = known.iter().filter(|(_, pull_request)| !pull_request.is_closed);
    Differences {
        moved: listed.iter().filter(is_moved).collect(),
        missing: open
            .map(|(number, _)| *number)
            .filter(|number| !numbers.contains(number))
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::github::reconcile::fixtures::{commit, listed};

    fn known(number: u64, head: Option<&str>, is_closed: bool) -> (u64, KnownPullRequest) {
        let environment = EnvironmentId::from_bits(u128::from(number));
        (number, KnownPullRequest { environment, head: head.map(commit), is_closed })
    }

    #[test]
    fn new_heads_and_missing_pull_requests_are_the_differences() {
        let pull_requests = BTreeMap::from([
            known(1, Some("a"), false),
            known(2, Some("a"), false),
            known(3, Some("a"), true),
            known(4, None, false),
            known(5, Some("a"), false),
            known(6, Some("a"), true),
        ]);
        let list = [listed(1, "a"), listed(2, "b"), listed(3, "a"), listed(4, "a"), listed(7, "a")];

        let Differences { moved, missing } = differences(&pull_requests, &list);

        let moved: Vec<u64> = moved.iter().map(|pull_request| pull_request.number).collect();
        assert_eq!((moved, missing), (vec![2, 3, 4, 7], vec![5]));
    }
}
