//! What a webhook says, as far as core has use for it: the signature first, then the payload.

use hmac::{Hmac, KeyInit as _, Mac as _};
use secrecy::{ExposeSecret as _, SecretString};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use sha2::Sha256;
use stagely_protocol::CommitSha;
use stagely_state::{CommandKind, Timestamp};
use thiserror::Error;

use crate::core::github::payload::{
    AccountPayload, PullRequest, PullRequestPayload, Repository, RepositoryPayload, moment,
};

/// The word that a command begins with, at the start of a line.
const COMMAND: &str = "/stagely";

/// The fewest digits that name a commit.
const COMMIT_DIGITS_MIN: usize = 7;

/// The characters of a command that nobody knows that are said again.
const UNKNOWN_CHARS: usize = 60;

/// What a delivery says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hook {
    /// The webhook was set up.
    Ping,
    /// `pull_request` with the action `opened`, `reopened`, `ready_for_review` or `synchronize`.
    Head {
        /// The repository.
        repository: Repository,
        /// The pull request.
        pull_request: PullRequest,
        /// Whether commits were pushed; else it was opened.
        is_push: bool,
        /// The commit that it was at, if commits were pushed.
        before: Option<CommitSha>,
    },
    /// `pull_request` with the action `closed`, merged or not.
    Closed {
        /// The repository.
        repository: Repository,
        /// The pull request.
        pull_request: PullRequest,
    },
    /// `pull_request` with the action `labeled`.
    Labeled {
        /// The repository.
        repository: Repository,
        /// The pull request.
        pull_request: PullRequest,
        /// The label.
        label: String,
        /// Who attached it.
        sender: String,
    },
    /// `push` to the default branch.
    Push {
        /// The repository.
        repository: Repository,
        /// The commit that the branch is at.
        head: CommitSha,
        /// The commit that it was at.
        before: Option<CommitSha>,
        /// When, by GitHub's clock.
        at: Timestamp,
    },
    /// `issue_comment`: a new comment of a pull request with a command in it.
    Command {
        /// The repository.
        repository: Repository,
        /// The pull request.
        number: u64,
        /// The comment's id.
        comment: u64,
        /// Who wrote it.
        author: String,
        /// What is asked for; `Err`: it begins with `/stagely` and says nothing that is known.
        command: Result<CommandKind, String>,
        /// When it was written, by GitHub's clock.
        at: Timestamp,
    },
    /// Anything else, with the reason why core has no use for it, for people.
    Ignored(String),
}

/// The signature is missing or not that of the body.
#[derive(Debug, Error)]
#[error("the signature is not that of the body under the webhook's secret")]
pub struct BadSignature;

/// A payload that does not hold what its event must.
#[derive(Debug, Error)]
#[error("the payload of `{event}` cannot be read: {problem}")]
pub struct InvalidPayload {
    /// The event.
    pub event: String,
    /// What is missing or wrong, and where.
    pub problem: String,
}

/// Checks `X-Hub-Signature-256` in constant time.
///
/// # Errors
/// [`BadSignature`].
pub fn verify(
    secret: &SecretString,
    body: &[u8],
    signature: Option<&str>,
) -> Result<(), BadSignature> {
    let claimed = signature.and_then(|it| it.strip_prefix("sha256=")).and_then(digest_bytes);
    let claimed = claimed.ok_or(BadSignature)?;
    let secret = secret.expose_secret().as_bytes();
    let mut mac = Hmac::<Sha256>::new_from_slice(secret).expect("HMAC takes a key of any length");
    mac.update(body);
    mac.verify_slice(&claimed).map_err(|_| BadSignature)
}

/// The bytes of a SHA-256 in hexadecimal digits.
fn digest_bytes(hex: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    if hex.len() != 2 * bytes.len() || !hex.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return None;
    }
    for (index, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&hex[2 * index..2 * index + 2], 16).ok()?;
    }
    Some(bytes)
}

/// Reads the payload of `event`.
///
/// # Errors
/// [`InvalidPayload`].
pub fn parse(event: &str, body: &[u8]) -> Result<Hook, InvalidPayload> {
    let hook = match event {
        "ping" => Ok(Hook::Ping),
        "pull_request" => pull_request(body),
        "push" => push(body),
        "issue_comment" => issue_comment(body),
        _ => Ok(ignored("core has no use for this event")),
    };
    hook.map_err(|error| InvalidPayload { event: event.to_owned(), problem: error.to_string() })
}

fn ignored(reason: impl Into<String>) -> Hook {
    Hook::Ignored(reason.into())
}

/// What happened, in events that say so. The rest is read only where core has a use for it: a payload may
/// lack much where nothing happened that matters.
#[derive(Deserialize)]
struct ActionPayload {
    action: String,
}

