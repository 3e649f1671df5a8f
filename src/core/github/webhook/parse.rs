//! Reads the payload of a delivery.

use serde::Deserialize;
use serde::de::{DeserializeOwned, IgnoredAny};
use stagely_protocol::CommitSha;
use stagely_state::Timestamp;

use super::command;
use super::event::{InvalidPayload, Irrelevant, WebhookEvent};
use crate::core::github::Repository;
use crate::core::github::payload::{
    AccountPayload, LabelPayload, PullRequestPayload, RepositoryPayload, timestamp,
};

/// Reads the payload of `event`.
///
/// # Errors
/// [`InvalidPayload`].
pub(crate) fn parse(event: &str, body: &[u8]) -> Result<WebhookEvent, InvalidPayload> {
    let parsed = match event {
        "ping" => Ok(WebhookEvent::Ping),
        "pull_request" => pull_request(body),
        "push" => push(body),
        "issue_comment" => issue_comment(body),
        _ => Ok(WebhookEvent::Irrelevant(Irrelevant::Event)),
    };
    parsed.map_err(|error| InvalidPayload { event: event.to_owned(), problem: error.to_string() })
}

/// The action of an event. The rest of the payload is read only if core uses the action, because the payloads
/// of other actions may lack fields.
#[derive(Deserialize)]
struct ActionPayload {
    action: String,
}

/// The event `pull_request`.
#[derive(Deserialize)]
struct PullRequestEvent {
    repository: RepositoryPayload,
    pull_request: PullRequestPayload,
    sender: AccountPayload,
    /// With the action `synchronize`.
    before: Option<CommitSha>,
    /// With the actions `labeled` and `unlabeled`.
    label: Option<LabelPayload>,
}

fn pull_request(body: &[u8]) -> serde_json::Result<WebhookEvent> {
    let ActionPayload { action } = read(body)?;
    let used =
        ["opened", "reopened", "ready_for_review", "synchronize", "closed", "labeled", "unlabeled"];
    if !used.contains(&&*action) {
        return Ok(WebhookEvent::Irrelevant(Irrelevant::Action));
    }
    let event: PullRequestEvent = read(body)?;
    let (repository, pull_request) = (event.repository.into(), event.pull_request.into());
    Ok(match (&*action, event.label) {
        ("closed", _) => WebhookEvent::PullRequestClosed { repository, pull_request },
        ("labeled", Some(label)) => {
            let (label, sender) = (label.name, event.sender.login);
            WebhookEvent::Labeled { repository, pull_request, label, sender }
        }
        ("unlabeled", Some(label)) => {
            WebhookEvent::Unlabeled { repository, pull_request, label: label.name }
        }
        ("labeled" | "unlabeled", None) => WebhookEvent::Irrelevant(Irrelevant::NoLabel),
        _ => {
            let is_push = action == "synchronize";
            let before = event.before.filter(|_| is_push);
            WebhookEvent::HeadMoved { repository, pull_request, is_push, before }
        }
    })
}

/// The event `push`.
#[derive(Deserialize)]
struct PushEvent {
    repository: PushedRepository,
    #[serde(rename = "ref")]
    reference: String,
    before: String,
    after: String,
}

/// The repository, with the time of the push. The times of the commits come from their authors' clocks.
#[derive(Deserialize)]
struct PushedRepository {
    #[serde(flatten)]
    repository: RepositoryPayload,
    pushed_at: PushTime,
}

/// GitHub writes this time as seconds in some events and as text in others.
#[derive(Deserialize)]
#[serde(untagged)]
enum PushTime {
    Seconds(u64),
    Text(jiff::Timestamp),
}

impl From<PushTime> for Timestamp {
    fn from(at: PushTime) -> Self {
        match at {
            PushTime::Seconds(seconds) => Self(seconds.saturating_mul(1_000)),
            PushTime::Text(at) => timestamp(at),
        }
    }
}

