//! Lists, what is heard while they are made, and deliveries that failed.

use super::*;

fn commit(digit: &str) -> CommitSha {
    digit.repeat(40).parse().unwrap()
}

fn listed(number: u64, head: &str) -> PullRequest {
    PullRequest {
        number,
        is_open: true,
        is_draft: false,
        head: commit(head),
        head_branch: "fix".to_owned(),
        is_from_fork: false,
        base_branch: "main".to_owned(),
        author: "alice".to_owned(),
        is_known_contributor: false,
        created_at: Timestamp(1),
        updated_at: Timestamp(1),
        closed_at: None,
    }
}

fn believed(number: u64, head: Option<&str>, is_closed: bool) -> (u64, Believed) {
    let environment = EnvironmentId::from_bits(u128::from(number));
    (number, Believed { environment, head: head.map(commit), is_closed })
}

#[test]
fn what_differs_is_found_and_what_does_not_is_left_alone() {
    let known = BTreeMap::from([
        believed(1, Some("a"), false),
        believed(2, Some("a"), false),
        believed(3, Some("a"), true),
        believed(4, None, false),
        believed(5, Some("a"), false),
        believed(6, Some("a"), true),
    ]);
    let list = [listed(1, "a"), listed(2, "b"), listed(3, "a"), listed(4, "a"), listed(7, "a")];

    let Differences { moved, missing } = compare(&known, &list);

    let moved: Vec<u64> = moved.iter().map(|it| it.number).collect();
    assert_eq!((moved, missing), (vec![2, 3, 4, 7], vec![5]));
}