/// `pull_request`.
#[derive(Deserialize)]
struct PullRequestEvent {
    repository: RepositoryPayload,
    pull_request: PullRequestPayload,
    sender: AccountPayload,
    /// With the action `synchronize`.
    before: Option<CommitSha>,
    /// With the action `labeled`.
    label: Option<LabelPayload>,
}

#[derive(Deserialize)]
struct LabelPayload {
    name: String,
}

fn pull_request(body: &[u8]) -> serde_json::Result<Hook> {
    let ActionPayload { action } = read(body)?;
    let used = ["opened", "reopened", "ready_for_review", "synchronize", "closed", "labeled"];
    if !used.contains(&&*action) {
        return Ok(ignored("core has no use for this action of a pull request"));
    }
    let event: PullRequestEvent = read(body)?;
    let (repository, pull_request) = (event.repository.into(), event.pull_request.into());
    Ok(match (&*action, event.label) {
        ("closed", _) => Hook::Closed { repository, pull_request },
        ("labeled", Some(label)) => {
            let (label, sender) = (label.name, event.sender.login);
            Hook::Labeled { repository, pull_request, label, sender }
        }
        // The label was deleted before GitHub wrote this.
        ("labeled", None) => ignored("it names no label"),
        _ => {
            let is_push = action == "synchronize";
            let before = event.before.filter(|_| is_push);
            Hook::Head { repository, pull_request, is_push, before }
        }
    })
}

/// `push`.
#[derive(Deserialize)]
struct PushEvent {
    repository: PushedRepository,
    #[serde(rename = "ref")]
    reference: String,
    before: String,
    after: String,
}

/// The repository, with the moment of the push. That of the commits is their author's.
#[derive(Deserialize)]
struct PushedRepository {
    #[serde(flatten)]
    repository: RepositoryPayload,
    pushed_at: Moment,
}

/// GitHub writes this one moment as seconds in some events and as text in others.
#[derive(Deserialize)]
#[serde(untagged)]
enum Moment {
    Seconds(u64),
    Text(jiff::Timestamp),
}

impl From<Moment> for Timestamp {
    fn from(at: Moment) -> Self {
        match at {
            Moment::Seconds(seconds) => Self(seconds.saturating_mul(1_000)),
            Moment::Text(at) => moment(at),
        }
    }
}

fn push(body: &[u8]) -> serde_json::Result<Hook> {
    let event: PushEvent = read(body)?;
    let repository: Repository = event.repository.repository.into();
    if event.reference.strip_prefix("refs/heads/") != Some(&*repository.default_branch) {
        return Ok(ignored("it is not a push to the default branch"));
    }
    let Some(head) = existing(&event.after) else { return Ok(ignored("the branch was deleted")) };
    let at = event.repository.pushed_at.into();
    Ok(Hook::Push { repository, head, before: existing(&event.before), at })
}

/// A commit; `None` for the zeros that stand for a branch that is not there.
fn existing(commit: &str) -> Option<CommitSha> {
    if commit.bytes().all(|digit| digit == b'0') { None } else { commit.parse().ok() }
}

/// `issue_comment`.
#[derive(Deserialize)]
struct CommentEvent {
    repository: RepositoryPayload,
    issue: IssuePayload,
    comment: CommentPayload,
}