fn push(body: &[u8]) -> serde_json::Result<WebhookEvent> {
    let event: PushEvent = read(body)?;
    let repository: Repository = event.repository.repository.into();
    if event.reference.strip_prefix("refs/heads/") != Some(&*repository.default_branch) {
        return Ok(WebhookEvent::Irrelevant(Irrelevant::OtherBranch));
    }
    let Some(head) = existing(&event.after) else {
        return Ok(WebhookEvent::Irrelevant(Irrelevant::BranchDeleted));
    };
    let at = event.repository.pushed_at.into();
    Ok(WebhookEvent::BranchPushed { repository, head, before: existing(&event.before), at })
}

/// A commit; `None` for zeros, by which GitHub says that the branch does not exist.
fn existing(commit: &str) -> Option<CommitSha> {
    if commit.bytes().all(|digit| digit == b'0') { None } else { commit.parse().ok() }
}

/// The event `issue_comment`.
#[derive(Deserialize)]
struct CommentEvent {
    repository: RepositoryPayload,
    issue: IssuePayload,
    comment: CommentPayload,
}

#[derive(Deserialize)]
struct IssuePayload {
    number: u64,
    /// Present if the issue is a pull request.
    pull_request: Option<IgnoredAny>,
}

#[derive(Deserialize)]
struct CommentPayload {
    id: u64,
    body: Option<String>,
    user: Option<AuthorPayload>,
    created_at: jiff::Timestamp,
}

#[derive(Deserialize)]
struct AuthorPayload {
    login: String,
    #[serde(default, rename = "type")]
    kind: String,
}

fn issue_comment(body: &[u8]) -> serde_json::Result<WebhookEvent> {
    let ActionPayload { action } = read(body)?;
    if action != "created" {
        return Ok(WebhookEvent::Irrelevant(Irrelevant::CommentChanged));
    }
    let CommentEvent { repository, issue, comment } = read(body)?;
    if issue.pull_request.is_none() {
        return Ok(WebhookEvent::Irrelevant(Irrelevant::IssueComment));
    }
    let Some(command) = comment.body.as_deref().and_then(command::read) else {
        return Ok(WebhookEvent::Irrelevant(Irrelevant::NoCommand));
    };
    // A bot may quote what people wrote.
    let Some(author) = comment.user.filter(|user| user.kind != "Bot") else {
        return Ok(WebhookEvent::Irrelevant(Irrelevant::NoPerson));
    };
    Ok(WebhookEvent::Commanded {
        repository: repository.into(),
        number: issue.number,
        comment: comment.id,
        author: author.login,
        command,
        at: timestamp(comment.created_at),
    })
}

