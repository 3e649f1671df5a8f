//! Commands in comments: `/stagely` at the start of a line.

use std::time::Duration;

use stagely_state::{CommandKind, PreviewCommand};
use thiserror::Error;

const COMMAND: &str = "/stagely";

/// The fewest digits that name a commit.
const COMMIT_DIGITS_MIN: usize = 7;

/// The characters of an unknown command that its error repeats.
const UNKNOWN_CHARS_MAX: usize = 60;

/// The start of core's own comments. With a person's token core writes as that person, who may approve and
/// cancel, so its comments must never count as commands.
pub(crate) const OWN_COMMENT: &str = "<!-- stagely ";

/// A line that begins with `/stagely` and is none of the commands.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error(
    "{0:?} is no command; there are `/stagely rebuild`, `/stagely rebuild failed`, `/stagely test`, \
     `/stagely cancel`, `/stagely approve`, with a commit's first {COMMIT_DIGITS_MIN} digits or more, and `/stagely preview`, alone \
     or with `stop`, `sleep`, `reset` or `extend 3d`"
)]
pub(crate) struct UnknownCommand(String);

impl UnknownCommand {
    pub(crate) fn of(arguments: &str) -> Self {
        Self(arguments.trim().chars().take(UNKNOWN_CHARS_MAX).collect())
    }
}

/// Reads the first line of `comment` that begins with a command; `None` if no line does. Blocks of code are
/// skipped, because people quote in them.
pub(super) fn read(comment: &str) -> Option<Result<CommandKind, UnknownCommand>> {
    if comment.starts_with(OWN_COMMENT) {
        return None;
    }
    let mut is_code = false;
    let arguments = comment.lines().find_map(|line| {
        is_code ^= line.trim_start().starts_with("```");
        if is_code {
            return None;
        }
        let rest = line.strip_prefix(COMMAND)?;
        (rest.is_empty() || rest.starts_with(char::is_whitespace)).then_some(rest)
    })?;
    let words: Vec<String> = arguments.split_whitespace().map(str::to_ascii_lowercase).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let preview = |action| Ok(CommandKind::Preview { action });
    Some(match words[..] {
        ["rebuild"] => Ok(CommandKind::Rebuild { failed_only: false }),
        ["rebuild", "failed"] => Ok(CommandKind::Rebuild { failed_only: true }),
        ["test"] => Ok(CommandKind::Test),
        ["cancel"] => Ok(CommandKind::Cancel),
        ["approve"] => Ok(CommandKind::Approve { commit: None }),
        ["approve", commit] if is_commit(commit) => {
            Ok(CommandKind::Approve { commit: Some(commit.to_owned()) })
        }
        ["preview"] => preview(PreviewCommand::Start),
        ["preview", "stop"] => preview(PreviewCommand::Stop),
        ["preview", "sleep"] => preview(PreviewCommand::Sleep),
        ["preview", "reset"] => preview(PreviewCommand::Reset),
        ["preview", "extend", ref time @ ..] if let Some(by) = extension(&time.concat()) => {
            preview(PreviewCommand::Extend { by })
        }
        _ => Err(UnknownCommand::of(arguments)),
    })
}

/// A time such as `3d` or `12h`.
fn extension(text: &str) -> Option<Duration> {
    humantime::parse_duration(text).ok().filter(|time| time.as_secs() > 0)
}

fn is_commit(text: &str) -> bool {
    (COMMIT_DIGITS_MIN..=40).contains(&text.len())
        && text.bytes().all(|digit| digit.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_first_line_that_begins_with_a_command_counts() {
        let known = |comment: &str| read(comment).unwrap().unwrap();
        assert_eq!(known("/stagely rebuild"), CommandKind::Rebuild { failed_only: false });
        assert_eq!(
            known("Hm.\r\n/stagely  Rebuild failed \r\n/stagely cancel"),
            CommandKind::Rebuild { failed_only: true }
        );
        assert_eq!(known("/stagely test"), CommandKind::Test);
        assert_eq!(known("/stagely cancel"), CommandKind::Cancel);
        assert_eq!(known("/stagely approve"), CommandKind::Approve { commit: None });
        let commit = Some("abcdef0".to_owned());
        assert_eq!(known("/stagely approve ABCDEF0"), CommandKind::Approve { commit });
        let preview = |action| CommandKind::Preview { action };
        assert_eq!(known("/stagely preview"), preview(PreviewCommand::Start));
        assert_eq!(known("/stagely preview stop"), preview(PreviewCommand::Stop));
        assert_eq!(known("/stagely preview sleep"), preview(PreviewCommand::Sleep));
        assert_eq!(known("/stagely preview reset"), preview(PreviewCommand::Reset));
        for (time, hours) in [("3d", 72), ("3 days", 72), ("36h", 36), ("1d 12h", 36)] {
            let by = Duration::from_hours(hours);
            let command = format!("/stagely preview extend {time}");
            assert_eq!(known(&command), preview(PreviewCommand::Extend { by }));
        }
        for unknown in [
            "/stagely",
            "/stagely dance",
            "/stagely approve abc",
            "/stagely approve main-1",
            "/stagely preview now",
            "/stagely preview extend",
            "/stagely preview extend 3",
            "/stagely preview extend 0d",
            "/stagely preview extend soon",
        ] {
            let error = read(unknown).unwrap().unwrap_err().to_string();
            assert!(error.contains("`/stagely rebuild`"), "{error}");
        }
        for none in ["", "Please /stagely rebuild", "> /stagely cancel", "/stagelyx cancel"] {
            assert_eq!(read(none), None, "{none}");
        }
    }

    #[test]
    fn core_own_comments_and_blocks_of_code_hold_no_command() {
        for none in [
            "<!-- stagely env_1 -->\n/stagely approve 1a2b3c4",
            "Write\n```text\n/stagely cancel\n```\n",
        ] {
            assert_eq!(read(none), None, "{none}");
        }
    }

    proptest! {
        #[test]
        fn any_comment_is_read(comment in "(/stagely)?\\PC{0,80}") {
            let _ = read(&comment);
        }
    }
}