#[derive(Deserialize)]
struct IssuePayload {
    number: u64,
    /// Present where it is a pull request.
    pull_request: Option<serde::de::IgnoredAny>,
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

fn issue_comment(body: &[u8]) -> serde_json::Result<Hook> {
    let ActionPayload { action } = read(body)?;
    if action != "created" {
        return Ok(ignored("only a new comment can hold a command"));
    }
    let CommentEvent { repository, issue, comment } = read(body)?;
    if issue.pull_request.is_none() {
        return Ok(ignored("it is a comment of an issue and of no pull request"));
    }
    let body = comment.body.as_deref().filter(|body| !body.starts_with(OWN_COMMENT));
    let Some(command) = body.and_then(command) else {
        return Ok(ignored("the comment holds no command"));
    };
    // A bot may quote what people wrote.
    let Some(author) = comment.user.filter(|user| user.kind != "Bot") else {
        return Ok(ignored("the comment is of nobody who may give commands"));
    };
    Ok(Hook::Command {
        repository: repository.into(),
        number: issue.number,
        comment: comment.id,
        author: author.login,
        command,
        at: moment(comment.created_at),
    })
}

/// What core's own comments begin with. With a person's token core writes as that person, who may approve
/// and cancel: what it says of commands must be none.
pub(in crate::core::github) const OWN_COMMENT: &str = "<!-- stagely ";

/// The command in the first line that begins with one; `None` where no line does. What is quoted as code is
/// said by nobody.
fn command(comment: &str) -> Option<Result<CommandKind, String>> {
    let mut is_code = false;
    let said = comment.lines().find_map(|line| {
        is_code ^= line.trim_start().starts_with("```");
        if is_code {
            return None;
        }
        let rest = line.strip_prefix(COMMAND)?;
        (rest.is_empty() || rest.starts_with(char::is_whitespace)).then_some(rest)
    })?;
    let words: Vec<String> = said.split_whitespace().map(str::to_ascii_lowercase).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    Some(match words[..] {
        ["rebuild"] => Ok(CommandKind::Rebuild { failed_only: false }),
        ["rebuild", "failed"] => Ok(CommandKind::Rebuild { failed_only: true }),
        ["cancel"] => Ok(CommandKind::Cancel),
        ["approve"] => Ok(CommandKind::Approve { commit: None }),
        ["approve", commit] if is_commit(commit) => {
            Ok(CommandKind::Approve { commit: Some(commit.to_owned()) })
        }
        _ => {
            let said: String = said.trim().chars().take(UNKNOWN_CHARS).collect();
            Err(format!(
                "{said:?} is no command; there are `/stagely rebuild`, `/stagely rebuild failed`, \
                 `/stagely cancel` and `/stagely approve`, with a commit's first {COMMIT_DIGITS_MIN} \
                 digits or more"
            ))
        }
    })
}

fn is_commit(text: &str) -> bool {
    (COMMIT_DIGITS_MIN..=40).contains(&text.len())
        && text.bytes().all(|digit| digit.is_ascii_hexdigit())
}

/// Reads JSON. Nesting is limited by `serde_json`, length by whoever took the body.
fn read<T: DeserializeOwned>(body: &[u8]) -> serde_json::Result<T> {
    serde_json::from_slice(body)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

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

    fn read(event: &str, payload: &Value) -> Hook {
        parse(event, payload.to_string().as_bytes()).unwrap()
    }

    fn is_ignored(event: &str, payload: &Value) -> bool {
        matches!(read(event, payload), Hook::Ignored(_))
    }

    #[test]
    fn the_signature_of_githubs_documentation_is_good_and_no_other() {
        // https://docs.github.com/en/webhooks/using-webhooks/validating-webhook-deliveries
        let secret = SecretString::from("It's a Secret to Everybody");
        let good = "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17";
        let body = b"Hello, World!";
        verify(&secret, body, Some(good)).unwrap();
        let capitals = good.to_ascii_uppercase().replace("SHA256", "sha256");
        verify(&secret, body, Some(&capitals)).unwrap();
        let other = SecretString::from("another");
        assert!(verify(&other, body, Some(good)).is_err());
        assert!(verify(&secret, b"Hello, World", Some(good)).is_err());
        let longer = format!("{good}00");
        let unlike = ["", "sha256=", "sha1=00", &good[7..], &good[..70], &longer, "sha256=é"];
        for signature in unlike {
            assert!(verify(&secret, body, Some(signature)).is_err(), "{signature}");
        }
        assert!(verify(&secret, body, None).is_err());
    }

    #[test]
    fn a_pull_request_is_at_its_head_and_says_who_pushed_what_over() {
        for (action, is_push) in [
            ("opened", false),
            ("reopened", false),
            ("ready_for_review", false),
            ("synchronize", true),
        ] {
            let mut payload = pull_request_event(action);
            payload["before"] = json!(sha('a'));
            let Hook::Head { repository, pull_request, is_push: pushed, before } =
                read("pull_request", &payload)
            else {
                panic!("{action}")
            };
            assert!(repository.full_name.is("Acme/Shop") && repository.is_private);
            assert_eq!((pull_request.head.as_str(), pull_request.is_from_fork), (&*sha('b'), true));
            assert_eq!(pushed, is_push);
            assert_eq!(before.map(|it| it.to_string()), is_push.then(|| sha('a')));
        }
    }

    #[test]
    fn what_else_happens_to_pull_requests_is_told_apart() {
        let closed = read("pull_request", &pull_request_event("closed"));
        assert!(matches!(closed, Hook::Closed { .. }), "{closed:?}");
        let mut payload = pull_request_event("labeled");
        assert!(is_ignored("pull_request", &payload));
        payload["label"] = json!({ "name": "stagely-approve" });
        let Hook::Labeled { label, sender, .. } = read("pull_request", &payload) else { panic!() };
        assert_eq!((&*label, &*sender), ("stagely-approve", "bob"));
        assert!(is_ignored("pull_request", &json!({ "action": "edited" })));
        assert!(is_ignored("star", &json!({})));
        assert_eq!(read("ping", &json!({ "zen": "Keep it logically awesome." })), Hook::Ping);
    }

    #[test]
    fn only_a_push_of_commits_to_the_default_branch_counts() {
        let Hook::Push { head, before, at, .. } = read("push", &push_event()) else { panic!() };
        assert_eq!((head.to_string(), before.unwrap().to_string()), (sha('b'), sha('a')));
        assert_eq!(at, Timestamp(1_795_000_000_000));

        let changed = |key: &str, value: Value| {
            let mut payload = push_event();
            payload[key] = value;
            payload
        };
        assert!(is_ignored("push", &changed("ref", json!("refs/heads/feature"))));
        assert!(is_ignored("push", &changed("ref", json!("refs/tags/main"))));
        assert!(is_ignored("push", &changed("after", json!(sha('0')))));
        let new = read("push", &changed("before", json!(sha('0'))));
        assert!(matches!(new, Hook::Push { before: None, .. }), "{new:?}");
        let mut text = push_event();
        text["repository"]["pushed_at"] = json!("2026-11-18T14:13:20Z");
        let Hook::Push { at, .. } = read("push", &text) else { panic!() };
        assert_eq!(at.0 % 60_000, 20_000);
    }

    #[test]
    fn a_comment_commands_by_its_first_line_that_begins_so() {
        let said = |body: &str| match read("issue_comment", &comment_event(body)) {
            Hook::Command { command, number: 7, comment: 3, .. } => Some(command),
            Hook::Ignored(_) => None,
            other => panic!("{other:?}"),
        };
        let known = |body: &str| said(body).unwrap().unwrap();
        assert_eq!(known("/stagely rebuild"), CommandKind::Rebuild { failed_only: false });
        assert_eq!(
            known("Hm.\r\n/stagely  Rebuild failed \r\n/stagely cancel"),
            CommandKind::Rebuild { failed_only: true }
        );
        assert_eq!(known("/stagely cancel"), CommandKind::Cancel);
        assert_eq!(known("/stagely approve"), CommandKind::Approve { commit: None });
        let commit = Some("abcdef0".to_owned());
        assert_eq!(known("/stagely approve ABCDEF0"), CommandKind::Approve { commit });
        for unknown in
            ["/stagely", "/stagely dance", "/stagely approve abc", "/stagely approve main-1"]
        {
            let error = said(unknown).unwrap().unwrap_err();
            assert!(error.contains("`/stagely rebuild`"), "{error}");
        }
        for none in ["", "Please /stagely rebuild", "> /stagely cancel", "/stagelyx cancel"] {
            assert_eq!(said(none), None, "{none}");
        }
    }

    #[test]
    fn no_comment_of_a_bot_or_an_issue_commands_nor_one_that_was_edited() {
        let with = |change: fn(&mut Value)| {
            let mut payload = comment_event("/stagely cancel");
            change(&mut payload);
            payload
        };
        for change in [
            (|it| it["comment"]["user"]["type"] = json!("Bot")) as fn(&mut Value),
            |it| it["comment"]["user"] = json!(null),
            |it| it["comment"]["body"] = json!(null),
            |it| it["comment"]["body"] = json!("<!-- stagely env_1 -->\n/stagely approve 1a2b3c4"),
            |it| it["comment"]["body"] = json!("Write\n```text\n/stagely cancel\n```\n"),
            |it| it["issue"]["pull_request"] = json!(null),
            |it| it["action"] = json!("edited"),
        ] {
            assert!(is_ignored("issue_comment", &with(change)));
        }
    }

    #[test]
    fn what_is_missing_is_named() {
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
    fn json_without_end_of_its_depth_is_refused() {
        let deep = format!("{{\"action\":\"opened\",\"x\":{}", "[".repeat(1_000_000));
        assert!(parse("pull_request", deep.as_bytes()).is_err());
    }

    proptest! {
        #[test]
        fn garbage_is_refused_and_nothing_worse(
            event in "pull_request|push|issue_comment|ping|[a-z_]{0,12}",
            body in prop::collection::vec(any::<u8>(), 0..256),
        ) {
            let _ = parse(&event, &body);
        }

        #[test]
        fn a_payload_with_a_piece_changed_is_read_or_refused(at in 0_usize..400, byte: u8) {
            let payloads = [
                ("pull_request", pull_request_event("synchronize")),
                ("push", push_event()),
                ("issue_comment", comment_event("/stagely approve abcdef0")),
            ];
            for (event, payload) in payloads {
                let mut body = payload.to_string().into_bytes();
                let at = at % body.len();
                body[at] = byte;
                let _ = parse(event, &body);
                let _ = parse(event, &body[..at]);
            }
        }

        #[test]
        fn whatever_a_signature_is_it_is_only_bad(body: Vec<u8>, signature in "\\PC{0,80}") {
            prop_assert!(verify(&SecretString::from("x"), &body, Some(&signature)).is_err());
        }

        #[test]
        fn any_comment_is_read(text in "(/stagely)?\\PC{0,80}") {
            let _ = command(&text);
        }
    }
}