/// Reads JSON. `serde_json` limits its nesting, and the receiver of the body its length.
fn read<T: DeserializeOwned>(body: &[u8]) -> serde_json::Result<T> {
    serde_json::from_slice(body)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};
    use stagely_state::CommandKind;

    use super::*;

    fn sha(digit: char) -> String {
        String::from(digit).repeat(40)
    }

    fn repository() -> Value {
        json!({ "full_name": "acme/shop", "default_branch": "main", "private": true })
    }

    fn pull_request_event(action: &str) -> Value {
        json!({
            "action": action,
            "repository": repository(),
            "sender": { "login": "bob" },
            "pull_request": {
                "number": 7, "state": "open", "draft": false,
                "head": { "sha": sha('b'), "ref": "fix", "repo": { "id": 2 } },
                "base": { "ref": "main", "repo": { "id": 1 } },
                "user": { "login": "alice" },
                "author_association": "NONE",
                "created_at": "2026-11-24T11:00:00Z",
                "updated_at": "2026-11-24T12:00:00Z",
            },
        })
    }

    fn push_event() -> Value {
        let mut repository = repository();
        repository["pushed_at"] = json!(1_795_000_000);
        json!({ "ref": "refs/heads/main", "before": sha('a'), "after": sha('b'), "repository": repository })
    }

    fn comment_event(body: &str) -> Value {
        json!({
            "action": "created",
            "repository": repository(),
            "issue": { "number": 7, "pull_request": { "url": "https://api/pulls/7" } },
            "comment": {
                "id": 3, "body": body, "user": { "login": "carol", "type": "User" },
                "created_at": "2026-11-24T12:00:00Z",
            },
        })
    }

    fn read(event: &str, payload: &Value) -> WebhookEvent {
        parse(event, payload.to_string().as_bytes()).unwrap()
    }

    fn is_irrelevant(event: &str, payload: &Value) -> bool {
        matches!(read(event, payload), WebhookEvent::Irrelevant(_))
    }

    #[test]
    fn a_pull_request_has_its_head_and_the_commit_before_a_push() {
        for (action, is_push) in [
            ("opened", false),
            ("reopened", false),
            ("ready_for_review", false),
            ("synchronize", true),
        ] {
            let mut payload = pull_request_event(action);
            payload["before"] = json!(sha('a'));
            let WebhookEvent::HeadMoved { repository, pull_request, is_push: pushed, before } =
                read("pull_request", &payload)
            else {
                panic!("{action}")
            };
            assert!(repository.full_name.is("Acme/Shop") && repository.is_private);
            assert_eq!((pull_request.head.as_str(), pull_request.is_from_fork), (&*sha('b'), true));
            assert_eq!(pushed, is_push);
            assert_eq!(before.map(|commit| commit.to_string()), is_push.then(|| sha('a')));
        }
    }

    #[test]
    fn other_events_of_pull_requests_are_distinguished() {
        let closed = read("pull_request", &pull_request_event("closed"));
        assert!(matches!(closed, WebhookEvent::PullRequestClosed { .. }), "{closed:?}");
        let mut payload = pull_request_event("labeled");
        assert!(is_irrelevant("pull_request", &payload));
        payload["label"] = json!({ "name": "stagely-approve" });
        let WebhookEvent::Labeled { label, sender, .. } = read("pull_request", &payload) else {
            panic!()
        };
        assert_eq!((&*label, &*sender), ("stagely-approve", "bob"));
        let mut payload = pull_request_event("unlabeled");
        assert!(is_irrelevant("pull_request", &payload));
        payload["label"] = json!({ "name": "stagely-preview" });
        payload["pull_request"]["labels"] = json!([{ "name": "bug" }]);
        let WebhookEvent::Unlabeled { label, pull_request, .. } = read("pull_request", &payload)
        else {
            panic!()
        };
        assert_eq!((&*label, pull_request.labels), ("stagely-preview", vec!["bug".to_owned()]));
        assert!(is_irrelevant("pull_request", &json!({ "action": "edited" })));
        assert!(is_irrelevant("star", &json!({})));
        assert_eq!(
            read("ping", &json!({ "zen": "Keep it logically awesome." })),
            WebhookEvent::Ping
        );
    }

    #[test]
    fn only_a_push_of_commits_to_the_default_branch_is_used() {
        let WebhookEvent::BranchPushed { head, before, at, .. } = read("push", &push_event())
        else {
            panic!()
        };
        assert_eq!((head.to_string(), before.unwrap().to_string()), (sha('b'), sha('a')));
        assert_eq!(at, Timestamp(1_795_000_000_000));

        let changed = |key: &str, value: Value| {
            let mut payload = push_event();
            payload[key] = value;
            payload
        };
        assert!(is_irrelevant("push", &changed("ref", json!("refs/heads/feature"))));
        assert!(is_irrelevant("push", &changed("ref", json!("refs/tags/main"))));
        assert!(is_irrelevant("push", &changed("after", json!(sha('0')))));
        let new = read("push", &changed("before", json!(sha('0'))));
        assert!(matches!(new, WebhookEvent::BranchPushed { before: None, .. }), "{new:?}");
        let mut text = push_event();
        text["repository"]["pushed_at"] = json!("2026-11-18T14:13:20Z");
        let WebhookEvent::BranchPushed { at, .. } = read("push", &text) else { panic!() };
        assert_eq!(at.0 % 60_000, 20_000);
    }

    #[test]
    fn a_comment_with_a_command_names_its_pull_request_and_its_author() {
        let WebhookEvent::Commanded { number, comment, author, command, at, .. } =
            read("issue_comment", &comment_event("/stagely cancel"))
        else {
            panic!()
        };
        assert_eq!((number, comment, &*author), (7, 3, "carol"));
        assert_eq!(command, Ok(CommandKind::Cancel));
        assert_eq!(at.0 % 60_000, 0);
        let unknown = read("issue_comment", &comment_event("/stagely dance"));
        assert!(matches!(unknown, WebhookEvent::Commanded { command: Err(_), .. }), "{unknown:?}");
        assert!(is_irrelevant("issue_comment", &comment_event("Please /stagely rebuild")));
    }

    #[test]
    fn comments_of_bots_or_issues_and_edited_comments_hold_no_command() {
        let with = |change: fn(&mut Value)| {
            let mut payload = comment_event("/stagely cancel");
            change(&mut payload);
            payload
        };
        for change in [
            (|json| json["comment"]["user"]["type"] = json!("Bot")) as fn(&mut Value),
            |json| json["comment"]["user"] = json!(null),
            |json| json["comment"]["body"] = json!(null),
            |json| {
                json["comment"]["body"] = json!("<!-- stagely env_1 -->\n/stagely approve 1a2b3c4");
            },
            |json| json["comment"]["body"] = json!("Write\n```text\n/stagely cancel\n```\n"),
            |json| json["issue"]["pull_request"] = json!(null),
            |json| json["action"] = json!("edited"),
        ] {
            assert!(is_irrelevant("issue_comment", &with(change)));
        }
    }

    #[test]
    fn a_missing_field_is_named_in_the_error() {
        for (event, payload) in [
            ("pull_request", pull_request_event("opened")),
            ("push", push_event()),
            ("issue_comment", comment_event("/stagely cancel")),
        ] {
            let mut payload = payload;
            payload.as_object_mut().unwrap().remove("repository");
            let error = parse(event, payload.to_string().as_bytes()).unwrap_err().to_string();
            assert!(error.contains(event) && error.contains("`repository`"), "{error}");
        }
    }

    #[test]
    fn json_that_nests_too_deeply_is_refused() {
        let deep = format!("{{\"action\":\"opened\",\"x\":{}", "[".repeat(1_000_000));
        assert!(parse("pull_request", deep.as_bytes()).is_err());
    }

    proptest! {
        #[test]
        fn garbage_is_refused_without_a_panic(
            event in "pull_request|push|issue_comment|ping|[a-z_]{0,12}",
            body in prop::collection::vec(any::<u8>(), 0..256),
        ) {
            let _ = parse(&event, &body);
        }

        #[test]
        fn a_damaged_payload_is_read_or_refused_without_a_panic(
            at: prop::sample::Index,
            byte: u8,
            length in 0..40_usize,
            token in "null|-1|1e999|18446744073709551616|\"\"|\\[|\\{|\\}|,|:|\"|\\\\ud800|[a-z]{1,9}",
        ) {
            let payloads = [
                ("pull_request", pull_request_event("synchronize")),
                ("push", push_event()),
                ("issue_comment", comment_event("/stagely approve abcdef0")),
            ];
            for (event, payload) in payloads {
                let mut body = payload.to_string().into_bytes();
                let at = at.index(body.len());
                let end = body.len().min(at + length);
                let spliced = [&body[..at], token.as_bytes(), &body[end..]].concat();
                let _ = parse(event, &spliced);
                let _ = parse(event, &body[..at]);
                body[at] = byte;
                let _ = parse(event, &body);
            }
        }
    }
}
