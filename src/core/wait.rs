//! A wait for something outside of core, of a run or a job.

use stagely_state::Timestamp;
use stagely_state::ids::{JobId, RunId};

/// Whose wait it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Waiter {
    Run(RunId),
    Job(JobId),
}

/// A wait for the next try.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wait {
    /// The error of the last try, or what takes long, for people.
    pub reason: String,
    /// When the first try failed, or when it was seen to take long.
    pub since: Timestamp,
    /// The tries that failed.
    pub tries: u32,
    /// `None` while a try is under way.
    pub retry_at: Option<Timestamp>,
    /// When the job fails if no try succeeds. `None` if it is not known.
    pub give_up_at: Option<Timestamp>,
}

impl Wait {
    /// The wait with times of day, for people: `since 12:00:03 UTC, next try at …, until …: no spot machine`.
    pub(crate) fn text(&self) -> String {
        let next = self.retry_at.map(|at| format!(", next try at {}", time_of_day(at)));
        let end = self.give_up_at.map(|at| format!(", until {}", time_of_day(at)));
        let (next, end) = (next.unwrap_or_default(), end.unwrap_or_default());
        format!("since {}{next}{end}: {}", time_of_day(self.since), self.reason)
    }
}

/// `12:00:03 UTC`.
fn time_of_day(at: Timestamp) -> String {
    let at = i64::try_from(at.0).ok().and_then(|at| jiff::Timestamp::from_millisecond(at).ok());
    at.map(|at| at.strftime("%H:%M:%S UTC").to_string()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_is_shown_with_its_times_and_its_reason() {
        let wait = Wait {
            reason: "no spot machine".to_owned(),
            since: Timestamp(1_700_000_000_000),
            tries: 2,
            retry_at: Some(Timestamp(1_700_000_030_000)),
            give_up_at: Some(Timestamp(1_700_003_600_000)),
        };
        let text =
            "since 22:13:20 UTC, next try at 22:13:50 UTC, until 23:13:20 UTC: no spot machine";
        assert_eq!(wait.text(), text);
        let tried = Wait { retry_at: None, give_up_at: None, ..wait };
        assert_eq!(tried.text(), "since 22:13:20 UTC: no spot machine");
    }
}
